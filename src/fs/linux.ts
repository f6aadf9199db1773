/** Numbers of Linux's calls that Node does not name. */

// fallocate(2)
export const FALLOC_KEEP_SIZE = 1
export const FALLOC_PUNCH_HOLE = 2
export const FALLOC_ZERO_RANGE = 16
// lseek(2)
export const SEEK_DATA = 3
export const SEEK_HOLE = 4
