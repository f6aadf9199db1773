import { type Bytes, bytes, type Later } from '../../src/base/index.js'
import type { DataStore } from '../../src/storage/index.js'
import type { MemoryStore } from './memory-store.js'
import type { Random } from './random.js'

interface Call {
  /** What is left of it to be done, in any order. */
  pieces: (() => void)[]
  resolve(): void
}

/**
 * A data store without a page cache, over one in memory: every call takes time, is done piece by
 * piece, and calls that are under way together mix as the random sequence has it. `step` does a
 * piece of one.
 */
export class UnorderedStore implements DataStore {
  readonly copiesShare = false
  readonly #store: MemoryStore
  readonly #random: Random
  readonly #calls: Call[] = []

  constructor(store: MemoryStore, random: Random) {
    this.#store = store
    this.#random = random
  }

  get path(): string {
    return this.#store.path
  }
  get size(): Bytes {
    return this.#store.size
  }
  get punches(): boolean {
    return this.#store.punches
  }

  /** Calls that are under way. */
  get nrCalls(): number {
    return this.#calls.length
  }

  /** Does a piece of one call. */
  step(): void {
    const i = this.#random.below(this.#calls.length)
    const call = this.#calls[i]
    if (call === undefined) return
    call.pieces.splice(this.#random.below(call.pieces.length), 1)[0]!()
    if (call.pieces.length > 0) return
    this.#calls.splice(i, 1)
    call.resolve()
  }

  readNow(): boolean {
    return false
  }

  readLater(buffer: Uint8Array, at: number, length: number, offset: Bytes): Promise<void> {
    return this.#call(offset, length, (from, size) =>
      this.#store.read(buffer, at + (from - offset), size, from),
    )
  }

  write(buffer: Uint8Array, at: number, length: number, offset: Bytes): Later<void> {
    const held = Buffer.from(buffer.subarray(at, at + length))
    return this.#call(offset, length, (from, size) =>
      this.#store.write(held, from - offset, size, from),
    )
  }

  copy(source: Bytes, target: Bytes, length: Bytes): Later<void> {
    return this.#call(target, length, (to, size) =>
      this.#store.copy(bytes(source + (to - target)), to, bytes(size)),
    )
  }

  punch(offset: Bytes, length: Bytes): Later<void> {
    return this.#call(offset, length, (from, size) => this.#store.punch(from, bytes(size)))
  }

  punchLater(offset: Bytes, length: Bytes): Promise<void> {
    // As a whole: a hole of the store is a whole page.
    return this.#begin([() => this.#store.punch(offset, length)])
  }

  zero(offset: Bytes, length: Bytes): Later<void> {
    return this.#call(offset, length, (from, size) => this.#store.zero(from, bytes(size)))
  }

  /** Covers what was done when it was called, and ends when it does. */
  sync(): Promise<void> {
    const synced = this.#store.sync()
    return this.#begin([() => {}]).then(() => synced)
  }

  nextData(offset: Bytes): Bytes {
    return this.#store.nextData(offset)
  }
  nextHole(offset: Bytes): Bytes {
    return this.#store.nextHole(offset)
  }
  measure(): void {
    this.#store.measure()
  }
  grow(size: Bytes): void {
    this.#store.grow(size)
  }
  close(): void {}

  /** Two halves, cut at a sector. */
  #call(offset: number, length: number, part: (from: Bytes, size: number) => void): Promise<void> {
    const half = Math.floor(length / 1024) * 512
    const pieces = [() => part(bytes(offset + half), length - half)]
    if (half > 0) pieces.push(() => part(bytes(offset), half))
    return this.#begin(pieces)
  }

  #begin(pieces: (() => void)[]): Promise<void> {
    return new Promise(resolve => {
      this.#calls.push({ pieces, resolve })
    })
  }
}
