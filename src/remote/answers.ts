/** Whether the disk answers: a word when it has not for a while, and when it does again. */
import type { Clock } from '../base/index.js'

/** Milliseconds without any answer before that is worth a word. */
const SILENCE_MS = 5000

export class Answers {
  readonly #clock: Clock
  readonly #onSilence: (what: string) => void
  #nrAsked = 0
  /** Whether an answer has come since the last look. */
  #hasCome = false
  #isLooking = false
  #isSilent = false

  constructor(clock: Clock, onSilence: (what: string) => void) {
    this.#clock = clock
    this.#onSilence = onSilence
  }

  /** The disk is asked for something. */
  asked(): void {
    this.#nrAsked++
    if (!this.#isLooking) this.#lookLater()
  }

  /** It has answered, whatever it said. */
  came(): void {
    this.#nrAsked--
    this.#hasCome = true
    if (!this.#isSilent) return
    this.#isSilent = false
    this.#onSilence('the disk answers again')
  }

  /** The same for one call. */
  async of<T>(call: Promise<T>): Promise<T> {
    this.asked()
    try {
      return await call
    } finally {
      this.came()
    }
  }

  #lookLater(): void {
    this.#isLooking = true
    this.#hasCome = false
    this.#clock.after(SILENCE_MS, () => {
      this.#isLooking = false
      if (this.#nrAsked === 0) return
      if (!this.#hasCome && !this.#isSilent) {
        this.#isSilent = true
        this.#onSilence(`the disk has not answered for ${SILENCE_MS / 1000} s`)
      }
      this.#lookLater()
    })
  }
}
