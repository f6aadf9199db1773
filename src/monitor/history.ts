import type { PoolRates } from './rates.js'

/** The figures that are kept of a moment, for charts. */
export interface Sample {
  /** Seconds since 1970. */
  time: number
  used: number
  size: number
  readBytesPerSecond: number
  writtenBytesPerSecond: number
  p99Ms: number
}

/** Samples that are kept; an even number. */
const KEPT = 1024

/**
 * The past in a bounded number of samples: when there are too many every second one goes, and as
 * much more time passes between two from then on.
 */
export class History {
  #samples: Sample[] = []
  /** Seconds between two at least. */
  #step = 0

  get samples(): readonly Sample[] {
    return this.#samples
  }

  add({ time, used, size, io }: PoolRates): void {
    const last = this.#samples.at(-1)
    // Half a second of tolerance: timers are not exact.
    if (last !== undefined && time - last.time < this.#step - 0.5) return
    this.#samples.push({
      ...{ time, used, size },
      readBytesPerSecond: io.read.bytesPerSecond,
      writtenBytesPerSecond: io.write.bytesPerSecond,
      p99Ms: io.all.p99Ms,
    })
    if (this.#samples.length <= KEPT) return
    this.#samples = this.#samples.filter((_, i) => i % 2 === 0)
    const [first, end] = [this.#samples[0]!, this.#samples.at(-1)!]
    this.#step = (end.time - first.time) / (this.#samples.length - 1)
  }
}
