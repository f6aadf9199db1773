import { formatSize } from '../config/index.js'

/** Milliseconds from one line to the next. */
const PERIOD = 500

/** How far a command has come, on a terminal; nowhere else. */
export class Progress {
  readonly #what: string
  readonly #size: number | null
  #next = 0
  #isShown = false

  /** @param size of what there is to do; null where nobody knows */
  constructor(what: string, size: number | null) {
    this.#what = what
    this.#size = size
  }

  /**
   * @param done of that size
   * @param bytes that went through the pipe, where there is one
   */
  show(done: number, bytes?: number): void {
    const now = performance.now()
    if (!process.stderr.isTTY || now < this.#next) return
    this.#next = now + PERIOD
    this.#isShown = true
    const parts = bytes === undefined ? [] : [formatSize(bytes)]
    if (this.#size !== null) {
      parts.unshift(`${this.#size === 0 ? 100 : Math.floor((done / this.#size) * 100)}%`)
    }
    process.stderr.write(`\r\x1b[K${this.#what}: ${parts.join(', ')}`)
  }

  /** Takes the line away. */
  end(): void {
    if (this.#isShown) process.stderr.write('\r\x1b[K')
  }
}
