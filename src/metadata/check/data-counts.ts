import { ENTRIES_PER_BITMAP } from '../format.js'

/**
 * How often each data block is mapped: a byte for each block of the bitmaps that have mappings, and
 * counts above 254 aside. Blocks that no bitmap describes are not counted.
 */
export class DataCounts {
  #pages = new Map<number, Uint8Array | null>()
  #large = new Map<number, number>()
  #index = -1
  #page: Uint8Array | null | undefined

  describe(bitmapIndex: number): void {
    this.#pages.set(bitmapIndex, null)
  }

  add(block: number): void {
    const index = this.#turnTo(block)
    if (this.#page === undefined) return
    if (this.#page === null) {
      this.#page = new Uint8Array(ENTRIES_PER_BITMAP)
      this.#pages.set(index, this.#page)
    }
    const at = block % ENTRIES_PER_BITMAP
    if (this.#page[at]! < 254) this.#page[at]!++
    else {
      this.#page[at] = 255
      this.#large.set(block, (this.#large.get(block) ?? 254) + 1)
    }
  }

  get(block: number): number {
    this.#turnTo(block)
    const count = this.#page?.[block % ENTRIES_PER_BITMAP] ?? 0
    return count < 255 ? count : this.#large.get(block)!
  }

  #turnTo(block: number): number {
    const index = Math.floor(block / ENTRIES_PER_BITMAP)
    if (index !== this.#index) {
      this.#index = index
      this.#page = this.#pages.get(index)
    }
    return index
  }
}
