import type { Clock } from '../base/index.js'

/** Milliseconds that such work goes on before flushes have their turn. */
const BURST_MS = 40
/** Milliseconds that it rests then. */
const REST_MS = 60

/**
 * When work that makes a flush dear rests. Punches of freed blocks, and copies to new places,
 * change the map of the host's file, and fsync(2) of that file waits until the host's journal has
 * all such changes. As long as somebody calls for flushes, that work goes on in bursts: between two
 * of them a flush takes as long as it does alone.
 */
export class FlushPace {
  readonly #clock: Clock
  #burstEnd = 0
  /** Whether somebody waited for a flush in this burst. */
  #flushCame = false
  /** Null outside of a rest. */
  #rest: Promise<void> | null = null
  #endRest: () => void = () => {}

  constructor(clock: Clock) {
    this.#clock = clock
  }

  /** Somebody waits for a flush. */
  flushCame(): void {
    this.#flushCame = true
  }

  /**
   * The work asks before each piece.
   * @returns null: it goes on; else it waits for this, and asks again
   */
  turn(): Promise<void> | null {
    if (this.#rest !== null) return this.#rest
    const now = this.#clock.now()
    if (now < this.#burstEnd) return null
    // The work has rested by itself if nobody has asked for as long as a rest takes.
    const hasRested = now >= this.#burstEnd + REST_MS
    if (this.#flushCame && !hasRested) return this.#beginRest()
    this.#beginBurst()
    return null
  }

  /** Ends the rest: somebody waits for the work. */
  hurry(): void {
    this.#endRest()
  }

  #beginRest(): Promise<void> {
    this.#rest = new Promise(resolve => {
      const end = (): void => {
        cancel()
        this.#rest = null
        this.#endRest = () => {}
        this.#beginBurst()
        resolve()
      }
      const cancel = this.#clock.after(REST_MS, end)
      this.#endRest = end
    })
    return this.#rest
  }

  #beginBurst(): void {
    this.#flushCame = false
    this.#burstEnd = this.#clock.now() + BURST_MS
  }
}
