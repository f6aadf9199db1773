import { FALLOC_KEEP_SIZE, isNoSpace } from '../base/index.js'
import { native } from '../native.js'

/**
 * Sets the space for the first `length` bytes of a file aside, so that writes to them find room on
 * a disk that is full.
 * @returns false when there is no room. A file system that sets nothing aside is none of ours to
 *   mend.
 */
export function reserveRoom(fd: number, length: number): boolean {
  try {
    native.file_allocate(fd, FALLOC_KEEP_SIZE, 0, length)
    return true
  } catch (err) {
    return !isNoSpace(err)
  }
}
