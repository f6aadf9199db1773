/**
 * The data blocks of a pool, and the only user of the data store: whatever is under way on a block
 * is known here.
 *
 * A store may end calls late and in any order; here it is decided what they wait for, for all
 * stores:
 * - Every later call on a block waits for a write that is still under way on it: a block is read as
 *   the last write left it, whoever asks, and writes happen in the order of the calls.
 * - A read does not hold up a write: what is read is as of the call, or newer.
 * - A block that a durable transaction freed is released when nothing is under way on it. Then it
 *   is passed down to the store, several runs at a time, and only then given out again.
 * - A flush covers the writes that ended before it began.
 *
 * With a store that has a page cache no write is under way but the copy of a large block, and a
 * request makes no object here.
 */
import {
  allEnded,
  type Bytes,
  bytes,
  type DataBlock,
  KIB,
  type Later,
  MIB,
  Slice,
  SYSTEM_CLOCK,
} from '../base/index.js'
import type { DataStore, HostRoom, Label } from '../storage/index.js'

/** Runs of freed blocks that are punched at a time: a store may pass many on together. */
const PUNCHES_MAX = 64
/** Bytes that are copied while requests wait. */
const COPIED_AT_ONCE = 256 * KIB
/** Freed blocks that are looked at in one go: the thread has others to serve. */
const TAKEN_MAX = 4096
/** Bytes of a block that are moved in one turn of the thread. */
const MOVED_AT_ONCE = MIB
/** The grain in which writes to a block that is being moved are noted, in bytes. */
const WATCHED_PART = 16 * KIB
/** A block that others keep writing to is copied again so often before they are kept waiting. */
const MOVE_ROUNDS = 16

/** The pool, which DataBlocks tells of released blocks. */
export interface ReleaseListener {
  /** Blocks can be given out again; none of them when a round of releases is over. */
  released(blocks: readonly DataBlock[]): void
  /** The store did not take a run of freed blocks: `retry` offers it again. */
  refused(err: unknown): void
}

/** A call that is under way on the blocks [begin, end). */
interface Call {
  begin: number
  end: number
  /** Resolves when it has ended, however it did. */
  ended: Promise<unknown>
}

/** A copy of a block, off the thread, while others may write to the block. */
export interface BlockCopy {
  /** Resolves when it has ended. */
  readonly copied: Promise<void>
  /** Whether nobody has written to the block since it began: it may be moved in this turn. */
  isSame(): boolean
  /** Ends watching. */
  end(): void
}

/** A block that is being moved, and the parts of it that were written to since they were copied. */
interface Watch {
  /** Bytes. */
  begin: number
  end: number
  parts: Set<number>
}

export class DataBlocks {
  readonly blockSize: number
  /**
   * Whether free blocks are holes of the store, which new ones then are: they need no zeroing. Else
   * what is freed keeps what it held.
   */
  readonly freeMeansHole: boolean
  readonly #store: DataStore
  readonly #listener: ReleaseListener
  readonly #reads = new Set<Call>()
  readonly #writes = new Set<Call>()
  /** Bumped when a write ends; a flush covers those before it. */
  #written = 0
  #flushed = 0
  /** The flush under way; null when there is none. */
  #flushing: Promise<void> | null = null
  /** Blocks that durable transactions freed and that are not released yet. */
  #freed: DataBlock[] = []
  /** Those of them that the store did not take. */
  #refused: DataBlock[] = []
  /** Blocks that are taken out of `#freed` and not punched yet; those tried again do not count. */
  #nrPunching = 0
  /** Punches of freed blocks, and their bytes. */
  readonly counts = { punches: 0, punchedBytes: 0 }
  #keepsFreed = false
  /** The punches under way; null when there are none. */
  #releasing: Promise<void> | null = null
  /** Blocks that are being moved; null when there are none. */
  #watches: Set<Watch> | null = null
  /** The content of a block that is moved at once. */
  #moving: Buffer | null = null

  constructor(
    store: DataStore,
    options: { blockSize: number; freeMeansHole: boolean },
    listener: ReleaseListener,
  ) {
    this.#store = store
    this.blockSize = options.blockSize
    this.freeMeansHole = options.freeMeansHole
    this.#listener = listener
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

  // --- moving ---

  /**
   * Copies a block to a free one, in this turn.
   * @returns `waits` when something has to be waited for, and nothing was written; `begun` when the
   *   target may hold anything
   */
  moveNow(source: number, target: number): 'moved' | 'waits' | 'begun' {
    const { blockSize } = this
    const [from, to] = [source * blockSize, target * blockSize]
    if (this.#isWritten(from, blockSize) || this.#isWritten(to, blockSize)) return 'waits'
    const isHole = this.freeMeansHole && this.#store.nextData(bytes(from)) >= from + blockSize
    if (isHole) return 'moved'
    if (blockSize > MOVED_AT_ONCE && !this.copiesShare) return 'waits'
    if (this.copiesShare) {
      const copying = this.#store.copy(bytes(from), bytes(to), bytes(blockSize))
      return this.#ends(copying, to, blockSize) === undefined ? 'moved' : 'begun'
    }
    this.#moving ??= Buffer.allocUnsafeSlow(blockSize)
    if (!this.#store.readNow(this.#moving, 0, blockSize, bytes(from))) return 'waits'
    const writing = this.#writeData(this.#moving, from, to, blockSize)
    return writing === undefined ? 'moved' : 'begun'
  }

  /** Writes what was read from `from`, but for holes where the target has them already. */
  #writeData(content: Buffer, from: number, to: number, length: number): Later<void> {
    const end = from + length
    const begun: Promise<void>[] = []
    const write = (at: number, next: number): void => {
      const offset = to + at - from
      const writing = this.write(content, at - from, next - at, offset)
      if (writing !== undefined) begun.push(writing)
    }
    if (!this.freeMeansHole) write(from, end)
    else {
      for (let at = this.#store.nextData(bytes(from)); at < end; ) {
        const hole = bytes(Math.min(this.#store.nextHole(at), end))
        write(at, hole)
        at = hole < end ? this.#store.nextData(hole) : hole
      }
    }
    if (begun.length > 0) return allEnded(begun)
  }

  /** Whether `beginCopy` can be used, and is better than `moveNow`: it stops nobody. */
  get copiesLater(): boolean {
    return this.#store.copyLater !== undefined && !this.copiesShare
  }

  /** Begins to copy a block to a free one, off the thread. */
  beginCopy(source: number, target: number): BlockCopy {
    const { blockSize, freeMeansHole } = this
    const [from, to] = [source * blockSize, target * blockSize]
    const watch = this.#beginWatch(from, [])
    const copied = this.#store.copyLater!(
      ...([bytes(from), bytes(to), bytes(blockSize), freeMeansHole] as const),
    )
    this.#begin(this.#reads, copied, from, blockSize)
    this.#begin(this.#writes, copied, to, blockSize)
    return {
      copied,
      isSame: () => watch.parts.size === 0 && !this.#isWritten(from, blockSize),
      end: () => this.#endWatch(watch),
    }
  }

  /** @param parts that count as written to */
  #beginWatch(begin: number, parts: Iterable<number>): Watch {
    const watch = { begin, end: begin + this.blockSize, parts: new Set(parts) }
    this.#watches ??= new Set()
    this.#watches.add(watch)
    return watch
  }

  #endWatch(watch: Watch): void {
    this.#watches?.delete(watch)
    if (this.#watches?.size === 0) this.#watches = null
  }

  /**
   * Copies a block to a free one while others go on writing to it.
   * @param switchOver called in a turn in which the target holds what the source does
   * @returns what that has returned
   */
  async moveLater<T>(source: number, target: number, switchOver: () => T): Promise<T> {
    const { blockSize } = this
    const [begin, to] = [source * blockSize, target * blockSize]
    const parts = Array.from({ length: Math.ceil(blockSize / WATCHED_PART) }, (_, i) => i)
    const watch = this.#beginWatch(begin, parts)
    try {
      for (let round = 0; ; round++) {
        await this.#afterWrites(begin, blockSize)
        const isLast = round >= MOVE_ROUNDS || watch.parts.size * WATCHED_PART <= MOVED_AT_ONCE
        const dirty = [...watch.parts].sort((a, b) => a - b)
        watch.parts.clear()
        const copying =
          round === 0
            ? this.#copyFirst(runsOfParts(dirty, blockSize), begin, to)
            : this.#copyAgain(runsOfParts(dirty, blockSize), begin, to, isLast)
        if (copying !== undefined) await copying
        if (watch.parts.size === 0 && !this.#isWritten(begin, blockSize)) return switchOver()
      }
    } finally {
      this.#endWatch(watch)
    }
  }

  /** Copies all of a block, into a hole. */
  #copyFirst(runs: readonly Run[], from: number, to: number): Later<void> {
    const { blockSize, freeMeansHole } = this
    const copying = this.#store.copyLater?.(
      ...([bytes(from), bytes(to), bytes(blockSize), freeMeansHole] as const),
    )
    if (copying === undefined) return this.#copyParts(runs, from, to, freeMeansHole)
    this.#begin(this.#reads, copying, from, blockSize)
    return this.#ends(copying, to, blockSize)
  }

  /** @param now in this turn, where the store can */
  #copyAgain(runs: readonly Run[], from: number, to: number, now: boolean): Later<void> {
    for (let i = 0; now && i < runs.length; i++) {
      const { at, length } = runs[i]!
      const held = Buffer.allocUnsafe(length)
      if (!this.#store.readNow(held, 0, length, bytes(from + at))) {
        return this.#copyParts(runs.slice(i), from, to, false)
      }
      const writing = this.write(held, 0, length, to + at)
      if (writing === undefined) continue
      return writing.then(() => this.#copyParts(runs.slice(i + 1), from, to, false))
    }
    if (!now) return this.#copyParts(runs, from, to, false)
  }

  /** @param sparse holes stay holes: the target has none but those */
  async #copyParts(runs: readonly Run[], from: number, to: number, sparse: boolean): Promise<void> {
    const held = Buffer.allocUnsafeSlow(COPIED_AT_ONCE)
    const slice = new Slice(SYSTEM_CLOCK)
    for (const { at, length } of runs) {
      // A part that is written to meanwhile is copied again.
      if (!this.#store.readNow(held, 0, length, bytes(from + at))) {
        await this.readLater(held, 0, length, from + at)
      }
      const writing = sparse
        ? this.#writeData(held, from + at, to + at, length)
        : this.write(held, 0, length, to + at)
      if (writing !== undefined) await writing
      if (slice.isOver) await slice.yield()
    }
  }

  #noteWatched(offset: number, length: number): void {
    for (const { begin, end, parts } of this.#watches!) {
      const from = Math.max(offset, begin) - begin
      const to = Math.min(offset + length, end) - begin
      for (let part = Math.floor(from / WATCHED_PART); part * WATCHED_PART < to; part++) {
        parts.add(part)
      }
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

  /**
   * Releases blocks that a durable transaction freed, each as soon as nothing is under way on it.
   */
  release(freed: ArrayLike<number>): void {
    if (this.#keepsFreed) return
    for (let i = 0; i < freed.length; i++) this.#freed.push(freed[i] as DataBlock)
    this.#release()
  }

  /** Offers the store again the punches that it refused. */
  retry(): void {
    if (this.#releasing !== null || this.#refused.length === 0) return
    const refused = this.#refused.sort((a, b) => a - b)
    this.#refused = []
    this.#startPunching(refused)
  }

  /** Passes nothing more down: freed blocks stay as they are, for good. */
  keepFreed(): void {
    this.#keepsFreed = true
    this.#freed = []
    this.#refused = []
  }

  /** Whether freed blocks will be released, by themselves, when calls that are under way end. */
  get releasing(): boolean {
    return this.#freed.length > 0 || this.#nrPunching > 0
  }

  /** Whether punches are under way: of freed blocks, or of those that the store did not take. */
  get punching(): boolean {
    return this.#releasing !== null
  }

  /** Freed blocks that become free without another commit. */
  get nrReleasing(): number {
    return this.#freed.length + this.#nrPunching
  }

  /** Whether freed blocks are left that the store did not take. */
  get hasRefused(): boolean {
    return this.#refused.length > 0
  }

  /** Resolves when the punches that are under way have ended. */
  get punched(): Promise<void> {
    return this.#releasing ?? Promise.resolve()
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
    while (this.#reads.size > 0 || this.#writes.size > 0 || this.#releasing !== null) {
      const calls = [...this.#reads, ...this.#writes]
      await Promise.allSettled([...calls.map(({ ended }) => ended), this.#releasing])
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
    if (this.#watches !== null) this.#noteWatched(offset, length)
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
        if (this.#watches !== null) this.#noteWatched(offset, length)
      }
      this.#release()
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

  /** Begins to release those freed blocks that nothing is under way on, unless some are punched. */
  #release(): void {
    if (this.#releasing !== null) return
    while (this.#freed.length > 0) {
      const blocks = this.#takeIdle()
      if (blocks.length === 0) return
      if (this.freeMeansHole) {
        this.#nrPunching = blocks.length
        this.#startPunching(blocks)
        return
      }
      this.#listener.released(blocks)
    }
  }

  /** Takes those of the first freed blocks, ascending, that nothing is under way on. */
  #takeIdle(): DataBlock[] {
    const calls = [...this.#reads, ...this.#writes]
    const isBusy = (block: number): boolean =>
      calls.some(({ begin, end }) => block >= begin && block < end)
    for (let at = 0; at < this.#freed.length; at += TAKEN_MAX) {
      const part = this.#freed.slice(at, at + TAKEN_MAX)
      const blocks = calls.length === 0 ? part : part.filter(block => !isBusy(block))
      if (blocks.length === 0) continue
      const busy = calls.length === 0 ? [] : part.filter(isBusy)
      this.#freed.splice(at, TAKEN_MAX, ...busy)
      return blocks.sort((a, b) => a - b)
    }
    return []
  }

  #startPunching(blocks: DataBlock[]): void {
    this.#releasing = this.#punch(runsOf(blocks)).then(() => {
      this.#releasing = null
      this.#nrPunching = 0
      this.#release()
      this.#listener.released([])
    })
  }

  /** Passes runs of freed blocks down, some at a time, and releases each. */
  async #punch(runs: DataBlock[][]): Promise<void> {
    let next = 0
    const work = async (): Promise<void> => {
      while (next < runs.length && !this.#keepsFreed) {
        const blocks = runs[next++]!
        const offset = bytes(blocks[0]! * this.blockSize)
        try {
          await this.#store.punchLater(offset, bytes(blocks.length * this.blockSize))
        } catch (err) {
          // Keep the blocks back: their next owner would read what is in them.
          const isFirst = this.#refused.length === 0
          for (const block of blocks) this.#refused.push(block)
          if (isFirst) this.#listener.refused(err)
          continue
        }
        this.counts.punches++
        this.counts.punchedBytes += blocks.length * this.blockSize
        // A block can be mapped without being written to: the hole has to last before that.
        this.#written++
        this.#nrPunching = Math.max(0, this.#nrPunching - blocks.length)
        this.#listener.released(blocks)
      }
    }
    await Promise.all(Array.from({ length: PUNCHES_MAX }, work))
  }
}

/** Bytes of a block. */
interface Run {
  at: number
  length: number
}

/** Parts of a block, ascending, as runs of at most COPIED_AT_ONCE. */
function runsOfParts(parts: readonly number[], blockSize: number): Run[] {
  const runs: Run[] = []
  for (const part of parts) {
    const at = part * WATCHED_PART
    const length = Math.min(WATCHED_PART, blockSize - at)
    const last = runs.at(-1)
    const isNext = last !== undefined && last.at + last.length === at
    if (isNext && last.length + length <= COPIED_AT_ONCE) last.length += length
    else runs.push({ at, length })
  }
  return runs
}

/** Ascending blocks as runs of blocks that follow each other. */
function runsOf(blocks: readonly DataBlock[]): DataBlock[][] {
  const runs: DataBlock[][] = []
  for (const block of blocks) {
    const run = runs.at(-1)
    if (run !== undefined && run.at(-1)! + 1 === block) run.push(block)
    else runs.push([block])
  }
  return runs
}
