/**
 * A thin device: a range of virtual blocks, read and written like a disk.
 *
 * Every request is first resolved, which changes nothing: per block, where its bytes are, or that it
 * needs a new data block. Only when all blocks a request needs could be had are bytes moved, and
 * only then do mappings change: a mapping never points to a block that is not filled yet.
 */
import {
  assert,
  type Bytes,
  bytes,
  cancelled,
  type DataBlock,
  type DevId,
  isNoSpace,
  Slice,
  ThinfsError,
  type VirtualBlock,
} from '../base/index.js'
import { MAX_TIME } from '../metadata/index.js'
import type { BlockDevice } from './block-device.js'
import { dataBlockOf, isShared, LookupTable, UNMAPPED } from './lookup-table.js'
import type { PageCache } from './page-cache.js'
import type { Provisioner } from './provisioner.js'
import { MAX_IO, type WritePlan } from './write-plan.js'

/** Virtual blocks that are unmapped, or looked at, between two looks at the clock. */
const PIECE_BLOCKS = 1024
/** The end of a range of virtual blocks that ends nowhere. */
const ALL = Number.MAX_SAFE_INTEGER
/** Times are 24 bits; sharing by copy stops well before snapshots would run out. */
const LAST_SHARE_TIME = MAX_TIME - 4096

/** A range of bytes [from, to). */
type Edge = readonly [from: number, to: number]

/** What became of an attempt to write. */
type Outcome = 'written' | 'no space' | 'not in memory'

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
  /** Whether everything past the end is known to read as zeros; see `clearPastEnd`. */
  #endIsClear = false
  #clearing: Promise<void> | null = null
  readonly #pool: Provisioner
  readonly #plan: WritePlan
  readonly #blockSize: number
  /** What #findRun found: a byte offset in the data store, or -1 for a hole. */
  #runBegin = -1

  /**
   * @param pages the pool's, which all of its devices share
   * @param plan the same
   */
  constructor(pool: Provisioner, devId: DevId, size: Bytes, pages: PageCache, plan: WritePlan) {
    this.#pool = pool
    this.#plan = plan
    this.devId = devId
    this.size = size
    this.#blockSize = pool.blockSize
    this.table = new LookupTable(pool.metadata, devId, pages)
  }

  /**
   * Fills `size` bytes of `buffer` at `at` from `offset`, when no disk has to be waited for. The range
   * lies within the device.
   * @returns false when that is not so: what is in `buffer` then means nothing, see `readLater`
   */
  read(offset: number, size: number, buffer: Uint8Array, at: number): boolean {
    this.#mustBeReadable()
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

  /** As `read`, and waits for the disk. What is read is as of the call, or newer. */
  readLater(offset: number, size: number, buffer: Uint8Array, at: number): Promise<void> {
    this.#mustBeReadable()
    const end = offset + size
    const next = this.#findRun(offset, end)
    if (next === end && this.#runBegin >= 0)
      return this.#readLater(buffer, at, size, this.#runBegin)
    return this.#readRuns(offset, end, buffer, at)
  }

  /**
   * Writes `size` bytes, at most MAX_IO, of `buffer` from `at`. All or nothing. The range lies
   * within the device. A promise only when it waits for space, or for the disk to read what a shared
   * block holds; the bytes are copied before.
   * @throws NO_DATA_SPACE, NO_METADATA_SPACE, POOL_READ_ONLY
   */
  write(offset: number, size: number, buffer: Uint8Array, at: number): void | Promise<void> {
    this.#mustBeReadable()
    const blockSize = this.#blockSize
    const vblock = Math.floor(offset / blockSize)
    const skip = offset - vblock * blockSize
    if (skip + size <= blockSize) {
      const entry = this.table.get(vblock)
      if (entry !== UNMAPPED && !isShared(entry)) {
        if (this.#writeInPlace(buffer, at, size, dataBlockOf(entry) * blockSize + skip)) return
      }
    }
    const outcome = this.#tryWrite(offset, size, buffer, at, false)
    if (outcome === 'written') return
    const held = Buffer.from(buffer.subarray(at, at + size))
    return this.#writeLater(offset, size, held, outcome)
  }

  /** Makes the device longer, for what was written past its end. */
  extend(size: number): void {
    if (size <= this.size || this.gone) return
    this.size = bytes(size)
    this.#pool.extended(this.devId, this.size)
  }

  /**
   * Makes a range read as zeros. Whole blocks are unmapped first and go back to the pool with the
   * next commit; then the edges are zeroed in place, which takes a block where they are shared. The
   * end of the device ends its last block.
   * @param waits edges wait for that block as writes do; else they have what is free after a commit
   * @param signal ends the wait with CANCELLED
   * @throws NO_DATA_SPACE when edges find no block: the whole blocks are unmapped all the same
   */
  discard(
    offset: number,
    length: number,
    waits = true,
    signal?: AbortSignal,
  ): void | Promise<void> {
    this.#mustBeWritable()
    if (!this.#pool.hasRoomToUnmap) {
      return this.#pool
        .makeRoomToUnmap()
        .then(() => this.#discardNow(offset, length, waits, signal))
    }
    return this.#discardNow(offset, length, waits, signal)
  }

  /** Makes a range read as zeros, as `discard` does: nothing is left of what it unmaps. */
  zero(offset: number, length: number): void | Promise<void> {
    return this.discard(offset, length)
  }

  /** Makes everything that was acknowledged before the call durable. */
  flush(): Promise<void> {
    return this.#pool.flush(this.devId)
  }

  /**
   * Makes everything past the end read as zeros; whoever makes the device longer calls it before.
   * Something is there only when a process died, or a snapshot was taken, between a write past the
   * end and the new size. Later writes past the end come after this call, so one is enough.
   */
  clearPastEnd(): void | Promise<void> {
    if (this.#endIsClear) return
    if (this.#clearing !== null) return this.#clearing
    this.#mustBeWritable()
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
   * @throws NO_DATA_SPACE before anything is done when there are not enough
   */
  async preallocate(offset: number, length: number): Promise<void> {
    this.#mustBeWritable()
    const blockSize = this.#blockSize
    const begin = Math.floor(offset / blockSize)
    const end = Math.ceil((offset + length) / blockSize)
    const slice = new Slice(this.#pool.clock)
    const missing = end - begin - (await this.#countMapped(begin, end, slice))
    if (missing > this.#pool.nrWritableDataBlocks) {
      throw new ThinfsError(
        'NO_DATA_SPACE',
        `${missing} blocks are wanted, ${this.#pool.nrWritableDataBlocks} are free`,
      )
    }
    for (let vblock = begin; vblock < end; vblock++) {
      this.#mustBeHere()
      if (this.table.get(vblock) === UNMAPPED) {
        const attempt = (): true | null => (this.#tryProvision(vblock) ? true : null)
        if (!attempt()) await this.#pool.withSpace(this, 0, attempt)
      }
      if (slice.isOver) await this.#pool.pause(slice)
    }
  }

  /** How many virtual blocks of [begin, end) are mapped, piece by piece. */
  async #countMapped(begin: number, end: number, slice: Slice): Promise<number> {
    let count = 0
    for (let at = begin; at < end; at += PIECE_BLOCKS) {
      this.#mustBeReadable()
      const until = Math.min(at + PIECE_BLOCKS, end)
      this.#pool.metadata.forEachMapping(this.devId, at, until, () => {
        count++
      })
      if (slice.isOver) await slice.yield()
    }
    return count
  }

  /**
   * Maps what `source` maps at whole blocks: nothing is copied, the blocks are shared until one
   * side writes. All of it is aligned to data blocks, but for a tail that ends both devices.
   */
  async share(source: ThinDevice, from: number, to: number, length: number): Promise<void> {
    const { metadata } = this.#pool
    const first = from / this.#blockSize
    const base = to / this.#blockSize
    const count = Math.ceil(length / this.#blockSize)
    assert(Number.isInteger(first) && Number.isInteger(base), 'shares whole blocks')
    const mapping = { dataBlock: 0 as DataBlock, time: 0 }
    const present = { dataBlock: 0 as DataBlock, time: 0 }
    const slice = new Slice(this.#pool.clock)
    for (let i = 0; i < count; i++) {
      const room = (): true | null => this.#pool.hasMetadataRoom || null
      if (!room()) await this.#pool.withSpace(this, 0, room)
      this.#mustBeWritable()
      source.#mustBeHere()
      const vblock = (base + i) as VirtualBlock
      if (!metadata.find(source.devId, (first + i) as VirtualBlock, mapping)) {
        this.#pool.unmap(this.devId, vblock, vblock + 1)
      } else if (
        !metadata.find(this.devId, vblock, present) ||
        present.dataBlock !== mapping.dataBlock
      ) {
        // dm-thin takes a mapping for shared when the device's last snapshot is younger.
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

  /** Whether `share` can be used: the clock of snapshots has room. */
  get sharable(): boolean {
    return this.#pool.metadata.time < LAST_SHARE_TIME
  }

  /** First byte at or after `offset` in a mapped block; `size` when there is none. */
  nextData(offset: number): number {
    this.#mustBeReadable()
    const mapping = { dataBlock: 0 as DataBlock, time: 0 }
    const vblock = Math.floor(offset / this.#blockSize) as VirtualBlock
    const next = this.#pool.metadata.next(this.devId, vblock, mapping)
    if (next < 0) return this.size
    return Math.min(Math.max(offset, next * this.#blockSize), this.size)
  }

  /**
   * First byte at or after `offset` in an unmapped block; `size` when there is none. Looks the mappings
   * over piece by piece: what is far away is as it was when it was come to.
   */
  async nextHole(offset: number): Promise<number> {
    const { metadata, clock } = this.#pool
    const slice = new Slice(clock)
    for (let at = Math.floor(offset / this.#blockSize); at * this.#blockSize < this.size; ) {
      this.#mustBeReadable()
      const piece = at + PIECE_BLOCKS
      at = metadata.mappedUntil(this.devId, at, piece)
      if (at < piece) return Math.min(Math.max(offset, at * this.#blockSize), this.size)
      if (slice.isOver) await slice.yield()
    }
    return this.size
  }

  // --- inside ---

  /** @throws DEVICE_MISSING with ESTALE once the device was deleted */
  #mustBeHere(): void {
    if (this.gone) throw goneError(this.devId)
  }

  #mustBeReadable(): void {
    this.#pool.mustBeReadable()
    this.#mustBeHere()
  }

  #mustBeWritable(): void {
    this.#pool.mustBeWritable()
    this.#mustBeHere()
  }

  async #writeLater(offset: number, size: number, bytes: Buffer, outcome: Outcome): Promise<void> {
    const attempt = (): true | null =>
      this.#tryWrite(offset, size, bytes, 0, true) === 'written' || null
    if (outcome === 'not in memory') {
      await this.#fetchKept(offset, offset + size)
      if (attempt()) return
    }
    await this.#pool.withSpace(this, size, attempt)
  }

  /** @param waits reads what shared blocks hold even from a disk */
  #tryWrite(offset: number, size: number, buffer: Uint8Array, at: number, waits: boolean): Outcome {
    assert(size <= MAX_IO, 'writes are split before they come here')
    // The call may be the continuation of a wait.
    this.#mustBeReadable()
    const plan = this.#plan
    const end = offset + size
    plan.resolve(
      this,
      Math.floor(offset / this.#blockSize),
      Math.floor((end - 1) / this.#blockSize),
    )
    if (!plan.readKept(offset, end, waits)) return 'not in memory'
    if (!plan.take()) return 'no space'
    try {
      plan.write(offset, size, buffer, at)
    } catch (err) {
      plan.giveBack()
      this.#isRefused('write', err, plan.firstTarget)
      return 'no space'
    }
    plan.remap()
    if (plan.nrWanted > 0) this.#pool.provisioned()
    return 'written'
  }

  /**
   * Brings what the outer blocks of [offset, end) hold into the store's cache. Ignores errors: the
   * write itself meets them again, and tells of them.
   */
  async #fetchKept(offset: number, end: number): Promise<void> {
    const blockSize = this.#blockSize
    const first = Math.floor(offset / blockSize)
    const last = Math.floor((end - 1) / blockSize)
    const reads = [...new Set([first, last])].map(vblock => {
      const entry = this.table.get(vblock)
      if (entry === UNMAPPED) return null
      const scratch = Buffer.allocUnsafeSlow(blockSize)
      return this.#readLater(scratch, 0, blockSize, dataBlockOf(entry) * blockSize)
    })
    await Promise.allSettled(reads)
  }

  #tryProvision(vblock: number): boolean {
    this.#mustBeWritable()
    const plan = this.#plan
    plan.resolve(this, vblock, vblock)
    if (!plan.startsUnmapped) return true
    if (!plan.take()) return false
    const end = (vblock + 1) * this.#blockSize
    try {
      plan.fillAround(end, end)
    } catch (err) {
      plan.giveBack()
      return this.#isRefused('zero', err, plan.firstTarget)
    }
    plan.remap()
    return true
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
      if (found.some(byte => byte !== 0)) await this.#zeroEdges([[end, end + edge]], true)
    }
    this.#mustBeWritable()
    const more = this.#unmapPiece(begin, ALL)
    if (more < ALL) await this.#discardRest(more, ALL, [], true)
    this.#endIsClear = true
  }

  #discardNow(
    offset: number,
    length: number,
    waits: boolean,
    signal?: AbortSignal,
  ): void | Promise<void> {
    this.#mustBeWritable()
    const blockSize = this.#blockSize
    const end = offset + length
    const begin = Math.ceil(offset / blockSize)
    const last = end >= this.size ? Math.ceil(end / blockSize) : Math.floor(end / blockSize)
    if (begin > last) return this.#zeroEdges([[offset, end]], waits, signal)
    const edges: Edge[] = [
      [offset, begin * blockSize],
      [last * blockSize, end],
    ]
    const more = this.#unmapPiece(begin, last)
    if (more >= last) return this.#zeroEdges(edges, waits, signal)
    return this.#discardRest(more, last, edges, waits, signal)
  }

  async #discardRest(
    begin: number,
    last: number,
    edges: Edge[],
    waits: boolean,
    signal?: AbortSignal,
  ): Promise<void> {
    const slice = new Slice(this.#pool.clock)
    for (let more = begin; more < last; more = this.#unmapPiece(more, last)) {
      await this.#pool.betweenSlices(slice)
      if (signal?.aborted) throw cancelled()
      this.#mustBeWritable()
    }
    await this.#zeroEdges(edges, waits, signal)
  }

  /** Unmaps some of [begin, last), skipping what is unmapped. @returns where to go on */
  #unmapPiece(begin: number, last: number): number {
    const next = this.#nextMapped(begin, last)
    if (next === last) return last
    const end = Math.min(next + PIECE_BLOCKS, last)
    this.#pool.unmap(this.devId, next, end)
    return this.#nextMapped(end, last)
  }

  /** The first virtual block of [begin, last) that is mapped, or `last`. */
  #nextMapped(begin: number, last: number): number {
    const mapping = { dataBlock: 0 as DataBlock, time: 0 }
    if (begin >= last) return last
    const next = this.#pool.metadata.next(this.devId, begin, mapping)
    return next < 0 ? last : Math.min(next, last)
  }

  /** Zeroes ranges that lie within one block each, where that is mapped. */
  #zeroEdges(edges: Edge[], waits: boolean, signal?: AbortSignal): void | Promise<void> {
    const left = edges.filter(([from, to]) => from < to && !this.#tryZero(from, to))
    if (left.length > 0) return this.#zeroLater(left, waits, signal)
  }

  async #zeroLater(edges: Edge[], waits: boolean, signal?: AbortSignal): Promise<void> {
    let failure: unknown = null
    for (const [from, to] of edges) {
      const attempt = (): true | null => (this.#tryZero(from, to) ? true : null)
      try {
        await (waits
          ? this.#pool.withSpace(this, 0, attempt, signal)
          : this.#pool.withSpaceNow(this, attempt))
      } catch (err) {
        // The other one may find room.
        failure ??= err
      }
    }
    if (failure !== null) throw failure
  }

  #tryZero(from: number, to: number): boolean {
    this.#mustBeWritable()
    const plan = this.#plan
    const vblock = Math.floor(from / this.#blockSize)
    plan.resolve(this, vblock, vblock)
    if (plan.startsUnmapped) return true
    plan.readKept(from, to, true)
    if (!plan.take(true)) return false
    try {
      plan.zero(from, to)
    } catch (err) {
      plan.giveBack()
      return this.#isRefused('zero', err, plan.firstTarget)
    }
    plan.remap()
    return true
  }

  /** Sets #runBegin for `offset`. @returns where what follows it in the data store, or the hole, ends */
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
      return this.#pool.data.readNow(buffer, at, length, offset as Bytes)
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
    // All of them have ended when this does: the buffer is the caller's again.
    for (const ended of await Promise.allSettled(reads)) {
      if (ended.status === 'rejected') throw ended.reason
    }
  }

  #readLater(buffer: Uint8Array, at: number, length: number, offset: number): Promise<void> {
    const read = this.#pool.data.readLater(buffer, at, length, offset as Bytes).catch(err => {
      throw this.#pool.ioError('read', err, this.devId, Math.floor(offset / this.#blockSize))
    })
    const begin = Math.floor(offset / this.#blockSize)
    this.#pool.reading(read, begin, Math.ceil((offset + length) / this.#blockSize))
    return read
  }

  #writeData(buffer: Uint8Array, at: number, length: number, offset: number): void {
    this.#pool.wrote()
    this.#pool.data.write(buffer, at, length, offset as Bytes)
  }

  /** As `#writeData`, into a block that is mapped. @returns false when the host has no room for it */
  #writeInPlace(buffer: Uint8Array, at: number, length: number, offset: number): boolean {
    try {
      this.#writeData(buffer, at, length, offset)
      return true
    } catch (err) {
      return this.#isRefused('write', err, Math.floor(offset / this.#blockSize))
    }
  }

  /**
   * For what a write to the data store threw: notes that the host has no room, which is as if the pool
   * had none. Whatever else it is, is told and thrown.
   * @returns false
   */
  #isRefused(operation: string, err: unknown, block: number): false {
    if (!isNoSpace(err)) throw this.#pool.ioError(operation, err, this.devId, block)
    this.#pool.hostRefused(err)
    return false
  }
}

/** The errno makes the kernel look the file's name up again. */
export const goneError = (devId: DevId): ThinfsError =>
  new ThinfsError('DEVICE_MISSING', `device ${devId} was deleted`, { errno: 'ESTALE' })
