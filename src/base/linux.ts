/** Numbers of Linux's calls that Node does not name. Source: linux/falloc.h, linux/fs.h. */

// Modes of fallocate(2). The kernel takes PUNCH_HOLE with KEEP_SIZE alone.
export const FALLOC_KEEP_SIZE = 0x01
export const FALLOC_PUNCH_HOLE = 0x02
export const FALLOC_ZERO_RANGE = 0x10
// Whences of lseek(2).
export const SEEK_END = 2
export const SEEK_DATA = 3
export const SEEK_HOLE = 4
