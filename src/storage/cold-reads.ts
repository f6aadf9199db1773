import { read } from 'node:fs'
import { constants } from 'node:os'
import { getSystemErrorName, promisify } from 'node:util'
import { ThinfsError } from '../base/index.js'
import { native } from '../native.js'
import { Ring } from '../ring/index.js'

const { EAGAIN, EINTR } = constants.errno

/** As many as the kernel has requests under way for a mount that is busy; more go to the threads. */
const ENTRIES = 256

const readOnThread = promisify(read)

interface Waiting {
  /** Keeps the memory that is read to. */
  buffer: Uint8Array
  resolve(result: number): void
}

/**
 * Reads that wait for a disk, many at a time: by io_uring, or on libuv's threads where that is not
 * allowed.
 */
export class ColdReads {
  /** Null where there is none to be had; made with the first read. */
  #ring: Ring | null | undefined
  readonly #waiting = new Map<number, Waiting>()
  #nextTag = 0
  #submitQueued = false

  /**
   * Fills `length` bytes of `buffer` at `at` from byte `offset` of a file.
   * @throws errors of read(2), and `EOF` when the file ends before
   */
  async read(
    fd: number,
    buffer: Uint8Array,
    at: number,
    length: number,
    offset: number,
  ): Promise<void> {
    for (let done = 0; done < length; ) {
      const got = await this.#readSome(fd, buffer, at + done, length - done, offset + done)
      if (got === 0) throw Object.assign(new Error('EOF: end of file, read'), { code: 'EOF' })
      done += got
    }
  }

  /** All reads have to have ended. */
  close(): void {
    this.#ring?.close()
  }

  async #readSome(
    fd: number,
    buffer: Uint8Array,
    at: number,
    length: number,
    offset: number,
  ): Promise<number> {
    if (this.#ring === undefined) this.#ring = this.#open()
    const ring = this.#ring
    if (ring !== null && this.#waiting.size < ring.capacity) {
      const address = native.buffer_address(buffer) + at
      const result = await new Promise<number>(resolve => {
        const tag = this.#nextTag
        this.#nextTag = (tag + 1) >>> 0
        this.#waiting.set(tag, { buffer, resolve })
        ring.read(fd, offset, address, length, tag)
        this.#submitSoon(ring)
      })
      if (result >= 0) return result
      if (result !== -EAGAIN && result !== -EINTR) {
        const code = getSystemErrorName(result)
        throw Object.assign(new Error(`${code}: read`), { code, errno: result, syscall: 'read' })
      }
    }
    return (await readOnThread(fd, buffer, at, length, offset)).bytesRead
  }

  /** What is asked for in one turn of the event loop goes to the disk together. */
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
        const { resolve } = this.#waiting.get(tag)!
        this.#waiting.delete(tag)
        resolve(result)
      }
      ring.watch(() => {
        ring.submit()
        ring.take(ended)
      })
      return ring
    } catch (err) {
      if (err instanceof ThinfsError && err.code === 'NOT_SUPPORTED') return null
      throw err
    }
  }
}
