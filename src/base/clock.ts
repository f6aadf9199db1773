/**
 * Time, and how the work of one thread is shared out: requests first, long work in slices.
 */

/** Time, injected so that tests own it. */
export interface Clock {
  /** Milliseconds, monotonic. */
  now(): number
  /** Calls `fn` once after `ms`. @returns cancels it */
  after(ms: number, fn: () => void): () => void
  /**
   * Resolves after waiting requests have run. Several long works that wait resolve one at a time,
   * and requests run between them. See `Slice`.
   */
  yield(): Promise<void>
}

/**
 * Work that is not a request keeps requests waiting for at most this many milliseconds. A write with
 * fsync meets it three times: the write, the fsync and the end of the flush each wait for their turn.
 */
const SLICE_MS = 0.5

/**
 * Cuts long work by time: `if (slice.isOver) await slice.yield()` between two pieces, each of which
 * takes far less than a slice. The caller then checks again that what it works on is still there.
 */
export class Slice {
  readonly #clock: Clock
  #end: number

  constructor(clock: Clock) {
    this.#clock = clock
    this.#end = clock.now() + SLICE_MS
  }

  get isOver(): boolean {
    return this.#clock.now() >= this.#end
  }

  /** Lets waiting requests run. */
  async yield(): Promise<void> {
    await this.#clock.yield()
    this.#end = this.#clock.now() + SLICE_MS
  }
}

/** Long works that wait for their next slice, of the whole process: they share its thread. */
const waiting: (() => void)[] = []

/**
 * Whether a long work waits for its next slice: the thread has something to do besides requests.
 */
export const workWaits = (): boolean => waiting.length > 0

/** Resumes one of them. Requests run before the next one is resumed. */
function nextTurn(): void {
  waiting.shift()!()
  if (waiting.length > 0) setImmediate(nextTurn)
}

/** The clock of the running process. Timers do not keep it alive. */
export const SYSTEM_CLOCK: Clock = {
  now: () => performance.now(),
  after(ms, fn) {
    const timer = setTimeout(fn, ms)
    timer.unref()
    return () => clearTimeout(timer)
  },
  yield: () =>
    new Promise(resolve => {
      if (waiting.push(resolve) === 1) setImmediate(nextTurn)
    }),
}
