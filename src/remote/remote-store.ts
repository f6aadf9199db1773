/**
 * A store on a disk that answers later, behind a page cache of its own.
 *
 * Reads of what the cache has and writes end at once; what is dirty is written back when there is
 * much of it, and by `sync`. The cache is memory that outlives the process (CacheMemory): the
 * store that maps it next goes on where this one ended.
 *
 * Writes that the disk has acknowledged and not flushed may be lost with a connection (`epoch`):
 * the pages stay in the cache until a flush has covered them, and are written once more where it
 * did not.
 */
import {
  allEnded,
  assert,
  type Bytes,
  bytes,
  type Clock,
  type Later,
  MIB,
  PAGE_SIZE,
  SYSTEM_CLOCK,
} from '../base/index.js'
import {
  type CacheCounts,
  DataMap,
  type DataStore,
  ioError,
  mustCopy,
  mustHaveRange,
} from '../storage/index.js'
import { Answers } from './answers.js'
import { CacheMemory, SLOT } from './cache-memory.js'
import { ColdReads } from './cold-reads.js'
import { Flushes } from './flushes.js'
import { edgesOf, pagesOf, slotEnd } from './pages.js'
import { type Extent, mustHaveSize, type RemoteDisk } from './remote-disk.js'
import { Room } from './room.js'
import { Sends } from './sends.js'
import { Slots } from './slots.js'
import { Unflushed } from './unflushed.js'
import { Zeroing } from './zeroing.js'
import { Zones } from './zones.js'

const ZEROS = new Uint8Array(MIB)

export interface RemoteStoreOptions {
  disk: RemoteDisk
  /** A descriptor of `CacheMemory.create`, which stays the caller's. */
  cache: number
  /** Bytes that are punched at least: of a page to a slot, and a power of two. */
  granule: number
  /** Bytes that are acknowledged and not durable at most. Default: half of the cache. */
  dirty?: number | undefined
  clock?: Clock
  /** Called with a sentence about what writers wait for, and what takes long. */
  onWait?: (what: string) => void
}

export class RemoteStore implements DataStore {
  readonly path: string
  readonly punches: boolean
  readonly copiesShare = false
  readonly #disk: RemoteDisk
  readonly #memory: CacheMemory
  readonly #granule: number
  #size: Bytes
  /** Becoming as large as the disk is; null where nobody is at it. */
  #growing: Promise<void> | null = null
  readonly #data: DataMap
  readonly #slots: Slots
  readonly #unflushed: Unflushed
  readonly #room: Room
  readonly #sends: Sends
  readonly #reads: ColdReads
  readonly #zeroing: Zeroing
  readonly #flushes: Flushes
  readonly #firstEpoch: number
  /** Reads that the cache answered, and those that waited for the disk. */
  #hits = 0
  #misses = 0

  /**
   * Goes on with what is in the cache, and learns where the disk has holes.
   * @throws IO_ERROR; BAD_ARGUMENT for the cache of another disk; POOL_MISMATCH for a disk that has
   *   become smaller
   */
  static async open(options: RemoteStoreOptions): Promise<RemoteStore> {
    const { disk } = options
    const { epoch } = disk
    const memory = new CacheMemory(options.cache, disk)
    const extents = async (): Promise<Extent[] | null> => {
      // Another process may have sent these, and the disk have lost them.
      for (const at of memory.zeroedPlaces()) {
        await disk.zero(memory.zeroed[at]!, memory.zeroed[at + 1]!)
      }
      return disk.extents(0, sizeOf(disk))
    }
    try {
      return new RemoteStore(options, memory, epoch, await extents())
    } catch (err) {
      throw ioError(disk.path, 'opening', err)
    }
  }

  private constructor(
    { disk, granule, dirty, clock = SYSTEM_CLOCK, onWait = () => {} }: RemoteStoreOptions,
    memory: CacheMemory,
    epoch: number,
    extents: Extent[] | null,
  ) {
    assert(
      granule >= PAGE_SIZE && granule <= SLOT && SLOT % granule === 0,
      'a granule of the cache',
    )
    this.path = disk.path
    this.#size = sizeOf(disk)
    // A server that never tells of a hole would have free blocks read, to see whether they are
    // zeros.
    const tells = extents !== null && !(extents.length === 1 && extents[0]!.length >= this.size)
    this.punches = disk.makesHoles && tells
    this.#disk = disk
    this.#firstEpoch = epoch
    this.#memory = memory
    this.#granule = granule
    const data = new DataMap(this.size, granule)
    for (const { offset, length } of extents ?? [{ offset: 0, length: this.size }]) {
      data.add(offset, Math.min(length, this.size - offset))
    }
    const zones = new Zones()
    const slots = new Slots({ memory, data, zones, granule, size: this.size })
    const unflushed = new Unflushed(memory)
    const sync = (): Promise<void> => this.sync()
    const { nrSlots } = memory
    const room = new Room({ unflushed, nrSlots, dirty, clock, drain: sync, onWait })
    const answers = new Answers(clock, onWait)
    const sends = new Sends({ disk, memory, slots, unflushed, answers })
    const reads = new ColdReads({ disk, memory, slots, zones, room, answers, size: this.size })
    const zeroing = new Zeroing({
      ...{ disk, memory, data, zones, slots, unflushed, sends, reads, answers, sync },
    })
    this.#data = data
    this.#slots = slots
    this.#unflushed = unflushed
    this.#room = room
    this.#sends = sends
    this.#reads = reads
    this.#zeroing = zeroing
    this.#flushes = new Flushes({
      ...{ disk, unflushed, zeroing, sends, room, answers, clock, epoch },
    })
  }

  get size(): Bytes {
    return this.#size
  }

  // --- what the cache has ---

  readNow(buffer: Uint8Array, at: number, length: number, offset: Bytes): boolean {
    mustHaveRange(this, 'read', offset, length)
    const end = offset + length
    for (let from: number = offset; from < end; ) {
      const to = Math.min(end, slotEnd(from))
      if (!this.#slots.has(from, to)) return false
      from = to
    }
    const { nrAheadUsed } = this.#slots
    for (let from: number = offset; from < end; ) {
      const to = Math.min(end, slotEnd(from))
      this.#slots.copyOut(buffer, at + (from - offset), from, to)
      from = to
    }
    if (this.#slots.nrAheadUsed !== nrAheadUsed) this.#reads.readOn(offset, end)
    this.#hits++
    return true
  }

  write(buffer: Uint8Array, at: number, length: number, offset: Bytes): Later<void> {
    mustHaveRange(this, 'write', offset, length)
    const end = offset + length
    for (let from: number = offset; from < end; ) {
      const to = Math.min(end, slotEnd(from))
      const rest = at + (from - offset)
      if (this.#room.isFull || !this.#writeNow(buffer, rest, from, to)) {
        return this.#writeLater(Buffer.from(buffer.subarray(rest, at + length)), from)
      }
      from = to
    }
    this.#room.filled()
  }

  /** First byte at or after `offset` of a granule that may hold something. */
  nextData(offset: Bytes): Bytes {
    return bytes(Math.min(this.#data.next(offset, 1), this.size))
  }

  nextHole(offset: Bytes): Bytes {
    return bytes(Math.min(this.#data.next(offset, 0), this.size))
  }

  /** Bytes that are dirty or being sent. */
  get unsent(): number {
    return this.#unflushed.nrUnsent * PAGE_SIZE
  }

  cacheCounts(): CacheCounts {
    const { nrAheadUsed, nrAheadWasted } = this.#slots
    return {
      hits: this.#hits,
      misses: this.#misses,
      aheadUsedBytes: nrAheadUsed * PAGE_SIZE,
      aheadWastedBytes: nrAheadWasted * PAGE_SIZE,
      sentBytes: this.#sends.all.bytes,
      sentRequests: this.#sends.all.requests,
      flushes: this.#flushes.nrFlushes,
      reconnects: this.#disk.epoch - this.#firstEpoch,
      dirtyBytes: this.#unflushed.nrPages * PAGE_SIZE,
      dirtyLimit: Math.round(this.#room.limit),
      drainBytesPerSecond: Math.round(this.#room.bytesPerSecond),
      writersWaiting: this.#room.nrWaiting,
    }
  }

  // --- what may have to wait for the disk ---

  readLater(buffer: Uint8Array, at: number, length: number, offset: Bytes): Promise<void> {
    try {
      mustHaveRange(this, 'read', offset, length)
    } catch (err) {
      return Promise.reject(err)
    }
    this.#misses++
    return this.#reads.read(buffer, at, offset, offset + length)
  }

  copy(source: Bytes, target: Bytes, length: Bytes): Later<void> {
    mustCopy(this, source, target, length)
    const held = Buffer.allocUnsafeSlow(length)
    if (this.readNow(held, 0, length, source)) return this.write(held, 0, length, target)
    return this.readLater(held, 0, length, source).then(() => this.write(held, 0, length, target))
  }

  punch(offset: Bytes, length: Bytes): Later<void> {
    mustHaveRange(this, 'punch', offset, length)
    if (this.#data.isHole(offset, length)) return
    const begin = Math.ceil(offset / this.#granule) * this.#granule
    const last = offset + length === this.size ? this.size : offset + length
    const end = last === this.size ? last : Math.floor(last / this.#granule) * this.#granule
    if (end <= begin) return this.#writeZeros(offset, offset + length)
    const calls = [this.#writeZeros(offset, begin), this.#zeroing.clear(begin, end)]
    return allEnded([...calls, this.#writeZeros(end, offset + length)])
  }

  async punchLater(offset: Bytes, length: Bytes): Promise<void> {
    await this.punch(offset, length)
  }

  zero(offset: Bytes, length: Bytes): Later<void> {
    mustHaveRange(this, 'zero', offset, length)
    return this.punch(offset, length)
  }

  /** Writes back what is dirty, and has the disk flush it. */
  sync(): Promise<void> {
    return this.#flushes.flush()
  }

  /** Nothing grows but the disk. */
  hostRoom(): null {
    return null
  }

  /** A disk that has become larger is asked first where it has holes: `size` follows later. */
  measure(): void {
    if (sizeOf(this.#disk) < this.size) this.#size = sizeOf(this.#disk)
    else this.#follow().catch(() => {})
  }

  async remeasure(): Promise<void> {
    await this.#disk.measure?.()
    this.measure()
    await this.#follow()
  }

  /** The disk has the size that it has. @throws BAD_ARGUMENT for another */
  grow(size: Bytes): void {
    mustHaveSize(this.#disk, this.size, size)
  }

  /** Ends the connection. What was not flushed is in the cache. */
  close(): void {
    this.#disk.close()
  }

  // --- inside ---

  /** Becomes as large as the disk is. @throws IO_ERROR: the size stays as it was */
  #follow(): Promise<void> {
    if (this.#growing !== null) return this.#growing
    if (sizeOf(this.#disk) <= this.size) return Promise.resolve()
    this.#growing = this.#becomeLarger().finally(() => {
      this.#growing = null
    })
    return this.#growing
  }

  async #becomeLarger(): Promise<void> {
    const [before, size] = [this.size, sizeOf(this.#disk)]
    const more = { offset: before, length: size - before }
    let extents: Extent[] | null = null
    try {
      if (this.punches) extents = await this.#disk.extents(more.offset, more.length)
    } catch (err) {
      throw ioError(this.path, 'looking for holes', err)
    }
    // It may have become smaller meanwhile, and is asked again then.
    if (this.size !== before || sizeOf(this.#disk) < size) return
    this.#data.grow(size)
    for (const { offset, length } of extents ?? [more]) {
      const [from, end] = [Math.max(offset, before), Math.min(offset + length, size)]
      if (from < end) this.#data.add(from, end - from)
    }
    this.#slots.grow(size)
    this.#reads.grow(size)
    this.#memory.grow(size)
    this.#size = size
  }

  /** @returns false when a slot, or the rest of a page at an edge, is missing */
  #writeNow(buffer: Uint8Array, at: number, from: number, to: number): boolean {
    const slot = this.#slots.slotOf(Math.floor(from / SLOT))
    if (slot < 0 || (edgesOf(from, to) & ~this.#memory.valid[slot]!) !== 0) return false
    if ((this.#slots.filling[slot]! & pagesOf(from, to)) !== 0) return false
    this.#slots.copyIn(slot, buffer, at, from, to)
    this.#unflushed.add(slot, pagesOf(from, to))
    return true
  }

  async #writeLater(held: Uint8Array, offset: number): Promise<void> {
    const end = offset + held.length
    for (let from = offset; from < end; ) {
      if (this.#room.isFull) {
        await this.#room.lessDirty()
        continue
      }
      const to = Math.min(end, slotEnd(from))
      const slot = this.#slots.slotOf(Math.floor(from / SLOT))
      if (slot < 0) {
        await this.#room.freeSlot()
        continue
      }
      const at = from - offset
      await this.#reads.forWrite(slot, from, to, () => this.#writeNow(held, at, from, to))
      from = to
    }
  }

  /** Writes zeros to a range that is not whole granules. */
  #writeZeros(from: number, to: number): Later<void> {
    if (from >= to || this.#data.isHole(from, to - from)) return
    const calls: Promise<void>[] = []
    for (let at = from; at < to; at += ZEROS.length) {
      const written = this.write(ZEROS, 0, Math.min(ZEROS.length, to - at), bytes(at))
      if (written !== undefined) calls.push(written)
    }
    if (calls.length > 0) return allEnded(calls)
  }
}

/** Whole pages. */
const sizeOf = ({ size }: RemoteDisk): Bytes => bytes(size - (size % PAGE_SIZE))
