import type { MetadataProblem } from './problems.js'

/** Differences of counts: reports a run of blocks with the same difference as one problem. */
export class Differences {
  readonly #map: string
  readonly #report: (severity: MetadataProblem['severity'], message: string) => void
  #begin = 0
  #end = 0
  #found = 0
  #wanted = 0

  constructor(
    map: string,
    report: (severity: MetadataProblem['severity'], message: string) => void,
  ) {
    this.#map = map
    this.#report = report
  }

  add(block: number, found: number, wanted: number): void {
    if (block !== this.#end || found !== this.#found || wanted !== this.#wanted) {
      this.flush()
      this.#begin = block
      this.#found = found
      this.#wanted = wanted
    }
    this.#end = block + 1
  }

  /** Reports the run at hand. Call it once after the last `add`. */
  flush(): void {
    if (this.#begin === this.#end) return
    const leak = this.#found > this.#wanted
    const blocks =
      this.#end - this.#begin === 1
        ? `block ${this.#begin} has`
        : `blocks ${this.#begin} to ${this.#end - 1} have`
    this.#report(
      leak ? 'warning' : 'error',
      `${this.#map} ${blocks} count ${this.#found}, wanted ${this.#wanted}${leak ? ' (leak)' : ''}`,
    )
    this.#begin = this.#end
  }
}
