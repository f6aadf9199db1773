import { ThinfsError } from './errors.js'
import type { Later } from './later.js'

/** The process that waits for the answer to a request. It may get a signal meanwhile. */
export interface Requester {
  /**
   * Aborted when the requester has got a signal; the reason is what to fail the request with. A
   * request asks for it in the call itself, before it awaits anything: afterwards the object stands
   * for another request. Code that goes on after a wait passes `heldRequester` on.
   */
  signal(): AbortSignal
}

/** The requester whose signal that is, for as long as the request takes. */
export const heldRequester = (signal: AbortSignal | undefined): Requester | undefined =>
  signal && { signal: () => signal }

/** The error of a request that was only waiting when its requester got a signal. */
export const interrupted = (): ThinfsError =>
  new ThinfsError('CANCELLED', 'the caller got a signal while it waited', { errno: 'EINTR' })

/**
 * Waits no longer than the requester does; what is waited for goes on.
 * @throws the signal's reason
 */
export async function unlessAborted<T>(
  wait: Later<T>,
  signal: AbortSignal | undefined,
): Promise<T> {
  if (signal === undefined) return wait
  let onAbort = (): void => {}
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => reject(signal.reason)
    signal.addEventListener('abort', onAbort)
    if (signal.aborted) onAbort()
  })
  try {
    return await Promise.race([aborted, wait])
  } finally {
    signal.removeEventListener('abort', onAbort)
  }
}
