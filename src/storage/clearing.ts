/**
 * Whether a file system clears what it says that it clears.
 *
 * GlusterFS answers 0 to FALLOC_FL_ZERO_RANGE and does nothing; other network file systems clear
 * only whole objects of a range. The next owner of such a block would read what its last owner
 * wrote. The file systems that are known to be right are believed; any other one is tried, on a
 * file of its own beside the one in question.
 */
import { randomBytes } from 'node:crypto'
import {
  closeSync,
  constants,
  fstatSync,
  fsyncSync,
  openSync,
  readSync,
  rmSync,
  statfsSync,
} from 'node:fs'
import { dirname, join } from 'node:path'
import { FALLOC_KEEP_SIZE, heldPath, KIB } from '../base/index.js'
import { native } from '../native.js'
import { CLEARING } from './file-systems.js'

const SIZE = 1024 * KIB
/** Byte ranges that are cleared: small and large, at pages and anywhere. None touch each other. */
const RANGES: readonly (readonly [offset: number, length: number])[] = [
  [4 * KIB, 4 * KIB],
  [20_001, 5000],
  [64 * KIB, 64 * KIB],
  [250_001, 100_000],
  [512 * KIB, 256 * KIB],
]
const PATTERN = 0xa5

/**
 * Whether a mode of fallocate(2) leaves zeros, and nothing else changed, in any range of a file.
 * True as well where the mode is not supported: the first call that uses it finds that out. False
 * where it cannot be tried: in doubt zeros are written.
 * @param fd of a file that is open for writing; nothing of it is changed
 * @param mode FALLOC_FL_PUNCH_HOLE or FALLOC_FL_ZERO_RANGE
 */
export function clears(fd: number, path: string, mode: number): boolean {
  const { type } = statfsSync(heldPath(fd))
  if (CLEARING.includes(type)) return true
  const { O_RDWR, O_CREAT, O_EXCL, O_NOFOLLOW } = constants
  const trial = join(dirname(path), `.thinfs-trial-${randomBytes(8).toString('hex')}`)
  let file: number
  try {
    file = openSync(trial, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600)
  } catch {
    return false
  }
  try {
    // A file may be a mount of its own.
    return fstatSync(file).dev === fstatSync(fd).dev && leavesZeros(file, trial, mode)
  } catch (err) {
    return (err as NodeJS.ErrnoException).code === 'EOPNOTSUPP'
  } finally {
    closeSync(file)
    rmSync(trial, { force: true })
  }
}

function leavesZeros(fd: number, path: string, mode: number): boolean {
  const content = Buffer.alloc(SIZE, PATTERN)
  native.file_write(fd, content, 0, SIZE, 0)
  // Not in this host's cache alone: it is the server that is tried.
  fsyncSync(fd)
  for (const [offset, length] of RANGES) {
    native.file_allocate(fd, mode | FALLOC_KEEP_SIZE, offset, length)
    content.fill(0, offset, offset + length)
  }
  fsyncSync(fd)
  return readPastCache(fd, path).equals(content)
}

/** The file's content, from the server where the file system allows that. */
function readPastCache(fd: number, path: string): Buffer {
  const found = Buffer.alloc(SIZE, PATTERN)
  let direct: number
  try {
    direct = openSync(path, constants.O_RDONLY | constants.O_DIRECT)
  } catch {
    native.file_read(fd, found, 0, SIZE, 0)
    return found
  }
  try {
    if (readSync(direct, found, 0, SIZE, 0) === SIZE) return found
  } catch {
    // It wants another alignment of memory.
  } finally {
    closeSync(direct)
  }
  native.file_read(fd, found, 0, SIZE, 0)
  return found
}
