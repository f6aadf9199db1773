import { ThinfsError } from '../base/index.js'

/**
 * Errors after which nobody knows which writes will still land, or which say that the cluster takes
 * none of this client any more.
 */
const FINAL: Record<string, string> = {
  ESHUTDOWN: 'the cluster refuses this client (its blocklist has it): another host has the pool',
  ETIMEDOUT: 'the cluster has not answered in time',
}

/** Whether the client that met it is of no use any more. */
export const isFinal = ({ errno }: ThinfsError): boolean => errno in FINAL

/** The error of a call of native-shims/rbd.c. */
export function cephError(path: string, cause: unknown): ThinfsError {
  const { code = 'EIO', message } = cause as NodeJS.ErrnoException
  const more = FINAL[code]
  const detail = `${path}: ${message}${more === undefined ? '' : `: ${more}`}`
  return new ThinfsError('IO_ERROR', detail, { cause, errno: code })
}
