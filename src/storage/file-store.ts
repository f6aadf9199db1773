import {
  closeSync,
  constants,
  fdatasync,
  fstatSync,
  fsync,
  ftruncateSync,
  openSync,
  readFileSync,
  readlinkSync,
  type Stats,
  statfsSync,
  statSync,
} from 'node:fs'
import { promisify } from 'node:util'
import {
  type Bytes,
  bytes,
  deviceNumber,
  errnoOf,
  FALLOC_KEEP_SIZE,
  FALLOC_PUNCH_HOLE,
  FALLOC_ZERO_RANGE,
  heldPath,
  KIB,
  MIB,
  PAGE_SIZE,
  SECTOR_SIZE,
  SEEK_DATA,
  SEEK_END,
  SEEK_HOLE,
  ThinfsError,
  whyNotOf,
  whyNotTrusted,
} from '../base/index.js'
import { kernelPathOf, usersOf } from '../host/index.js'
import { native } from '../native.js'
import { clears } from './clearing.js'
import { ColdReads } from './cold-reads.js'
import { SHARING, TELLING } from './file-systems.js'
import { LateAllocations } from './late-allocations.js'
import { LateCopies } from './late-copies.js'
import {
  type HostRoom,
  ioError,
  type Label,
  mustCopy,
  mustHaveRange,
  SCRATCH,
  type Store,
} from './store.js'

/** Modes that leave the length as it is. */
const PUNCH_HOLE = FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE
const ZERO_RANGE = FALLOC_KEEP_SIZE | FALLOC_ZERO_RANGE

/**
 * Bytes of one pwrite(2). One pwrite may become one folio of the page cache, of up to 2 MiB. ext4
 * goes through the whole folio for every small write into it, and for every flush of that: writing
 * 4 KiB took 24 µs into folios of 1 MiB, 4 µs into those of 64 KiB.
 */
const FOLIO = 64 * KIB

/** The extended attribute of a data file that has its label. Source: xattr(7). */
const LABEL = 'user.thinfs.label'

/**
 * Ranges to lock: what is before QEMU's bytes, and those of them that forbid others to write, and to
 * resize. Source: block/file-posix.c, RAW_LOCK_SHARED_BASE; include/block/block-common.h, BLK_PERM_WRITE.
 */
const IMAGE_LOCKS: readonly (readonly [offset: number, length: number])[] = [
  [0, 100],
  [201, 1],
  [203, 1],
]

const fdatasyncLater = promisify(fdatasync)
const fsyncLater = promisify(fsync)
const ZEROS = new Uint8Array(MIB)

/**
 * A store in a regular file or on a block device, by way of the page cache.
 *
 * A block device has no holes: its ranges are cleared by what it has for that, or by zeros.
 * Every failure is an IO_ERROR with the errno of the system call and the file's path.
 */
export class FileStore implements Store {
  readonly path: string
  readonly copiesShare: boolean
  readonly fd: number
  readonly #readOnly: boolean
  readonly #isDevice: boolean
  readonly #tellsHoles: boolean
  /**
   * The modes of fallocate that make holes and zeros: the first of each that the system supports.
   */
  readonly #punchModes: number[]
  readonly #zeroModes: number[] = [ZERO_RANGE]
  /** Whether the modes have been judged, before the first use of any. */
  #isTried = false
  #punches: boolean
  readonly #coldReads = new ColdReads()
  readonly #allocations: LateAllocations
  readonly #copies: LateCopies
  #size: Bytes
  /** The file behind a loop device, which is locked with it. */
  #behind: number | null = null
  /** Whether the file system supports RWF_NOWAIT. tmpfs does not: all of it is memory. */
  #knowsWaits = true

  private constructor(path: string, fd: number, readOnly: boolean, ofUser: number | undefined) {
    this.path = path
    this.fd = fd
    this.#allocations = new LateAllocations(fd)
    this.#copies = new LateCopies(fd)
    this.#readOnly = readOnly
    const stat = fstatSync(fd)
    if (!isStore(stat)) throw notAStore(path)
    this.#isDevice = stat.isBlockDevice()
    // Devices have the owner and group that the system gives them.
    const checked = !this.#isDevice && ofUser === undefined
    const distrust = checked ? whyNotTrusted(stat, process.geteuid!()) : null
    if (distrust !== null) throw new ThinfsError('NOT_TRUSTED', `${path}: ${distrust}`)
    this.#size = bytes(native.file_seek(fd, 0, SEEK_END))
    this.#punchModes = this.#isDevice ? [PUNCH_HOLE, ZERO_RANGE] : [PUNCH_HOLE]
    const type = this.#isDevice ? 0 : statfsSync(heldPath(fd)).type
    this.copiesShare = SHARING.includes(type)
    this.#punches = !this.#isDevice && !readOnly && this.#punchesPastEnd()
    this.#tellsHoles = TELLING.includes(type)
  }

  /**
   * Opens `path`, for reading and writing unless `readOnly`. A block device is claimed: nobody
   * mounts it, nor does device-mapper or another pool take it, until the last copy of the
   * descriptor is closed.
   * @param create makes the file, with mode 0600; EEXIST when it is there
   * @param size extends the store to this size when it is smaller
   * @param ofUser another user, whose file it has to be, and no link or device; for reading alone
   * @throws NOT_TRUSTED for a file that other users own or may write to; POOL_IN_USE for a device
   *   that is mounted or part of another; IO_ERROR
   */
  static open(
    path: string,
    options: { readOnly?: boolean; create?: boolean; size?: Bytes; ofUser?: number } = {},
  ): FileStore {
    const readOnly = options.readOnly ?? false
    let flags = readOnly ? constants.O_RDONLY : constants.O_RDWR
    if (options.create) flags |= constants.O_CREAT | constants.O_EXCL
    let fd: number
    try {
      if (options.ofUser !== undefined) {
        return FileStore.of(openOf(options.ofUser, path), path, { ...options, readOnly: true })
      }
      const stat = statSync(path, { throwIfNoEntry: false })
      if (stat !== undefined && !isStore(stat)) throw notAStore(path) // a FIFO's open waits
      if (stat?.isBlockDevice()) flags |= constants.O_EXCL
      fd = openSync(path, flags, 0o600)
    } catch (err) {
      if (errnoOf(err) === 'EBUSY') {
        const users = usersOf(kernelPathOf(path)).join(', ') || 'in use by something else'
        throw new ThinfsError('POOL_IN_USE', `${path}: it is ${users}`, { cause: err })
      }
      throw err instanceof ThinfsError ? err : ioError(path, 'open', err)
    }
    return FileStore.of(fd, path, options)
  }

  /**
   * The store behind a descriptor, which is its to close, on failure too.
   * @param fd open for reading, and for writing unless `readOnly`
   * @throws as `open`
   */
  static of(
    fd: number,
    path: string,
    { readOnly = false, size, ofUser }: { readOnly?: boolean; size?: Bytes; ofUser?: number } = {},
  ): FileStore {
    try {
      const store = new FileStore(path, fd, readOnly, ofUser)
      if (size !== undefined && size > store.size) store.grow(size)
      return store
    } catch (err) {
      closeSync(fd)
      throw err instanceof ThinfsError ? err : ioError(path, 'open', err)
    }
  }

  get size(): Bytes {
    return this.#size
  }

  get punches(): boolean {
    return this.#punches && this.#tried(this.#punchModes).length > 0
  }

  get tellsHoles(): boolean {
    return this.#tellsHoles && this.punches
  }

  /**
   * Takes the whole file for this store, or shares it with readers when it is read-only. The lock
   * is that of the open file: it is inherited with the descriptor and lasts until the last copy is
   * closed. The file behind a loop device is taken as well: it is the same bytes by another name.
   * Source: fcntl(2), "Open file description locks".
   * @returns false when another has it
   * @throws IO_ERROR where the file system has no locks
   */
  lock(): boolean {
    try {
      return native.file_lock(this.fd, !this.#readOnly) && this.#lockBehind()
    } catch (err) {
      throw ioError(this.path, 'lock', err)
    }
  }

  /**
   * Whether the store has the lock that `lock`, here or in the process that it inherits its
   * descriptor from, has taken. A file system may have given it to another meanwhile: then it is
   * taken again where it is free. The file behind a loop device is asked about only where it was
   * opened here: its lock is that of another description, which is not inherited.
   * @returns false when another has it
   * @throws IO_ERROR where the file system has no locks
   */
  holdsLock(): boolean {
    try {
      const isExclusive = !this.#readOnly
      if (!native.file_lock(this.fd, isExclusive)) return false
      return this.#behind === null || native.file_lock(this.#behind, isExclusive)
    } catch (err) {
      throw ioError(this.path, 'lock', err)
    }
  }

  /**
   * Keeps writers away from an image that is only read, for as long as the store is open: thinfs by
   * its lock on the whole file, and QEMU, which says by locks on single bytes what it lets others
   * do. QEMU as a reader, of an overlay for instance, is welcome.
   * @returns false when another thinfs has it
   * @throws IO_ERROR where the file system has no locks
   */
  lockAsImage(): boolean {
    try {
      return IMAGE_LOCKS.every(([at, length]) => native.file_lock_range(this.fd, false, at, length))
    } catch (err) {
      throw ioError(this.path, 'lock', err)
    }
  }

  #lockBehind(): boolean {
    const path = this.#isDevice ? fileBehind(fstatSync(this.fd).rdev) : null
    if (path === null) return true
    try {
      this.#behind ??= openSync(path, this.#readOnly ? constants.O_RDONLY : constants.O_RDWR)
    } catch {
      return true // Nobody else can open it by that name either.
    }
    return native.file_lock(this.#behind, !this.#readOnly)
  }

  read(buffer: Uint8Array, at: number, length: number, offset: Bytes): void {
    mustHaveRange(this, 'read', offset, length)
    try {
      native.file_read(this.fd, buffer, at, length, offset)
    } catch (err) {
      throw ioError(this.path, `read of ${length} bytes at ${offset}`, err)
    }
  }

  readNow(buffer: Uint8Array, at: number, length: number, offset: Bytes): boolean {
    if (this.#knowsWaits) {
      mustHaveRange(this, 'read', offset, length)
      try {
        return native.file_read_now(this.fd, buffer, at, length, offset)
      } catch (err) {
        if (errnoOf(err) !== 'EOPNOTSUPP') {
          throw ioError(this.path, `read of ${length} bytes at ${offset}`, err)
        }
        this.#knowsWaits = false
      }
    }
    this.read(buffer, at, length, offset)
    return true
  }

  readLater(buffer: Uint8Array, at: number, length: number, offset: Bytes): Promise<void> {
    try {
      mustHaveRange(this, 'read', offset, length)
    } catch (err) {
      return Promise.reject(err)
    }
    return this.#coldReads.read(this.fd, buffer, at, length, offset).catch(err => {
      throw ioError(this.path, `read of ${length} bytes at ${offset}`, err)
    })
  }

  write(buffer: Uint8Array, at: number, length: number, offset: Bytes): void {
    mustHaveRange(this, 'write', offset, length)
    try {
      for (let done = 0; done < length; done += FOLIO) {
        const part = Math.min(FOLIO, length - done)
        native.file_write(this.fd, buffer, at + done, part, offset + done)
      }
    } catch (err) {
      throw ioError(this.path, `write of ${length} bytes at ${offset}`, err)
    }
  }

  copy(source: Bytes, target: Bytes, length: Bytes): void {
    mustCopy(this, source, target, length)
    if (this.copiesShare) {
      this.#copyInHost(source, target, length)
      return
    }
    for (let done = 0; done < length; done += SCRATCH.length) {
      const part = Math.min(SCRATCH.length, length - done)
      this.read(SCRATCH, 0, part, bytes(source + done))
      this.write(SCRATCH, 0, part, bytes(target + done))
    }
  }

  async copyLater(source: Bytes, target: Bytes, length: Bytes, toHole: boolean): Promise<void> {
    mustCopy(this, source, target, length)
    try {
      await this.#copies.copy(source, target, length, toHole && !this.#isDevice)
    } catch (err) {
      throw ioError(this.path, `copy of ${length} bytes from ${source} to ${target}`, err)
    }
  }

  punch(offset: Bytes, length: Bytes): void {
    this.#clear('punch', this.#punchModes, offset, length)
  }

  async punchLater(offset: Bytes, length: Bytes): Promise<void> {
    mustHaveRange(this, 'punch', offset, length)
    const { begin, end } = this.#clearable(offset, length)
    const modes = this.#tried(this.#punchModes)
    while (modes.length > 0 && begin < end) {
      const mode = modes[0]!
      try {
        await this.#allocations.call(mode, begin, end - begin)
        this.#writeZeros(offset, begin)
        this.#writeZeros(end, offset + length)
        return
      } catch (err) {
        this.#unsupported('punch', modes, mode, err)
      }
    }
    for (let done = 0; done < length; done += MIB) {
      this.#writeZeros(offset + done, Math.min(offset + done + MIB, offset + length))
      await new Promise(resolve => setImmediate(resolve))
    }
  }

  zero(offset: Bytes, length: Bytes): void {
    this.#clear('zero', this.#zeroModes, offset, length)
  }

  nextData(offset: Bytes): Bytes {
    return this.#isDevice ? bytes(Math.min(offset, this.size)) : this.#seek(offset, SEEK_DATA)
  }

  nextHole(offset: Bytes): Bytes {
    return this.#isDevice ? this.size : this.#seek(offset, SEEK_HOLE)
  }

  async sync(): Promise<void> {
    try {
      await fdatasyncLater(this.fd)
    } catch (err) {
      throw ioError(this.path, 'fdatasync', err)
    }
  }

  readLabel(): Label | null {
    try {
      const text = native.file_get_attribute(this.fd, LABEL) ?? ''
      const [, pool, generation] = /^([0-9a-f-]{36}|-) (\d{1,15})$/.exec(text) ?? []
      if (pool === undefined) return null
      return { pool: pool === '-' ? null : pool, generation: Number(generation) }
    } catch {
      return null // Devices and some file systems have no attributes.
    }
  }

  writeLabel({ pool, generation }: Label): boolean {
    try {
      native.file_set_attribute(this.fd, LABEL, `${pool ?? '-'} ${generation}`)
      return true
    } catch {
      return false
    }
  }

  get isRemoved(): boolean {
    return !this.#isDevice && fstatSync(this.fd).nlink === 0
  }

  async syncAll(): Promise<void> {
    try {
      await fsyncLater(this.fd)
    } catch (err) {
      throw ioError(this.path, 'fsync', err)
    }
  }

  hostRoom(): HostRoom | null {
    if (this.#isDevice) return null
    const { bavail, bsize } = statfsSync(heldPath(this.fd))
    return { available: bavail * bsize, allocated: fstatSync(this.fd).blocks * SECTOR_SIZE }
  }

  reserve(offset: Bytes, length: Bytes): boolean {
    mustHaveRange(this, 'reserve', offset, length)
    if (this.#isDevice) return false
    try {
      native.file_allocate(this.fd, FALLOC_KEEP_SIZE, offset, length)
      return true
    } catch (err) {
      if (errnoOf(err) === 'EOPNOTSUPP') return false
      throw ioError(this.path, `reserving ${length} bytes at ${offset}`, err)
    }
  }

  measure(): void {
    this.#size = bytes(native.file_seek(this.fd, 0, SEEK_END))
  }

  grow(size: Bytes): void {
    if (size < this.size) {
      throw new ThinfsError('BAD_ARGUMENT', `${this.path}: does not shrink from ${this.size}`)
    }
    if (this.#isDevice) {
      // Somebody may have made the device larger since it was opened; that is all that it can do.
      const now = bytes(native.file_seek(this.fd, 0, SEEK_END))
      if (now < size) {
        const found = `is a device of ${now} bytes, ${size} are wanted`
        throw new ThinfsError('BAD_ARGUMENT', `${this.path}: ${found}`)
      }
    } else {
      try {
        ftruncateSync(this.fd, size)
      } catch (err) {
        if (errnoOf(err) !== 'EFBIG') throw ioError(this.path, `growing to ${size} bytes`, err)
        const detail = `${this.path}: no file there can have ${size} bytes`
        throw new ThinfsError('BAD_ARGUMENT', detail, { cause: err, errno: 'EFBIG' })
      }
    }
    this.#size = size
  }

  cut(size: Bytes): void {
    if (size > this.size || this.#isDevice) {
      throw new ThinfsError('BAD_ARGUMENT', `${this.path}: cannot be cut off at ${size} bytes`)
    }
    try {
      ftruncateSync(this.fd, size)
    } catch (err) {
      throw ioError(this.path, `cutting off at ${size} bytes`, err)
    }
    this.#size = size
  }

  /** All that was begun with `readLater`, `copyLater`, `sync` and `punchLater` has to have ended. */
  close(): void {
    this.#coldReads.close()
    this.#allocations.close()
    this.#copies.close()
    if (this.#behind !== null) closeSync(this.#behind)
    closeSync(this.fd)
  }

  /** Punches where no byte can be lost, to see whether the file system can. */
  #punchesPastEnd(): boolean {
    try {
      native.file_allocate(this.fd, PUNCH_HOLE, this.#size, PAGE_SIZE)
      return true
    } catch (err) {
      if (errnoOf(err) !== 'EOPNOTSUPP') throw err
      return false
    }
  }

  #copyInHost(source: Bytes, target: Bytes, length: Bytes): void {
    mustHaveRange(this, 'copy', source, length)
    mustHaveRange(this, 'copy', target, length)
    try {
      native.file_copy(this.fd, source, target, length)
    } catch (err) {
      throw ioError(this.path, `copy of ${length} bytes from ${source} to ${target}`, err)
    }
  }

  #clear(what: string, modes: number[], offset: Bytes, length: Bytes): void {
    mustHaveRange(this, what, offset, length)
    const { begin, end } = this.#clearable(offset, length)
    this.#tried(modes)
    while (modes.length > 0 && begin < end) {
      const mode = modes[0]!
      try {
        native.file_allocate(this.fd, mode, begin, end - begin)
        this.#writeZeros(offset, begin)
        this.#writeZeros(end, offset + length)
        return
      } catch (err) {
        this.#unsupported(what, modes, mode, err)
      }
    }
    this.#writeZeros(offset, offset + length)
  }

  /** Drops the modes that leave something, unless that is done. @returns `modes` */
  #tried(modes: number[]): number[] {
    if (this.#isTried) return modes
    this.#isTried = true
    if (this.#isDevice || this.#readOnly) return modes
    // Wherever the folder has been moved to.
    const path = readlinkSync(heldPath(this.fd))
    for (const list of [this.#punchModes, this.#zeroModes]) {
      if (list.length > 0 && !clears(this.fd, path, list[0]!)) list.shift()
    }
    return modes
  }

  /**
   * The part of a range that fallocate takes: of a file any bytes, of a device whole logical
   * blocks, which are no larger than pages.
   */
  #clearable(offset: number, length: number): { begin: number; end: number } {
    if (!this.#isDevice) return { begin: offset, end: offset + length }
    const begin = Math.ceil(offset / PAGE_SIZE) * PAGE_SIZE
    return { begin, end: Math.max(begin, Math.floor((offset + length) / PAGE_SIZE) * PAGE_SIZE) }
  }

  /** Drops a mode that the system refuses for good; any other failure is the caller's. */
  #unsupported(what: string, modes: number[], mode: number, err: unknown): void {
    if (errnoOf(err) !== 'EOPNOTSUPP') throw ioError(this.path, what, err)
    // Another call may have found out meanwhile.
    if (modes[0] === mode) modes.shift()
  }

  #writeZeros(begin: number, end: number): void {
    for (let at = begin; at < end; at += ZEROS.length) {
      this.write(ZEROS, 0, Math.min(ZEROS.length, end - at), bytes(at))
    }
  }

  #seek(offset: Bytes, whence: number): Bytes {
    if (offset >= this.size) return this.size
    let found: number
    try {
      found = native.file_seek(this.fd, offset, whence)
    } catch (err) {
      throw ioError(this.path, `lseek from ${offset}`, err)
    }
    return found < 0 ? this.size : bytes(Math.min(found, this.size))
  }
}

const isStore = (stat: Stats): boolean => stat.isFile() || stat.isBlockDevice()
const notAStore = (path: string): ThinfsError =>
  new ThinfsError('BAD_ARGUMENT', `${path}: is neither a file nor a block device`)

/**
 * open(2) that follows no link, and to which no device and no pipe is opened. Source: open(2),
 * O_PATH.
 */
const O_PATH = 0o10000000

/**
 * Opens a regular file of a user's to be read, whatever he puts in its place meanwhile.
 * @throws NOT_TRUSTED
 */
function openOf(uid: number, path: string): number {
  const held = openSync(path, O_PATH | constants.O_NOFOLLOW)
  try {
    const why = whyNotOf(fstatSync(held), uid)
    if (why !== null) throw new ThinfsError('NOT_TRUSTED', `${path}: ${why}`)
    return openSync(heldPath(held), constants.O_RDONLY)
  } finally {
    closeSync(held)
  }
}

/** The regular file that a loop device shows, by its device number; null for any other device. */
function fileBehind(rdev: number): string | null {
  try {
    const link = `/sys/dev/block/${deviceNumber(rdev)}/loop/backing_file`
    const path = readFileSync(link, 'utf8').trimEnd()
    return statSync(path).isFile() ? path : null
  } catch {
    return null
  }
}
