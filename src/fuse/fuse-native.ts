/**
 * The npm package fuse-native, which speaks FUSE through libfuse 2: an optional dependency, loaded
 * when a mount asks for it. native-shims/fuse-native-shim.c adds what it lacks.
 */
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { ThinfsError } from '../base/index.js'
import { native } from '../native.js'

/** The answer to an operation: 0 or a number of bytes, or an errno below 0. */
export type Done = (result: number) => void

/** stat(2) as fuse-native takes it; times in milliseconds. */
export interface FuseStat {
  mode: number
  uid: number
  gid: number
  size: number
  nlink: number
  ino: number
  rdev: number
  blksize: number
  blocks: number
  atime: number
  mtime: number
  ctime: number
}

/** statvfs(3) as fuse-native takes it: numbers of 32 bits. */
export interface FuseStatfs {
  bsize: number
  frsize: number
  blocks: number
  bfree: number
  bavail: number
  files: number
  ffree: number
  favail: number
  namemax: number
}

/** The operations that are implemented here. Paths begin with `/`. */
export interface FuseOperations {
  init(done: Done): void
  statfs(path: string, done: (result: number, statistics?: FuseStatfs) => void): void
  getattr(path: string, done: (result: number, stat?: FuseStat) => void): void
  /** fuse-native asks whether it is there, and never calls it. */
  fgetattr: true
  readdir(path: string, done: (result: number, names?: string[], stats?: FuseStat[]) => void): void
  create(path: string, mode: number, done: (result: number, fh?: number) => void): void
  mknod(path: string, mode: number, device: number, done: Done): void
  open(path: string, flags: number, done: (result: number, fh?: number) => void): void
  release(path: string, fh: number, done: Done): void
  read(path: string, fh: number, to: Buffer, size: number, offset: number, done: Done): void
  write(path: string, fh: number, from: Buffer, size: number, offset: number, done: Done): void
  fsync(path: string, dataOnly: number, fh: number, done: Done): void
  fsyncdir(path: string, dataOnly: number, fh: number, done: Done): void
  truncate(path: string, size: number, done: Done): void
  ftruncate(path: string, fh: number, size: number, done: Done): void
  utimens(path: string, atime: number, mtime: number, done: Done): void
  chown(path: string, uid: number, gid: number, done: Done): void
  chmod(path: string, mode: number, done: Done): void
  unlink(path: string, done: Done): void
  rename(source: string, target: string, done: Done): void
  mkdir(path: string, mode: number, done: Done): void
  rmdir(path: string, done: Done): void
  link(source: string, target: string, done: Done): void
  symlink(target: string, path: string, done: Done): void
  setxattr(
    path: string,
    name: string,
    value: Buffer,
    position: number,
    flags: number,
    done: Done,
  ): void
  removexattr(path: string, name: string, done: Done): void
  /** Answers with the bytes of the attribute, which go to `to` if that is not empty. */
  getxattr(path: string, name: string, to: Buffer, done: Done): void
  /** As `getxattr`, with the names, each ended by NUL. */
  listxattr(path: string, to: Buffer, done: Done): void
  /** By way of the shim. */
  fallocate(fh: number, mode: number, offset: number, length: number, done: Done): void
}

type Signal = (result: number, ...values: unknown[]) => void

/**
 * A mount of fuse-native, with the methods that are replaced here: they do not look at the handle
 * of an open file, or at the size of the buffer for an attribute.
 */
interface FuseMount {
  mount(done: (err: Error | null) => void): void
  _fuseOptions(): string
  _op_getattr(signal: Signal, path: string): void
  _op_fgetattr(signal: Signal, path: string, fh: number): void
  _op_getxattr(signal: Signal, path: string, name: string, to: Buffer): void
  _op_listxattr(signal: Signal, path: string, to: Buffer): void
}

type FuseConstructor = new (
  folder: string,
  operations: FuseOperations,
  options: { timeout: false },
) => FuseMount

/** The path by which `getattr` is asked for an open file. */
export const pathOfHandle = (fh: number): string => String(fh)

/**
 * libfuse's options. Nothing may be cached for a time: sizes and names change below the kernel. A
 * file that is removed while it is open gets no other name meanwhile.
 */
const OPTIONS = [
  'hard_remove',
  'use_ino',
  'big_writes',
  'attr_timeout=0',
  'entry_timeout=0',
  'negative_timeout=0',
].join(',')

/** The mount is there already; fuse-native wants a folder to look at. */
const ANY_FOLDER = '/proc/self'

let loaded: FuseConstructor | null = null

/**
 * Loads the package, with the shim in between.
 * @throws NOT_SUPPORTED with the reason, where one of package, libfuse and shim cannot be had
 */
export function loadFuseNative(): void {
  if (loaded !== null) return
  const require = createRequire(import.meta.url)
  let folder: string
  try {
    folder = dirname(require.resolve('fuse-native/package.json'))
  } catch (cause) {
    const how = 'npm install --ignore-scripts fuse-native@2.2.6 beside thinfs'
    throw notSupported(`the package fuse-native is not installed: ${how}`, cause)
  }
  try {
    // Its own copy: where libfuse is not installed, nothing else would find it.
    native.fuse_native_bind(join(folder, 'prebuilds', `linux-${process.arch}`, 'libfuse.so'))
  } catch (cause) {
    const how = "install libfuse 2, such as Debian's libfuse2"
    throw notSupported(`libfuse.so.2 does not load (${messageOf(cause)}): ${how}`, cause)
  }
  let Fuse: FuseConstructor
  try {
    Fuse = require('fuse-native')
  } catch (cause) {
    throw notSupported(`the package fuse-native does not load: ${messageOf(cause)}`, cause)
  }
  if (!native.fuse_native_bound()) {
    const why = 'another library has the functions of libfuse: discards would be lost'
    throw notSupported(`native-shims cannot get between fuse-native and libfuse: ${why}`)
  }
  loaded = Fuse
}

/**
 * Serves a mount that is there; `fuse_native_prepare` has said which.
 * @param onFailed it does not come to that
 */
export function mountFuseNative(operations: FuseOperations, onFailed: (err: Error) => void): void {
  loadFuseNative()
  class Mount extends (loaded!) {
    override _fuseOptions(): string {
      return `-o${OPTIONS}`
    }
    override _op_fgetattr(signal: Signal, _path: string, fh: number): void {
      this._op_getattr(signal, pathOfHandle(fh))
    }
    override _op_getxattr(signal: Signal, path: string, name: string, to: Buffer): void {
      operations.getxattr(path, name, to, result => signal(result, to.buffer))
    }
    override _op_listxattr(signal: Signal, path: string, to: Buffer): void {
      operations.listxattr(path, to, result => signal(result, to.buffer))
    }
  }
  // Deadlines are LibfuseRequests': its own free what is still written to.
  new Mount(ANY_FOLDER, operations, { timeout: false }).mount(err => {
    if (err) onFailed(err)
  })
}

const messageOf = (err: unknown): string => (err as Error).message.split('\n')[0]!

function notSupported(reason: string, cause?: unknown): ThinfsError {
  return new ThinfsError('NOT_SUPPORTED', `transport fuse-native: ${reason}`, { cause })
}
