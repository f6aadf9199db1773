/**
 * The kernel's FUSE protocol: its structures, little-endian on every machine that runs thinfs.
 *
 * A request is IN_HEADER, the structure of its opcode, then names (ended by NUL) or data. A reply
 * is OUT_HEADER and a structure or data. Source: include/uapi/linux/fuse.h of Linux 6.18, protocol
 * 7.45.
 */
import { layout } from '../base/index.js'

export const FUSE_KERNEL_VERSION = 7
/** The newest minor version whose structures are those below. */
export const FUSE_KERNEL_MINOR_VERSION = 45
export const FUSE_ROOT_ID = 1

export const OPCODE = {
  LOOKUP: 1,
  FORGET: 2,
  GETATTR: 3,
  SETATTR: 4,
  READLINK: 5,
  SYMLINK: 6,
  MKNOD: 8,
  MKDIR: 9,
  UNLINK: 10,
  RMDIR: 11,
  RENAME: 12,
  LINK: 13,
  OPEN: 14,
  READ: 15,
  WRITE: 16,
  STATFS: 17,
  RELEASE: 18,
  FSYNC: 20,
  SETXATTR: 21,
  GETXATTR: 22,
  LISTXATTR: 23,
  REMOVEXATTR: 24,
  FLUSH: 25,
  INIT: 26,
  OPENDIR: 27,
  READDIR: 28,
  RELEASEDIR: 29,
  FSYNCDIR: 30,
  ACCESS: 34,
  CREATE: 35,
  INTERRUPT: 36,
  BMAP: 37,
  DESTROY: 38,
  IOCTL: 39,
  POLL: 40,
  NOTIFY_REPLY: 41,
  BATCH_FORGET: 42,
  FALLOCATE: 43,
  READDIRPLUS: 44,
  RENAME2: 45,
  LSEEK: 46,
  COPY_FILE_RANGE: 47,
  SYNCFS: 50,
  TMPFILE: 51,
  STATX: 52,
  COPY_FILE_RANGE_64: 53,
} as const

/** Name of an opcode, for messages. */
export function opcodeName(opcode: number): string {
  for (const [name, value] of Object.entries(OPCODE)) if (value === opcode) return name
  return `opcode ${opcode}`
}

/** INIT flags; the bits of `flags2` are in INIT_FLAG2. */
export const INIT_FLAG = {
  ASYNC_READ: 1 << 0,
  BIG_WRITES: 1 << 5,
  DO_READDIRPLUS: 1 << 13,
  ASYNC_DIO: 1 << 15,
  PARALLEL_DIROPS: 1 << 18,
  MAX_PAGES: 1 << 22,
  HANDLE_KILLPRIV_V2: 1 << 28,
  INIT_EXT: 1 << 30,
} as const
export const INIT_FLAG2 = { HAS_RESEND: 1 << 7, OVER_IO_URING: 1 << 9 } as const

/** The fields of SETATTR_IN that count. */
export const FATTR = {
  MODE: 1 << 0,
  UID: 1 << 1,
  GID: 1 << 2,
  SIZE: 1 << 3,
  ATIME: 1 << 4,
  MTIME: 1 << 5,
  ATIME_NOW: 1 << 7,
  MTIME_NOW: 1 << 8,
} as const

export const FOPEN_DIRECT_IO = 1 << 0
export const FOPEN_KEEP_CACHE = 1 << 1
export const FSYNC_FDATASYNC = 1 << 0
/** Flags of WRITE: from the page cache, later than its write(2) or store; or past that cache. */
export const WRITE_CACHE = 1 << 0
export const WRITE_LOCKOWNER = 1 << 1
/** Notification that what the kernel caches of an inode is not so any more. */
export const NOTIFY_INVAL_INODE = 2
/** Notification that makes the kernel send again what was read and not answered. */
export const NOTIFY_RESEND = 7

/** Commands of IORING_OP_URING_CMD on /dev/fuse. */
export const IO_URING_CMD = { REGISTER: 1, COMMIT_AND_FETCH: 2 } as const

export const IN_HEADER = layout('fuse_in_header', 40, {
  len: [0, 'u32', 'bytes of the request, this header included'],
  opcode: [4, 'u32', 'OPCODE'],
  unique: [8, 'bytes:8', 'identifies the request; bit 63 is set on one that was sent before'],
  nodeid: [16, 'u64', 'inode number'],
  uid: [24, 'u32', 'of the caller'],
  gid: [28, 'u32', 'of the caller'],
  pid: [32, 'u32', 'of the caller, 0 for the kernel'],
  totalExtlen: [36, 'bytes:2', 'bytes of extensions at the end, divided by 8'],
  padding: [38, 'bytes:2', 'zero'],
})

export const OUT_HEADER = layout('fuse_out_header', 16, {
  len: [0, 'u32', 'bytes of the reply, this header included'],
  error: [4, 'i32', '0 or a negative errno; of a notification its code'],
  unique: [8, 'bytes:8', "the request's; 0 for a notification"],
})
export const NOTIFY_INVAL_INODE_OUT = layout('fuse_notify_inval_inode_out', 24, {
  ino: [0, 'u64', 'inode number'],
  off: [8, 'u64', 'first byte of content that is not so any more'],
  len: [16, 'u64', 'how many; 0: all that follow'],
})

export const INIT_IN = layout('fuse_init_in', 64, {
  major: [0, 'u32', '7'],
  minor: [4, 'u32', 'the newest that the kernel speaks'],
  maxReadahead: [8, 'u32', 'bytes'],
  flags: [12, 'u32', 'INIT_FLAG that the kernel offers'],
  flags2: [16, 'u32', 'INIT_FLAG2, with INIT_EXT'],
  unused: [20, 'bytes:44', 'zero'],
})

export const INIT_OUT = layout('fuse_init_out', 64, {
  major: [0, 'u32', '7'],
  minor: [4, 'u32', 'the version to speak'],
  maxReadahead: [8, 'u32', 'bytes'],
  flags: [12, 'u32', 'INIT_FLAG to use'],
  maxBackground: [16, 'bytes:2', 'u16: asynchronous requests under way at a time'],
  congestionThreshold: [18, 'bytes:2', 'u16: from where on the kernel holds back'],
  maxWrite: [20, 'u32', 'bytes of the largest WRITE'],
  timeGran: [24, 'u32', 'granularity of time stamps in nanoseconds'],
  maxPages: [28, 'bytes:2', 'u16: pages of the largest READ or WRITE, with MAX_PAGES'],
  mapAlignment: [30, 'bytes:2', 'zero'],
  flags2: [32, 'u32', 'INIT_FLAG2 to use, with INIT_EXT'],
  unused: [36, 'bytes:28', 'zero'],
})

export const ATTR = layout('fuse_attr', 88, {
  ino: [0, 'u64', ''],
  size: [8, 'u64', 'bytes'],
  blocks: [16, 'u64', 'units of 512 bytes'],
  atime: [24, 'u64', 'seconds, signed'],
  mtime: [32, 'u64', 'seconds, signed'],
  ctime: [40, 'u64', 'seconds, signed'],
  atimensec: [48, 'u32', ''],
  mtimensec: [52, 'u32', ''],
  ctimensec: [56, 'u32', ''],
  mode: [60, 'u32', 'type and permissions'],
  nlink: [64, 'u32', ''],
  uid: [68, 'u32', ''],
  gid: [72, 'u32', ''],
  rdev: [76, 'u32', 'of a device node, as stat(2) has it'],
  blksize: [80, 'u32', 'preferred size of I/O in bytes'],
  flags: [84, 'u32', 'zero'],
})

export const ENTRY_OUT = layout('fuse_entry_out', 128, {
  nodeid: [0, 'u64', 'inode number'],
  generation: [8, 'u64', 'of the inode number'],
  entryValid: [16, 'u64', 'seconds that the name may be cached: 0'],
  attrValid: [24, 'u64', 'seconds that the attributes may be cached: 0'],
  entryValidNsec: [32, 'u32', '0'],
  attrValidNsec: [36, 'u32', '0'],
  attr: [40, 'bytes:88', 'ATTR'],
})

export const ATTR_OUT = layout('fuse_attr_out', 104, {
  attrValid: [0, 'u64', 'seconds that the attributes may be cached: 0'],
  attrValidNsec: [8, 'u32', '0'],
  dummy: [12, 'u32', 'zero'],
  attr: [16, 'bytes:88', 'ATTR'],
})

export const GETATTR_IN = layout('fuse_getattr_in', 16, {
  getattrFlags: [0, 'u32', ''],
  dummy: [4, 'u32', ''],
  fh: [8, 'u64', ''],
})

export const SETATTR_IN = layout('fuse_setattr_in', 88, {
  valid: [0, 'u32', 'FATTR'],
  padding: [4, 'u32', ''],
  fh: [8, 'u64', ''],
  size: [16, 'u64', 'bytes'],
  lockOwner: [24, 'bytes:8', ''],
  atime: [32, 'bytes:8', 'seconds, signed'],
  mtime: [40, 'bytes:8', 'seconds, signed'],
  ctime: [48, 'bytes:8', 'seconds, signed'],
  atimensec: [56, 'u32', ''],
  mtimensec: [60, 'u32', ''],
  ctimensec: [64, 'u32', ''],
  mode: [68, 'u32', ''],
  unused4: [72, 'u32', ''],
  uid: [76, 'u32', ''],
  gid: [80, 'u32', ''],
  unused5: [84, 'u32', ''],
})

export const MKNOD_IN = layout('fuse_mknod_in', 16, {
  mode: [0, 'u32', 'type and permissions'],
  rdev: [4, 'u32', 'of a device node, as stat(2) has it'],
  umask: [8, 'u32', 'already taken from mode'],
  padding: [12, 'u32', ''],
})

export const CREATE_IN = layout('fuse_create_in', 16, {
  flags: [0, 'u32', 'of open(2)'],
  mode: [4, 'u32', 'type and permissions'],
  umask: [8, 'u32', 'already taken from mode'],
  openFlags: [12, 'u32', ''],
})

export const RENAME_IN = layout('fuse_rename_in', 8, {
  newdir: [0, 'u64', 'inode number of the folder to move to'],
})

export const RENAME2_IN = layout('fuse_rename2_in', 16, {
  newdir: [0, 'u64', 'inode number of the folder to move to'],
  flags: [8, 'u32', 'RENAME_NOREPLACE 1, RENAME_EXCHANGE 2'],
  padding: [12, 'u32', ''],
})

export const OPEN_IN = layout('fuse_open_in', 8, {
  flags: [0, 'u32', 'of open(2)'],
  openFlags: [4, 'u32', ''],
})

export const OPEN_OUT = layout('fuse_open_out', 16, {
  fh: [0, 'u64', 'file handle, which comes back with every request for the open file'],
  openFlags: [8, 'u32', 'FOPEN'],
  padding: [12, 'u32', 'zero'],
})

export const RELEASE_IN = layout('fuse_release_in', 24, {
  fh: [0, 'u64', ''],
  flags: [8, 'u32', ''],
  releaseFlags: [12, 'u32', ''],
  lockOwner: [16, 'bytes:8', ''],
})

export const FLUSH_IN = layout('fuse_flush_in', 24, {
  fh: [0, 'u64', ''],
  unused: [8, 'u32', ''],
  padding: [12, 'u32', ''],
  lockOwner: [16, 'bytes:8', ''],
})

/** Of READ, READDIR and READDIRPLUS. */
export const READ_IN = layout('fuse_read_in', 40, {
  fh: [0, 'u64', ''],
  offset: [8, 'u64', 'bytes; of a folder the cookie of the entry before'],
  size: [16, 'u32', 'bytes'],
  readFlags: [20, 'u32', ''],
  lockOwner: [24, 'bytes:8', ''],
  flags: [32, 'u32', 'of open(2)'],
  padding: [36, 'u32', ''],
})

/** The data follows. */
export const WRITE_IN = layout('fuse_write_in', 40, {
  fh: [0, 'u64', ''],
  offset: [8, 'u64', 'bytes'],
  size: [16, 'u32', 'bytes'],
  writeFlags: [20, 'u32', 'WRITE_CACHE, WRITE_LOCKOWNER'],
  lockOwner: [24, 'bytes:8', ''],
  flags: [32, 'u32', 'of open(2)'],
  padding: [36, 'u32', ''],
})

/** Of WRITE and COPY_FILE_RANGE. */
export const WRITE_OUT = layout('fuse_write_out', 8, {
  size: [0, 'u32', 'bytes'],
  padding: [4, 'u32', 'zero'],
})

export const STATFS_OUT = layout('fuse_kstatfs', 80, {
  blocks: [0, 'u64', ''],
  bfree: [8, 'u64', ''],
  bavail: [16, 'u64', ''],
  files: [24, 'u64', ''],
  ffree: [32, 'u64', ''],
  bsize: [40, 'u32', 'bytes; loop takes its discard granularity from it'],
  namelen: [44, 'u32', 'bytes of the longest name'],
  frsize: [48, 'u32', 'bytes of a block in the counts above'],
  padding: [52, 'u32', 'zero'],
  spare: [56, 'bytes:24', 'zero'],
})

export const FSYNC_IN = layout('fuse_fsync_in', 16, {
  fh: [0, 'u64', ''],
  fsyncFlags: [8, 'u32', 'FSYNC_FDATASYNC'],
  padding: [12, 'u32', ''],
})

/** Of GETXATTR, whose name follows, and LISTXATTR. */
export const GETXATTR_IN = layout('fuse_getxattr_in', 8, {
  size: [0, 'u32', 'bytes that the answer may have; 0 asks for its size'],
  padding: [4, 'u32', ''],
})

export const GETXATTR_OUT = layout('fuse_getxattr_out', 8, {
  size: [0, 'u32', 'bytes that the answer would have'],
  padding: [4, 'u32', 'zero'],
})

export const FALLOCATE_IN = layout('fuse_fallocate_in', 32, {
  fh: [0, 'u64', ''],
  offset: [8, 'u64', 'bytes'],
  length: [16, 'u64', 'bytes'],
  mode: [24, 'u32', 'of fallocate(2)'],
  padding: [28, 'u32', ''],
})

export const LSEEK_IN = layout('fuse_lseek_in', 24, {
  fh: [0, 'u64', ''],
  offset: [8, 'u64', 'bytes'],
  whence: [16, 'u32', 'SEEK_DATA 3, SEEK_HOLE 4'],
  padding: [20, 'u32', ''],
})

export const LSEEK_OUT = layout('fuse_lseek_out', 8, { offset: [0, 'u64', 'bytes'] })

/** Of both opcodes; the nodeid of the header is the file to copy from. */
export const COPY_FILE_RANGE_IN = layout('fuse_copy_file_range_in', 56, {
  fhIn: [0, 'u64', ''],
  offIn: [8, 'u64', 'bytes'],
  nodeidOut: [16, 'u64', 'inode number of the file to copy to'],
  fhOut: [24, 'u64', ''],
  offOut: [32, 'u64', 'bytes'],
  len: [40, 'u64', 'bytes'],
  flags: [48, 'u64', 'zero'],
})

/** Of COPY_FILE_RANGE_64. */
export const COPY_FILE_RANGE_OUT = layout('fuse_copy_file_range_out', 8, {
  bytesCopied: [0, 'u64', 'bytes'],
})

/** The name follows; then zeros up to a multiple of 8. */
export const DIRENT = layout('fuse_dirent', 24, {
  ino: [0, 'u64', ''],
  off: [8, 'u64', 'cookie of this entry: the next READDIR goes on behind it'],
  namelen: [16, 'u32', 'bytes'],
  type: [20, 'u32', 'file type: mode divided by 0o10000'],
})

/** The input at the caller's pointer follows, as many bytes as the command's number says. */
export const IOCTL_IN = layout('fuse_ioctl_in', 32, {
  fh: [0, 'u64', ''],
  flags: [8, 'u32', ''],
  cmd: [12, 'u32', 'of ioctl(2)'],
  arg: [16, 'u64', 'of ioctl(2): a pointer in the caller'],
  inSize: [24, 'u32', 'bytes that follow'],
  outSize: [28, 'u32', 'bytes that the answer may have'],
})

/** The output for the caller's pointer follows. */
export const IOCTL_OUT = layout('fuse_ioctl_out', 16, {
  result: [0, 'i32', 'of ioctl(2): 0, or a negative errno'],
  flags: [4, 'u32', 'zero'],
  inIovs: [8, 'u32', 'zero'],
  outIovs: [12, 'u32', 'zero'],
})

/** There is no answer to it, but to the request that it names. */
export const INTERRUPT_IN = layout('fuse_interrupt_in', 8, {
  unique: [0, 'bytes:8', 'of the request whose caller has got a signal'],
})

/** The beginning of a request through a ring; names and data are elsewhere. */
export const URING_REQ_HEADER = layout('fuse_uring_req_header', 288, {
  inOut: [0, 'bytes:128', 'IN_HEADER of the request, OUT_HEADER of the reply'],
  opIn: [128, 'bytes:128', 'the structure of the opcode'],
  ringEntInOut: [256, 'bytes:32', 'URING_ENT_IN_OUT'],
})

export const URING_ENT_IN_OUT = layout('fuse_uring_ent_in_out', 32, {
  flags: [0, 'u64', 'zero'],
  commitId: [8, 'bytes:8', 'to answer with'],
  payloadSz: [16, 'u32', 'bytes of names and data; of the reply bytes of payload'],
  padding: [20, 'u32', 'zero'],
  reserved: [24, 'u64', 'zero'],
})

/** The arguments of an IO_URING_CMD. */
export const URING_CMD_REQ = layout('fuse_uring_cmd_req', 24, {
  flags: [0, 'u64', 'zero'],
  commitId: [8, 'bytes:8', 'of the request that is answered'],
  qid: [16, 'bytes:2', 'u16: queue, one for each possible CPU'],
  padding: [18, 'bytes:6', 'zero'],
})
