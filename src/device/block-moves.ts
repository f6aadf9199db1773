/**
 * Moving data blocks to other places of the store, while others go on reading and writing them.
 *
 * A block is copied to a free one. The mappings may change in a turn of the thread in which both
 * hold the same: at once after a copy of this turn, or when no write has come to the block since it
 * was copied off the thread. A block that is written to all the time is copied again, part by part.
 */
import { allEnded, bytes, KIB, type Later, MIB, Slice, SYSTEM_CLOCK } from '../base/index.js'
import type { DataStore } from '../storage/index.js'

/** Bytes of a block that are moved in one turn of the thread. */
const MOVED_AT_ONCE = MIB
/** Bytes that are copied between two looks at the clock. */
const COPIED_AT_ONCE = 256 * KIB
/** The grain in which writes to a block that is being moved are noted, in bytes. */
const WATCHED_PART = 16 * KIB
/** A block that others keep writing to is copied again so often before they are kept waiting. */
const MOVE_ROUNDS = 16

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
export interface Watch {
  /** Bytes. */
  begin: number
  end: number
  parts: Set<number>
}

/** Notes a write to [offset, offset + length), begun or ended, for those blocks that it touches. */
export function noteWrite(watches: Iterable<Watch>, offset: number, length: number): void {
  for (const { begin, end, parts } of watches) {
    const from = Math.max(offset, begin) - begin
    const to = Math.min(offset + length, end) - begin
    for (let part = Math.floor(from / WATCHED_PART); part * WATCHED_PART < to; part++) {
      parts.add(part)
    }
  }
}

/** The part of the blocks' owner that moving needs. Offsets and lengths are bytes of the store. */
export interface BlockMovesParts {
  store: DataStore
  /** Bytes. */
  blockSize: number
  /** Whether free blocks are holes, which the copy of a hole then is already. */
  freeMeansHole: boolean
  /** Whether a write is under way on one of the blocks of a range. */
  isWritten(offset: number, length: number): boolean
  /** Resolves when the writes that are under way on the blocks of a range have ended. */
  writesEnd(offset: number, length: number): Promise<unknown>
  write(buffer: Uint8Array, at: number, length: number, offset: number): Later<void>
  readLater(buffer: Uint8Array, at: number, length: number, offset: number): Promise<void>
  /** A copy reads the block at `offset` until it ends. */
  reads(copy: Promise<void>, offset: number): void
  /** A copy writes the block at `offset`, until it ends. @returns the copy */
  writes(copy: Later<void>, offset: number): Later<void>
  /** From now on writes to these blocks are noted; null: there are none. */
  watch(watches: ReadonlySet<Watch> | null): void
}

export class BlockMoves {
  readonly #parts: BlockMovesParts
  readonly #watches = new Set<Watch>()
  /** The content of a block that is moved at once. */
  #held: Buffer | null = null

  constructor(parts: BlockMovesParts) {
    this.#parts = parts
  }

  /**
   * Copies a block to a free one, in this turn.
   * @returns `waits` when something has to be waited for, and nothing was written; `begun` when the
   *   target may hold anything
   */
  now(source: number, target: number): 'moved' | 'waits' | 'begun' {
    const { store, blockSize, freeMeansHole, isWritten, writes } = this.#parts
    const { copiesShare } = store
    const [from, to] = [source * blockSize, target * blockSize]
    if (isWritten(from, blockSize) || isWritten(to, blockSize)) return 'waits'
    const isHole = freeMeansHole && store.nextData(bytes(from)) >= from + blockSize
    if (isHole) return 'moved'
    if (blockSize > MOVED_AT_ONCE && !copiesShare) return 'waits'
    if (copiesShare) {
      const copying = store.copy(bytes(from), bytes(to), bytes(blockSize))
      return writes(copying, to) === undefined ? 'moved' : 'begun'
    }
    this.#held ??= Buffer.allocUnsafeSlow(blockSize)
    if (!store.readNow(this.#held, 0, blockSize, bytes(from))) return 'waits'
    const writing = this.#writeData(this.#held, from, to, blockSize)
    return writing === undefined ? 'moved' : 'begun'
  }

  /** Writes what was read from `from`, but for holes where the target has them already. */
  #writeData(content: Buffer, from: number, to: number, length: number): Later<void> {
    const { store, freeMeansHole } = this.#parts
    const end = from + length
    const begun: Promise<void>[] = []
    const write = (at: number, next: number): void => {
      const offset = to + at - from
      const writing = this.#parts.write(content, at - from, next - at, offset)
      if (writing !== undefined) begun.push(writing)
    }
    if (!freeMeansHole) write(from, end)
    else {
      for (let at = store.nextData(bytes(from)); at < end; ) {
        const hole = bytes(Math.min(store.nextHole(at), end))
        write(at, hole)
        at = hole < end ? store.nextData(hole) : hole
      }
    }
    if (begun.length > 0) return allEnded(begun)
  }

  /** Whether `begin` can be used, and is better than `now`: it stops nobody. */
  get canBegin(): boolean {
    const { store } = this.#parts
    return store.copyLater !== undefined && !store.copiesShare
  }

  /** Begins to copy a block to a free one, off the thread. */
  begin(source: number, target: number): BlockCopy {
    const { store, blockSize, freeMeansHole, isWritten, reads, writes } = this.#parts
    const [from, to] = [source * blockSize, target * blockSize]
    const watch = this.#beginWatch(from, [])
    const copied = store.copyLater!(
      ...([bytes(from), bytes(to), bytes(blockSize), freeMeansHole] as const),
    )
    reads(copied, from)
    void writes(copied, to)
    return {
      copied,
      isSame: () => watch.parts.size === 0 && !isWritten(from, blockSize),
      end: () => this.#endWatch(watch),
    }
  }

  /** @param parts that count as written to */
  #beginWatch(begin: number, parts: Iterable<number>): Watch {
    const watch = { begin, end: begin + this.#parts.blockSize, parts: new Set(parts) }
    this.#watches.add(watch)
    this.#parts.watch(this.#watches)
    return watch
  }

  #endWatch(watch: Watch): void {
    this.#watches.delete(watch)
    if (this.#watches.size === 0) this.#parts.watch(null)
  }

  /**
   * Copies a block to a free one while others go on writing to it.
   * @param switchOver called in a turn in which the target holds what the source does
   * @returns what that has returned
   */
  async later<T>(source: number, target: number, switchOver: () => T): Promise<T> {
    const { blockSize, isWritten, writesEnd } = this.#parts
    const [begin, to] = [source * blockSize, target * blockSize]
    const parts = Array.from({ length: Math.ceil(blockSize / WATCHED_PART) }, (_, i) => i)
    const watch = this.#beginWatch(begin, parts)
    try {
      for (let round = 0; ; round++) {
        await writesEnd(begin, blockSize)
        const isLast = round >= MOVE_ROUNDS || watch.parts.size * WATCHED_PART <= MOVED_AT_ONCE
        const dirty = [...watch.parts].sort((a, b) => a - b)
        watch.parts.clear()
        const copying =
          round === 0
            ? this.#copyFirst(runsOfParts(dirty, blockSize), begin, to)
            : this.#copyAgain(runsOfParts(dirty, blockSize), begin, to, isLast)
        if (copying !== undefined) await copying
        if (watch.parts.size === 0 && !isWritten(begin, blockSize)) return switchOver()
      }
    } finally {
      this.#endWatch(watch)
    }
  }

  /** Copies all of a block, into a hole. */
  #copyFirst(runs: readonly Run[], from: number, to: number): Later<void> {
    const { store, blockSize, freeMeansHole, reads, writes } = this.#parts
    const copying = store.copyLater?.(
      ...([bytes(from), bytes(to), bytes(blockSize), freeMeansHole] as const),
    )
    if (copying === undefined) return this.#copyParts(runs, from, to, freeMeansHole)
    reads(copying, from)
    return writes(copying, to)
  }

  /** @param now in this turn, where the store can */
  #copyAgain(runs: readonly Run[], from: number, to: number, now: boolean): Later<void> {
    const { store, write } = this.#parts
    for (let i = 0; now && i < runs.length; i++) {
      const { at, length } = runs[i]!
      const held = Buffer.allocUnsafe(length)
      if (!store.readNow(held, 0, length, bytes(from + at))) {
        return this.#copyParts(runs.slice(i), from, to, false)
      }
      const writing = write(held, 0, length, to + at)
      if (writing === undefined) continue
      return writing.then(() => this.#copyParts(runs.slice(i + 1), from, to, false))
    }
    if (!now) return this.#copyParts(runs, from, to, false)
  }

  /** @param sparse holes stay holes: the target has none but those */
  async #copyParts(runs: readonly Run[], from: number, to: number, sparse: boolean): Promise<void> {
    const { store, write, readLater } = this.#parts
    const held = Buffer.allocUnsafeSlow(COPIED_AT_ONCE)
    const slice = new Slice(SYSTEM_CLOCK)
    for (const { at, length } of runs) {
      // A part that is written to meanwhile is copied again.
      if (!store.readNow(held, 0, length, bytes(from + at))) {
        await readLater(held, 0, length, from + at)
      }
      const writing = sparse
        ? this.#writeData(held, from + at, to + at, length)
        : write(held, 0, length, to + at)
      if (writing !== undefined) await writing
      if (slice.isOver) await slice.yield()
    }
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
