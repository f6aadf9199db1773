import { formatSize } from '../config/index.js'

/** Milliseconds from one line to the next. */
const PERIOD = 500

/** How far a command has come, on a terminal; nowhere else. */
export class Progress {
  readonly #what: string
  readonly #size: number
  #next = 0
  #isShown = false

  /** @param size bytes that there are to do */
  constructor(what: string, size: number) {
    this.#what = what
    this.#size = size
  }

  /**
   * @param done of those bytes
   * @param bytes that went through the pipe
   */
  show(done: number, bytes: number): void {
    const now = performance.now()
    if (!process.stderr.isTTY || now < this.#next) return
    this.#next = now + PERIOD
    this.#isShown = true
    const percent = this.#size === 0 ? 100 : Math.floor((done / this.#size) * 100)
    process.stderr.write(`\r\x1b[K${this.#what}: ${percent}%, ${formatSize(bytes)}`)
  }

  /** Takes the line away. */
  end(): void {
    if (this.#isShown) process.stderr.write('\r\x1b[K')
  }
}
