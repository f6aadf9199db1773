/**
 * A thin device: a range of virtual blocks, read and written like a disk.
 *
 * Every request is first resolved, which changes nothing: per block, where its bytes are, or that
 * it needs a new data block. Only when all blocks a request needs could be had are bytes moved, and
 * only then do mappings change: a mapping never points to a block that is not filled yet.
 */
import {
  allEnded,
  assert,
  type Bytes,
  bytes,
  type DataBlock,
  type DevId,
  isZero,
  type Later,
  type Requester,
  Slice,
  ThinfsError,
  type VirtualBlock,
} from '../base/index.js'
import { MAX_TIME } from '../metadata/index.js'
import type { BlockDevice } from './block-device.js'
import { dataBlockOf, LookupTable, UNMAPPED } from './lookup-table.js'
import type { PageCache } from './page-cache.js'
import type { Provisioner } from './provisioner.js'
import { type Edge, PATIENT, type Patience, ThinWrites } from './thin-writes.js'
import type { WritePlan } from './write-plan.js'

/** Virtual blocks that are unmapped, or looked at, between two looks at the clock. */
const PIECE_BLOCKS = 256
/** The end of a range of virtual blocks that ends nowhere. */
const ALL = Number.MAX_SAFE_INTEGER
/** Times are 24 bits; sharing by copy stops well before snapshots would run out. */
const LAST_SHARE_TIME = MAX_TIME - 4096

/** This part of a limit has to be left before that counts as met anew. */
const LIMIT_MARGIN = 16

export class ThinDevice implements BlockDevice {
  readonly devId: DevId
  readonly table: LookupTable
  /** Virtual size. The end need not be the end of a block. */
  size: Bytes
  /**
   * True once the pool has deleted the device. Its id may belong to another device by then, so
   * every call, and every continuation after an await, asks before it uses the id.
   */
  gone = false
  /** Virtual blocks that it may map at most; Infinity: as many as the pool has. */
  limit = Number.POSITIVE_INFINITY
  /** Whether a write was refused for the limit, and not much less was wanted since. */
  limitReached = false
  /** Whether its writes wait or fail when the pool is full; null: as the pool. `Space` sets it. */
  onFull: 'queue' | 'error' | null = null
  /** Whether everything past the end is known to read as zeros; see `clearPastEnd`. */
  #endIsClear = false
  #clearing: Promise<void> | null = null
  readonly #pool: Provisioner
  readonly #writes: ThinWrites
  readonly #blockSize: number
  /** The run that #findRun found: a byte offset in the data store, or -1 for a hole. */
  #runBegin = -1

  /**
   * @param pages the pool's, which all of its devices share
   * @param plan the same
   */
  constructor(pool: Provisioner, devId: DevId, size: Bytes, pages: PageCache, plan: WritePlan) {
    this.#pool = pool
    this.devId = devId
    this.size = size
    this.#blockSize = pool.blocks.blockSize
    this.table = new LookupTable(pool.metadata, devId, pages)
    this.#writes = new ThinWrites(pool, this, plan)
  }

  /**
   * Fills `size` bytes of `buffer` at `at` from `offset`, when no disk has to be waited for. The
   * range lies within the device.
   * @returns false when that is not so: what is in `buffer` then means nothing, see `readLater`
   */
  read(offset: number, size: number, buffer: Uint8Array, at: number): boolean {
    this.mustBeReadable()
    const end = offset + size
    while (offset < end) {
      const next = this.#findRun(offset, end)
      const length = next - offset
      if (this.#runBegin < 0) buffer.fill(0, at, at + length)
      else if (!this.#readNow(buffer, at, length, this.#runBegin)) return false
      at += length
      offset = next
    }
    return true
  }

  /** As `read`, and waits for the disk. The bytes are as of the call, or newer. */
  readLater(offset: number, size: number, buffer: Uint8Array, at: number): Promise<void> {
    this.mustBeReadable()
    const end = offset + size
    const next = this.#findRun(offset, end)
    if (next === end && this.#runBegin >= 0)
      return this.#readLater(buffer, at, size, this.#runBegin)
    return this.#readRuns(offset, end, buffer, at)
  }

  /**
   * Writes `size` bytes, at most MAX_IO, of `buffer` from `at`. All or nothing. The range lies
   * within the device. A promise only when it waits for space, or for the disk to read what a
   * shared block holds; the bytes are copied before.
   * @param requester whose signal ends the wait for space: nothing was written then
   * @throws VOLUME_FULL, NO_DATA_SPACE, NO_METADATA_SPACE, POOL_READ_ONLY
   */
  write(
    offset: number,
    size: number,
    buffer: Uint8Array,
    at: number,
    requester?: Requester,
  ): Later<void> {
    return this.#writes.write(offset, size, buffer, at, requester)
  }

  /** Notes how many blocks a request would leave mapped: the limit is told of once it is met. */
  noteWanted(blocks: number): void {
    if (blocks > this.limit && !this.limitReached) {
      this.limitReached = true
      this.#pool.limitReached(this.devId)
    } else if (blocks <= this.limit - this.limit / LIMIT_MARGIN) this.limitReached = false
  }

  /** Makes the device longer, for what was written past its end. */
  extend(size: number): void {
    if (size <= this.size || this.gone) return
    this.size = bytes(size)
    this.#pool.extended(this.devId, this.size)
  }

  /**
   * Makes the device shorter. The caller has discarded the whole blocks past `size`. `clearPastEnd`
   * zeroes the rest of the last block, which may take a new block where that is shared.
   */
  cutOff(size: Bytes): void {
    this.size = size
    this.#endIsClear = false
  }

  /**
   * Makes a range read as zeros. Whole blocks are unmapped first and go back to the pool with the
   * next commit; then the edges are zeroed in place, which takes a block where they are shared. The
   * end of the device ends its last block.
   * @param waits edges wait for that block as writes do; else they have what is free after a commit
   * @param signal ends their wait with its reason
   * @throws NO_DATA_SPACE when edges find no block: the whole blocks are unmapped all the same
   */
  discard(offset: number, length: number, waits = true, signal?: AbortSignal): Later<void> {
    this.mustBeWritable()
    const patience = { waits, signal }
    if (this.#pool.space.metadata.hasRoomToUnmap) return this.#discardNow(offset, length, patience)
    const hasRoom = this.#pool.space.metadata.makeRoomToUnmap()
    return hasRoom.then(() =>
      this.#pool.space.metadata.canUnmap
        ? this.#discardNow(offset, length, patience)
        : this.discard(offset, length, waits, signal),
    )
  }

  /** Makes a range read as zeros, as `discard` does: unmapped blocks read as zeros. */
  zero(offset: number, length: number, signal?: AbortSignal): Later<void> {
    return this.discard(offset, length, true, signal)
  }

  /** Whether a write is under way that may change the mapping of a virtual block. */
  isWriting(vblock: number): boolean {
    return this.#writes.unfinished.has(vblock, vblock)
  }

  /** Makes everything that was acknowledged before the call durable. */
  flush(): Promise<void> {
    return this.#pool.flush(this.devId)
  }

  /**
   * Makes everything past the end read as zeros. A caller that makes the device longer calls it
   * first. Bytes are there only when the device was cut off, or when a process died, or a snapshot
   * was taken, between a write past the end and the new size. Later writes past the end follow this
   * call, so one call is enough.
   */
  clearPastEnd(): Later<void> {
    if (this.#endIsClear) return
    if (this.#clearing !== null) return this.#clearing
    this.mustBeWritable()
    const blockSize = this.#blockSize
    const edge = this.size % blockSize !== 0 && this.table.get(Math.floor(this.size / blockSize))
    if (!edge && this.#nextMapped(Math.ceil(this.size / blockSize), ALL) === ALL) {
      this.#endIsClear = true
      return
    }
    this.#clearing = this.#clearPastEnd().finally(() => {
      this.#clearing = null
    })
    return this.#clearing
  }

  /**
   * Gives every unmapped block of a range a data block, which reads as zeros.
   * @param signal ends a wait for space with its reason; what was given stays
   * @throws VOLUME_FULL, NO_DATA_SPACE before anything is done when there are not enough
   */
  async preallocate(offset: number, length: number, signal?: AbortSignal): Promise<void> {
    this.mustBeWritable()
    const blockSize = this.#blockSize
    const begin = Math.floor(offset / blockSize)
    const end = Math.ceil((offset + length) / blockSize)
    const slice = new Slice(this.#pool.clock)
    const missing = end - begin - (await this.#countMapped(begin, end, slice))
    this.#writes.mustBeWithinLimit(missing)
    const free = this.#pool.space.data.nrWritableFor(this.devId)
    if (missing > free) {
      throw new ThinfsError('NO_DATA_SPACE', `${missing} blocks are wanted, ${free} are free`)
    }
    for (let vblock = begin; vblock < end; vblock++) {
      this.mustBeHere()
      if (this.table.get(vblock) === UNMAPPED) {
        const provisioned = this.#writes.provision(vblock, signal)
        if (provisioned !== undefined) await provisioned
      }
      if (slice.isOver) await this.#pool.pause(slice)
    }
  }

  /** Bytes of mapped blocks between `offset` and the end of the device. */
  async mappedFrom(offset: number): Promise<number> {
    const { size } = this
    const blockSize = this.#blockSize
    const end = Math.ceil(size / blockSize)
    const slice = new Slice(this.#pool.clock)
    let mapped = 0
    const visit = (vblock: number): void => {
      const begin = vblock * blockSize
      mapped += Math.min(begin + blockSize, size) - Math.max(begin, offset)
    }
    for (let at = Math.floor(offset / blockSize); at < end; ) {
      this.mustBeReadable()
      const next = this.#nextMapped(at, end)
      at = Math.min(next + PIECE_BLOCKS, end)
      this.#pool.metadata.mappings.forEach(this.devId, next, at, visit)
      if (slice.isOver) await slice.yield()
    }
    return mapped
  }

  /** How many virtual blocks of [begin, end) are mapped, piece by piece. */
  async #countMapped(begin: number, end: number, slice: Slice): Promise<number> {
    let count = 0
    for (let at = begin; at < end; at += PIECE_BLOCKS) {
      this.mustBeReadable()
      const until = Math.min(at + PIECE_BLOCKS, end)
      this.#pool.metadata.mappings.forEach(this.devId, at, until, () => {
        count++
      })
      if (slice.isOver) await slice.yield()
    }
    return count
  }

  /**
   * Maps what `source` maps at whole blocks: nothing is copied, the blocks are shared until one
   * side writes. All of it is aligned to data blocks, but for a tail that ends both devices.
   * @param signal ends a wait for space with its reason; what was shared stays
   */
  async share(
    source: ThinDevice,
    from: number,
    to: number,
    length: number,
    signal?: AbortSignal,
  ): Promise<void> {
    const { metadata } = this.#pool
    const first = from / this.#blockSize
    const base = to / this.#blockSize
    const count = Math.ceil(length / this.#blockSize)
    assert(Number.isInteger(first) && Number.isInteger(base), 'shares whole blocks')
    const mapping = { dataBlock: 0 as DataBlock, time: 0 }
    const present = { dataBlock: 0 as DataBlock, time: 0 }
    const slice = new Slice(this.#pool.clock)
    for (let i = 0; i < count; i++) {
      const room = (): true | null => this.#pool.space.metadata.hasRoom || null
      const vblock = (base + i) as VirtualBlock
      if (!room()) await this.#pool.space.withSpace(this, 0, room, signal)
      while (this.#writes.unfinished.has(vblock, vblock))
        await this.#writes.unfinished.ended(vblock, vblock)
      this.mustBeWritable()
      source.mustBeHere()
      if (!this.sharable || !source.sharable) {
        throw new ThinfsError('NOT_SUPPORTED', `device ${source.devId}: its blocks are reserved`)
      }
      if (!metadata.mappings.find(source.devId, (first + i) as VirtualBlock, mapping)) {
        this.#pool.unmap(this.devId, vblock, vblock + 1)
      } else if (
        !metadata.mappings.find(this.devId, vblock, present) ||
        present.dataBlock !== mapping.dataBlock
      ) {
        // dm-thin takes a mapping for shared when the device's last snapshot is younger.
        if (this.table.get(vblock) === UNMAPPED) this.#writes.mustBeWithinLimit(1)
        const looksShared =
          mapping.time < metadata.details(source.devId).snapshottedTime &&
          mapping.time < metadata.details(this.devId).snapshottedTime
        if (!looksShared) this.#pool.markShared(source.devId, this.devId)
        this.#pool.mapShared(this.devId, vblock, mapping.dataBlock, mapping.time)
        this.table.setShared(vblock, mapping.dataBlock)
      }
      if (slice.isOver) await this.#pool.pause(slice)
    }
  }

  /**
   * Whether `share` can be used, from it and to it: the clock of snapshots has room, and no reserve
   * promises blocks for what would be shared.
   */
  get sharable(): boolean {
    return this.#pool.metadata.time < LAST_SHARE_TIME && !this.#pool.space.reserves.has(this.devId)
  }

  /** Bytes of a data block. */
  get blockSize(): number {
    return this.#blockSize
  }

  /** Whether all blocks of a range are mapped. */
  isMapped(offset: number, size: number): boolean {
    this.mustBeReadable()
    const last = Math.floor((offset + size - 1) / this.#blockSize)
    for (let vblock = Math.floor(offset / this.#blockSize); vblock <= last; vblock++) {
      if (this.table.get(vblock) === UNMAPPED) return false
    }
    return true
  }

  /** First byte at or after `offset` in a mapped block; `size` when there is none. */
  nextData(offset: number): number {
    this.mustBeReadable()
    const mapping = { dataBlock: 0 as DataBlock, time: 0 }
    const vblock = Math.floor(offset / this.#blockSize) as VirtualBlock
    const next = this.#pool.metadata.mappings.next(this.devId, vblock, mapping)
    if (next < 0) return this.size
    return Math.min(Math.max(offset, next * this.#blockSize), this.size)
  }

  /**
   * First byte at or after `offset` in an unmapped block; `size` when there is none. Scans mappings
   * piece by piece: others may change what it has not reached yet.
   */
  async nextHole(offset: number): Promise<number> {
    const { metadata, clock } = this.#pool
    const slice = new Slice(clock)
    for (let at = Math.floor(offset / this.#blockSize); at * this.#blockSize < this.size; ) {
      this.mustBeReadable()
      const piece = at + PIECE_BLOCKS
      at = metadata.mappings.mappedUntil(this.devId, at, piece)
      if (at < piece) return Math.min(Math.max(offset, at * this.#blockSize), this.size)
      if (slice.isOver) await slice.yield()
    }
    return this.size
  }

  // --- inside ---

  /** @throws DEVICE_MISSING with ESTALE once the device was deleted */
  mustBeHere(): void {
    if (this.gone) throw goneError(this.devId)
  }

  /** @throws that too, and POOL_FAILED when the metadata cannot be relied on */
  mustBeReadable(): void {
    this.#pool.mustBeReadable()
    this.mustBeHere()
  }

  /** @throws that too, and POOL_READ_ONLY when no metadata may change */
  mustBeWritable(): void {
    this.#pool.mustBeWritable()
    this.mustBeHere()
  }

  async #clearPastEnd(): Promise<void> {
    const blockSize = this.#blockSize
    const end = this.size
    const begin = Math.ceil(end / blockSize)
    const edge = begin * blockSize - end
    if (edge > 0) {
      // Most edges are zeros, and zeroing one in a shared block would take a new block.
      const found = Buffer.allocUnsafe(edge)
      await this.readLater(end, edge, found, 0)
      if (!isZero(found)) await this.#writes.zero([[end, end + edge]], PATIENT)
    }
    await this.#discardRest(begin, ALL, [], PATIENT)
    // If the device was cut off meanwhile, the new end has yet to be cleared.
    if (this.size === end) this.#endIsClear = true
    else await this.#clearPastEnd()
  }

  #discardNow(offset: number, length: number, patience: Patience): Later<void> {
    this.mustBeWritable()
    const blockSize = this.#blockSize
    const end = offset + length
    const begin = Math.ceil(offset / blockSize)
    const last = end >= this.size ? Math.ceil(end / blockSize) : Math.floor(end / blockSize)
    if (begin > last) return this.#writes.zero([[offset, end]], patience)
    const edges: Edge[] = [
      [offset, begin * blockSize],
      [last * blockSize, end],
    ]
    const more = this.#unmapPiece(begin, last)
    if (more !== null && more >= last) return this.#writes.zero(edges, patience)
    return this.#discardRest(more ?? begin, last, edges, patience)
  }

  async #discardRest(
    begin: number,
    last: number,
    edges: Edge[],
    patience: Patience,
  ): Promise<void> {
    const slice = new Slice(this.#pool.clock)
    for (let at = begin; at < last; ) {
      const more: number | null = await this.#pool.unmapInSlices(slice, () => {
        this.mustBeWritable()
        return this.#unmapPiece(at, last)
      })
      if (more === null) await this.#writes.unfinished.ended(at, last)
      else at = more
    }
    await this.#writes.zero(edges, patience)
  }

  /**
   * Unmaps some of [begin, last), skipping what is unmapped.
   * @returns where to go on; null when a write under way has to end first
   */
  #unmapPiece(begin: number, last: number): number | null {
    const next = this.#nextMapped(begin, last)
    if (next === last) return last
    const end = Math.min(next + PIECE_BLOCKS, last)
    if (this.#writes.unfinished.has(next, end - 1)) return null
    this.#pool.unmap(this.devId, next, end)
    return this.#nextMapped(end, last)
  }

  /** The first virtual block of [begin, last) that is mapped, or `last`. */
  #nextMapped(begin: number, last: number): number {
    const mapping = { dataBlock: 0 as DataBlock, time: 0 }
    if (begin >= last) return last
    const next = this.#pool.metadata.mappings.next(this.devId, begin, mapping)
    return next < 0 ? last : Math.min(next, last)
  }

  /**
   * Sets #runBegin for `offset`.
   * @returns where what follows it in the data store, or the hole, ends
   */
  #findRun(offset: number, end: number): number {
    const blockSize = this.#blockSize
    let vblock = Math.floor(offset / blockSize)
    let entry = this.table.get(vblock)
    const block = entry === UNMAPPED ? -1 : dataBlockOf(entry)
    const skip = offset - vblock * blockSize
    let run = 1
    offset += blockSize - skip
    // Blocks that follow each other in the data store are one read, holes one fill.
    while (offset < end) {
      entry = this.table.get(++vblock)
      if (block < 0 ? entry !== UNMAPPED : entry === UNMAPPED) break
      if (block >= 0 && dataBlockOf(entry) !== block + run) break
      run++
      offset += blockSize
    }
    this.#runBegin = block < 0 ? -1 : block * blockSize + skip
    return Math.min(offset, end)
  }

  #readNow(buffer: Uint8Array, at: number, length: number, offset: number): boolean {
    try {
      return this.#pool.blocks.readNow(buffer, at, length, offset)
    } catch (err) {
      throw this.#pool.ioError('read', err, this.devId, Math.floor(offset / this.#blockSize))
    }
  }

  async #readRuns(offset: number, end: number, buffer: Uint8Array, at: number): Promise<void> {
    const reads: Promise<void>[] = []
    while (offset < end) {
      const next = this.#findRun(offset, end)
      const length = next - offset
      if (this.#runBegin < 0) buffer.fill(0, at, at + length)
      else reads.push(this.#readLater(buffer, at, length, this.#runBegin))
      at += length
      offset = next
    }
    // The buffer is the caller's again when all have ended.
    await allEnded(reads)
  }

  #readLater(buffer: Uint8Array, at: number, length: number, offset: number): Promise<void> {
    return this.#pool.blocks.readLater(buffer, at, length, offset).catch(err => {
      throw this.#pool.ioError('read', err, this.devId, Math.floor(offset / this.#blockSize))
    })
  }
}

/** The errno makes the kernel look the file's name up again. */
export const goneError = (devId: DevId): ThinfsError =>
  new ThinfsError('DEVICE_MISSING', `device ${devId} was deleted`, { errno: 'ESTALE' })
