import { assert, VERIFY_ALL } from '../../base/index.js'
import { ENTRIES_PER_BITMAP } from '../format.js'

const WORDS = ENTRIES_PER_BITMAP / 32

/** A set of block numbers: one bit a block, for those bitmaps' ranges that have any. */
export class BlockSet {
  readonly #parts = new Map<number, Uint32Array>()
  #size = 0
  #nrRuns = 0
  #mark = Number.POSITIVE_INFINITY
  #nrAbove = 0

  get size(): number {
    return this.#size
  }

  /** How many runs of neighbours the blocks make up. */
  get nrRuns(): number {
    return this.#nrRuns
  }

  /** Blocks at or above the mark. */
  get nrAbove(): number {
    return this.#nrAbove
  }

  /** Counts blocks at or above `mark` apart from now on. */
  countFrom(mark: number): void {
    this.#mark = mark
    this.#nrAbove = 0
    if (mark === Number.POSITIVE_INFINITY) return
    for (const block of this.toArray()) if (block >= mark) this.#nrAbove++
  }

  has(block: number): boolean {
    if (this.#size === 0) return false
    const part = this.#parts.get(Math.floor(block / ENTRIES_PER_BITMAP))
    if (part === undefined) return false
    const bit = block % ENTRIES_PER_BITMAP
    return ((part[bit >>> 5]! >>> (bit & 31)) & 1) === 1
  }

  /** Adds a block that is not in the set. */
  add(block: number): void {
    if (VERIFY_ALL) assert(!this.has(block), `block ${block} is in the set already`)
    const index = Math.floor(block / ENTRIES_PER_BITMAP)
    let part = this.#parts.get(index)
    if (part === undefined) {
      part = new Uint32Array(WORDS)
      this.#parts.set(index, part)
    }
    const bit = block % ENTRIES_PER_BITMAP
    part[bit >>> 5]! |= 1 << (bit & 31)
    this.#size++
    if (block >= this.#mark) this.#nrAbove++
    this.#nrRuns += 1 - Number(this.has(block - 1)) - Number(this.has(block + 1))
  }

  /** Takes a block out. One that is not in the set may be named, too. */
  delete(block: number): void {
    if (!this.has(block)) return
    const part = this.#parts.get(Math.floor(block / ENTRIES_PER_BITMAP))!
    const bit = block % ENTRIES_PER_BITMAP
    part[bit >>> 5]! &= ~(1 << (bit & 31))
    this.#size--
    if (block >= this.#mark) this.#nrAbove--
    this.#nrRuns -= 1 - Number(this.has(block - 1)) - Number(this.has(block + 1))
    if (this.#size > 0) return
    this.#parts.clear()
    this.#nrRuns = 0
  }

  /** All blocks, ascending. */
  toArray(): Float64Array {
    const blocks = new Float64Array(this.#size)
    let nr = 0
    for (const index of [...this.#parts.keys()].sort((a, b) => a - b)) {
      const part = this.#parts.get(index)!
      for (let word = 0; word < WORDS; word++) {
        for (let bits = part[word]!; bits !== 0; bits = (bits & (bits - 1)) >>> 0) {
          const bit = 31 - Math.clz32(bits & -bits)
          blocks[nr++] = index * ENTRIES_PER_BITMAP + word * 32 + bit
        }
      }
    }
    return blocks
  }
}
