/**
 * Room for writers: how much may be acknowledged that is not durable. A flush has to write all of
 * it back, so it is bounded by what the disk takes in some time: in bytes, and in requests, which
 * are all that a slow disk counts when they are small.
 */
import { type Clock, KIB, MIB, PAGE_SIZE } from '../base/index.js'
import { SLOT } from './cache-memory.js'
import type { Unflushed } from './unflushed.js'

/**
 * Milliseconds that the disk may take for all of it. A flush may have to wait for one that was
 * begun before, and that for as much again.
 */
const FLUSH_MS = 1000
/** Bytes that are acknowledged in any case, and before it is known how fast the disk is. */
const BYTES_MIN = MIB
const RUNS_MIN = 32
/** A pass that sent less of both says nothing of the disk's speed. */
const MEASURED_BYTES = 256 * KIB
const MEASURED_REQUESTS = 16
/**
 * Milliseconds that writers wait, again and again, before that is worth a word; and that nobody has
 * waited before the next one is.
 */
const PATIENCE_MS = 1000
const EPISODE_MS = 30_000

export interface RoomOptions {
  unflushed: Unflushed
  /** Of the cache. */
  nrSlots: number
  /** Bytes that may be not durable at most; default: half of the cache. */
  dirty?: number | undefined
  clock: Clock
  /** Makes all of it durable. */
  drain: () => Promise<void>
  /** Told, once each time, that writers have begun to wait. */
  onWait: (what: string) => void
}

export class Room {
  readonly #unflushed: Unflushed
  readonly #nrSlots: number
  readonly #clock: Clock
  readonly #drain: () => Promise<void>
  readonly #onWait: (what: string) => void
  readonly #bytesMax: number
  /** The bytes and the runs of the disk that may be not durable. */
  #bytes: number
  #runs: number
  /** Bytes that the disk takes in a millisecond; 0: not known. */
  #bytesPerMs = 0
  #requestsPerMs = 0
  #draining: Promise<void> | null = null
  /** Ends the watch on a pass that takes too long. */
  #endWatch: (() => void) | null = null
  /** Writes that wait for room. */
  #waiters: (() => void)[] = []
  #nrWaiting = 0
  #lastWait = Number.NEGATIVE_INFINITY
  /** Ends the wait for a word about writers that wait. */
  #endPatience: (() => void) | null = null
  #hasTold = false

  constructor({ unflushed, nrSlots, dirty, clock, drain, onWait }: RoomOptions) {
    this.#unflushed = unflushed
    this.#nrSlots = nrSlots
    this.#clock = clock
    this.#drain = drain
    this.#onWait = onWait
    const half = (nrSlots / 2) * SLOT
    this.#bytesMax = Math.min(half, dirty ?? half)
    this.#bytes = Math.min(BYTES_MIN, this.#bytesMax)
    this.#runs = RUNS_MIN
  }

  /** Whether a write has to wait. */
  get isFull(): boolean {
    const { nrPages, nrRuns } = this.#unflushed
    return nrPages * PAGE_SIZE >= this.#bytes || nrRuns >= this.#runs
  }

  /** Bytes that may be not durable at the moment. */
  get limit(): number {
    return this.#bytes
  }

  /** Bytes that the disk takes in a second, flushes included; 0: not known. */
  get bytesPerSecond(): number {
    return this.#bytesPerMs * 1000
  }

  /** Writes that wait. */
  get nrWaiting(): number {
    return this.#nrWaiting
  }

  /** Called when more is dirty: begins to write it back when there is much of it. */
  filled(): void {
    const { nrPages, nrRuns, nrSlots } = this.#unflushed
    const isMuch =
      nrPages * PAGE_SIZE >= this.#bytes / 2 ||
      nrRuns >= this.#runs / 2 ||
      // Slots that wait for a flush are none for reads.
      nrSlots > this.#nrSlots / 2
    if (isMuch) this.#startDrain()
  }

  /** Waits until less is dirty. @throws what kept it from being written back */
  lessDirty(): Promise<void> {
    return this.#waiting(
      new Promise((resolve, reject) => {
        this.#waiters.push(resolve)
        this.#startDrain()
        this.#draining?.then(resolve, reject)
      }),
    )
  }

  /** Waits until some slot may be free. @throws as `lessDirty` */
  freeSlot(): Promise<void> {
    if (this.#unflushed.nrSlots > 0) return this.#waiting(this.#drain())
    return new Promise<void>(resolve => this.#waiters.push(resolve))
  }

  /** Has all writers look again. */
  wake(): void {
    if (this.#waiters.length === 0) return
    for (const resolve of this.#waiters.splice(0)) resolve()
  }

  // --- how fast the disk is ---

  /** A pass begins. As long as it takes too long, less and less may be acknowledged. */
  passBegins(): void {
    this.#endWatch?.()
    this.#endWatch = this.#clock.after(FLUSH_MS, () => {
      this.#allow(this.#bytes / 2, this.#runs / 2)
      this.passBegins()
    })
  }

  /** It has ended, after some milliseconds, or failed: then it says nothing. */
  passEnded(sent: { bytes: number; requests: number } | null, milliseconds: number): void {
    this.#endWatch?.()
    this.#endWatch = null
    if (sent === null) return
    const { bytes, requests } = sent
    if (bytes < MEASURED_BYTES && requests < MEASURED_REQUESTS) return
    const ms = Math.max(1, milliseconds)
    this.#bytesPerMs = cautious(this.#bytesPerMs, bytes / ms)
    this.#requestsPerMs = cautious(this.#requestsPerMs, requests / ms)
    this.#allow(this.#bytesPerMs * FLUSH_MS, this.#requestsPerMs * FLUSH_MS)
  }

  #allow(bytes: number, runs: number): void {
    this.#bytes = Math.min(this.#bytesMax, Math.max(BYTES_MIN, bytes))
    this.#runs = Math.max(RUNS_MIN, runs)
  }

  #startDrain(): void {
    if (this.#draining !== null) return
    const draining = this.#drain().finally(() => {
      this.#draining = null
    })
    this.#draining = draining
    // The waiters are told; the pages that failed are still dirty, and the next flush tries them.
    draining.catch(() => {})
  }

  // --- a word about it ---

  async #waiting(wait: Promise<void>): Promise<void> {
    const now = this.#clock.now()
    if (this.#nrWaiting === 0 && now - this.#lastWait > EPISODE_MS) this.#hasTold = false
    this.#nrWaiting++
    if (!this.#hasTold) this.#endPatience ??= this.#clock.after(PATIENCE_MS, () => this.#tell())
    try {
      await wait
    } finally {
      this.#nrWaiting--
      this.#lastWait = this.#clock.now()
    }
  }

  /** Writers that are faster than the disk wait again and again: that is one episode. */
  #tell(): void {
    this.#endPatience = null
    const isWaiting = this.#nrWaiting > 0 || this.#clock.now() - this.#lastWait < PATIENCE_MS / 2
    if (!isWaiting || this.#hasTold) return
    this.#hasTold = true
    this.#onWait(this.#words)
  }

  get #words(): string {
    const mebibytes = (bytes: number): string => `${(bytes / MIB).toFixed(1)} MiB`
    const dirty = mebibytes(this.#unflushed.nrPages * PAGE_SIZE)
    const rate = mebibytes(this.bytesPerSecond)
    return `writes wait for the disk: ${dirty} are not flushed, it takes ${rate} a second`
  }
}

/** The rate to be relied on: at once where the disk is slower, half of it where it is faster. */
const cautious = (before: number, now: number): number =>
  before === 0 || now < before ? now : (before + now) / 2
