/** A remote disk in memory that takes its time, by a clock that a test turns. */
import {
  type Clock,
  fillPieces,
  lengthOf,
  type Pieces,
  piecesOf,
  ThinfsError,
} from '../../src/base/index.js'
import type { RemoteDisk } from '../../src/remote/index.js'

/** A clock that goes from one timer to the next. */
export class ManualClock implements Clock {
  #now = 0
  #timers: { at: number; fn: () => void }[] = []

  now(): number {
    return this.#now
  }

  after(ms: number, fn: () => void): () => void {
    const timer = { at: this.#now + ms, fn }
    const next = this.#timers.findIndex(({ at }) => at > timer.at)
    this.#timers.splice(next < 0 ? this.#timers.length : next, 0, timer)
    return () => {
      this.#timers = this.#timers.filter(other => other !== timer)
    }
  }

  yield(): Promise<void> {
    return new Promise(resolve => setImmediate(resolve))
  }

  /** Goes to the next timer. @throws Error where there is none */
  #step(): void {
    const timer = this.#timers.shift()
    if (timer === undefined) throw new Error('nothing will ever happen')
    this.#now = timer.at
    timer.fn()
  }

  /** Goes on until a promise ends. @returns milliseconds that it took */
  async until(promise: Promise<unknown>): Promise<number> {
    const begun = this.#now
    let ended = false
    const end = (): void => {
      ended = true
    }
    promise.then(end, end)
    for (;;) {
      await this.yield()
      if (ended) break
      this.#step()
    }
    await promise
    return this.#now - begun
  }
}

export interface Speed {
  /** Milliseconds of each request. */
  perRequest: number
  /** Bytes a millisecond. */
  bytesPerMs: number
  /** What the server takes into a cache of its own, in bytes a millisecond: a flush writes it. */
  cachedPerMs?: number
}

export interface Asked {
  kind: 'read' | 'write' | 'durable write' | 'zero' | 'flush'
  offset: number
  length: number
}

export class TimedDisk implements RemoteDisk {
  readonly path = 'timed'
  readonly makesHoles = true
  readonly epoch = 1
  readonly image: Buffer
  speed: Speed
  /** What fails, once it has taken its time. */
  failing: Asked['kind'] | null = null
  /** All requests, in their order. */
  readonly asked: Asked[] = []
  readonly #clock: ManualClock
  #free = 0
  #cached = 0

  constructor(size: number, speed: Speed, clock: ManualClock) {
    this.image = Buffer.alloc(size)
    this.speed = speed
    this.#clock = clock
  }

  get size(): number {
    return this.image.length
  }

  read(into: Pieces, offset: number): Promise<void> {
    const pieces = piecesOf(into)
    const length = lengthOf(pieces)
    return this.#ask('read', offset, length, () => {
      fillPieces(pieces, this.image.subarray(offset, offset + length))
    })
  }

  write(from: Pieces, offset: number, durable = false): Promise<void> {
    const kind = durable ? 'durable write' : 'write'
    const pieces = piecesOf(from)
    return this.#ask(kind, offset, lengthOf(pieces), () =>
      this.image.set(Buffer.concat(pieces), offset),
    )
  }

  zero(offset: number, length: number): Promise<void> {
    return this.#ask('zero', offset, length, () => this.image.fill(0, offset, offset + length))
  }

  flush(): Promise<void> {
    return this.#ask('flush', 0, 0, () => {})
  }

  async extents(): Promise<{ offset: number; length: number }[]> {
    const found: { offset: number; length: number }[] = []
    for (let at = 0; at < this.size; at += 4096) {
      const isZero = this.image.subarray(at, at + 4096).every(byte => byte === 0)
      if (!isZero) found.push({ offset: at, length: 4096 })
    }
    return found
  }

  close(): void {}

  /** One request after another, as by one head. */
  #ask(kind: Asked['kind'], offset: number, length: number, act: () => void): Promise<void> {
    const { perRequest, bytesPerMs, cachedPerMs } = this.speed
    let ms = perRequest
    if (kind === 'flush') {
      ms += this.#cached / bytesPerMs
      this.#cached = 0
    } else if (kind === 'write' && cachedPerMs !== undefined) {
      ms += length / cachedPerMs
      this.#cached += length
    } else if (kind !== 'zero') ms += length / bytesPerMs
    this.asked.push({ kind, offset, length })
    this.#free = Math.max(this.#free, this.#clock.now()) + ms
    return new Promise((resolve, reject) => {
      this.#clock.after(this.#free - this.#clock.now(), () => {
        if (kind === this.failing) {
          reject(new ThinfsError('IO_ERROR', 'the disk fails', { errno: 'EIO' }))
          return
        }
        act()
        resolve()
      })
    })
  }
}
