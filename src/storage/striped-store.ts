/**
 * A store whose chunks lie in several stores in turn: what a thin pool has of a striped device.
 *
 * A range of it is one range in each of its stripes. Source: drivers/md/dm-stripe.c.
 */
import { allEnded, type Bytes, bytes } from '../base/index.js'
import { CompositeStore, leastAvailable, type UsePart } from './composite-store.js'
import { type HostRoom, mustCopy, mustHaveRange, SCRATCH, type Store } from './store.js'

export class StripedStore extends CompositeStore implements Store {
  readonly path: string
  readonly copiesShare = false
  readonly #chunk: number
  readonly #stripes: readonly Store[]
  /** Bytes of a chunk of each stripe. */
  readonly #row: number
  #size = bytes(0)

  /**
   * @param path names the store in messages
   * @param chunk bytes
   * @param stripes stay their owner's to close
   */
  constructor(path: string, chunk: number, stripes: readonly Store[]) {
    super()
    this.path = path
    this.#chunk = chunk
    this.#stripes = stripes
    this.#row = chunk * stripes.length
    this.#noteSize()
  }

  get size(): Bytes {
    return this.#size
  }

  get punches(): boolean {
    return this.#stripes.every(({ punches }) => punches)
  }

  read(buffer: Uint8Array, at: number, length: number, offset: Bytes): void {
    mustHaveRange(this, 'read', offset, length)
    const end = offset + length
    for (let from: number = offset; from < end; ) {
      const size = Math.min(end, this.#chunkEnd(from)) - from
      this.#stripeOf(from).read(buffer, at + (from - offset), size, this.#placeOf(from))
      from += size
    }
  }

  readNow(buffer: Uint8Array, at: number, length: number, offset: Bytes): boolean {
    mustHaveRange(this, 'read', offset, length)
    const end = offset + length
    for (let from: number = offset; from < end; ) {
      const size = Math.min(end, this.#chunkEnd(from)) - from
      const place = this.#placeOf(from)
      if (!this.#stripeOf(from).readNow(buffer, at + (from - offset), size, place)) return false
      from += size
    }
    return true
  }

  async readLater(buffer: Uint8Array, at: number, length: number, offset: Bytes): Promise<void> {
    mustHaveRange(this, 'read', offset, length)
    const end = offset + length
    const reads: Promise<void>[] = []
    for (let from: number = offset; from < end; ) {
      const size = Math.min(end, this.#chunkEnd(from)) - from
      const place = this.#placeOf(from)
      reads.push(this.#stripeOf(from).readLater(buffer, at + (from - offset), size, place))
      from += size
    }
    await allEnded(reads)
  }

  write(buffer: Uint8Array, at: number, length: number, offset: Bytes): void {
    mustHaveRange(this, 'write', offset, length)
    const end = offset + length
    for (let from: number = offset; from < end; ) {
      const size = Math.min(end, this.#chunkEnd(from)) - from
      this.#stripeOf(from).write(buffer, at + (from - offset), size, this.#placeOf(from))
      from += size
    }
  }

  copy(source: Bytes, target: Bytes, length: Bytes): void {
    mustCopy(this, source, target, length)
    for (let done = 0; done < length; ) {
      const size = Math.min(length - done, SCRATCH.length)
      this.read(SCRATCH, 0, size, bytes(source + done))
      this.write(SCRATCH, 0, size, bytes(target + done))
      done += size
    }
  }

  nextData(offset: Bytes): Bytes {
    return this.#next(offset, (stripe, from) => stripe.nextData(from))
  }

  nextHole(offset: Bytes): Bytes {
    return this.#next(offset, (stripe, from) => stripe.nextHole(from))
  }

  async sync(): Promise<void> {
    await allEnded(this.#stripes.map(stripe => stripe.sync()))
  }

  /** The fullest file system below. Space that it gave to others' parts does not count as ours. */
  hostRoom(): HostRoom | null {
    const available = leastAvailable(this.#stripes)
    return available === null ? null : { available, allocated: 0 }
  }

  measure(): void {
    for (const stripe of this.#stripes) stripe.measure()
    this.#noteSize()
  }

  /** Whole chunks of the shortest stripe. */
  #noteSize(): void {
    const shortest = Math.min(...this.#stripes.map(({ size }) => size))
    this.#size = bytes(Math.floor(shortest / this.#chunk) * this.#row)
  }

  #chunkEnd(offset: number): number {
    return (Math.floor(offset / this.#chunk) + 1) * this.#chunk
  }

  #stripeOf(offset: number): Store {
    return this.#stripes[Math.floor(offset / this.#chunk) % this.#stripes.length]!
  }

  /** The place of byte `offset` in its stripe. */
  #placeOf(offset: number): Bytes {
    return bytes(Math.floor(offset / this.#row) * this.#chunk + (offset % this.#chunk))
  }

  /** How many bytes before `offset` stripe `i` has: the next one of it is there. */
  #bytesBefore(i: number, offset: number): number {
    const row = Math.floor(offset / this.#row)
    const within = offset - row * this.#row - i * this.#chunk
    return row * this.#chunk + Math.max(0, Math.min(this.#chunk, within))
  }

  /** One part for each stripe, in which the range is one. */
  protected forEachPart(offset: number, length: number, use: UsePart): void {
    for (const [i, stripe] of this.#stripes.entries()) {
      const begin = this.#bytesBefore(i, offset)
      const size = this.#bytesBefore(i, offset + length) - begin
      if (size > 0) use(stripe, bytes(begin), bytes(size))
    }
  }

  /** The lowest offset that `find` returns over all stripes. */
  #next(offset: Bytes, find: (stripe: Store, from: Bytes) => Bytes): Bytes {
    let first: number = this.#size
    for (const [i, stripe] of this.#stripes.entries()) {
      const place = find(stripe, bytes(this.#bytesBefore(i, offset)))
      const found =
        Math.floor(place / this.#chunk) * this.#row + i * this.#chunk + (place % this.#chunk)
      first = Math.min(first, found)
    }
    return bytes(first)
  }
}
