import { native } from '../native.js'

/**
 * Takes the whole file for the open file description behind `fd`, which must be writable.
 *
 * Unlike a process's lock it is inherited with the descriptor and lasts until the last copy of it is
 * closed. Source: fcntl(2), "Open file description locks".
 * @returns false when another one has it
 */
export function lockFile(fd: number): boolean {
  return native.file_lock(fd, true)
}
