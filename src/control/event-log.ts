/** Events of a mounted pool, of which the last are kept for whoever asks later. */
import type { EventsAnswer, Happening, Told } from './protocol.js'

/** Events that are kept. */
const KEPT = 256

export class EventLog {
  readonly #kept: Happening[] = []
  readonly #waiting = new Set<() => void>()
  #last: number
  #ended = false

  constructor() {
    this.#last = now()
  }

  /** Notes an event, and tells of it. */
  add(event: Told): void {
    // As large as the time, so that ids go on from those of a process that has ended.
    this.#last = Math.max(this.#last + 1, now())
    this.#kept.push({ id: this.#last, ...event })
    if (this.#kept.length > KEPT) this.#kept.shift()
    this.#wake()
  }

  /**
   * The events after one.
   * @param after its id; left out: those from now on
   * @param waits whether the answer waits until there is one, or no more come
   * @param signal ends that wait
   */
  async after(
    after: number | undefined,
    waits: boolean,
    signal?: AbortSignal,
  ): Promise<EventsAnswer> {
    const from = after ?? this.#last
    for (;;) {
      const events = this.#kept.filter(({ id }) => id > from)
      if (events.length > 0 || !waits || this.#ended || signal?.aborted) {
        return { events, last: Math.max(from, this.#last), ended: this.#ended }
      }
      await this.#next(signal)
    }
  }

  /** No more come: whoever waits has the answer now. */
  end(): void {
    this.#ended = true
    this.#wake()
  }

  #next(signal: AbortSignal | undefined): Promise<void> {
    return new Promise(resolve => {
      const ended = (): void => {
        this.#waiting.delete(ended)
        signal?.removeEventListener('abort', ended)
        resolve()
      }
      this.#waiting.add(ended)
      signal?.addEventListener('abort', ended)
    })
  }

  #wake(): void {
    for (const ended of [...this.#waiting]) ended()
  }
}

/** Microseconds since 1970, as far as they are known. */
const now = (): number => Date.now() * 1000
