/**
 * The file system that FUSE transports serve.
 *
 * A method answers with a value or a promise of one, or throws an error whose errno (`errnoOf`) the
 * caller gets. `read` and `write` are the hot path: plain numbers in and out, no promise unless
 * they really wait. Inode 1 is the root; it is the only directory.
 */

import type { Later, Requester } from '../base/index.js'

/** Attributes of a file or of the root, as stat(2) shows them. Times in seconds, with fractions. */
export interface Attributes {
  ino: number
  /** Tells two files that had the same inode number one after the other apart. */
  generation: number
  size: number
  /** Space taken, in 512-byte units. */
  blocks: number
  /** Type and permission bits. */
  mode: number
  nlink: number
  uid: number
  gid: number
  atime: number
  mtime: number
  ctime: number
  /** st_blksize: preferred size of I/O. */
  blockSize: number
  /** st_rdev of a device node; left out it is 0. */
  rdev?: number
}

/** Attributes to change; what is absent stays. */
export interface AttributeChange {
  size?: number
  mode?: number
  uid?: number
  gid?: number
  /** Seconds; 'now' for the server's clock. */
  atime?: number | 'now'
  mtime?: number | 'now'
}

/** statfs(2). Counts are in units of `blockSize`, which loop takes its discard granularity from. */
export interface FileSystemStatistics {
  blockSize: number
  blocks: number
  blocksFree: number
  /** Those of the free ones that a write can have. */
  blocksAvailable: number
  files: number
  filesFree: number
  nameMax: number
}

export interface DirectoryEntry {
  name: string
  attributes: Attributes
}

/** The credentials of a request. */
export interface Caller {
  uid: number
  gid: number
  pid: number
}

/** An ioctl(2) on an open file. */
export interface IoctlRequest {
  command: number
  /** The caller's argument: a pointer in its memory. */
  argument: number
  /** The input at the pointer, as many bytes as the command's number says. */
  input: Buffer
  /** Bytes that the answer's `output` may have. */
  outputSize: number
  caller: Caller
  /** The process that had the request has died: it may have carried it out. */
  isResent: boolean
  /** Aborted when the caller has got a signal; the request still needs an answer. */
  signal: AbortSignal
}

/** The answer: `output` goes to the caller's memory also when `errno` is not 0. */
export interface IoctlAnswer {
  /** 0, or the positive number of the error. */
  errno: number
  output: Buffer
}

/** Returned by a `read` that would have to wait for a disk. */
export const WAITS = -1

/**
 * A method that gets a requester ends with EINTR when that process gets a signal, if the request
 * only waits for something. Work that has begun goes on to its end.
 */
export interface FileSystem {
  statfs(): Later<FileSystemStatistics>
  /** @param pid of the thread that asks, 0 when it is in no process id namespace of ours */
  lookup(parent: number, name: string, pid: number): Later<Attributes>
  getattr(ino: number): Later<Attributes>
  setattr(ino: number, change: AttributeChange, requester?: Requester): Later<Attributes>
  /** All entries but `.` and `..`; the transport keeps the list while the directory is open. */
  readdir(ino: number): Later<readonly DirectoryEntry[]>
  /** Makes an empty regular file; the transport opens it afterwards. */
  create(parent: number, name: string, mode: number, caller: Caller): Later<Attributes>
  unlink(parent: number, name: string): Later<void>
  /**
   * @param flags RENAME_NOREPLACE 1, RENAME_EXCHANGE 2
   * @param request the same for a request that comes again because the process that had it has
   *   died: what was exchanged must not be exchanged back
   */
  rename(
    parent: number,
    name: string,
    newParent: number,
    newName: string,
    flags: number,
    request: number,
  ): Later<void>
  /**
   * Both come again when the process that had the request has died, and have to know by `handle`
   * whether it was done.
   * @param flags of open(2)
   * @param handle tells this open from all others of the connection; `release` gets the same
   */
  open(ino: number, flags: number, handle: number): Later<void>
  release(ino: number, handle: number): Later<void>

  /**
   * Fills `target` at `at` with up to `size` bytes from `offset`, if that needs no waiting.
   * @returns bytes read: `size`, or less only at the end of the file; WAITS when `readLater` has to
   *   be called instead, and what is in `target` means nothing
   */
  read(ino: number, offset: number, size: number, target: Buffer, at: number): number
  /** As `read`, and waits for a disk. */
  readLater(ino: number, offset: number, size: number, target: Buffer, at: number): Promise<number>
  /**
   * Writes `size` bytes of `source` from `at`. All or an error, never short. A file system that
   * answers with a promise has copied what it needs of `source` before it returns.
   */
  write(
    ino: number,
    offset: number,
    size: number,
    source: Buffer,
    at: number,
    requester?: Requester,
  ): Later<number>
  /** @param mode bits of fallocate(2): KEEP_SIZE 1, PUNCH_HOLE 2, ZERO_RANGE 16 */
  fallocate(
    ino: number,
    mode: number,
    offset: number,
    length: number,
    requester?: Requester,
  ): Later<void>
  /** @param whence SEEK_DATA 3 or SEEK_HOLE 4 */
  lseek(ino: number, offset: number, whence: number): Later<number>
  copyFileRange(
    source: number,
    sourceOffset: number,
    target: number,
    targetOffset: number,
    length: number,
    requester?: Requester,
  ): Later<number>
  fsync(ino: number, dataOnly: boolean): Later<void>
  syncfs(): Later<void>
  getxattr(ino: number, name: string): Later<Buffer>
  listxattr(ino: number): Later<readonly string[]>

  /** Makes a device node, a fifo or a socket. Left out, there can be none. */
  mknod?(parent: number, name: string, mode: number, rdev: number): Later<Attributes>
  /** Makes a symbolic link. Left out, there can be none. */
  symlink?(parent: number, name: string, target: string): Later<Attributes>
  readlink?(ino: number): Later<string>
  ioctl?(ino: number, request: IoctlRequest): Promise<IoctlAnswer>
  /** Files whose content the kernel must not cache (FOPEN_DIRECT_IO). */
  readonly directIo?: boolean

  /**
   * True while there are changes that are not settled: the death of this process would undo them.
   */
  readonly unsettled: boolean
  /** Settles them. Called once a batch, before the changes are acknowledged. */
  settle(): Later<void>
}
