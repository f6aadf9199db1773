/**
 * The pages that the disk does not have for good: dirty, then being sent, then sent and not covered
 * by a flush. No page is evicted before that.
 */
import { type CacheMemory, FREE, RUN_SLOTS } from './cache-memory.js'
import { countOf } from './pages.js'

export class Unflushed {
  readonly #memory: CacheMemory
  /** By slot and page: what is being sent. */
  readonly #sending: Uint16Array
  /** By slot and page: what the flush under way covers. */
  readonly #flushing: Uint16Array
  readonly #dirtySlots = new Set<number>()
  /** Slots with pages that are dirty or not flushed. */
  readonly #slots = new Set<number>()
  /** By run of the disk: how many of these slots it has. */
  readonly #runs = new Map<number, number>()
  #nrPages = 0
  #nrUnsent = 0

  /** With what another process has left in the memory, which has to be sent again. */
  constructor(memory: CacheMemory) {
    this.#memory = memory
    const { nrSlots, blocks, dirty, pending } = memory
    this.#sending = new Uint16Array(nrSlots)
    this.#flushing = new Uint16Array(nrSlots)
    for (let slot = 0; slot < nrSlots; slot++) {
      if (blocks[slot] === FREE) continue
      // In this order: a death in between loses no page.
      pending[slot]! |= dirty[slot]!
      dirty[slot] = 0
      this.#nrPages += countOf(pending[slot]!)
      this.add(slot, pending[slot]!)
    }
  }

  /** Pages that a flush would make durable. */
  get nrPages(): number {
    return this.#nrPages
  }

  /** Pages that are dirty or being sent. */
  get nrUnsent(): number {
    return this.#nrUnsent
  }

  /** Pages that were sent, of which nothing newer is dirty, and that no flush has covered. */
  get nrPending(): number {
    return this.#nrPages - this.#nrUnsent
  }

  /** Slots that cannot be reused before a flush. */
  get nrSlots(): number {
    return this.#slots.size
  }

  /** Runs of the disk that have such pages: about the requests that a flush takes. */
  get nrRuns(): number {
    return this.#runs.size
  }

  /** The runs that have dirty pages, in the order of the disk. */
  get dirtyRuns(): number[] {
    const { blocks } = this.#memory
    const runs = new Set<number>()
    for (const slot of this.#dirtySlots) runs.add(Math.floor(blocks[slot]! / RUN_SLOTS))
    return [...runs].sort((one, other) => one - other)
  }

  /** Pages are newer than the disk. */
  add(slot: number, pages: number): void {
    const { dirty, pending, blocks } = this.#memory
    const before = dirty[slot]!
    const fresh = pages & ~before
    if (fresh === 0) return
    if (before === 0) {
      this.#dirtySlots.add(slot)
      if (!this.#slots.has(slot)) {
        this.#slots.add(slot)
        const run = Math.floor(blocks[slot]! / RUN_SLOTS)
        this.#runs.set(run, (this.#runs.get(run) ?? 0) + 1)
      }
    }
    this.#nrUnsent += countOf(fresh)
    this.#nrPages += countOf(fresh & ~pending[slot]!)
    dirty[slot] = before | pages
  }

  /** The dirty pages of a slot are about to be sent. @returns them */
  beginSend(slot: number): number {
    const { dirty, pending } = this.#memory
    const pages = dirty[slot]!
    pending[slot]! |= pages
    dirty[slot] = 0
    this.#dirtySlots.delete(slot)
    this.#flushing[slot]! &= ~pages
    this.#sending[slot] = pages
    return pages
  }

  /** The disk has answered. Pages that were written again meanwhile counted twice until now. */
  endSend(slot: number, isSent: boolean): void {
    const pages = this.#sending[slot]!
    this.#nrUnsent -= countOf(pages)
    this.#sending[slot] = 0
    if (!isSent) this.add(slot, pages)
  }

  /** Nobody has to write pages of a slot that is not being sent. */
  forget(slot: number, pages: number): void {
    const { dirty, pending } = this.#memory
    this.#nrUnsent -= countOf(dirty[slot]! & pages)
    this.#nrPages -= countOf((dirty[slot]! | pending[slot]!) & pages)
    dirty[slot]! &= ~pages
    pending[slot]! &= ~pages
    this.#flushing[slot]! &= ~pages
    if (dirty[slot] === 0) this.#dirtySlots.delete(slot)
    this.#release(slot)
  }

  /** A flush begins. @returns the slots that it covers, for `endFlush` */
  beginFlush(): number[] {
    const { pending } = this.#memory
    const covered = [...this.#slots]
    for (const slot of covered) this.#flushing[slot] = pending[slot]! & ~this.#sending[slot]!
    return covered
  }

  /** Pages that were sent before the flush began are durable, unless they were sent again since. */
  endFlush(covered: readonly number[]): void {
    const { dirty, pending } = this.#memory
    for (const slot of covered) {
      const durable = pending[slot]! & this.#flushing[slot]!
      this.#nrPages -= countOf(durable & ~dirty[slot]!)
      pending[slot]! &= ~durable
      this.#flushing[slot] = 0
      this.#release(slot)
    }
  }

  /**
   * Pages that were sent and not flushed may be lost: they are dirty again. Nothing is being sent.
   */
  addAgain(): void {
    for (const slot of this.#slots) {
      this.#flushing[slot] = 0
      this.add(slot, this.#memory.pending[slot]!)
    }
  }

  /** A slot whose pages are all flushed may be reused. */
  #release(slot: number): void {
    const { dirty, pending, blocks } = this.#memory
    if (dirty[slot] !== 0 || pending[slot] !== 0 || !this.#slots.delete(slot)) return
    const run = Math.floor(blocks[slot]! / RUN_SLOTS)
    const left = this.#runs.get(run)! - 1
    if (left === 0) this.#runs.delete(run)
    else this.#runs.set(run, left)
  }
}
