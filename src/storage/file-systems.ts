/** Numbers of statfs(2). Source: linux/magic.h. */
const EXT = 0xef53 // ext2 to ext4
const XFS = 0x58465342
const BTRFS = 0x9123683e
const TMPFS = 0x01021994

/** File systems on which files can share blocks. */
export const SHARING: readonly number[] = [XFS, BTRFS]

/** File systems that clear what they say that they clear. */
export const CLEARING: readonly number[] = [EXT, XFS, BTRFS, TMPFS]

/**
 * File systems whose SEEK_DATA looks at the page cache too. ZFS is not one: it waits for a
 * transaction group there, or, before 2.2.2, may miss what was just written.
 */
export const TELLING: readonly number[] = [EXT, XFS, BTRFS, TMPFS]
