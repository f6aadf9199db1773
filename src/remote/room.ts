/**
 * Room for writers: how much may be dirty. A flush has to write all of it back, so it is bounded by
 * what the disk takes in some time.
 */
import { MIB, PAGE_SIZE } from '../base/index.js'
import { SLOT } from './cache-memory.js'
import type { Unflushed } from './unflushed.js'

/** Milliseconds that a flush may take because of what was acknowledged before. */
const FLUSH_MS = 2000
/** Bytes that may be dirty at least, and before it is known how fast the disk is. */
const DIRTY_MIN = MIB
const DIRTY_FIRST = 64 * MIB
/** A pass that wrote less says nothing of the disk's speed. */
const MEASURED_MIN = 256 * 1024

export class Room {
  readonly #unflushed: Unflushed
  readonly #nrSlots: number
  readonly #limitMax: number
  /** Bytes that are dirty or being sent at which writes wait. */
  #limit: number
  readonly #drain: (all: boolean) => Promise<void>
  #draining: Promise<void> | null = null
  /** Writes that wait for room. */
  #waiters: (() => void)[] = []

  /**
   * @param nrSlots of the cache
   * @param drain writes back what is dirty; with `all` it has that flushed too
   */
  constructor(unflushed: Unflushed, nrSlots: number, drain: (all: boolean) => Promise<void>) {
    this.#unflushed = unflushed
    this.#nrSlots = nrSlots
    this.#limitMax = (nrSlots / 2) * SLOT
    this.#limit = Math.min(this.#limitMax, DIRTY_FIRST)
    this.#drain = drain
  }

  /** Whether a write has to wait. */
  get isFull(): boolean {
    return this.#unflushed.nrUnsent * PAGE_SIZE >= this.#limit
  }

  /** Called when more is dirty: begins to write it back when there is much of it. */
  filled(): void {
    if (this.#unflushed.nrUnsent * PAGE_SIZE >= this.#limit / 2) this.#startDrain()
  }

  /** Waits until less is dirty. @throws what kept it from being written back */
  lessDirty(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#waiters.push(resolve)
      this.#startDrain()
      this.#draining?.then(resolve, reject)
    })
  }

  /** Waits until some slot may be free. */
  async freeSlot(): Promise<void> {
    if (this.#unflushed.nrSlots > 0) return this.#drain(true)
    await new Promise<void>(resolve => this.#waiters.push(resolve))
  }

  /** Takes note of a pass that wrote `sent` bytes back in some milliseconds. */
  drained(sent: number, milliseconds: number): void {
    if (sent < MEASURED_MIN) return
    const perMs = sent / Math.max(1, milliseconds)
    const limit = Math.max(DIRTY_MIN, (this.#limit + perMs * FLUSH_MS) / 2)
    this.#limit = Math.min(this.#limitMax, limit)
  }

  /** Something was sent: writers that wait look again where less is dirty. */
  mayHaveGrown(): void {
    if (!this.isFull) this.wake()
  }

  /** Has all writers look again. */
  wake(): void {
    for (const resolve of this.#waiters.splice(0)) resolve()
  }

  #startDrain(): void {
    if (this.#draining !== null) return
    // Slots that wait for a flush are none for reads.
    const draining = this.#drain(this.#unflushed.nrSlots > this.#nrSlots / 2).finally(() => {
      this.#draining = null
    })
    this.#draining = draining
    // The waiters are told; the pages that failed are still dirty, and the next flush tries them.
    draining.catch(() => {})
  }
}
