/**
 * Devices by number as a file system of one folder: `dm-N` is the device with minor number N, as
 * long as its table. Loop devices stand on these files.
 *
 * Inode numbers are derived from minor numbers, so they hold over a restart of the server. Nothing
 * is cached above: what a device holds changes with its table.
 */
import { constants } from 'node:fs'
import {
  FALLOC_KEEP_SIZE,
  FALLOC_PUNCH_HOLE,
  FALLOC_ZERO_RANGE,
  GIB,
  KIB,
  type Later,
  NAME_MAX,
  refused,
  SECTOR_SIZE,
  SEEK_DATA,
  SEEK_HOLE,
} from '../base/index.js'
import type { BlockDevice } from '../device/index.js'
import {
  type AttributeChange,
  type Attributes,
  type DirectoryEntry,
  type FileSystem,
  type FileSystemStatistics,
  WAITS,
} from '../fuse/index.js'

const ROOT = 1
/** Inode numbers of devices are minor numbers plus this. */
const FIRST_DEVICE = 2

const { S_IFDIR, S_IFREG } = constants
/** Minor numbers have 20 bits. */
const MAX_DEVICES = 2 ** 20
/**
 * statfs(2) block size, which loop devices have for their discard granularity: a thin pool's least.
 */
const BLOCK_SIZE = 64 * KIB

/** The devices by their minor numbers. */
export interface NumberedDevices {
  /** Undefined when there is none. */
  find(minor: number): BlockDevice | undefined
  all(): Iterable<{ readonly minor: number }>
}

export class TableFs implements FileSystem {
  readonly directIo = true
  /** False: targets settle the changes of thin devices before they acknowledge them (tables/). */
  readonly unsettled = false
  readonly #devices: NumberedDevices
  readonly #onClosed: (minor: number) => void
  readonly #mounted: number

  /**
   * @param onClosed called when a descriptor of a device's file has been closed for good
   * @param mounted seconds since 1970
   */
  constructor(devices: NumberedDevices, onClosed: (minor: number) => void, mounted: number) {
    this.#devices = devices
    this.#onClosed = onClosed
    this.#mounted = mounted
  }

  statfs(): FileSystemStatistics {
    return {
      blockSize: BLOCK_SIZE,
      blocks: GIB / BLOCK_SIZE,
      blocksFree: 0,
      blocksAvailable: 0,
      files: MAX_DEVICES,
      filesFree: MAX_DEVICES,
      nameMax: NAME_MAX,
    }
  }

  lookup(parent: number, name: string): Attributes {
    this.#mustBeRoot(parent)
    const minor = /^dm-(0|[1-9]\d{0,6})$/.exec(name)?.[1]
    const device = minor === undefined ? undefined : this.#devices.find(Number(minor))
    if (device === undefined) throw refused('ENOENT', name)
    return this.#attributes(Number(minor) + FIRST_DEVICE, device)
  }

  getattr(ino: number): Attributes {
    return ino === ROOT ? this.#rootAttributes() : this.#attributes(ino, this.#device(ino))
  }

  setattr(ino: number, change: AttributeChange): Attributes {
    const { size } = change
    if (ino !== ROOT && size !== undefined && size !== this.#device(ino).size) {
      throw refused('EINVAL', 'a device has the size of its table')
    }
    return this.getattr(ino)
  }

  readdir(ino: number): readonly DirectoryEntry[] {
    this.#mustBeRoot(ino)
    return [...this.#devices.all()].map(({ minor }) => ({
      name: `dm-${minor}`,
      attributes: this.getattr(minor + FIRST_DEVICE),
    }))
  }

  create(): Attributes {
    throw refused('EPERM', 'devices are made by their service')
  }

  unlink(): void {
    throw refused('EPERM', 'devices are removed by their service')
  }

  rename(): void {
    throw refused('EPERM', 'devices have numbers')
  }

  open(ino: number): void {
    this.#device(ino)
  }

  release(ino: number): void {
    this.#onClosed(ino - FIRST_DEVICE)
  }

  read(ino: number, offset: number, size: number, target: Buffer, at: number): number {
    const device = this.#device(ino)
    const length = Math.min(size, device.size - offset)
    if (length <= 0) return 0
    return device.read(offset, length, target, at) ? length : WAITS
  }

  async readLater(
    ino: number,
    offset: number,
    size: number,
    target: Buffer,
    at: number,
  ): Promise<number> {
    const device = this.#device(ino)
    const length = Math.min(size, device.size - offset)
    if (length <= 0) return 0
    await device.readLater(offset, length, target, at)
    return length
  }

  write(ino: number, offset: number, size: number, source: Buffer, at: number): Later<number> {
    const device = this.#device(ino)
    if (size === 0) return 0
    if (offset + size > device.size) throw refused('ENOSPC', 'past the end of the device')
    const written = device.write(offset, size, source, at)
    return written instanceof Promise ? written.then(() => size) : size
  }

  fallocate(ino: number, mode: number, offset: number, length: number): Later<void> {
    const device = this.#device(ino)
    const size = Math.min(offset + length, device.size) - offset
    if (length <= 0) throw refused('EINVAL', 'length')
    if (size <= 0) return
    switch (mode) {
      case FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE:
        return device.discard(offset, size)
      case FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE:
      case FALLOC_ZERO_RANGE:
        return device.zero(offset, size)
    }
    throw refused('EOPNOTSUPP', `fallocate mode ${mode}`)
  }

  async lseek(ino: number, offset: number, whence: number): Promise<number> {
    const device = this.#device(ino)
    if (offset >= device.size) throw refused('ENXIO', 'past the end')
    if (whence === SEEK_HOLE) return device.nextHole(offset)
    if (whence !== SEEK_DATA) throw refused('EINVAL', `whence ${whence}`)
    const data = await device.nextData(offset)
    if (data >= device.size) throw refused('ENXIO', 'no data follows')
    return data
  }

  copyFileRange(): number {
    throw refused('EOPNOTSUPP', 'devices')
  }

  fsync(ino: number): Promise<void> {
    return this.#device(ino).flush()
  }

  flush(): void {}

  syncfs(): void {}

  getxattr(_ino: number, name: string): Buffer {
    throw refused('ENODATA', name)
  }

  listxattr(): readonly string[] {
    return []
  }

  settle(): void {}

  // --- inside ---

  #device(ino: number): BlockDevice {
    if (ino === ROOT) throw refused('EISDIR', 'the root of the mount')
    const device = this.#devices.find(ino - FIRST_DEVICE)
    if (device === undefined) throw refused('ESTALE', `inode ${ino}`)
    return device
  }

  #mustBeRoot(ino: number): void {
    if (ino !== ROOT) throw refused('ENOTDIR', `inode ${ino}`)
  }

  #attributes(ino: number, { size }: BlockDevice): Attributes {
    return {
      ...this.#rootAttributes(),
      ino,
      size,
      blocks: Math.ceil(size / SECTOR_SIZE),
      mode: S_IFREG | 0o600,
      nlink: 1,
    }
  }

  #rootAttributes(): Attributes {
    return {
      ino: ROOT,
      generation: 0,
      size: 0,
      blocks: 0,
      mode: S_IFDIR | 0o700,
      nlink: 2,
      uid: 0,
      gid: 0,
      atime: this.#mounted,
      mtime: this.#mounted,
      ctime: this.#mounted,
      blockSize: BLOCK_SIZE,
    }
  }
}
