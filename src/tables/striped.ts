import { allEnded, type Later, refused } from '../base/index.js'
import type { OpenSource } from './source.js'
import { onParts, type TargetDevice } from './target-device.js'

/**
 * Chunks of several devices in turn. Source: drivers/md/dm-stripe.c.
 *
 * A request over several chunks is several to the devices below: when one of them fails, the others
 * may be done, as in the kernel.
 */
export class StripedTarget implements TargetDevice {
  readonly size: number
  readonly #chunk: number
  readonly #stripes: readonly OpenSource[]

  /**
   * @param size bytes, a multiple of `chunk` for each stripe
   * @param chunk bytes
   * @param stripes are closed with the target
   */
  constructor(size: number, chunk: number, stripes: readonly OpenSource[]) {
    this.size = size
    this.#chunk = chunk
    this.#stripes = stripes
  }

  get gone(): boolean {
    return this.#stripes.some(({ device }) => device.gone)
  }

  read(offset: number, size: number, buffer: Uint8Array, at: number): boolean {
    const end = offset + size
    for (let from = offset; from < end; ) {
      const length = Math.min(end, this.#chunkEnd(from)) - from
      const { device } = this.#stripeOf(from)
      if (!device.read(this.#placeOf(from), length, buffer, at + (from - offset))) return false
      from += length
    }
    return true
  }

  async readLater(offset: number, size: number, buffer: Uint8Array, at: number): Promise<void> {
    await this.#onChunks(offset, size, (stripe, place, length, done) =>
      stripe.device.readLater(place, length, buffer, at + done),
    )
  }

  write(offset: number, size: number, buffer: Uint8Array, at: number): Later<void> {
    if (offset + size <= this.#chunkEnd(offset)) {
      return this.#stripeOf(offset).device.write(this.#placeOf(offset), size, buffer, at)
    }
    return this.#onChunks(offset, size, (stripe, place, length, done) =>
      stripe.device.write(place, length, buffer, at + done),
    )
  }

  discard(offset: number, length: number): Later<void> {
    return this.#onRanges(offset, length, ({ device }, from, size) => device.discard(from, size))
  }

  zero(offset: number, length: number): Later<void> {
    return this.#onRanges(offset, length, ({ device }, from, size) => device.zero(from, size))
  }

  async flush(): Promise<void> {
    await allEnded(this.#stripes.map(({ device }) => device.flush()))
  }

  nextData(offset: number): number {
    return offset
  }

  nextHole(): number {
    return this.size
  }

  check(): void {
    const each = this.size / this.#stripes.length
    for (const { device, start } of this.#stripes) {
      if (start + each > device.size) {
        throw refused(
          'EINVAL',
          `a stripe ends at byte ${start + each} of a device of ${device.size} bytes`,
        )
      }
    }
  }

  async close(): Promise<void> {
    for (const stripe of this.#stripes) stripe.close()
  }

  #chunkEnd(offset: number): number {
    return (Math.floor(offset / this.#chunk) + 1) * this.#chunk
  }

  #stripeOf(offset: number): OpenSource {
    return this.#stripes[Math.floor(offset / this.#chunk) % this.#stripes.length]!
  }

  /** The place of byte `offset` in the device of its stripe. */
  #placeOf(offset: number): number {
    const chunk = Math.floor(offset / this.#chunk)
    const row = Math.floor(chunk / this.#stripes.length)
    return this.#stripeOf(offset).start + row * this.#chunk + (offset - chunk * this.#chunk)
  }

  /** Calls `use` for each chunk of a range, with its stripe; see `onParts`. */
  #onChunks(
    offset: number,
    size: number,
    use: (stripe: OpenSource, place: number, length: number, done: number) => Later<void>,
  ): Later<void> {
    return onParts(
      offset,
      size,
      from => this.#chunkEnd(from),
      (from, length, done) => use(this.#stripeOf(from), this.#placeOf(from), length, done),
    )
  }

  /** As `#onChunks`, with one range of each stripe however long the whole is. */
  #onRanges(
    offset: number,
    size: number,
    use: (stripe: OpenSource, from: number, length: number) => Later<void>,
  ): Later<void> {
    const count = this.#stripes.length
    const row = this.#chunk * count
    const [first, last] = [Math.ceil(offset / row), Math.floor((offset + size) / row)]
    if (last - first < 2) return this.#onChunks(offset, size, use)
    // Whole rows are one range in each of the stripes.
    const edges = [
      this.#onChunks(offset, first * row - offset, use),
      this.#onChunks(last * row, offset + size - last * row, use),
    ]
    const rows = this.#stripes.map(stripe =>
      use(stripe, stripe.start + first * this.#chunk, (last - first) * this.#chunk),
    )
    return allEnded([...edges, ...rows])
  }
}
