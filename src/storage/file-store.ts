import {
  closeSync,
  constants,
  fdatasync,
  fstatSync,
  fsync,
  ftruncateSync,
  openSync,
  type Stats,
  statfsSync,
  statSync,
} from 'node:fs'
import { promisify } from 'node:util'
import {
  type Bytes,
  bytes,
  errnoOf,
  FALLOC_KEEP_SIZE,
  heldPath,
  KIB,
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
import { ColdReads } from './cold-reads.js'
import { FileClearer } from './file-clearer.js'
import { FileLock } from './file-lock.js'
import { SHARING, TELLING } from './file-systems.js'
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

/**
 * Bytes of one pwrite(2). One pwrite may become one folio of the page cache, of up to 2 MiB. ext4
 * goes through the whole folio for every small write into it, and for every flush of that: writing
 * 4 KiB took 24 µs into folios of 1 MiB, 4 µs into those of 64 KiB.
 */
const FOLIO = 64 * KIB

/** The extended attribute of a data file that has its label. Source: xattr(7). */
const LABEL = 'user.thinfs.label'

const fdatasyncLater = promisify(fdatasync)
const fsyncLater = promisify(fsync)

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
  readonly #isDevice: boolean
  readonly #tellsHoles: boolean
  readonly #coldReads = new ColdReads()
  readonly #clearer: FileClearer
  readonly #lock: FileLock
  readonly #copies: LateCopies
  #size: Bytes
  /** Whether the file system supports RWF_NOWAIT. tmpfs does not: all of it is memory. */
  #knowsWaits = true

  private constructor(path: string, fd: number, readOnly: boolean, ofUser: number | undefined) {
    this.path = path
    this.fd = fd
    this.#lock = new FileLock(fd, path, readOnly)
    this.#copies = new LateCopies(fd)
    const stat = fstatSync(fd)
    if (!isStore(stat)) throw notAStore(path)
    this.#isDevice = stat.isBlockDevice()
    // Devices have the owner and group that the system gives them.
    const checked = !this.#isDevice && ofUser === undefined
    const distrust = checked ? whyNotTrusted(stat, process.geteuid!()) : null
    if (distrust !== null) throw new ThinfsError('NOT_TRUSTED', `${path}: ${distrust}`)
    this.#size = bytes(native.file_seek(fd, 0, SEEK_END))
    this.#clearer = new FileClearer(fd, path, this.#size, {
      ...{ readOnly, isDevice: this.#isDevice },
      write: (buffer, at, length, offset) => this.write(buffer, at, length, offset),
    })
    const type = this.#isDevice ? 0 : statfsSync(heldPath(fd)).type
    this.copiesShare = SHARING.includes(type)
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
    return this.#clearer.punches
  }

  get tellsHoles(): boolean {
    return this.#tellsHoles && this.punches
  }

  /**
   * Takes the whole file for this store, or shares it with readers when it is read-only. The lock
   * lasts until the last copy of the descriptor is closed. The file behind a loop device is taken
   * as well: it is the same bytes by another name.
   * @returns false when another has it
   * @throws IO_ERROR where the file system has no locks
   */
  lock(): boolean {
    return this.#lock.take()
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
    return this.#lock.isHeld()
  }

  /**
   * Keeps writers away from an image that is only read, for as long as the store is open: thinfs by
   * its lock on the whole file, and QEMU, which says by locks on single bytes what it lets others
   * do. QEMU as a reader, of an overlay for instance, is welcome.
   * @returns false when another thinfs has it
   * @throws IO_ERROR where the file system has no locks
   */
  lockAsImage(): boolean {
    return this.#lock.takeAsImage()
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
    mustHaveRange(this, 'punch', offset, length)
    this.#clearer.punch(offset, length)
  }

  async punchLater(offset: Bytes, length: Bytes): Promise<void> {
    mustHaveRange(this, 'punch', offset, length)
    await this.#clearer.punchLater(offset, length)
  }

  zero(offset: Bytes, length: Bytes): void {
    mustHaveRange(this, 'zero', offset, length)
    this.#clearer.zero(offset, length)
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
    return !this.#isDevice && this.#stat()?.nlink === 0
  }

  async syncAll(): Promise<void> {
    try {
      await fsyncLater(this.fd)
    } catch (err) {
      throw ioError(this.path, 'fsync', err)
    }
  }

  hostRoom(): HostRoom | null {
    const stat = this.#isDevice ? null : this.#stat()
    if (stat === null) return null
    const { bavail, bsize } = statfsSync(heldPath(this.fd))
    return { available: bavail * bsize, allocated: stat.blocks * SECTOR_SIZE }
  }

  /**
   * Null where the file system answers nothing any more, as GlusterFS by a descriptor whose lock it
   * has given to another host: a status is had all the same.
   */
  #stat(): Stats | null {
    try {
      return fstatSync(this.fd)
    } catch {
      return null
    }
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
        const found = `is a device of ${now} bytes, ${size} are wanted: make the device larger first`
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

  /**
   * All that was begun with `readLater`, `copyLater`, `sync` and `punchLater` has to have ended.
   */
  close(): void {
    this.#coldReads.close()
    this.#clearer.close()
    this.#copies.close()
    this.#lock.close()
    closeSync(this.fd)
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
