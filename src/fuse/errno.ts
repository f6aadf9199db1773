import { constants } from 'node:os'
import { errnoOf, ThinfsError } from '../base/index.js'

const NUMBERS: Readonly<Record<string, number>> = constants.errno

/**
 * The errno, a positive number, that an error of the FileSystem is answered with.
 * @returns null for what is neither a ThinfsError nor of a system call: a bug, which must not be
 *   answered, because whoever goes on after it may write
 */
export function errnoNumber(err: unknown): number | null {
  const code = (err as NodeJS.ErrnoException | null)?.code
  const isSystemError = typeof code === 'string' && code in NUMBERS
  if (!(err instanceof ThinfsError) && !isSystemError) return null
  return NUMBERS[errnoOf(err)] ?? constants.errno.EIO
}
