/**
 * Runs the passes of a work one at a time. A pass covers what was there when it began, so all
 * callers that ask while one runs share the next.
 */
export class Passes {
  readonly #run: () => Promise<void>
  /** The last pass that was begun. */
  #pass: Promise<void> = Promise.resolve()
  /** The one that waits for its end. */
  #next: Promise<void> | null = null

  /** @param run does a pass */
  constructor(run: () => Promise<void>) {
    this.#run = run
  }

  /** Settles with the next pass that begins. */
  next(): Promise<void> {
    this.#next ??= this.#pass.then(() => {
      this.#next = null
      const pass = this.#run()
      this.#pass = pass.catch(() => {})
      return pass
    })
    return this.#next
  }
}
