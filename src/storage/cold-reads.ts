import { read } from 'node:fs'
import { constants } from 'node:os'
import { getSystemErrorName } from 'node:util'
import { ThinfsError } from '../base/index.js'
import { native } from '../native.js'
import { Ring } from '../ring/index.js'

const { EAGAIN, EINTR } = constants.errno

/** As many as the kernel's requests under way on a busy mount. More reads go to the threads. */
const ENTRIES = 256

/** A read, or the part of it that is still to be read. */
interface Request {
  fd: number
  buffer: Uint8Array
  at: number
  left: number
  offset: number
  resolve(): void
  reject(err: Error): void
}

/**
 * Reads that wait for a disk, many at a time: by io_uring, or on libuv's threads where that is not
 * allowed.
 */
export class ColdReads {
  /** The ring, made with the first read; null where io_uring is not available. */
  #ring: Ring | null | undefined
  readonly #waiting = new Map<number, Request>()
  #nextTag = 0
  #submitQueued = false

  /**
   * Fills `length` bytes of `buffer` at `at` from byte `offset` of a file.
   * @throws errors of read(2), and `EOF` when the file ends before
   */
  read(fd: number, buffer: Uint8Array, at: number, length: number, offset: number): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#ask({ fd, buffer, at, left: length, offset, resolve, reject })
    })
  }

  /** All reads have to have ended. */
  close(): void {
    this.#ring?.close()
  }

  #ask(request: Request): void {
    if (this.#ring === undefined) this.#ring = this.#open()
    const ring = this.#ring
    if (ring === null || this.#waiting.size === ring.capacity) {
      this.#askThread(request)
      return
    }
    const { fd, buffer, at, left, offset } = request
    const tag = this.#nextTag
    this.#nextTag = (tag + 1) >>> 0
    this.#waiting.set(tag, request)
    ring.read(fd, offset, native.buffer_address(buffer) + at, left, tag)
    this.#submitSoon(ring)
  }

  #askThread(request: Request): void {
    const { fd, buffer, at, left, offset } = request
    read(fd, buffer, at, left, offset, (err, got) => {
      if (err) request.reject(err)
      else this.#got(request, got)
    })
  }

  /** @param result bytes read, or a negative errno */
  #got(request: Request, result: number): void {
    if (result === request.left) {
      request.resolve()
    } else if (result > 0) {
      request.at += result
      request.left -= result
      request.offset += result
      this.#ask(request)
    } else if (result === -EAGAIN || result === -EINTR) {
      this.#askThread(request)
    } else {
      const code = result === 0 ? 'EOF' : getSystemErrorName(result)
      const err = new Error(result === 0 ? 'EOF: end of file, read' : `${code}: read`)
      request.reject(Object.assign(err, { code, syscall: 'read' }))
    }
  }

  /** Reads of one turn of the event loop are submitted together. */
  #submitSoon(ring: Ring): void {
    if (this.#submitQueued) return
    this.#submitQueued = true
    queueMicrotask(() => {
      this.#submitQueued = false
      ring.submit()
    })
  }

  #open(): Ring | null {
    try {
      const ring = new Ring({ entries: ENTRIES })
      const ended = (tag: number, result: number): void => {
        const request = this.#waiting.get(tag)!
        this.#waiting.delete(tag)
        this.#got(request, result)
      }
      ring.watch(() => {
        ring.poll(0)
        ring.take(ended)
      })
      return ring
    } catch (err) {
      if (err instanceof ThinfsError && err.code === 'NOT_SUPPORTED') return null
      throw err
    }
  }
}
