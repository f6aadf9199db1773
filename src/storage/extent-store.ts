/**
 * A store that is made of parts of other stores, one behind the other: what a thin pool has of the
 * files and disks that a device table names.
 *
 * The list of parts may be replaced by one that goes on further: that is how such a store grows.
 */
import { allEnded, type Bytes, bytes, PAGE_SIZE } from '../base/index.js'
import { CompositeStore, leastAvailable, type UsePart } from './composite-store.js'
import { type HostRoom, mustCopy, mustHaveRange, SCRATCH, type Store } from './store.js'

/** The bytes [offset, offset + length) of a store. */
export interface StorePart {
  store: Store
  offset: Bytes
  length: Bytes
}

export class ExtentStore extends CompositeStore implements Store {
  readonly path: string
  #parts: readonly StorePart[] = []
  /** The byte at which each part begins here; one more at the end. */
  #begins = new Float64Array(1)
  #size = bytes(0)

  /**
   * @param path names the store in messages
   * @param parts the stores stay their owner's to close
   */
  constructor(path: string, parts: readonly StorePart[]) {
    super()
    this.path = path
    this.replace(parts)
  }

  /** Other parts from now on; what was in both lists at the same place stays where it is. */
  replace(parts: readonly StorePart[]): void {
    this.#parts = [...parts]
    this.#begins = new Float64Array(parts.length + 1)
    for (const [i, { length }] of parts.entries()) this.#begins[i + 1] = this.#begins[i]! + length
    this.#noteSize()
  }

  get size(): Bytes {
    return this.#size
  }

  get punches(): boolean {
    return this.#parts.every(({ store }) => store.punches)
  }

  get copiesShare(): boolean {
    const [first] = this.#parts
    return this.#parts.every(
      ({ store, offset }) =>
        store === first!.store && store.copiesShare && (offset - first!.offset) % PAGE_SIZE === 0,
    )
  }

  read(buffer: Uint8Array, at: number, length: number, offset: Bytes): void {
    mustHaveRange(this, 'read', offset, length)
    const end = offset + length
    for (let i = this.#partAt(offset), from: number = offset; from < end; i++) {
      const size = Math.min(end, this.#begins[i + 1]!) - from
      this.#parts[i]!.store.read(buffer, at + (from - offset), size, this.#place(i, from))
      from += size
    }
  }

  readNow(buffer: Uint8Array, at: number, length: number, offset: Bytes): boolean {
    mustHaveRange(this, 'read', offset, length)
    const end = offset + length
    for (let i = this.#partAt(offset), from: number = offset; from < end; i++) {
      const size = Math.min(end, this.#begins[i + 1]!) - from
      const { store } = this.#parts[i]!
      if (!store.readNow(buffer, at + (from - offset), size, this.#place(i, from))) return false
      from += size
    }
    return true
  }

  async readLater(buffer: Uint8Array, at: number, length: number, offset: Bytes): Promise<void> {
    mustHaveRange(this, 'read', offset, length)
    const reads: Promise<void>[] = []
    let to = at
    this.forEachPart(offset, length, (store, place, size) => {
      reads.push(store.readLater(buffer, to, size, place))
      to += size
    })
    await allEnded(reads)
  }

  write(buffer: Uint8Array, at: number, length: number, offset: Bytes): void {
    mustHaveRange(this, 'write', offset, length)
    const end = offset + length
    for (let i = this.#partAt(offset), from: number = offset; from < end; i++) {
      const size = Math.min(end, this.#begins[i + 1]!) - from
      this.#parts[i]!.store.write(buffer, at + (from - offset), size, this.#place(i, from))
      from += size
    }
  }

  copy(source: Bytes, target: Bytes, length: Bytes): void {
    mustCopy(this, source, target, length)
    for (let done = 0; done < length; ) {
      const from = source + done
      const to = target + done
      const i = this.#partAt(from)
      const j = this.#partAt(to)
      const size = Math.min(
        length - done,
        this.#begins[i + 1]! - from,
        this.#begins[j + 1]! - to,
        this.copiesShare ? length : SCRATCH.length,
      )
      const { store } = this.#parts[i]!
      if (this.copiesShare) store.copy(this.#place(i, from), this.#place(j, to), bytes(size))
      else {
        store.read(SCRATCH, 0, size, this.#place(i, from))
        this.#parts[j]!.store.write(SCRATCH, 0, size, this.#place(j, to))
      }
      done += size
    }
  }

  nextData(offset: Bytes): Bytes {
    return this.#next(offset, (store, from) => store.nextData(from))
  }

  nextHole(offset: Bytes): Bytes {
    return this.#next(offset, (store, from) => store.nextHole(from))
  }

  async sync(): Promise<void> {
    await allEnded([...this.#stores()].map(store => store.sync()))
  }

  /** The fullest file system below. Space that it gave to others' parts does not count as ours. */
  hostRoom(): HostRoom | null {
    const available = leastAvailable(this.#stores())
    if (available === null) return null
    const [part] = this.#parts
    const isWhole =
      this.#parts.length === 1 && part!.offset === 0 && part!.length >= part!.store.size
    return isWhole ? (part!.store.hostRoom?.() ?? null) : { available, allocated: 0 }
  }

  measure(): void {
    for (const store of this.#stores()) store.measure()
    this.#noteSize()
  }

  *#stores(): Iterable<Store> {
    yield* new Set(this.#parts.map(({ store }) => store))
  }

  /** The ends of the stores below. */
  #noteSize(): void {
    let size = 0
    for (const { store, offset, length } of this.#parts) {
      const there = Math.max(0, Math.min(length, store.size - offset))
      size += there
      if (there < length) break
    }
    this.#size = bytes(size)
  }

  /** The part that has byte `offset`. */
  #partAt(offset: number): number {
    let low = 0
    let high = this.#parts.length
    while (high - low > 1) {
      const middle = (low + high) >>> 1
      if (this.#begins[middle]! <= offset) low = middle
      else high = middle
    }
    return low
  }

  /** The place of byte `offset` of part `i` in its store. */
  #place(i: number, offset: number): Bytes {
    return bytes(this.#parts[i]!.offset + (offset - this.#begins[i]!))
  }

  protected forEachPart(offset: number, length: number, use: UsePart): void {
    const end = offset + length
    for (let i = this.#partAt(offset), from = offset; from < end; i++) {
      const size = Math.min(end, this.#begins[i + 1]!) - from
      use(this.#parts[i]!.store, this.#place(i, from), bytes(size))
      from += size
    }
  }

  #next(offset: Bytes, find: (store: Store, from: Bytes) => Bytes): Bytes {
    let from: number = offset
    for (let i = this.#partAt(from); from < this.#size; i++) {
      const { store } = this.#parts[i]!
      const end = Math.min(this.#begins[i + 1]!, this.#size)
      const place = this.#place(i, from)
      const found = from + (find(store, place) - place)
      if (found < end) return bytes(found)
      from = end
    }
    return this.#size
  }
}
