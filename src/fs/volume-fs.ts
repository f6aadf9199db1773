/**
 * The volumes as a file system of one folder: what each file operation does to which volume.
 *
 * A volume is a regular file whose size is the virtual size. Inode numbers are derived from device
 * ids, so they hold over a restart of the server. Errors are those of a Linux filesystem.
 */
import { constants } from 'node:fs'
import {
  type Bytes,
  bytes,
  type Clock,
  type DevId,
  FALLOC_KEEP_SIZE,
  FALLOC_PUNCH_HOLE,
  FALLOC_ZERO_RANGE,
  GIB,
  heldRequester,
  type Later,
  MAX_DEV_ID,
  MAX_DEVICE_SIZE,
  MAX_IO,
  MIB,
  NAME_MAX,
  OPERATION,
  type Requester,
  refused,
  SECTOR_SIZE,
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
import { IdMap, type Ownership, type Volume, type Volumes } from '../volumes/index.js'

const ROOT = 1
/** Inode numbers of volumes are device ids plus this. */
const FIRST_VOLUME = 2

/** The inode number of a volume. */
export const inodeOf = (devId: number): number => devId + FIRST_VOLUME

/** Milliseconds for which a time stamp is good: the kernel's are of its timer tick, 1 to 10 ms. */
const TICK = 4

const { S_IFDIR, S_IFREG } = constants

// renameat2(2)
const RENAME_NOREPLACE = 1
const RENAME_EXCHANGE = 2
// open(2)
const O_TRUNC = 0o1000

/**
 * Bytes that one copy_file_range request handles at most. A shorter answer is allowed, and the
 * caller asks again: a request that runs on cannot be interrupted.
 */
const SHARE_MAX = 4 * GIB - MIB
const COPY_MAX = 64 * MIB

/** Always there, and counted only when it is asked for. */
const EXCLUSIVE = 'user.thinfs.exclusive_bytes'

/** The facts about a volume that `user.thinfs.*` shows. */
const XATTRS: Record<string, (fs: VolumeFs, volume: Volume) => Later<string> | null> = {
  'user.thinfs.dev_id': (_fs, { devId }) => String(devId),
  'user.thinfs.origin': (fs, volume) => fs.volumes.infos.originOf(volume),
  'user.thinfs.mapped_bytes': (fs, volume) => String(fs.volumes.infos.mappedBytes(volume)),
  [EXCLUSIVE]: (fs, volume) => fs.volumes.usage.exclusiveBytes(volume).then(String),
  'user.thinfs.created': (_fs, { entry }) =>
    entry.created === null ? null : new Date(entry.created * 1000).toISOString(),
  'user.thinfs.creation_time': (fs, volume) => String(fs.details(volume).creationTime),
  'user.thinfs.snapshotted_time': (fs, volume) => String(fs.details(volume).snapshottedTime),
}

export class VolumeFs implements FileSystem {
  readonly volumes: Volumes
  readonly #pool: ThinPool
  readonly #clock: Clock
  readonly #uid: number
  readonly #gid: number
  readonly #users = IdMap.own('uid')
  readonly #groups = IdMap.own('gid')
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
    this.#uid = owner.uid
    this.#gid = owner.gid
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
    return this.#attributes(this.#named(name))
  }

  getattr(ino: number): Attributes {
    return ino === ROOT ? this.#rootAttributes() : this.#attributes(this.#volume(ino))
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
    if (uid !== undefined) to.uid = this.#users.outside(uid)
    if (gid !== undefined) to.gid = this.#groups.outside(gid)
    if (Object.keys(to).length > 0) await this.volumes.setOwnership(volume, to)
    if (change.mtime !== undefined) {
      volume.modified = change.mtime === 'now' ? this.#time() : change.mtime * 1000
    }
    return this.#attributes(volume)
  }

  readdir(ino: number): readonly DirectoryEntry[] {
    this.#mustBeRoot(ino)
    return [...this.volumes.all()].map(volume => ({
      name: volume.name,
      attributes: this.#attributes(volume),
    }))
  }

  async create(parent: number, name: string, mode: number, caller: Caller): Promise<Attributes> {
    this.#mustBeRoot(parent)
    if (this.volumes.find(name)) throw refused('EEXIST', name)
    // Group and others get a volume only by chmod: it is a disk.
    const [uid, gid] = [this.#users.outside(caller.uid), this.#groups.outside(caller.gid)]
    const ownership = { mode: mode & 0o600, uid, gid }
    return this.#attributes(await this.volumes.newVolumes.make(name, 0, undefined, ownership))
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
    this.volumes.tally.counters.coldRead()
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
    return to.track(this.#copyFileRange(from, sourceOffset, to, targetOffset, length, signal))
  }

  async #copyFileRange(
    from: Volume,
    sourceOffset: number,
    to: Volume,
    targetOffset: number,
    length: number,
    signal: AbortSignal | undefined,
  ): Promise<number> {
    const { blockSize } = this.#pool
    // A layer before the device has to see the bytes.
    const arePlain = from.io === from.device && to.io === to.device
    const alike =
      arePlain &&
      sourceOffset % blockSize === targetOffset % blockSize &&
      from.device.sharable &&
      to.device.sharable
    const most = Math.min(length, alike ? SHARE_MAX : COPY_MAX)
    const left = Math.min(most, from.device.size - sourceOffset)
    if (left <= 0) return 0
    const end = targetOffset + left
    if (end > to.device.size) mustBeAbleToEnd(to, end)
    if (from === to && Math.abs(sourceOffset - targetOffset) < left) {
      throw refused('EINVAL', 'the ranges overlap')
    }
    this.#pool.mustBeWritable()
    if (end > to.device.size) await unlessAborted(to.device.clearPastEnd(), signal)
    this.#extend(to.device, end)
    to.modified = this.#time()
    const head = Math.min((blockSize - (sourceOffset % blockSize)) % blockSize, left)
    const whole = Math.floor((left - head) / blockSize) * blockSize
    if (!alike || whole === 0) {
      await this.#copy(from, sourceOffset, to, targetOffset, left, signal)
      return left
    }
    await this.#copy(from, sourceOffset, to, targetOffset, head, signal)
    await to.device.share(from.device, sourceOffset + head, targetOffset + head, whole, signal)
    const done = head + whole
    this.#extend(to.device, targetOffset + done)
    await this.#copy(from, sourceOffset + done, to, targetOffset + done, left - done, signal)
    return left
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
    const isOurs = ino !== ROOT && Object.hasOwn(XATTRS, name)
    const value = isOurs ? XATTRS[name]?.(this, this.#volume(ino)) : null
    if (value === null || value === undefined) throw refused('ENODATA', name)
    return later(value, text => Buffer.from(text))
  }

  /**
   * Those that have a value: of a volume that is no snapshot, or of unknown age, one is missing.
   */
  listxattr(ino: number): readonly string[] {
    if (ino === ROOT) return []
    const volume = this.#volume(ino)
    return Object.keys(XATTRS).filter(
      name => name === EXCLUSIVE || XATTRS[name]!(this, volume) !== null,
    )
  }

  details(volume: Volume): { creationTime: number; snapshottedTime: number } {
    return this.#pool.metadata.details(volume.devId as DevId)
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
    this.volumes.tally.counters.count(operation, size, took)
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

  #attributes(volume: Volume): Attributes {
    const { entry, device } = volume
    return {
      ino: inodeOf(volume.devId),
      generation: volume.generation,
      size: device.size,
      blocks: this.volumes.infos.mappedBytes(volume) / SECTOR_SIZE,
      mode: S_IFREG | entry.mode,
      nlink: entry.removed && !volume.awaited ? 0 : 1,
      uid: this.#users.inside(entry.uid),
      gid: this.#groups.inside(entry.gid),
      atime: volume.modified / 1000,
      mtime: volume.modified / 1000,
      ctime: Math.max(volume.modified, volume.changed) / 1000,
      blockSize: this.#pool.blockSize,
    }
  }

  #rootAttributes(): Attributes {
    return {
      ino: ROOT,
      generation: 0,
      size: 0,
      blocks: 0,
      // allow_other decides whether other users get here at all; a volume has its own bits.
      mode: S_IFDIR | 0o755,
      nlink: 2,
      uid: this.#uid,
      gid: this.#gid,
      atime: this.#mounted,
      mtime: this.#mounted,
      ctime: this.#mounted,
      blockSize: this.#pool.blockSize,
    }
  }

  /** Copies bytes that cannot be shared; holes stay holes where whole blocks are. */
  async #copy(
    from: Volume,
    source: number,
    to: Volume,
    target: number,
    length: number,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    if (length <= 0) return
    const buffer = Buffer.allocUnsafe(Math.min(length, MAX_IO))
    const requester = heldRequester(signal)
    for (let done = 0; done < length; ) {
      const size = Math.min(buffer.length, length - done)
      if (!from.io.read(source + done, size, buffer, 0)) {
        await from.io.readLater(source + done, size, buffer, 0)
      }
      await to.io.write(target + done, size, buffer, 0, requester)
      // Somebody may have cut the volume off meanwhile: what is written is not past its end.
      this.#extend(to.device, target + done + size)
      done += size
      await this.#pool.clock.yield()
    }
  }
}

/**
 * @throws EFBIG for what no volume, or not this one as long as it is held, can be made as long as
 */
function mustBeAbleToEnd(volume: Volume, end: number): void {
  if (end > MAX_DEVICE_SIZE) throw tooFar(volume, end)
  if (volume.heldFor !== null) throw refused('EFBIG', `${volume.name}: ${volume.heldFor}`)
}

const tooFar = ({ name }: Volume, end: number): ThinfsError =>
  refused('EFBIG', `${name}: ${end} bytes`)

function checkSize(size: number): asserts size is Bytes {
  if (size < 0 || size > MAX_DEVICE_SIZE) throw refused('EFBIG', `${bytes(size)} bytes`)
}
