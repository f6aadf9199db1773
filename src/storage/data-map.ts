/**
 * The parts of a disk that may hold something: a bit for each granule. A bit of 0 says that all of
 * it is zeros.
 */
export class DataMap {
  readonly #granule: number
  #nrGranules: number
  #bits: Uint8Array

  /**
   * All holes.
   * @param size bytes
   * @param granule bytes
   */
  constructor(size: number, granule: number) {
    this.#granule = granule
    this.#nrGranules = Math.ceil(size / granule)
    this.#bits = new Uint8Array(Math.ceil(this.#nrGranules / 8))
  }

  /** Goes on to a larger size: what is new is holes. */
  grow(size: number): void {
    const bits = this.#bits
    this.#nrGranules = Math.ceil(size / this.#granule)
    this.#bits = new Uint8Array(Math.ceil(this.#nrGranules / 8))
    this.#bits.set(bits)
  }

  /** Notes that the granules of a range may hold something. */
  add(offset: number, length: number): void {
    const end = Math.ceil((offset + length) / this.#granule)
    for (let i = Math.floor(offset / this.#granule); i < end; i++) {
      if ((i & 7) === 0 && end - i >= 8) {
        this.#bits[i >>> 3] = 0xff
        i += 7
      } else this.#bits[i >>> 3]! |= 1 << (i & 7)
    }
  }

  /** Notes that a range of whole granules is zeros. */
  remove(offset: number, length: number): void {
    const end = Math.ceil((offset + length) / this.#granule)
    for (let i = Math.floor(offset / this.#granule); i < end; i++) {
      this.#bits[i >>> 3]! &= ~(1 << (i & 7))
    }
  }

  /** Whether no granule of a range holds anything. */
  isHole(offset: number, length: number): boolean {
    return length === 0 || this.next(offset, 1) >= offset + length
  }

  /**
   * The first byte at or after `offset` in a granule with the bit `wanted`; behind the last granule
   * when there is none.
   */
  next(offset: number, wanted: 0 | 1): number {
    let i = Math.floor(offset / this.#granule)
    const none = wanted === 1 ? 0 : 0xff
    while (i < this.#nrGranules) {
      const byte = this.#bits[i >>> 3]!
      if (byte === none) i = ((i >>> 3) + 1) * 8
      else if (((byte >>> (i & 7)) & 1) === wanted) return Math.max(offset, i * this.#granule)
      else i++
    }
    return this.#nrGranules * this.#granule
  }
}
