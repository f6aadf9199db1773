import type { Clock } from './options.js'

/** How long work that is not a request keeps requests waiting, in milliseconds. */
const SLICE_MS = 2

/**
 * Cuts long work by time: `if (slice.isOver) await slice.yield()` between two pieces, each of which
 * takes far less than a slice. Whoever continues asks again whether what it works on is still there.
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

  /** Lets requests that wait have their turn. */
  async yield(): Promise<void> {
    await this.#clock.yield()
    this.#end = this.#clock.now() + SLICE_MS
  }
}
