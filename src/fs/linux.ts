/** What both file systems answer to Linux, and the numbers of its calls that Node does not name. */
export const NAME_MAX = 255
/** st_blocks counts in these, in bytes. */
export const SECTOR = 512

// fallocate(2)
export const FALLOC_KEEP_SIZE = 1
export const FALLOC_PUNCH_HOLE = 2
export const FALLOC_ZERO_RANGE = 16
// lseek(2)
export const SEEK_DATA = 3
export const SEEK_HOLE = 4
