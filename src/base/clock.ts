/**
 * Time, and how the work of one thread is shared out: requests first, long work in slices.
 */
// The global of that name is looked up by a getter each time, and requests ask for the time.
import { performance } from 'node:perf_hooks'

/** Time, injected so that tests own it. */
export interface Clock {
  /** Milliseconds, monotonic. */
  now(): number
  /** Calls `fn` once after `ms`. @returns cancels it */
  after(ms: number, fn: () => void): () => void
  /**
   * Resolves after waiting requests have run. Several long works that wait resolve one at a time,
   * and requests run between them. See `Slice`.
   * @param urgent whether a request waits for the work: it goes on before all work that is not
   */
  yield(urgent?: boolean): Promise<void>
}

/**
 * Work that is not a request keeps requests waiting for at most this many milliseconds. A write
 * with fsync meets it three times: the write, the fsync and the end of the flush each wait for
 * their turn.
 */
const SLICE_MS = 0.3

/**
 * Cuts long work by time: `if (slice.isOver) await slice.yield()` between two pieces, each of which
 * takes far less than a slice. The caller then checks again that what it works on is still there.
 */
export class Slice {
  readonly #clock: Clock
  readonly #urgent: boolean
  #end: number

  /** @param urgent whether a request waits for the work; see `Clock.yield` */
  constructor(clock: Clock, urgent = false) {
    this.#clock = clock
    this.#urgent = urgent
    this.#end = clock.now() + SLICE_MS
  }

  get isOver(): boolean {
    return this.#clock.now() >= this.#end
  }

  /** Lets waiting requests run. */
  async yield(): Promise<void> {
    await this.#clock.yield(this.#urgent)
    this.#end = this.#clock.now() + SLICE_MS
  }
}

/** Long works that wait for their next slice, of the whole process: they share its thread. */
const waiting: (() => void)[] = []
/** Those of them that requests wait for. */
const urgent: (() => void)[] = []

/**
 * Whether a long work waits for its next slice: the thread has something to do besides requests.
 */
export const workWaits = (): boolean => waiting.length + urgent.length > 0

/** Resumes one of them. Requests run before the next one is resumed. */
function nextTurn(): void {
  const resume = urgent.shift() ?? waiting.shift()!
  resume()
  if (workWaits()) setImmediate(nextTurn)
}

/** The clock of the running process. Timers do not keep it alive. */
export const SYSTEM_CLOCK: Clock = {
  now: () => performance.now(),
  after(ms, fn) {
    const timer = setTimeout(fn, ms)
    timer.unref()
    return () => clearTimeout(timer)
  },
  yield: (isUrgent = false) =>
    new Promise(resolve => {
      const isFirst = !workWaits()
      if (isUrgent) urgent.push(resolve)
      else waiting.push(resolve)
      if (isFirst) setImmediate(nextTurn)
    }),
}
