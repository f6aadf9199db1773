import { ThinfsError } from '../base/index.js'

/** A server does not keep to the protocol: nothing that it says can be relied on. */
export const protocolError = (what: string): ThinfsError =>
  new ThinfsError('IO_ERROR', `the server does not keep to the NBD protocol: ${what}`, {
    errno: 'EPROTO',
  })

/** A server does not let this client in. */
export const isTaken = (what: string, cause?: unknown): ThinfsError =>
  new ThinfsError('POOL_IN_USE', `the server ${what}: somebody else has the disk`, { cause })

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
