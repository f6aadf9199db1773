/**
 * Requests that have taken data blocks and not mapped them yet: nobody would own those blocks after
 * a crash, so a commit waits for these requests before it seals, and no more blocks are taken
 * meanwhile.
 */
export class UnmappedBlocks {
  /** How each request ends. */
  readonly #requests = new Set<Promise<void>>()
  /** The wait for them; null when there is none. */
  #draining: Promise<void> | null = null
  #drained: () => void = () => {}

  /** @param mapped resolves when the blocks of a request are mapped, or given back */
  add(mapped: Promise<unknown>): void {
    const forget = (): void => {
      this.#requests.delete(ended)
    }
    const ended: Promise<void> = mapped.then(forget, forget)
    this.#requests.add(ended)
  }

  /** How many requests there are. */
  get count(): number {
    return this.#requests.size
  }

  /** While a commit waits for them: resolves when more blocks may be taken. */
  get draining(): Promise<void> | null {
    return this.#draining
  }

  /**
   * Waits until every block that was taken is mapped, or given back. No more may be taken until
   * `endDrain`.
   */
  async drain(): Promise<void> {
    this.#draining = new Promise(resolve => {
      this.#drained = resolve
    })
    await Promise.all(this.#requests)
  }

  /** More blocks may be taken. */
  endDrain(): void {
    this.#draining = null
    this.#drained()
  }
}
