import { setTimeout as sleep } from 'node:timers/promises'
import { formatSize } from '../config/index.js'

/** Milliseconds from one line to the next. */
export const PERIOD = 500

/**
 * Calls `act`, and `look` every `period` milliseconds until that ends. It shows only what it can
 * see: `act` itself tells of failures.
 */
export async function lookingEvery<T>(
  period: number,
  look: (ended: AbortSignal) => Promise<void>,
  act: () => Promise<T>,
): Promise<T> {
  const ended = new AbortController()
  const { signal } = ended
  const looks = async (): Promise<void> => {
    for (;;) {
      await sleep(period, undefined, { signal })
      await look(signal)
    }
  }
  const looking = looks().catch(() => {})
  try {
    return await act()
  } finally {
    ended.abort()
    await looking
  }
}

/** Milliseconds that a command may take without a line. */
const PATIENCE = 1000

/** How far a command has come that takes more than a second, on a terminal; nowhere else. */
export class Progress {
  readonly #what: string
  readonly #size: number | null
  #next = performance.now() + PATIENCE
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
      parts.unshift(
        `${this.#size === 0 ? 100 : Math.min(Math.floor((done / this.#size) * 100), 100)}%`,
      )
    }
    process.stderr.write(`\r\x1b[K${this.#what}: ${parts.join(', ')}`)
  }

  /** Takes the line away. */
  end(): void {
    if (this.#isShown) process.stderr.write('\r\x1b[K')
  }
}
