/**
 * What a request asks for, and its answer: decodes each, calls the FileSystem, encodes what it says.
 *
 * Each request is answered exactly once; when an answer leaves is decided in replies.ts. READ and WRITE
 * allocate nothing. Here, and only here, errors become errnos.
 */
import { constants } from 'node:os'
import { assert, interrupted, type Later, type Requester, ThinfsError } from '../base/index.js'
import {
  COPY_FILE_RANGE_IN,
  CREATE_IN,
  FALLOCATE_IN,
  FATTR,
  FLUSH_IN,
  FSYNC_FDATASYNC,
  FSYNC_IN,
  GETATTR_IN,
  GETXATTR_IN,
  GETXATTR_OUT,
  IN_HEADER,
  INIT_IN,
  INTERRUPT_IN,
  IOCTL_IN,
  LSEEK_IN,
  MKNOD_IN,
  OPCODE,
  OPEN_IN,
  OUT_HEADER,
  opcodeName,
  READ_IN,
  RELEASE_IN,
  RENAME_IN,
  RENAME2_IN,
  SETATTR_IN,
  WRITE_IN,
} from './abi.js'
import { DirectoryStreams } from './directory.js'
import {
  type Encode,
  encodeAttributes,
  encodeCopy64,
  encodeCreate,
  encodeEntry,
  encodeIoctl,
  encodeLink,
  encodeNothing,
  encodeOpen,
  encodeOpenDirect,
  encodeOpendir,
  encodeRead,
  encodeSeek,
  encodeStatistics,
  encodeWrite,
} from './encode.js'
import { errnoNumber } from './errno.js'
import {
  type AttributeChange,
  type Attributes,
  type Caller,
  type FileSystem,
  type IoctlAnswer,
  WAITS,
} from './file-system.js'
import { MAX_IO } from './init.js'
import { later, orElse } from './later.js'
import { readNames } from './names.js'
import type { Replies } from './replies.js'
import { ReplyPlaces } from './reply-places.js'
import type { Slots } from './slots.js'

const { EINVAL, EIO, ENOSYS, ENOTDIR, ENOTTY, EOPNOTSUPP, EPERM } = constants.errno

/** Where no request is being handled. */
const NONE = -1
/** So many interrupts are kept of requests that did not come yet. */
const MAX_EARLY = 64

const S_IFMT = 0o170000
const S_IFREG = 0o100000

/** Bytes of a request without its data, for the hot path. */
const READ_LENGTH = IN_HEADER.size + READ_IN.size
const WRITE_LENGTH = IN_HEADER.size + WRITE_IN.size

/** Bytes of the structure behind a request's header, by opcode. */
const BODY_SIZES = new Map<number, number>([
  [OPCODE.GETATTR, GETATTR_IN.size],
  [OPCODE.SETATTR, SETATTR_IN.size],
  [OPCODE.MKNOD, MKNOD_IN.size],
  [OPCODE.RENAME, RENAME_IN.size],
  [OPCODE.OPEN, OPEN_IN.size],
  [OPCODE.READ, READ_IN.size],
  [OPCODE.WRITE, WRITE_IN.size],
  [OPCODE.RELEASE, RELEASE_IN.size],
  [OPCODE.FSYNC, FSYNC_IN.size],
  [OPCODE.GETXATTR, GETXATTR_IN.size],
  [OPCODE.LISTXATTR, GETXATTR_IN.size],
  [OPCODE.FLUSH, FLUSH_IN.size],
  [OPCODE.INIT, INIT_IN.size],
  [OPCODE.IOCTL, IOCTL_IN.size],
  [OPCODE.OPENDIR, OPEN_IN.size],
  [OPCODE.READDIR, READ_IN.size],
  [OPCODE.RELEASEDIR, RELEASE_IN.size],
  [OPCODE.CREATE, CREATE_IN.size],
  [OPCODE.FALLOCATE, FALLOCATE_IN.size],
  [OPCODE.READDIRPLUS, READ_IN.size],
  [OPCODE.RENAME2, RENAME2_IN.size],
  [OPCODE.LSEEK, LSEEK_IN.size],
  [OPCODE.COPY_FILE_RANGE, COPY_FILE_RANGE_IN.size],
  [OPCODE.COPY_FILE_RANGE_64, COPY_FILE_RANGE_IN.size],
])

/** What this file system has not, answered as Linux file systems without it do. */
const REFUSALS = new Map<number, number>([
  [OPCODE.MKDIR, EPERM],
  [OPCODE.RMDIR, ENOTDIR],
  [OPCODE.LINK, EPERM],
  [OPCODE.TMPFILE, EOPNOTSUPP],
  [OPCODE.SETXATTR, EOPNOTSUPP],
  [OPCODE.REMOVEXATTR, EOPNOTSUPP],
])

export interface RequestsOptions {
  fileSystem: FileSystem
  /** Answers an INIT in the slot at byte `base`. @returns bytes of the payload */
  onInit(slots: Slots, base: number): number
  /** The file system failed a request; it was answered with the error's errno. */
  onError(opcode: string, ino: number, err: unknown): void
  /** A bug of ours, in an answer that came later. */
  onFatal(err: unknown): void
}

/** Answers requests, for a session. To the file system it is the requester of the one being handled. */
export class Requests implements Requester {
  readonly #fs: FileSystem
  readonly #options: RequestsOptions
  readonly #directories: DirectoryStreams
  /** Where requests are, and by way of what they are answered. */
  #slots: Slots
  #replies: Replies
  readonly #places: ReplyPlaces
  /** READs that wait for a disk. */
  #nrReadsLater = 0
  /** The slot of the request that is being handled. */
  #base = NONE
  /** Of requests that may have to wait, by their number. */
  readonly #controllers = new Map<number, AbortController>()
  /** Requests, by their number, that an interrupt came for before them. */
  readonly #early = new Set<number>()
  #stopped = false

  constructor(slots: Slots, replies: Replies, options: RequestsOptions) {
    this.#fs = options.fileSystem
    this.#options = options
    this.#directories = new DirectoryStreams(options.fileSystem)
    this.#slots = slots
    this.#replies = replies
    this.#places = new ReplyPlaces(slots)
  }

  /** Requests come in other slots from now on, which stay theirs until they are answered. */
  moveTo(slots: Slots, replies: Replies): void {
    this.#slots = slots
    this.#replies = replies
    this.#places.moveTo(slots)
  }

  /** Whether a READ waits for a disk. */
  get waitsForDisk(): boolean {
    return this.#nrReadsLater > 0
  }

  /** Nothing is answered any more. */
  stop(): void {
    this.#stopped = true
  }

  /** Answers the request of `length` bytes in the slot at byte `base`, or sees to it that it will be. */
  handle(base: number, length: number): void {
    const slots = this.#slots
    // Without a `unique` no reply is possible.
    if (length < OUT_HEADER.size) return
    const opcode = slots.u32(base + IN_HEADER.at.opcode)
    if (length < IN_HEADER.size || slots.u32(base + IN_HEADER.at.len) !== length) {
      this.#refuse(base, EIO)
      return
    }
    const ino = slots.u64(base + IN_HEADER.at.nodeid)
    this.#base = base
    try {
      if (opcode === OPCODE.READ) this.#read(base, length, ino)
      else if (opcode === OPCODE.WRITE) this.#write(base, length, ino)
      else this.#dispatch(opcode, base, length, ino)
    } catch (err) {
      this.#refuse(base, this.#errno(opcode, ino, err))
    } finally {
      this.#base = NONE
    }
  }

  signal(): AbortSignal {
    assert(this.#base !== NONE, 'a request asks for its signal before it waits')
    const number = this.#requestNumber(this.#base)
    let controller = this.#controllers.get(number)
    if (controller === undefined) {
      controller = new AbortController()
      this.#controllers.set(number, controller)
      if (this.#early.delete(number)) controller.abort(interrupted())
    }
    return controller.signal
  }

  /**
   * The caller of a request has got a signal: what only waits ends with EINTR. There is no answer to
   * the interrupt itself.
   *
   * The kernel sends it once, behind its request; but a ring may bring the request later, for which
   * the answer EAGAIN would get nobody another interrupt. So it is remembered. The numbers of requests
   * that have been answered are among those, and harmless: none comes again.
   * @param at where in `slots` the `unique` of the request is
   */
  interrupt(slots: Slots, at: number): void {
    const number = numberAt(slots, at)
    const controller = this.#controllers.get(number)
    if (controller !== undefined) {
      controller.abort(interrupted())
      return
    }
    this.#early.add(number)
    if (this.#early.size <= MAX_EARLY) return
    for (const oldest of this.#early) {
      this.#early.delete(oldest)
      break
    }
  }

  #read(base: number, length: number, ino: number): void {
    const slots = this.#slots
    const at = base + slots.body
    const size = slots.u32(at + READ_IN.at.size)
    if (length < READ_LENGTH || size > MAX_IO) {
      this.#refuse(base, EINVAL)
      return
    }
    const offset = slots.u64(at + READ_IN.at.offset)
    const place = this.#places.forRead(size, this.#fs.unsettled)
    const to = place === slots ? base : 0
    const got = this.#fs.read(ino, offset, size, place.buffer, to + place.payload)
    // No message that names the sizes: it would be built for every request.
    assert(got <= size, 'a READ was answered with more than was asked for')
    if (got === WAITS) {
      this.#readLater(base, ino, offset, size)
      return
    }
    if (place !== slots) copyUnique(slots, base, place)
    this.#replies.reply(place, to, got, 0)
  }

  #readLater(base: number, ino: number, offset: number, size: number): void {
    const place = this.#places.take(size)
    const at = place === this.#slots ? base : 0
    const read = this.#fs.readLater(ino, offset, size, place.buffer, at + place.payload)
    this.#nrReadsLater++
    const ended = (): void => {
      this.#nrReadsLater--
      this.#places.free(place)
    }
    void this.#answerLater(OPCODE.READ, base, ino, read, encodeRead, place, at).then(ended)
  }

  #write(base: number, length: number, ino: number): void {
    const slots = this.#slots
    const at = base + slots.body
    const size = slots.u32(at + WRITE_IN.at.size)
    if (length < WRITE_LENGTH || size > length - WRITE_LENGTH) {
      this.#refuse(base, EINVAL)
      return
    }
    const offset = slots.u64(at + WRITE_IN.at.offset)
    const from = slots.rest(base, WRITE_IN.size)
    const put = this.#fs.write(ino, offset, size, slots.buffer, from, this)
    if (typeof put === 'number') {
      // A loop device would take a short answer for success.
      assert(put === size, 'a WRITE was answered short')
      this.#reply(base, encodeWrite(slots, base, size))
    } else {
      const whole = put.then(value => {
        assert(value === size, 'a WRITE was answered short')
        return value
      })
      this.#answer(OPCODE.WRITE, base, ino, whole, encodeWrite)
    }
  }

  #dispatch(opcode: number, base: number, length: number, ino: number): void {
    const slots = this.#slots
    const fs = this.#fs
    const at = base + slots.body
    const bodySize = BODY_SIZES.get(opcode) ?? 0
    const restSize = length - IN_HEADER.size - bodySize
    if (restSize < 0) {
      this.#refuse(base, EINVAL)
      return
    }
    const rest = slots.rest(base, bodySize)
    const names = (count: number): string[] => readNames(slots, rest, rest + restSize, count)
    const answer = <T>(value: Later<T>, encode: Encode<T>): void =>
      this.#answer(opcode, base, ino, value, encode)

    switch (opcode) {
      case OPCODE.FORGET:
      case OPCODE.BATCH_FORGET:
      case OPCODE.NOTIFY_REPLY:
        break // Not answered, and inodes here live without being looked up.
      case OPCODE.INTERRUPT:
        if (restSize >= INTERRUPT_IN.size) this.interrupt(slots, at + INTERRUPT_IN.at.unique)
        break

      case OPCODE.INIT:
        this.#reply(base, this.#options.onInit(slots, base))
        break
      case OPCODE.DESTROY:
      case OPCODE.SYNCFS:
      case OPCODE.FSYNCDIR:
        answer(fs.syncfs(), encodeNothing)
        break
      case OPCODE.STATFS:
        answer(fs.statfs(), encodeStatistics)
        break

      case OPCODE.LOOKUP:
        answer(fs.lookup(ino, names(1)[0]!, slots.u32(base + IN_HEADER.at.pid)), encodeEntry)
        break
      case OPCODE.GETATTR:
        answer(fs.getattr(ino), encodeAttributes)
        break
      case OPCODE.SETATTR:
        answer(fs.setattr(ino, attributeChange(slots, at), this), encodeAttributes)
        break
      case OPCODE.CREATE: {
        const flags = slots.u32(at + CREATE_IN.at.flags)
        const mode = slots.u32(at + CREATE_IN.at.mode)
        const fh = this.#requestNumber(base)
        const created = later(this.#create(base, ino, names(1)[0]!, mode), attributes =>
          later(fs.open(attributes.ino, flags, fh), () => ({ attributes, fh })),
        )
        answer(created, encodeCreate)
        break
      }
      case OPCODE.MKNOD: {
        const mode = slots.u32(at + MKNOD_IN.at.mode)
        const [name] = names(1) as [string]
        if ((mode & S_IFMT) === S_IFREG) answer(this.#create(base, ino, name, mode), encodeEntry)
        else if (fs.mknod === undefined) this.#refuse(base, EPERM)
        else answer(fs.mknod(ino, name, mode, slots.u32(at + MKNOD_IN.at.rdev)), encodeEntry)
        break
      }
      case OPCODE.SYMLINK: {
        if (fs.symlink === undefined) {
          this.#refuse(base, EPERM)
          break
        }
        const [name, target] = names(2) as [string, string]
        answer(fs.symlink(ino, name, target), encodeEntry)
        break
      }
      case OPCODE.READLINK:
        if (fs.readlink === undefined) this.#refuse(base, EINVAL)
        else answer(fs.readlink(ino), encodeLink)
        break
      case OPCODE.IOCTL: {
        const { cmd: command, arg: argument, inSize, outSize } = IOCTL_IN.read(slots.view, at)
        if (fs.ioctl === undefined || inSize > restSize) {
          this.#refuse(base, ENOTTY)
          break
        }
        const input = Buffer.from(slots.buffer.subarray(rest, rest + inSize))
        const call = {
          ...{ command, argument, input, outputSize: outSize },
          ...{ caller: this.#caller(base), isResent: this.isResent(base) },
        }
        answer<IoctlAnswer>(fs.ioctl(ino, { ...call, signal: this.signal() }), encodeIoctl)
        break
      }
      case OPCODE.UNLINK: {
        const [name] = names(1) as [string]
        answer(
          this.#onceAgain(base, () => fs.unlink(ino, name)),
          encodeNothing,
        )
        break
      }
      case OPCODE.RENAME:
      case OPCODE.RENAME2: {
        const newParent = slots.u64(at + RENAME_IN.at.newdir)
        const flags = opcode === OPCODE.RENAME2 ? slots.u32(at + RENAME2_IN.at.flags) : 0
        const [name, newName] = names(2) as [string, string]
        const request = this.#requestNumber(base)
        answer(
          this.#onceAgain(base, () => fs.rename(ino, name, newParent, newName, flags, request)),
          encodeNothing,
        )
        break
      }

      case OPCODE.OPEN: {
        const fh = this.#requestNumber(base)
        const opened = fs.open(ino, slots.u32(at + OPEN_IN.at.flags), fh)
        answer(
          later(opened, () => fh),
          fs.directIo ? encodeOpenDirect : encodeOpen,
        )
        break
      }
      case OPCODE.RELEASE:
        answer(fs.release(ino, slots.u64(at + RELEASE_IN.at.fh)), encodeNothing)
        break
      case OPCODE.FSYNC: {
        const dataOnly = (slots.u32(at + FSYNC_IN.at.fsyncFlags) & FSYNC_FDATASYNC) !== 0
        answer(fs.fsync(ino, dataOnly), encodeNothing)
        break
      }
      case OPCODE.FALLOCATE: {
        const { offset, length: size, mode } = FALLOCATE_IN.read(slots.view, at)
        answer(fs.fallocate(ino, mode, offset, size, this), encodeNothing)
        break
      }
      case OPCODE.LSEEK: {
        const { offset, whence } = LSEEK_IN.read(slots.view, at)
        answer(fs.lseek(ino, offset, whence), encodeSeek)
        break
      }
      case OPCODE.COPY_FILE_RANGE:
      case OPCODE.COPY_FILE_RANGE_64: {
        const { offIn, nodeidOut, offOut, len } = COPY_FILE_RANGE_IN.read(slots.view, at)
        const encode = opcode === OPCODE.COPY_FILE_RANGE ? encodeWrite : encodeCopy64
        answer(fs.copyFileRange(ino, offIn, nodeidOut, offOut, len, this), encode)
        break
      }

      case OPCODE.OPENDIR:
        answer(this.#directories.open(), encodeOpendir)
        break
      case OPCODE.READDIR:
      case OPCODE.READDIRPLUS: {
        const { fh, offset: cookie, size } = READ_IN.read(slots.view, at)
        if (size > MAX_IO) {
          this.#refuse(base, EINVAL)
          break
        }
        const page = { cookie, size, plus: opcode === OPCODE.READDIRPLUS }
        answer(this.#directories.names(ino, fh, cookie), (to, place, entries) =>
          this.#directories.encode(to, place, entries, page),
        )
        break
      }
      case OPCODE.RELEASEDIR:
        this.#directories.close(slots.u64(at + RELEASE_IN.at.fh))
        this.#reply(base, 0)
        break

      case OPCODE.GETXATTR: {
        const value = fs.getxattr(ino, names(1)[0]!)
        answer(value, xattrEncoder(slots.u32(at + GETXATTR_IN.at.size)))
        break
      }
      case OPCODE.LISTXATTR: {
        const size = slots.u32(at + GETXATTR_IN.at.size)
        const list = later(fs.listxattr(ino), all => Buffer.from(all.map(n => `${n}\0`).join('')))
        answer(list, xattrEncoder(size))
        break
      }

      default:
        // ENOSYS is remembered by the kernel, which then goes without: ACCESS, POLL, STATX, BMAP, and
        // FLUSH, which comes with every close(2). What was mapped and written to is written back
        // before that all the same (fuse_flush in fs/fuse/file.c), and a WRITE is settled already.
        this.#refuse(base, REFUSALS.get(opcode) ?? ENOSYS)
    }
  }

  /** Creates a file; a request that was sent before may have done it already. */
  #create(base: number, parent: number, name: string, mode: number): Later<Attributes> {
    const caller = this.#caller(base)
    const create = (): Later<Attributes> => this.#fs.create(parent, name, mode, caller)
    if (!this.isResent(base)) return create()
    return orElse(create, 'EEXIST', () => this.#fs.lookup(parent, name, caller.pid))
  }

  #caller(base: number): Caller {
    const slots = this.#slots
    return {
      uid: slots.u32(base + IN_HEADER.at.uid),
      gid: slots.u32(base + IN_HEADER.at.gid),
      pid: slots.u32(base + IN_HEADER.at.pid),
    }
  }

  /** Does what takes a name away; a request that was sent before may have done it already. */
  #onceAgain(base: number, remove: () => Later<void>): Later<void> {
    return this.isResent(base) ? orElse(remove, 'ENOENT', () => {}) : remove()
  }

  /** Identifies a request, and what it opens: the same when it is sent again, and no other's. */
  #requestNumber(base: number): number {
    return numberAt(this.#slots, base + IN_HEADER.at.unique)
  }

  /** Whether the request was sent before, to an earlier process. */
  isResent(base: number): boolean {
    return this.#slots.u32(base + IN_HEADER.at.unique + 4) >>> 31 === 1
  }

  #answer<T>(opcode: number, base: number, ino: number, value: Later<T>, encode: Encode<T>): void {
    if (value instanceof Promise) {
      const place = this.#places.later
      const at = place === this.#slots ? base : 0
      void this.#answerLater(opcode, base, ino, value, encode, place, at)
    } else {
      this.#reply(base, encode(this.#slots, base, value))
    }
  }

  /**
   * Answers when `promise` has ended, with a reply made in the slot of `place` at byte `at`.
   * @returns a promise that never fails: when the slot is free again
   */
  #answerLater<T>(
    opcode: number,
    base: number,
    ino: number,
    promise: Promise<T>,
    encode: Encode<T>,
    place: Slots,
    at: number,
  ): Promise<void> {
    const number = this.#requestNumber(base)
    const low = this.#slots.u32(base + IN_HEADER.at.unique)
    const high = this.#slots.u32(base + IN_HEADER.at.unique + 4)
    const reply = (length: number, errno: number): void => {
      this.#controllers.delete(number)
      if (this.#stopped) return
      place.setU32(at + OUT_HEADER.at.unique, low)
      place.setU32(at + OUT_HEADER.at.unique + 4, high)
      this.#replies.replyLater(place, at, length, errno)
    }
    return (
      promise
        .then(value => reply(encode(place, at, value), 0))
        // A value that cannot be encoded counts as the file system's error.
        .catch(err => reply(0, this.#errno(opcode, ino, err)))
        .catch(bug => this.#options.onFatal(bug))
    )
  }

  /** The errno to answer an error with. Throws the error when it is a bug. */
  #errno(opcode: number, ino: number, err: unknown): number {
    const errno = errnoNumber(err)
    if (errno === null) throw err
    this.#options.onError(opcodeName(opcode), ino, err)
    return errno
  }

  /** Answers the request in the slot at byte `base` with the `length` bytes of payload behind its header. */
  #reply(base: number, length: number): void {
    this.#replies.reply(this.#slots, base, length, 0)
  }

  #refuse(base: number, errno: number): void {
    this.#replies.reply(this.#slots, base, 0, errno)
  }
}

/** The number in the `unique` at byte `at`: the same when the request is sent again. */
const numberAt = (slots: Slots, at: number): number =>
  (slots.u32(at + 4) & 0x7fff_ffff) * 2 ** 32 + slots.u32(at)

/** Copies the request's id into the first slot of `to`, which makes that the reply. */
function copyUnique(slots: Slots, base: number, to: Slots): void {
  const { unique } = IN_HEADER.at
  to.setU32(OUT_HEADER.at.unique, slots.u32(base + unique))
  to.setU32(OUT_HEADER.at.unique + 4, slots.u32(base + unique + 4))
}

function attributeChange(slots: Slots, at: number): AttributeChange {
  const request = SETATTR_IN.read(slots.view, at)
  const { valid } = request
  const change: AttributeChange = {}
  if (valid & FATTR.SIZE) change.size = request.size
  if (valid & FATTR.MODE) change.mode = request.mode
  if (valid & FATTR.UID) change.uid = request.uid
  if (valid & FATTR.GID) change.gid = request.gid
  if (valid & FATTR.ATIME_NOW) change.atime = 'now'
  else if (valid & FATTR.ATIME)
    change.atime = time(slots, at + SETATTR_IN.at.atime, request.atimensec)
  if (valid & FATTR.MTIME_NOW) change.mtime = 'now'
  else if (valid & FATTR.MTIME)
    change.mtime = time(slots, at + SETATTR_IN.at.mtime, request.mtimensec)
  return change
}

/** Seconds of the signed 64 bits at byte `at` and nanoseconds. */
function time(slots: Slots, at: number, nanoseconds: number): number {
  return Number(slots.view.getBigInt64(at, true)) + nanoseconds / 1e9
}

/** @param size bytes that the caller has room for; 0 asks how many it takes */
function xattrEncoder(size: number): Encode<Buffer> {
  return (slots, base, value) => {
    const at = base + slots.payload
    if (size === 0) {
      GETXATTR_OUT.write(slots.view, at, { size: value.length, padding: 0 })
      return GETXATTR_OUT.size
    }
    if (value.length > size) {
      const found = `an attribute of ${value.length} bytes for ${size}`
      throw new ThinfsError('BAD_ARGUMENT', found, { errno: 'ERANGE' })
    }
    return value.copy(slots.buffer, at)
  }
}
