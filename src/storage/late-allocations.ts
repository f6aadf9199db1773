import { ThinfsError } from '../base/index.js'
import { native } from '../native.js'

/** Calls of one visit to the thread pool. Closing the file waits for as many. */
const BATCH = 64

interface Call {
  mode: number
  offset: number
  length: number
  resolve(done: Promise<void>): void
}

/**
 * fallocate(2) on a file, off the caller's thread. The kernel carries out one such call at a time
 * on a file, and a visit to the thread pool costs more than most of them: so calls wait for the
 * visit that is under way, and go together.
 */
export class LateAllocations {
  readonly #fd: number
  #calls: Call[] = []
  #queued = false

  constructor(fd: number) {
    this.#fd = fd
  }

  /** @throws errors of fallocate(2) */
  call(mode: number, offset: number, length: number): Promise<void> {
    return new Promise(resolve => {
      this.#calls.push({ mode, offset, length, resolve })
      if (this.#queued) return
      this.#queued = true
      queueMicrotask(() => this.#start())
    })
  }

  /** The file is about to be closed: calls that wait for it fail. */
  close(): void {
    const err = new ThinfsError('IO_ERROR', 'fallocate: the file was closed', { errno: 'EBADF' })
    for (const { resolve } of this.#calls) resolve(Promise.reject(err))
    this.#calls = []
  }

  #start(): void {
    const first = this.#calls[0]
    if (first === undefined) {
      this.#queued = false
      return
    }
    const other = this.#calls.findIndex(({ mode }, i) => i === BATCH || mode !== first.mode)
    const batch = this.#calls.splice(0, other < 0 ? this.#calls.length : other)
    const ranges = new Float64Array(2 * batch.length)
    batch.forEach(({ offset, length }, i) => {
      ranges[2 * i] = offset
      ranges[2 * i + 1] = length
    })
    const done = native.file_allocate_async(this.#fd, first.mode, ranges)
    batch.forEach(({ resolve }, i) => {
      resolve(done[i]!)
    })
    void Promise.allSettled(done).then(() => this.#start())
  }
}
