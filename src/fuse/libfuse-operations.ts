/**
 * fuse-native's operations, which name files by path, as calls of a FileSystem, which has inode
 * numbers.
 */
import { constants } from 'node:os'
import { assert, type Later, ThinfsError } from '../base/index.js'
import { native } from '../native.js'
import {
  type AttributeChange,
  type Attributes,
  type FileSystem,
  type FileSystemStatistics,
  WAITS,
} from './file-system.js'
import type { Done, FuseOperations, FuseStat, FuseStatfs } from './fuse-native.js'
import { later } from './later.js'
import type { LibfuseRequests } from './libfuse-requests.js'
import { SplitWrites } from './split-writes.js'

const { ENOTDIR, EOPNOTSUPP, EPERM, ERANGE } = constants.errno

const ROOT = 1
// open(2)
const O_RDWR = 2
const S_IFMT = 0o170000
const S_IFREG = 0o100000
/** The character that fuse-native's strings have in the place of bytes that are no UTF-8. */
const REPLACEMENT = '\ufffd'
/** The id that chown(2) has for one that stays: -1. */
const STAYS = 2 ** 32 - 1
const MAX_U32 = 2 ** 32 - 1
/** Handles are numbers of 31 bits in fuse-native, and 0 is none. */
const MAX_HANDLE = 2 ** 31 - 1

/** An inode that is open, once or more, by the name it has in the mount. */
interface OpenInode {
  ino: number
  /** Null: it was removed, or replaced, by way of the mount. */
  path: string | null
  nrHandles: number
}

/** Every request goes through `requests`, which answers it. */
export function libfuseOperations(
  fs: FileSystem,
  requests: LibfuseRequests,
  onInit: () => void,
): FuseOperations {
  const files = new OpenFiles(fs)
  // Direct I/O is split as well: asynchronous, which hears of every error, it is after 7.19.
  const splits = new SplitWrites()
  const status = (operation: string, done: Done, work: () => Later<unknown>): void =>
    requests.handle(operation, work, errno => done(-errno))
  const change = (path: string, done: Done, to: AttributeChange): void =>
    status('SETATTR', done, () => later(files.inoAt(path), ino => fs.setattr(ino, to)))
  const refuse =
    (errno: number) =>
    (...args: unknown[]): void =>
      (args.at(-1) as Done)(-errno)

  const make = (path: string, mode: number): Later<Attributes> => {
    const [uid, gid] = native.fuse_native_creator()
    return fs.create(ROOT, nameIn(path), mode, { uid, gid, pid: 0 })
  }

  const sized = (operation: string, to: Buffer, done: Done, work: () => Later<Buffer>): void =>
    requests.handle(operation, work, (errno, value) => {
      if (errno !== 0) done(-errno)
      else if (to.length > 0 && value.length > to.length) done(-ERANGE)
      else {
        value.copy(to)
        done(value.length)
      }
    })

  return {
    init(done) {
      done(0)
      onInit()
    },
    statfs(_path, done) {
      requests.handle(
        'STATFS',
        () => fs.statfs(),
        (errno, value) => (errno === 0 ? done(0, toStatfs(value)) : done(-errno)),
      )
    },
    getattr(path, done) {
      requests.handle(
        'GETATTR',
        () => files.attributesAt(path),
        (errno, value) => (errno === 0 ? done(0, toStat(value)) : done(-errno)),
      )
    },
    fgetattr: true,
    readdir(_path, done) {
      const list = () =>
        later(fs.readdir(ROOT), entries =>
          later(fs.getattr(ROOT), root => [
            { name: '.', attributes: root },
            { name: '..', attributes: root },
            ...entries,
          ]),
        )
      requests.handle('READDIR', list, (errno, entries) => {
        if (errno !== 0) done(-errno)
        else
          done(
            0,
            entries.map(({ name }) => name),
            entries.map(({ attributes }) => toStat(attributes)),
          )
      })
    },
    create(path, mode, done) {
      requests.handle(
        'CREATE',
        () => later(make(path, mode), ({ ino }) => files.open(path, ino, O_RDWR)),
        (errno, fh) => (errno === 0 ? done(0, fh) : done(-errno)),
        fh => void files.release(fh),
      )
    },
    mknod(path, mode, _device, done) {
      const isRegular = (mode & S_IFMT) === S_IFREG
      status('MKNOD', done, () => {
        if (!isRegular) throw failure('EPERM', `${path}: volumes are regular files`)
        return make(path, mode)
      })
    },
    open(path, flags, done) {
      requests.handle(
        'OPEN',
        () => later(files.inoAt(path), ino => files.open(path, ino, flags)),
        (errno, fh) => (errno === 0 ? done(0, fh) : done(-errno)),
        fh => void files.release(fh),
      )
    },
    release: (_path, fh, done) =>
      status('RELEASE', done, () => {
        splits.forget(fh)
        return files.release(fh)
      }),

    read(_path, fh, to, size, offset, done) {
      // A late answer may come after the deadline, when `to` is libfuse's again.
      let own: Buffer | null = null
      const work = (): Later<number> => {
        const ino = files.inoOf(fh)
        const got = fs.read(ino, offset, size, to, 0)
        if (got !== WAITS) return got
        own = Buffer.alloc(size)
        return fs.readLater(ino, offset, size, own, 0)
      }
      requests.handle('READ', work, (errno, got) => {
        if (errno === 0) own?.copy(to, 0, 0, got)
        done(errno === 0 ? got : -errno)
      })
    },
    write(_path, fh, from, size, offset, done) {
      const write = () => fs.write(files.inoOf(fh), offset, size, from, 0)
      const work = () => (splits.begun(fh, offset, size) ? splits.part(fh, write) : write())
      requests.handle('WRITE', work, (errno, put) => {
        // A loop device would take a short answer for success.
        if (errno === 0) assert(put === size, 'a WRITE was answered short')
        done(errno === 0 ? put : -errno)
      })
    },
    fsync: (_path, dataOnly, fh, done) =>
      status('FSYNC', done, () => splits.flushed(fh, fs.fsync(files.inoOf(fh), dataOnly !== 0))),
    fsyncdir: (_path, _dataOnly, _fh, done) => status('FSYNCDIR', done, () => fs.syncfs()),
    truncate: (path, size, done) => change(path, done, { size }),
    ftruncate: (_path, fh, size, done) =>
      status('SETATTR', done, () => fs.setattr(files.inoOf(fh), { size })),
    // The shim has both times be the modification's.
    utimens: (path, _atime, mtime, done) => change(path, done, { mtime: mtime / 1000 }),
    chown: (path, uid, gid, done) =>
      change(path, done, {
        ...(uid === STAYS ? {} : { uid }),
        ...(gid === STAYS ? {} : { gid }),
      }),
    chmod: (path, mode, done) => change(path, done, { mode }),

    unlink: (path, done) =>
      status('UNLINK', done, () => later(fs.unlink(ROOT, nameIn(path)), () => files.forget(path))),
    rename: (source, target, done) =>
      status('RENAME', done, () =>
        later(fs.rename(ROOT, nameIn(source), ROOT, nameIn(target), 0, 0), () =>
          files.rename(source, target),
        ),
      ),
    fallocate: (fh, mode, offset, length, done) =>
      status('FALLOCATE', done, () => fs.fallocate(files.inoOf(fh), mode, offset, length)),
    mkdir: refuse(EPERM),
    rmdir: refuse(ENOTDIR),
    link: refuse(EPERM),
    symlink: refuse(EPERM),
    setxattr: refuse(EOPNOTSUPP),
    removexattr: refuse(EOPNOTSUPP),
    getxattr: (path, name, to, done) =>
      sized('GETXATTR', to, done, () => later(files.inoAt(path), ino => fs.getxattr(ino, name))),
    listxattr: (path, to, done) =>
      sized('LISTXATTR', to, done, () =>
        later(files.inoAt(path), ino =>
          later(fs.listxattr(ino), names => Buffer.from(names.map(name => `${name}\0`).join(''))),
        ),
      ),
  }
}

/** The inode behind a path, and behind the handle of an open file. */
class OpenFiles {
  readonly #fs: FileSystem
  readonly #byHandle = new Map<number, OpenInode>()
  readonly #byPath = new Map<string, OpenInode>()
  #lastHandle = 0

  constructor(fs: FileSystem) {
    this.#fs = fs
  }

  /** @param path or what `pathOfHandle` makes of a handle */
  attributesAt(path: string): Later<Attributes> {
    if (path === '/') return this.#fs.getattr(ROOT)
    if (!path.startsWith('/')) return this.#fs.getattr(this.inoOf(Number(path)))
    return later(this.#fs.lookup(ROOT, nameIn(path), 0), attributes => {
      this.#mustBe(path, attributes.ino)
      return attributes
    })
  }

  inoAt(path: string): Later<number> {
    return path === '/' ? ROOT : later(this.attributesAt(path), ({ ino }) => ino)
  }

  inoOf(fh: number): number {
    const file = this.#byHandle.get(fh)
    if (file === undefined) throw failure('EBADF', `handle ${fh}`)
    return file.ino
  }

  /** @returns a handle */
  open(path: string, ino: number, flags: number): Later<number> {
    const fh = this.#nextHandle()
    return later(this.#fs.open(ino, flags, fh), () => {
      let file = this.#byPath.get(path)
      if (file?.ino !== ino) {
        file = { ino, path, nrHandles: 0 }
        this.#byPath.set(path, file)
      }
      file.nrHandles++
      this.#byHandle.set(fh, file)
      return fh
    })
  }

  release(fh: number): Later<void> {
    const file = this.#byHandle.get(fh)
    if (file === undefined) throw failure('EBADF', `handle ${fh}`)
    this.#byHandle.delete(fh)
    file.nrHandles--
    if (file.nrHandles === 0 && file.path !== null && this.#byPath.get(file.path) === file) {
      this.#byPath.delete(file.path)
    }
    return this.#fs.release(file.ino, fh)
  }

  /** The path leads to another file, or none, from now on. */
  forget(path: string): void {
    const file = this.#byPath.get(path)
    if (file === undefined) return
    file.path = null
    this.#byPath.delete(path)
  }

  rename(source: string, target: string): void {
    this.forget(target)
    const file = this.#byPath.get(source)
    if (file === undefined) return
    this.#byPath.delete(source)
    file.path = target
    this.#byPath.set(target, file)
  }

  /**
   * libfuse gives an open file's node, and with it the kernel's cache, to whoever has its path.
   * When names change below the mount that may be another file: it cannot be had until the first is
   * closed.
   */
  #mustBe(path: string, ino: number): void {
    const file = this.#byPath.get(path)
    if (file === undefined || file.ino === ino) return
    throw failure('ESTALE', `${path}: another file of this name is open still`)
  }

  #nextHandle(): number {
    do {
      this.#lastHandle = this.#lastHandle === MAX_HANDLE ? 1 : this.#lastHandle + 1
    } while (this.#byHandle.has(this.#lastHandle))
    return this.#lastHandle
  }
}

/** The name in a path of the root. @throws BAD_NAME when it was not UTF-8 */
function nameIn(path: string): string {
  const name = path.slice(1)
  if (name.includes(REPLACEMENT)) throw new ThinfsError('BAD_NAME', `${name}: a name is UTF-8`)
  return name
}

function toStat(attributes: Attributes): FuseStat {
  const { ino, size, blocks, mode, nlink, uid, gid, blockSize, rdev } = attributes
  const { atime, mtime, ctime } = attributes
  return {
    ...{ ino, size, blocks, mode, nlink, uid, gid, blksize: blockSize, rdev: rdev ?? 0 },
    ...{ atime: toMs(atime), mtime: toMs(mtime), ctime: toMs(ctime) },
  }
}

/** fuse-native has no time before 1970. */
const toMs = (seconds: number): number => Math.max(0, Math.floor(seconds * 1000))

/** Counts are in units of `frsize`: as many blocks as it takes to have them fit 32 bits. */
function toStatfs(statistics: FileSystemStatistics): FuseStatfs {
  const { blockSize, files, filesFree, nameMax } = statistics
  let unit = 1
  while (statistics.blocks / unit > MAX_U32) unit *= 2
  const count = (blocks: number): number => Math.floor(blocks / unit)
  return {
    bsize: blockSize,
    frsize: blockSize * unit,
    blocks: count(statistics.blocks),
    bfree: count(statistics.blocksFree),
    bavail: count(statistics.blocksAvailable),
    files: Math.min(files, MAX_U32),
    ffree: Math.min(filesFree, MAX_U32),
    favail: Math.min(filesFree, MAX_U32),
    namemax: nameMax,
  }
}

const failure = (errno: string, detail: string): ThinfsError =>
  new ThinfsError('BAD_ARGUMENT', detail, { errno })
