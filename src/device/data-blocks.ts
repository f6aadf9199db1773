/**
 * The data blocks of a pool, and the only user of the data store: whatever is under way on a block
 * is known here.
 *
 * A store may end calls late and in any order; here it is decided what they wait for, for all
 * stores:
 * - Every later call on a block waits for a write that is still under way on it: a block is read as
 *   the last write left it, whoever asks, and writes happen in the order of the calls.
 * - A read does not hold up a write: what is read is as of the call, or newer.
 * - A block that a durable transaction freed is released when nothing is under way on it
 *   (freed-blocks.ts).
 * - A flush covers the writes that ended before it began.
 *
 * With a store that has a page cache no write is under way but the copy of a large block, and a
 * request makes no object here.
 */
import {
  type Bytes,
  bytes,
  type Clock,
  KIB,
  type Later,
  Slice,
  SYSTEM_CLOCK,
} from '../base/index.js'
import type { CacheCounts, DataStore, HostRoom, Label } from '../storage/index.js'
import { BlockMoves, noteWrite, type Watch } from './block-moves.js'
import { FlushPace } from './flush-pace.js'
import { type BusyBlocks, FreedBlocks, type ReleaseListener } from './freed-blocks.js'

/** Bytes that are copied while requests wait. */
const COPIED_AT_ONCE = 256 * KIB

/** A call that is under way on the blocks [begin, end). */
interface Call extends BusyBlocks {
  /** Resolves when it has ended, however it did. */
  ended: Promise<unknown>
}

export class DataBlocks {
  readonly blockSize: number
  /**
   * Whether free blocks are holes of the store, which new ones then are: they need no zeroing. Else
   * what is freed keeps what it held.
   */
  readonly freeMeansHole: boolean
  readonly #store: DataStore
  readonly #reads = new Set<Call>()
  readonly #writes = new Set<Call>()
  /** Bumped when a write ends; a flush covers those before it. */
  #written = 0
  #flushed = 0
  /** The flush under way; null when there is none. */
  #flushing: Promise<void> | null = null
  /** Blocks that durable transactions freed, until they can be given out again. */
  readonly freed: FreedBlocks
  /** When punches and moves rest. */
  readonly pace: FlushPace
  /** Moves blocks to other places of the store. */
  readonly moves: BlockMoves
  /** Blocks that are being moved; null when there are none. */
  #watches: ReadonlySet<Watch> | null = null

  constructor(
    store: DataStore,
    options: { blockSize: number; freeMeansHole: boolean; clock: Clock },
    listener: ReleaseListener,
  ) {
    this.#store = store
    this.blockSize = options.blockSize
    this.freeMeansHole = options.freeMeansHole
    this.pace = new FlushPace(options.clock)
    this.freed = new FreedBlocks({
      ...{ store, ...options, listener, pace: this.pace },
      busy: () => [...this.#reads, ...this.#writes],
      punched: () => {
        this.#written++
      },
    })
    this.moves = new BlockMoves({
      ...{ store, ...options },
      isWritten: (offset, length) => this.#isWritten(offset, length),
      writesEnd: (offset, length) => this.#afterWrites(offset, length),
      write: (buffer, at, length, offset) => this.write(buffer, at, length, offset),
      readLater: (buffer, at, length, offset) => this.readLater(buffer, at, length, offset),
      reads: (copy, offset) => this.#begin(this.#reads, copy, offset, this.blockSize),
      writes: (copy, offset) => this.#ends(copy, offset, this.blockSize),
      watch: watches => {
        this.#watches = watches
      },
    })
  }

  // --- the store as a whole ---

  /** Names the store in messages. */
  get path(): string {
    return this.#store.path
  }

  /** Bytes. */
  get size(): Bytes {
    return this.#store.size
  }

  /** Whether the store is a file that somebody has removed. */
  get isRemoved(): boolean {
    return this.#store.isRemoved ?? false
  }

  /** Whether `copy` shares pages on the host, and so reads nothing. */
  get copiesShare(): boolean {
    return this.#store.copiesShare
  }

  /** Space of the host; null where nothing grows, undefined where that is not known. */
  hostRoom(): HostRoom | null | undefined {
    return this.#store.hostRoom?.()
  }

  /** The counters of the cache before a disk of another machine; null: the data is not on one. */
  get cacheCounts(): CacheCounts | null {
    return this.#store.cacheCounts?.() ?? null
  }

  /** The label: which pool and which commit; null where the store has none. */
  get label(): Label | null {
    return this.#store.readLabel?.() ?? null
  }

  /** @returns false where the store keeps no label */
  setLabel(label: Label): boolean {
    return this.#store.writeLabel?.(label) ?? false
  }

  /** Takes note of a length that somebody else has changed. */
  measure(): void {
    this.#store.measure()
  }

  /** As `measure`, where somebody else has to be asked. @throws IO_ERROR */
  async remeasure(): Promise<void> {
    await this.#store.remeasure?.()
  }

  /** Makes the store longer, at least. */
  grow(size: Bytes): void {
    this.#store.grow(size)
    this.#written++
  }

  /** Whether `cut` can make the store shorter. */
  get canBeCut(): boolean {
    return this.#store.cut !== undefined
  }

  /** Makes the store shorter: nothing past `size` is in use, or under way. */
  cut(size: Bytes): void {
    this.#store.cut!(size)
    this.#written++
  }

  /** Somebody else made the store longer: the next flush covers the new length. */
  hasGrown(): void {
    this.#written++
  }

  // --- reads ---

  /**
   * Fills `length` bytes of `buffer` at `at` from byte `offset`, if nothing has to be waited for.
   * @returns false when that is not so: what is in `buffer` then means nothing
   */
  readNow(buffer: Uint8Array, at: number, length: number, offset: number): boolean {
    if (this.#isWritten(offset, length)) return false
    return this.#store.readNow(buffer, at, length, offset as Bytes)
  }

  /** As `readNow`, and waits. The blocks are not released meanwhile. */
  readLater(buffer: Uint8Array, at: number, length: number, offset: number): Promise<void> {
    const read = (): Promise<void> => this.#store.readLater(buffer, at, length, offset as Bytes)
    const reading = this.#isWritten(offset, length)
      ? this.#afterWrites(offset, length).then(read)
      : read()
    this.#begin(this.#reads, reading, offset, length)
    return reading
  }

  /** Whether a read is under way on a block. */
  isRead(block: number): boolean {
    if (this.#reads.size === 0) return false
    for (const read of this.#reads) if (read.begin <= block && block < read.end) return true
    return false
  }

  // --- writes ---

  /**
   * Writes `length` bytes of `buffer` from `at` to byte `offset`. The bytes are copied before it
   * returns a promise.
   */
  write(buffer: Uint8Array, at: number, length: number, offset: number): Later<void> {
    // The closures of a write that waits are made elsewhere: here they would cost every request.
    const write = this.#isWritten(offset, length)
      ? this.#writeLater(Buffer.from(buffer.subarray(at, at + length)), offset)
      : this.#store.write(buffer, at, length, offset as Bytes)
    return this.#ends(write, offset, length)
  }

  #writeLater(held: Uint8Array, offset: number): Promise<void> {
    const write = (): Later<void> => this.#store.write(held, 0, held.length, offset as Bytes)
    return this.#afterWrites(offset, held.length).then(write)
  }

  /**
   * Copies bytes from one block to another. The source is shared: nobody writes to it meanwhile.
   */
  copy(source: number, target: number, length: number): Later<void> {
    const copying =
      this.#isWritten(source, length) || this.#isWritten(target, length)
        ? this.#copyLater(source, target, length)
        : this.#copyNow(source, target, length)
    if (copying !== undefined) this.#begin(this.#reads, copying, source, length)
    return this.#ends(copying, target, length)
  }

  async #copyLater(source: number, target: number, length: number): Promise<void> {
    await Promise.all([this.#afterWrites(source, length), this.#afterWrites(target, length)])
    await this.#copyNow(source, target, length)
  }

  #copyNow(source: number, target: number, length: number): Later<void> {
    const store = this.#store
    if (length <= COPIED_AT_ONCE || store.copiesShare) {
      return store.copy(bytes(source), bytes(target), bytes(length))
    }
    return (
      store.copyLater?.(bytes(source), bytes(target), bytes(length), this.freeMeansHole) ??
      this.#copyInParts(source, target, length)
    )
  }

  /**
   * Copies part after part, so that no request waits for a whole block, nor the thread for a disk.
   */
  async #copyInParts(source: number, target: number, length: number): Promise<void> {
    const held = Buffer.allocUnsafeSlow(COPIED_AT_ONCE)
    const slice = new Slice(SYSTEM_CLOCK)
    for (let done = 0; done < length; done += held.length) {
      const size = Math.min(held.length, length - done)
      const from = bytes(source + done)
      if (!this.#store.readNow(held, 0, size, from)) {
        await this.#store.readLater(held, 0, size, from)
      }
      await this.#store.write(held, 0, size, bytes(target + done))
      if (slice.isOver) await slice.yield()
    }
  }

  /** Makes a range read as zeros: a hole, where free blocks are holes. */
  clear(offset: number, length: number): Later<void> {
    const clearing = this.#isWritten(offset, length)
      ? this.#clearLater(offset, length)
      : this.#clearNow(offset, length)
    return this.#ends(clearing, offset, length)
  }

  #clearLater(offset: number, length: number): Promise<void> {
    return this.#afterWrites(offset, length).then(() => this.#clearNow(offset, length))
  }

  #clearNow(offset: number, length: number): Later<void> {
    if (this.freeMeansHole) return this.#store.punch(bytes(offset), bytes(length))
    return this.#store.zero(bytes(offset), bytes(length))
  }

  /** Resolves when the writes that are under way have ended; null when there are none. */
  writesEnd(): Promise<unknown> | null {
    return this.#writes.size === 0 ? null : Promise.all([...this.#writes].map(({ ended }) => ended))
  }

  /**
   * Whether a block is a hole of the store, and so reads as zeros. False where the store cannot say
   * so at once, or a write is under way on it.
   */
  isHole(block: number): boolean {
    const at = block * this.blockSize
    if (!this.freeMeansHole || !this.#store.tellsHoles) return false
    if (this.#isWritten(at, this.blockSize)) return false
    try {
      return this.#store.nextData(bytes(at)) >= at + this.blockSize
    } catch {
      return false // Whoever reads it hears of that.
    }
  }

  // --- free blocks ---

  /** First byte at or after `offset` that is not in a hole; `size` when there is none. */
  nextData(offset: Bytes): Bytes {
    return this.#store.nextData(offset)
  }

  /** First byte at or after `offset` that is in a hole; `size` when there is none. */
  nextHole(offset: Bytes): Bytes {
    return this.#store.nextHole(offset)
  }

  // --- what lasts ---

  /**
   * Makes the writes that ended before the call durable. Calls during a flush share the next one.
   */
  async flush(): Promise<void> {
    const written = this.#written
    while (this.#flushed < written) {
      this.#flushing ??= this.#startFlush()
      await this.#flushing
    }
  }

  /** The same, whether or not anything was written that this process knows of. */
  flushAll(): Promise<void> {
    this.#written++
    return this.flush()
  }

  /** Resolves when nothing is under way. The caller sees to it that nothing begins. */
  async quiesce(): Promise<void> {
    while (this.#reads.size > 0 || this.#writes.size > 0 || this.freed.punching) {
      this.freed.hurry()
      const calls = [...this.#reads, ...this.#writes]
      await Promise.allSettled([...calls.map(({ ended }) => ended), this.freed.punched])
    }
  }

  /** As `flushAll`, for the label too. */
  async flushLabel(): Promise<void> {
    await this.flushAll()
    await this.#store.syncAll?.()
  }

  // --- inside ---

  /** Whether a write is under way on one of the blocks of a range. */
  #isWritten(offset: number, length: number): boolean {
    if (this.#writes.size === 0) return false
    const { begin, end } = this.#blocksOf(offset, length)
    for (const write of this.#writes) if (write.begin < end && begin < write.end) return true
    return false
  }

  /** Resolves when the writes that are under way on the blocks of a range have ended. */
  #afterWrites(offset: number, length: number): Promise<unknown> {
    const { begin, end } = this.#blocksOf(offset, length)
    const writes = [...this.#writes].filter(write => write.begin < end && begin < write.end)
    return Promise.all(writes.map(({ ended }) => ended))
  }

  #blocksOf(offset: number, length: number): { begin: number; end: number } {
    const begin = Math.floor(offset / this.blockSize)
    return { begin, end: Math.ceil((offset + length) / this.blockSize) }
  }

  /** Counts a write as in flight until it ends, and as written then. */
  #ends(write: Later<void>, offset: number, length: number): Later<void> {
    if (this.#watches !== null) noteWrite(this.#watches, offset, length)
    if (write === undefined) {
      this.#written++
      return
    }
    this.#begin(this.#writes, write, offset, length)
    return write
  }

  #begin(calls: Set<Call>, call: Promise<void>, offset: number, length: number): void {
    const ended = (): void => {
      calls.delete(entry)
      if (calls === this.#writes) {
        this.#written++
        if (this.#watches !== null) noteWrite(this.#watches, offset, length)
      }
      this.freed.releaseIdle()
    }
    const entry: Call = { ...this.#blocksOf(offset, length), ended: call.then(ended, ended) }
    calls.add(entry)
  }

  #startFlush(): Promise<void> {
    const covers = this.#written
    return this.#store
      .sync()
      .then(() => {
        this.#flushed = covers
      })
      .finally(() => {
        this.#flushing = null
      })
  }
}
