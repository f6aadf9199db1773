import {
  closeSync,
  openSync,
  readdirSync,
  renameSync,
  statSync,
  truncateSync,
  unlinkSync,
} from 'node:fs'
import { join } from 'node:path'
import { bytes, type Later, type Requester, unlessAborted } from '../../src/base/index.js'
import type {
  AttributeChange,
  Attributes,
  DirectoryEntry,
  FileSystem,
  FileSystemStatistics,
} from '../../src/fuse/index.js'
import { FileStore } from '../../src/storage/index.js'

const ROOT = 1
const SEEK_DATA = 3
const PUNCH_HOLE = 2
const ZERO_RANGE = 16
/** What is cleared as a whole where the environment says so: as a server of objects does. */
const OBJECT = 65536

/** Reading it is answered by a process that has taken over, and never by the first. */
export const WAITING_XATTR = 'user.thinfs.wait'
/** Writes and allocations of the file of this name wait for space, which never comes. */
export const FULL = 'full'

/**
 * The regular files of a folder as a FileSystem: inode numbers are the folder's, so that one
 * process can go on where another ended. Every write is unsettled, and settling takes its time now
 * and then.
 */
export class FolderFileSystem implements FileSystem {
  unsettled = false
  readonly #folder: string
  readonly #names = new Map<number, string>()
  readonly #stores = new Map<number, FileStore>()
  readonly #isFirst: boolean
  #settlings = 0

  /** @param isFirst whether no other process has served the folder before */
  constructor(folder: string, isFirst = false) {
    this.#folder = folder
    this.#isFirst = isFirst
  }

  settle(): void | Promise<void> {
    this.unsettled = false
    if (++this.#settlings % 8 === 0) return new Promise(resolve => setImmediate(resolve))
  }

  statfs(): FileSystemStatistics {
    return {
      blockSize: 65536,
      blocks: 4096,
      blocksFree: 1024,
      blocksAvailable: 1024,
      files: 9,
      filesFree: 8,
      nameMax: 255,
    }
  }

  lookup(_parent: number, name: string): Attributes {
    const attributes = this.#attributes(join(this.#folder, name))
    this.#names.set(attributes.ino, name)
    return attributes
  }

  getattr(ino: number): Attributes {
    return this.#attributes(ino === ROOT ? this.#folder : this.#path(ino))
  }

  setattr(ino: number, change: AttributeChange): Attributes {
    if (change.size !== undefined) {
      truncateSync(this.#path(ino), change.size)
      this.#forget(ino)
    }
    return this.getattr(ino)
  }

  readdir(): DirectoryEntry[] {
    return readdirSync(this.#folder).map(name => ({ name, attributes: this.lookup(ROOT, name) }))
  }

  async create(_parent: number, name: string, mode: number): Promise<Attributes> {
    closeSync(openSync(join(this.#folder, name), 'wx', mode))
    return this.lookup(ROOT, name)
  }

  async unlink(_parent: number, name: string): Promise<void> {
    const { ino } = this.lookup(ROOT, name)
    this.#forget(ino)
    this.#names.delete(ino)
    unlinkSync(join(this.#folder, name))
  }

  rename(_parent: number, name: string, _newParent: number, newName: string): void {
    renameSync(join(this.#folder, name), join(this.#folder, newName))
    this.lookup(ROOT, newName)
  }

  open(): void {}
  release(): void {}

  read(ino: number, offset: number, size: number, target: Buffer, at: number): number {
    const store = this.#store(ino)
    const length = Math.max(0, Math.min(size, store.size - offset))
    store.read(target, at, length, bytes(offset))
    return length
  }

  async readLater(
    ino: number,
    offset: number,
    size: number,
    target: Buffer,
    at: number,
  ): Promise<number> {
    return this.read(ino, offset, size, target, at)
  }

  write(
    ino: number,
    offset: number,
    size: number,
    source: Buffer,
    at: number,
    requester?: Requester,
  ): Later<number> {
    if (this.#names.get(ino) === FULL) return this.wait(requester)
    const store = this.#store(ino)
    if (offset + size > store.size) store.grow(bytes(offset + size))
    store.write(source, at, size, bytes(offset))
    this.unsettled = true
    return size
  }

  fallocate(
    ino: number,
    mode: number,
    offset: number,
    length: number,
    requester?: Requester,
  ): Later<void> {
    const store = this.#store(ino)
    const end = Math.min(offset + length, store.size)
    if ((mode & (PUNCH_HOLE | ZERO_RANGE)) === 0) {
      if (this.#names.get(ino) === FULL) return this.wait(requester)
      store.grow(bytes(Math.max(offset + length, store.size)))
    } else if (end > offset) {
      const { THINFS_TEST_LIES: lies } = process.env
      if (lies === 'zero' && (mode & ZERO_RANGE) !== 0) return
      if (lies === 'objects') {
        const whole = Math.ceil(offset / OBJECT) * OBJECT
        const length = Math.floor(end / OBJECT) * OBJECT - whole
        if (length > 0) store.punch(bytes(whole), bytes(length))
        return
      }
      store.punch(bytes(offset), bytes(end - offset))
    }
    this.unsettled = true
  }

  lseek(ino: number, offset: number, whence: number): number {
    const store = this.#store(ino)
    const found =
      whence === SEEK_DATA ? store.nextData(bytes(offset)) : store.nextHole(bytes(offset))
    if (offset < store.size && (whence !== SEEK_DATA || found < store.size)) return found
    throw Object.assign(new Error('no more data'), { code: 'ENXIO' })
  }

  copyFileRange(
    from: number,
    fromAt: number,
    to: number,
    toAt: number,
    length: number,
  ): Later<number> {
    const size = Math.max(0, Math.min(length, this.#store(from).size - fromAt))
    const buffer = Buffer.alloc(size)
    this.read(from, fromAt, size, buffer, 0)
    return this.write(to, toAt, size, buffer, 0)
  }

  fsync(ino: number): Promise<void> {
    return this.#store(ino).sync()
  }

  syncfs(): void {}

  getxattr(ino: number, name: string): Buffer | Promise<Buffer> {
    if (name === WAITING_XATTR) {
      return this.#isFirst ? new Promise(() => {}) : Buffer.from('answered')
    }
    if (name === 'user.thinfs.ino') return Buffer.from(String(ino))
    throw Object.assign(new Error(name), { code: 'ENODATA' })
  }

  listxattr(): string[] {
    return ['user.thinfs.ino']
  }

  wait(requester: Requester | undefined): Promise<never> {
    return unlessAborted(new Promise<never>(() => {}), requester?.signal())
  }

  #attributes(path: string): Attributes {
    const { ino, size, blocks, mode, nlink, atimeMs, mtimeMs, ctimeMs } = statSync(path)
    return {
      ino: path === this.#folder ? ROOT : ino,
      generation: 0,
      ...{ size, blocks, mode, nlink, uid: 0, gid: 0, blockSize: 65536 },
      ...{ atime: atimeMs / 1000, mtime: mtimeMs / 1000, ctime: ctimeMs / 1000 },
    }
  }

  #path(ino: number): string {
    if (!this.#names.has(ino)) this.readdir()
    const name = this.#names.get(ino)
    if (name === undefined) throw Object.assign(new Error(`inode ${ino}`), { code: 'ENOENT' })
    return join(this.#folder, name)
  }

  #store(ino: number): FileStore {
    let store = this.#stores.get(ino)
    if (store === undefined) {
      store = FileStore.open(this.#path(ino))
      this.#stores.set(ino, store)
    }
    return store
  }

  #forget(ino: number): void {
    this.#stores.get(ino)?.close()
    this.#stores.delete(ino)
  }
}
