/** This part of the mark has to be free beyond it before the mark counts as crossed upwards. */
const MARGIN = 16

/**
 * A low water mark: crossing it is told once, and again when space has come back meanwhile. Space
 * that comes and goes by single blocks is not that.
 */
export class LowWater {
  readonly #tell: (free: number) => void
  #told = false

  /** @param tell is called with the free blocks */
  constructor(tell: (free: number) => void) {
    this.#tell = tell
  }

  /**
   * Takes note of how much is free.
   * @param mark told where no more than this is free: the kernel's rule
   */
  note(free: number, mark: number): void {
    if (!this.#told && free <= mark) {
      this.#told = true
      this.#tell(free)
    } else if (this.#told && free > mark + mark / MARGIN) this.#told = false
  }

  /** Whatever was told before: the next look may tell again. */
  reset(): void {
    this.#told = false
  }
}
