/**
 * Numbers of Linux's calls that Node does not name, and which Linux this is. Source:
 * linux/falloc.h, linux/fs.h.
 */
import { release } from 'node:os'

/** @param version major and minor */
export function isLinuxSince([wantedMajor, wantedMinor]: readonly [number, number]): boolean {
  const [major = 0, minor = 0] = release()
    .split('.')
    .map(part => Number.parseInt(part, 10))
  return major > wantedMajor || (major === wantedMajor && minor >= wantedMinor)
}

// Modes of fallocate(2). The kernel takes PUNCH_HOLE with KEEP_SIZE alone.
export const FALLOC_KEEP_SIZE = 0x01
export const FALLOC_PUNCH_HOLE = 0x02
export const FALLOC_ZERO_RANGE = 0x10
// Whences of lseek(2).
export const SEEK_END = 2
export const SEEK_DATA = 3
export const SEEK_HOLE = 4
