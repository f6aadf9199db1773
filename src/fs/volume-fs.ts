/**
 * The volumes as a file system of one folder: what each file operation does to which volume.
 *
 * A volume is a regular file whose size is the virtual size. Inode numbers are derived from device
 * ids, so they hold over a restart of the server. Errors are those of a Linux filesystem.
 */
import {
  type Bytes,
  bytes,
  type Clock,
  FALLOC_KEEP_SIZE,
  FALLOC_PUNCH_HOLE,
  FALLOC_ZERO_RANGE,
  heldRequester,
  type Later,
  MAX_DEV_ID,
  MAX_DEVICE_SIZE,
  NAME_MAX,
  OPERATION,
  type Requester,
  refused,
  SEEK_DATA,
  SEEK_HOLE,
  ThinfsError,
  unlessAborted,
} from '../base/index.js'
import {
  type AttributeChange,
  type Attributes,
  type Caller,
  type DirectoryEntry,
  type FileSystem,
  type FileSystemStatistics,
  later,
  WAITS,
} from '../fuse/index.js'
import type { ThinDevice, ThinPool } from '../pool/index.js'
import type { Ownership, Volume, Volumes } from '../volumes/index.js'
import { RangeCopies } from './range-copies.js'
import { FIRST_VOLUME, ROOT, VolumeAttributes } from './volume-attributes.js'
import { mustBeAbleToEnd, tooFar } from './volume-ends.js'
import { isXattr, xattrOf, xattrsOf } from './volume-xattrs.js'

/** Milliseconds for which a time stamp is good: the kernel's are of its timer tick, 1 to 10 ms. */
const TICK = 4

// renameat2(2)
const RENAME_NOREPLACE = 1
const RENAME_EXCHANGE = 2
// open(2)
const O_TRUNC = 0o1000

export class VolumeFs implements FileSystem {
  readonly volumes: Volumes
  readonly #pool: ThinPool
  readonly #clock: Clock
  readonly #attributes: VolumeAttributes
  readonly #copies: RangeCopies
  readonly #mounted: number
  /** The time, in milliseconds since 1970, as long as it is not older than TICK. */
  readonly #now = new Float64Array(1)
  #timed = false
  readonly #tick = setTimeout(() => {
    this.#timed = false
  }, TICK).unref()

  /** @param owner whose the root is: who mounted it. @param mounted seconds since 1970 */
  constructor(volumes: Volumes, owner: { uid: number; gid: number }, mounted: number) {
    this.volumes = volumes
    this.#pool = volumes.pool
    this.#clock = volumes.pool.clock
    this.#attributes = new VolumeAttributes(volumes, owner, mounted)
    this.#copies = new RangeCopies({
      pool: volumes.pool,
      extend: (device, size) => this.#extend(device, size),
      touch: volume => {
        volume.modified = this.#time()
      },
    })
    this.#mounted = mounted
  }

  // --- names ---

  statfs(): FileSystemStatistics {
    const { blockSize, space } = this.#pool
    const host = Math.floor((space.data.hostRoom ?? Number.MAX_SAFE_INTEGER) / blockSize)
    return {
      blockSize,
      blocks: this.#pool.metadata.nrDataBlocks,
      blocksFree: this.#pool.space.data.nrFree,
      // No more than the host can give.
      blocksAvailable: Math.min(this.#pool.space.data.nrWritable, host),
      files: MAX_DEV_ID + 2,
      filesFree: MAX_DEV_ID + 1 - this.volumes.count,
      nameMax: NAME_MAX,
    }
  }

  lookup(parent: number, name: string): Attributes {
    this.#mustBeRoot(parent)
    // The kernel stops at FUSE's own limit of 1024. No name comes here without being looked up.
    if (Buffer.byteLength(name) > NAME_MAX) throw refused('ENAMETOOLONG', name)
    return this.#attributes.of(this.#named(name))
  }

  getattr(ino: number): Attributes {
    return ino === ROOT ? this.#attributes.ofRoot() : this.#attributes.of(this.#volume(ino))
  }

  async setattr(ino: number, change: AttributeChange, requester?: Requester): Promise<Attributes> {
    if (ino === ROOT) throw refused('EPERM', 'the root of the mount is as it was mounted')
    const volume = this.#volume(ino)
    if (change.size !== undefined && change.size !== volume.device.size) {
      checkSize(change.size)
      await this.volumes.sizes.set(volume, change.size, requester?.signal())
    }
    const { mode, uid, gid } = change
    const to: Ownership = {}
    if (mode !== undefined) to.mode = mode & 0o777
    if (uid !== undefined) to.uid = this.#attributes.users.outside(uid)
    if (gid !== undefined) to.gid = this.#attributes.groups.outside(gid)
    if (Object.keys(to).length > 0) await this.volumes.setOwnership(volume, to)
    if (change.mtime !== undefined) {
      volume.modified = change.mtime === 'now' ? this.#time() : change.mtime * 1000
    }
    return this.#attributes.of(volume)
  }

  readdir(ino: number): readonly DirectoryEntry[] {
    this.#mustBeRoot(ino)
    return [...this.volumes.all()].map(volume => ({
      name: volume.name,
      attributes: this.#attributes.of(volume),
    }))
  }

  async create(parent: number, name: string, mode: number, caller: Caller): Promise<Attributes> {
    this.#mustBeRoot(parent)
    if (this.volumes.find(name)) throw refused('EEXIST', name)
    // Group and others get a volume only by chmod: it is a disk.
    const [uid, gid] = [
      this.#attributes.users.outside(caller.uid),
      this.#attributes.groups.outside(caller.gid),
    ]
    const ownership = { mode: mode & 0o600, uid, gid }
    return this.#attributes.of(await this.volumes.newVolumes.make(name, 0, undefined, ownership))
  }

  unlink(parent: number, name: string): Promise<void> {
    this.#mustBeRoot(parent)
    return this.volumes.namespace.unlink(name)
  }

  async rename(
    parent: number,
    name: string,
    newParent: number,
    newName: string,
    flags: number,
    request: number,
  ): Promise<void> {
    this.#mustBeRoot(parent)
    this.#mustBeRoot(newParent)
    if ((flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE)) !== 0) throw refused('EINVAL', 'flags')
    const exchange = flags & RENAME_EXCHANGE ? `${this.#mounted}:${request}` : null
    if (flags & RENAME_NOREPLACE) await this.volumes.rename({ from: name, to: newName })
    else await this.volumes.namespace.renameOver(name, newName, exchange)
  }

  // --- content ---

  open(ino: number, flags: number, handle: number): Later<void> {
    const volume = this.#volume(ino)
    this.volumes.opened(volume, handle)
    if (!(flags & O_TRUNC)) return
    return this.volumes.sizes.set(volume, 0).catch(err => {
      this.volumes.released(volume, handle) // no release follows an open that failed
      throw err
    })
  }

  release(ino: number, handle: number): void {
    this.volumes.released(this.#volume(ino), handle)
  }

  read(ino: number, offset: number, size: number, target: Buffer, at: number): number {
    const volume = this.#volume(ino)
    const length = Math.min(size, volume.device.size - offset)
    if (length <= 0) return 0
    const begun = this.#clock.now()
    if (!volume.io.read(offset, length, target, at)) return WAITS
    this.#count(volume, OPERATION.read, length, begun)
    return length
  }

  readLater(
    ino: number,
    offset: number,
    size: number,
    target: Buffer,
    at: number,
  ): Promise<number> {
    const volume = this.#volume(ino)
    const length = Math.min(size, volume.device.size - offset)
    const begun = this.#clock.now()
    volume.counters.coldRead()
    return volume.io.readLater(offset, length, target, at).then(() => {
      this.#count(volume, OPERATION.read, length, begun)
      return length
    })
  }

  write(
    ino: number,
    offset: number,
    size: number,
    source: Buffer,
    at: number,
    requester?: Requester,
  ): Later<number> {
    const volume = this.#volume(ino)
    if (size === 0) return 0
    const begun = this.#clock.now()
    const end = offset + size
    const { device } = volume
    if (end > device.size) {
      mustBeAbleToEnd(volume, end)
      this.#pool.mustBeWritable()
      const clearing = device.clearPastEnd()
      if (clearing !== undefined) {
        // The buffer belongs to the transport again when this call returns.
        const held = Buffer.from(source.subarray(at, at + size))
        const signal = requester?.signal()
        return unlessAborted(clearing, signal).then(() =>
          this.write(ino, offset, size, held, 0, heldRequester(signal)),
        )
      }
    }
    const written = volume.io.write(offset, size, source, at, requester)
    volume.modified = this.#time()
    if (written === undefined) {
      if (end > device.size) this.#extend(device, end)
      this.#count(volume, OPERATION.write, size, begun)
      return size
    }
    return volume.track(written).then(() => {
      this.#extend(device, end)
      this.#count(volume, OPERATION.write, size, begun)
      return size
    })
  }

  fallocate(
    ino: number,
    mode: number,
    offset: number,
    length: number,
    requester?: Requester,
  ): Promise<void> {
    const signal = requester?.signal()
    const volume = this.#volume(ino)
    return volume.track(this.#fallocate(volume, mode, offset, length, signal))
  }

  async #fallocate(
    volume: Volume,
    mode: number,
    offset: number,
    length: number,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const { device } = volume
    if (length <= 0) throw refused('EINVAL', 'length')
    const end = offset + length
    if (end > MAX_DEVICE_SIZE) throw tooFar(volume, end)
    const keepsSize = (mode & FALLOC_KEEP_SIZE) !== 0
    if (!keepsSize && end > device.size) mustBeAbleToEnd(volume, end)
    const what = mode & ~FALLOC_KEEP_SIZE
    if (what === FALLOC_PUNCH_HOLE && this.#pool.discards === 'ignore') {
      throw refused('EOPNOTSUPP', 'discards: ignore')
    }
    if (what !== 0 && what !== FALLOC_PUNCH_HOLE && what !== FALLOC_ZERO_RANGE) {
      throw refused('EOPNOTSUPP', `fallocate mode ${mode}`)
    }
    if (what === 0 && volume.disk !== device) {
      throw refused('EOPNOTSUPP', 'preallocation before an external origin')
    }
    this.#pool.mustBeWritable()
    const inside = (keepsSize ? Math.min(end, device.size) : end) - offset
    if (inside <= 0) return
    volume.modified = this.#time()
    const begun = this.#clock.now()
    if (end > device.size) await unlessAborted(device.clearPastEnd(), signal)
    if (what === 0) await device.preallocate(offset, inside, signal)
    else if (what === FALLOC_ZERO_RANGE) await volume.io.zero(offset, inside, signal)
    // A discard that waited for space would keep others from giving some back.
    else await volume.io.discard(offset, inside, false, signal)
    if (what !== 0) this.#count(volume, OPERATION.discard, inside, begun)
    if (!keepsSize) this.#extend(device, end)
  }

  lseek(ino: number, offset: number, whence: number): Later<number> {
    const { disk } = this.#volume(ino)
    if (offset >= disk.size) throw refused('ENXIO', 'past the end')
    if (whence === SEEK_HOLE) return disk.nextHole(offset)
    if (whence !== SEEK_DATA) throw refused('EINVAL', `whence ${whence}`)
    return later(disk.nextData(offset), data => {
      if (data >= disk.size) throw refused('ENXIO', 'no data follows')
      return data
    })
  }

  copyFileRange(
    source: number,
    sourceOffset: number,
    target: number,
    targetOffset: number,
    length: number,
    requester?: Requester,
  ): Promise<number> {
    const signal = requester?.signal()
    const from = this.#volume(source)
    const to = this.#volume(target)
    const begin = { volume: from, offset: sourceOffset }
    const where = { volume: to, offset: targetOffset }
    return to.track(this.#copies.copy(begin, where, length, signal))
  }

  async fsync(ino: number): Promise<void> {
    const volume = this.volumes.byDevId(ino - FIRST_VOLUME)
    if (volume === undefined) {
      await this.volumes.commit()
      return
    }
    const begun = this.#clock.now()
    await this.volumes.flush(volume)
    this.#count(volume, OPERATION.flush, 0, begun)
  }

  syncfs(): Promise<void> {
    return this.volumes.commit()
  }

  // --- attributes ---

  getxattr(ino: number, name: string): Later<Buffer> {
    const isOurs = ino !== ROOT && isXattr(name)
    const value = isOurs ? xattrOf(this.volumes, this.#volume(ino), name) : null
    if (value === null) throw refused('ENODATA', name)
    return later(value, text => Buffer.from(text))
  }

  listxattr(ino: number): readonly string[] {
    return ino === ROOT ? [] : xattrsOf(this.volumes, this.#volume(ino))
  }

  get unsettled(): boolean {
    return this.#pool.unsettled
  }

  settle(): Later<void> {
    return this.#pool.settle(() => this.volumes.commit())
  }

  // --- inside ---

  /** Counts a request that began at `begun`, of the pool's clock. */
  #count(volume: Volume, operation: number, size: number, begun: number): void {
    const took = this.#clock.now() - begun
    volume.counters.count(operation, size, took)
  }

  #extend(device: ThinDevice, size: number): void {
    if (size <= device.size) return
    device.extend(size)
    this.volumes.sizes.saveSoon()
  }

  #volume(ino: number): Volume {
    if (ino === ROOT) throw refused('EISDIR', 'the root of the mount')
    const volume = this.volumes.byDevId(ino - FIRST_VOLUME)
    if (!volume) throw refused('ESTALE', `inode ${ino}`)
    return volume
  }

  /**
   * The time, as old as the kernel's own stamps may be: to look it up allocates, and a WRITE does
   * not.
   */
  #time(): number {
    if (!this.#timed) {
      this.#timed = true
      this.#now[0] = Date.now()
      this.#tick.refresh()
    }
    return this.#now[0]!
  }

  #named(name: string): Volume {
    const volume = this.volumes.find(name) ?? this.volumes.hidden.find(name)
    if (!volume) throw new ThinfsError('VOLUME_MISSING', name)
    return volume
  }

  #mustBeRoot(ino: number): void {
    if (ino !== ROOT) throw refused('ENOTDIR', `inode ${ino}`)
  }
}

function checkSize(size: number): asserts size is Bytes {
  if (size < 0 || size > MAX_DEVICE_SIZE) throw refused('EFBIG', `${bytes(size)} bytes`)
}
