import { ThinfsError } from '../base/index.js'

/** A server does not keep to the protocol: nothing that it says can be relied on. */
export const protocolError = (what: string): ThinfsError =>
  new ThinfsError('IO_ERROR', `the server does not keep to the NBD protocol: ${what}`, {
    errno: 'EPROTO',
  })

/** A server does not let this client in: nobody can tell whom it has let in instead. */
export function isTaken(what: string, cause?: unknown): ThinfsError {
  const one = 'another host has the disk'
  const other = 'it lets in fewer than the pool has disks (nbdkit --filter=limit limit=3)'
  const detail = `the server lets in no more clients, it ${what}: ${one}, or ${other}`
  return new ThinfsError('POOL_IN_USE', detail, { cause })
}

/** Whether an error is one that another connection would not mend. */
export const isFinal = (err: unknown): boolean =>
  err instanceof ThinfsError && (err.code === 'NOT_SUPPORTED' || err.errno === 'EPROTO')

/** The connection ended. */
export const connectionLost = (cause?: Error): ThinfsError =>
  cause instanceof ThinfsError
    ? cause
    : new ThinfsError('IO_ERROR', cause?.message ?? 'the server closed the connection', {
        cause,
        errno: 'ECONNRESET',
      })
