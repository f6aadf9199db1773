/**
 * A remote disk in memory: calls end in any order when `step` says so, may fail, and a power cut of
 * the disk takes some of what no flush has covered.
 */
import { fillPieces, lengthOf, type Pieces, piecesOf, ThinfsError } from '../../src/base/index.js'
import type { RemoteDisk } from '../../src/remote/index.js'
import type { Random } from './random.js'

const PAGE = 4096

interface Call {
  range: [from: number, to: number] | null
  kind: 'read' | 'write' | 'zero' | 'flush'
  act(): void
  resolve(): void
  reject(err: Error): void
}

/** What is left of a disk when a client has gone. */
export interface DiskState {
  image: Buffer
  durable: Buffer
}

export class SlowDisk implements RemoteDisk {
  readonly path = 'slow'
  readonly makesHoles = true
  epoch = 1
  /** The share of calls that fail. */
  failing = 0
  readonly state: DiskState
  readonly #random: Random
  #calls: Call[] = []
  /** Two calls that write to the same bytes, not both zeros, were under way together. */
  clashes = 0

  constructor(state: DiskState, random: Random) {
    this.state = state
    this.#random = random
  }

  get size(): number {
    return this.state.image.length
  }

  get nrCalls(): number {
    return this.#calls.length
  }

  /** Ends one call. */
  step(): void {
    const [call] = this.#calls.splice(this.#random.below(this.#calls.length), 1)
    if (call === undefined) return
    if (this.#random.chance(this.failing)) {
      // It may have been carried out all the same.
      if (call.kind !== 'read' && this.#random.chance(0.5)) call.act()
      call.reject(new ThinfsError('IO_ERROR', 'the disk fails', { errno: 'EIO' }))
      return
    }
    call.act()
    call.resolve()
  }

  /**
   * The disk loses some pages of what was not flushed. Calls are made again, as by a new
   * connection.
   */
  powerCut(): void {
    const { image, durable } = this.state
    for (let at = 0; at < image.length; at += PAGE) {
      if (this.#random.chance(0.5)) image.copy(durable, at, at, at + PAGE)
    }
    durable.copy(image)
    this.epoch++
  }

  /** The client dies: some of its calls are carried out, and nobody hears of any. */
  abandon(): void {
    for (const call of this.#calls) if (this.#random.chance(0.5)) call.act()
    this.#calls = []
  }

  read(into: Pieces, offset: number): Promise<void> {
    const pieces = piecesOf(into)
    const end = offset + lengthOf(pieces)
    return this.#call([offset, end], 'read', () =>
      fillPieces(pieces, this.state.image.subarray(offset, end)),
    )
  }

  write(from: Pieces, offset: number, durable = false): Promise<void> {
    const pieces = piecesOf(from)
    return this.#call([offset, offset + lengthOf(pieces)], 'write', () => {
      const content = Buffer.concat(pieces)
      this.state.image.set(content, offset)
      if (durable) this.state.durable.set(content, offset)
    })
  }

  zero(offset: number, length: number): Promise<void> {
    return this.#call([offset, offset + length], 'zero', () =>
      this.state.image.fill(0, offset, offset + length),
    )
  }

  flush(): Promise<void> {
    return this.#call(null, 'flush', () => void this.state.image.copy(this.state.durable))
  }

  async extents(offset: number, length: number): Promise<{ offset: number; length: number }[]> {
    const found: { offset: number; length: number }[] = []
    for (let at = offset; at < offset + length; at += PAGE) {
      const isZero = this.state.image.subarray(at, at + PAGE).every(byte => byte === 0)
      if (!isZero) found.push({ offset: at, length: PAGE })
    }
    return found
  }

  close(): void {}

  #call(range: Call['range'], kind: Call['kind'], act: () => void): Promise<void> {
    if (range !== null && kind !== 'read') {
      const [from, to] = range
      const clash = this.#calls.some(
        call =>
          call.range !== null &&
          call.kind !== 'read' &&
          !(call.kind === 'zero' && kind === 'zero') &&
          call.range[0] < to &&
          from < call.range[1],
      )
      if (clash) this.clashes++
    }
    return new Promise((resolve, reject) => {
      this.#calls.push({ range, kind, act, resolve, reject })
    })
  }
}
