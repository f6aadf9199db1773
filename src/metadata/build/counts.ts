import { ENTRIES_PER_BITMAP } from '../format.js'

/** The largest count that a byte holds; larger ones are kept aside. */
const MANY = 255

/** Owners of blocks: a byte for each, in pages as bitmaps describe them. */
export class Counts {
  readonly #pages = new Map<number, Uint8Array>()
  readonly #large = new Map<number, number>()

  inc(block: number): void {
    const index = Math.floor(block / ENTRIES_PER_BITMAP)
    let page = this.#pages.get(index)
    if (page === undefined) {
      page = new Uint8Array(ENTRIES_PER_BITMAP)
      this.#pages.set(index, page)
    }
    const at = block % ENTRIES_PER_BITMAP
    if (page[at]! < MANY) page[at]!++
    if (page[at] === MANY) this.#large.set(block, (this.#large.get(block) ?? MANY - 1) + 1)
  }

  get(block: number): number {
    const page = this.#pages.get(Math.floor(block / ENTRIES_PER_BITMAP))
    const count = page?.[block % ENTRIES_PER_BITMAP] ?? 0
    return count < MANY ? count : this.#large.get(block)!
  }

  /** The counts of the blocks that a bitmap describes, MANY for those above; null: all are 0. */
  page(index: number): Uint8Array | null {
    return this.#pages.get(index) ?? null
  }
}
