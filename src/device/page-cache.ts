/**
 * The memory of a pool's lookup tables: pages of entries, for all devices together.
 *
 * Pages lie side by side in a few large arrays, which costs the garbage collector nothing, however
 * many there are and however often they change hands. When all are in use, the oldest is reused.
 */

/** Virtual blocks that a page answers for, about as many as two leaves of the mapping tree hold. */
export const PAGE_ENTRIES = 256
const CHUNK_PAGES = 256

export type Entries = Uint32Array | Float64Array

/** The owner of pages. */
export interface PageOwner {
  /** The owner's page of that index is another's now. */
  evict(index: number): void
}

export class PageCache {
  readonly #size: number
  #nrPages: number
  /** Entries take four bytes as long as that is enough: where data blocks have 31 bits. */
  #isWide = false
  #chunks: Entries[] = []
  /** By page; null where nobody has it. */
  #owners: (PageOwner | null)[] = []
  /** By page: which of its owner's it is. */
  #indexes: number[] = []
  /** Pages that were given back. */
  #free: number[] = []
  /** The next to go, once all are in use. */
  #hand = 0

  /** @param size of all pages together, in bytes */
  constructor(size: number) {
    this.#size = size
    this.#nrPages = size / (PAGE_ENTRIES * Uint32Array.BYTES_PER_ELEMENT)
  }

  /** The largest value that an entry can have. */
  get entryMax(): number {
    return this.#isWide ? Number.MAX_SAFE_INTEGER : 0xffff_ffff
  }

  /** A page, which holds anything. */
  take(owner: PageOwner, index: number): number {
    let page = this.#free.pop()
    if (page === undefined) {
      if (this.#owners.length < this.#nrPages) {
        page = this.#owners.length
        if (page % CHUNK_PAGES === 0) this.#addChunk()
      } else {
        page = this.#hand
        this.#hand = (this.#hand + 1) % this.#nrPages
        this.#owners[page]!.evict(this.#indexes[page]!)
      }
    }
    this.#owners[page] = owner
    this.#indexes[page] = index
    return page
  }

  giveBack(page: number): void {
    this.#owners[page] = null
    this.#free.push(page)
  }

  /** The array that has the entries of a page, from `beginOf`. */
  entriesOf(page: number): Entries {
    return this.#chunks[Math.floor(page / CHUNK_PAGES)]!
  }

  beginOf(page: number): number {
    return (page % CHUNK_PAGES) * PAGE_ENTRIES
  }

  /** Switches to entries of the largest size. Drops every page; half as many fit afterwards. */
  widen(): void {
    const owners = this.#owners
    const indexes = this.#indexes
    this.#isWide = true
    this.#nrPages = this.#size / (PAGE_ENTRIES * Float64Array.BYTES_PER_ELEMENT)
    this.#chunks = []
    this.#owners = []
    this.#indexes = []
    this.#free = []
    this.#hand = 0
    for (let page = 0; page < owners.length; page++) owners[page]?.evict(indexes[page]!)
  }

  #addChunk(): void {
    const length = CHUNK_PAGES * PAGE_ENTRIES
    this.#chunks.push(this.#isWide ? new Float64Array(length) : new Uint32Array(length))
  }
}
