/**
 * Data blocks that durable transactions freed, on their way to be given out again.
 *
 * A block is released when nothing is under way on it. Then it is passed down to the store, several
 * runs at a time, and only then given out again: its next owner would read what is in it.
 */
import { bytes, type DataBlock } from '../base/index.js'
import type { DataStore } from '../storage/index.js'
import type { FlushPace } from './flush-pace.js'

/** Runs of freed blocks that are punched at a time: a store may pass many on together. */
const PUNCHES_MAX = 64
/** Freed blocks that are looked at in one go: the thread has others to serve. */
const TAKEN_MAX = 4096

/** The pool, which is told of released blocks. */
export interface ReleaseListener {
  /** Blocks can be given out again; none of them when a round of releases is over. */
  released(blocks: readonly DataBlock[]): void
  /** The store did not take a run of freed blocks: `retry` offers it again. */
  refused(err: unknown): void
}

/** Blocks [begin, end) that something is under way on. */
export interface BusyBlocks {
  begin: number
  end: number
}

export interface FreedBlocksParts {
  store: DataStore
  /** Bytes. */
  blockSize: number
  /** Whether freed blocks are punched. */
  freeMeansHole: boolean
  listener: ReleaseListener
  /** The blocks that calls are under way on now. */
  busy(): BusyBlocks[]
  /** A hole was made, which the next flush has to cover. */
  punched(): void
  pace: FlushPace
}

export class FreedBlocks {
  readonly #parts: FreedBlocksParts
  /** Those that are not released yet. */
  #waiting: DataBlock[] = []
  /** Those of them that the store did not take. */
  #refused: DataBlock[] = []
  /**
   * Blocks that are taken out of `#waiting` and not punched yet; those tried again do not count.
   */
  #nrPunching = 0
  /** Punches of freed blocks, and their bytes. */
  readonly counts = { punches: 0, punchedBytes: 0 }
  #keepsAll = false
  /** Whether somebody waits for the punches under way. */
  #hurries = false
  /** The punches under way; null when there are none. */
  #releasing: Promise<void> | null = null

  constructor(parts: FreedBlocksParts) {
    this.#parts = parts
  }

  /** Releases blocks, each as soon as nothing is under way on it. */
  release(freed: ArrayLike<number>): void {
    if (this.#keepsAll) return
    for (let i = 0; i < freed.length; i++) this.#waiting.push(freed[i] as DataBlock)
    this.releaseIdle()
  }

  /** Offers the store again the punches that it refused. */
  retry(): void {
    if (this.#releasing !== null || this.#refused.length === 0) return
    const refused = this.#refused.sort((a, b) => a - b)
    this.#refused = []
    this.#startPunching(refused)
  }

  /** Passes nothing more down: freed blocks stay as they are, for good. */
  keep(): void {
    this.#keepsAll = true
    this.#waiting = []
    this.#refused = []
  }

  /** Whether freed blocks will be released, by themselves, when calls that are under way end. */
  get releasing(): boolean {
    return this.#waiting.length > 0 || this.#nrPunching > 0
  }

  /** Whether punches are under way: of freed blocks, or of those that the store did not take. */
  get punching(): boolean {
    return this.#releasing !== null
  }

  /** Freed blocks that become free without another commit. */
  get nrReleasing(): number {
    return this.#waiting.length + this.#nrPunching
  }

  /** Somebody waits for the end of the punches that are under way: they rest no more. */
  hurry(): void {
    if (this.#releasing === null) return
    this.#hurries = true
    this.#parts.pace.hurry()
  }

  /** Whether freed blocks are left that the store did not take. */
  get hasRefused(): boolean {
    return this.#refused.length > 0
  }

  /** Resolves when the punches that are under way have ended. */
  get punched(): Promise<void> {
    return this.#releasing ?? Promise.resolve()
  }

  /**
   * Something that was under way has ended: begins to release those blocks that nothing is under
   * way on, unless some are punched.
   */
  releaseIdle(): void {
    if (this.#releasing !== null) return
    while (this.#waiting.length > 0) {
      const blocks = this.#takeIdle()
      if (blocks.length === 0) return
      if (this.#parts.freeMeansHole) {
        this.#nrPunching = blocks.length
        this.#startPunching(blocks)
        return
      }
      this.#parts.listener.released(blocks)
    }
  }

  /** Takes those of the first freed blocks, ascending, that nothing is under way on. */
  #takeIdle(): DataBlock[] {
    const calls = this.#parts.busy()
    const isBusy = (block: number): boolean =>
      calls.some(({ begin, end }) => block >= begin && block < end)
    for (let at = 0; at < this.#waiting.length; at += TAKEN_MAX) {
      const part = this.#waiting.slice(at, at + TAKEN_MAX)
      const blocks = calls.length === 0 ? part : part.filter(block => !isBusy(block))
      if (blocks.length === 0) continue
      const busy = calls.length === 0 ? [] : part.filter(isBusy)
      this.#waiting.splice(at, TAKEN_MAX, ...busy)
      return blocks.sort((a, b) => a - b)
    }
    return []
  }

  #startPunching(blocks: DataBlock[]): void {
    this.#hurries = false
    this.#releasing = this.#punch(runsOf(blocks)).then(() => {
      this.#releasing = null
      this.#nrPunching = 0
      this.releaseIdle()
      this.#parts.listener.released([])
    })
  }

  /** Passes runs of freed blocks down, some at a time, and releases each. */
  async #punch(runs: DataBlock[][]): Promise<void> {
    const { store, blockSize, listener, punched, pace } = this.#parts
    let next = 0
    const work = async (): Promise<void> => {
      while (next < runs.length && !this.#keepsAll) {
        const rest = this.#hurries ? null : pace.turn()
        if (rest !== null) {
          await rest
          continue
        }
        const blocks = runs[next++]!
        const offset = bytes(blocks[0]! * blockSize)
        try {
          await store.punchLater(offset, bytes(blocks.length * blockSize))
        } catch (err) {
          // Keep the blocks back: their next owner would read what is in them.
          const isFirst = this.#refused.length === 0
          for (const block of blocks) this.#refused.push(block)
          if (isFirst) listener.refused(err)
          continue
        }
        this.counts.punches++
        this.counts.punchedBytes += blocks.length * blockSize
        // A block can be mapped without being written to: the hole has to last before that.
        punched()
        this.#nrPunching = Math.max(0, this.#nrPunching - blocks.length)
        listener.released(blocks)
      }
    }
    await Promise.all(Array.from({ length: PUNCHES_MAX }, work))
  }
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
