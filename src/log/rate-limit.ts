/** Passes the first `most` occurrences in every `period`, and counts those that it holds back. */
export class RateLimit {
  readonly #most: number
  readonly #period: number
  readonly #onSuppressed: (count: number) => void
  #started = Number.NEGATIVE_INFINITY
  #count = 0

  /** @param period milliseconds */
  constructor(most: number, period: number, onSuppressed: (count: number) => void) {
    this.#most = most
    this.#period = period
    this.#onSuppressed = onSuppressed
  }

  /** @param now milliseconds */
  allows(now: number): boolean {
    if (now - this.#started >= this.#period) {
      const suppressed = this.#count - this.#most
      this.#started = now
      this.#count = 0
      if (suppressed > 0) this.#onSuppressed(suppressed)
    }
    return ++this.#count <= this.#most
  }
}
