/** A write under way that may change the mappings of virtual blocks `first` to `last`. */
interface Unfinished {
  first: number
  last: number
  ended: Promise<unknown>
}

/**
 * The writes of one device that are in flight and may change mappings: other requests on the same
 * virtual blocks wait for them. If the data store has a page cache, only writes that wait for a
 * cold read are among them.
 */
export class UnfinishedWrites {
  readonly #writes = new Set<Unfinished>()

  /** Whether one of them may change the mappings of virtual blocks `first` to `last`. */
  has(first: number, last: number): boolean {
    if (this.#writes.size === 0) return false
    for (const write of this.#writes) {
      if (write.first <= last && first <= write.last) return true
    }
    return false
  }

  /** Resolves when the present writes that `has` means have ended, well or not. */
  async ended(first: number, last: number): Promise<void> {
    const writes = [...this.#writes].filter(write => write.first <= last && first <= write.last)
    await Promise.allSettled(writes.map(({ ended }) => ended))
  }

  /** Adds a write until the returned function is called. */
  begin(first: number, last: number, ended: Promise<unknown>): () => void {
    const write = { first, last, ended }
    this.#writes.add(write)
    return () => this.#writes.delete(write)
  }
}
