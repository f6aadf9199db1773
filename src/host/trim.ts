/** fstrim(8), of a filesystem in another mount namespace as well. */
import { close, constants, open } from 'node:fs'
import { promisify } from 'node:util'
import { errnoOf, ThinfsError } from '../base/index.js'
import { native } from '../native.js'

const openLater = promisify(open)
const closeLater = promisify(close)

/** _IOWR('X', 121, struct fstrim_range): u64 start, len, minlen. Source: linux/fs.h. */
const FITRIM = 0xc018_5879
const FSTRIM_RANGE_SIZE = 24
const AT_LEN = 8

/**
 * Discards all that a filesystem does not use. fstrim(8) resolves its argument, and would end up in
 * this namespace with the path of a folder in another one (/proc/PID/root/…): hence the ioctl.
 * @param folder of the filesystem
 * @returns the bytes that it has discarded, by its own account
 * @throws TOOL_FAILED; NOT_SUPPORTED where the filesystem, or the device below it, does not discard
 */
export async function trimFilesystem(folder: string): Promise<number> {
  const range = Buffer.alloc(FSTRIM_RANGE_SIZE)
  range.fill(0xff, AT_LEN, AT_LEN + 8)
  try {
    // In another namespace anything may be there: opening a pipe would not end.
    const fd = await openLater(folder, constants.O_RDONLY | constants.O_DIRECTORY)
    try {
      await native.file_ioctl_async(fd, FITRIM, range)
    } finally {
      await closeLater(fd)
    }
  } catch (err) {
    const errno = errnoOf(err)
    const isUnable = errno === 'EOPNOTSUPP' || errno === 'ENOTTY'
    const unable = 'its filesystem, or the device below, has no discards'
    const detail = `${folder} cannot be trimmed: ${isUnable ? unable : (err as Error).message}`
    throw new ThinfsError(isUnable ? 'NOT_SUPPORTED' : 'TOOL_FAILED', detail, { cause: err, errno })
  }
  return Number(range.readBigUInt64LE(AT_LEN))
}
