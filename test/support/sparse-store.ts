import { AssertionError, type Bytes, bytes, ThinfsError } from '../../src/base/index.js'
import type { Store } from '../../src/storage/index.js'

const PAGE = 4096
const ZEROS = Buffer.alloc(PAGE)

/**
 * A Store of any size over an image that it does not change, made in no time: for tests that open
 * the same files thousands of times. It is stricter than others: a range that is no range at all,
 * and whatever comes after `close`, is a bug of the caller and not an I/O error.
 */
export class SparseStore implements Store {
  readonly path: string
  readonly punches = true
  readonly copiesShare = false
  size: Bytes
  /** Calls of `read`. */
  reads = 0
  #closed = false
  readonly #base: Buffer
  /** What was written over the image: null is a hole. */
  readonly #pages = new Map<number, Buffer | null>()

  constructor(path: string, base: Buffer, size = base.length) {
    this.path = path
    this.#base = base
    this.size = bytes(size)
  }

  read(buffer: Uint8Array, at: number, length: number, offset: Bytes): void {
    this.#check(offset, length)
    this.reads++
    for (let done = 0; done < length; ) {
      const [page, skip, part] = place(offset + done, length - done)
      this.#page(page).copy(buffer, at + done, skip, skip + part)
      done += part
    }
  }

  readNow(buffer: Uint8Array, at: number, length: number, offset: Bytes): boolean {
    this.read(buffer, at, length, offset)
    return true
  }

  async readLater(buffer: Uint8Array, at: number, length: number, offset: Bytes): Promise<void> {
    this.read(buffer, at, length, offset)
  }

  write(buffer: Uint8Array, at: number, length: number, offset: Bytes): void {
    this.#check(offset, length)
    for (let done = 0; done < length; ) {
      const [page, skip, part] = place(offset + done, length - done)
      const content = Buffer.from(this.#page(page))
      content.set(buffer.subarray(at + done, at + done + part), skip)
      this.#pages.set(page, content)
      done += part
    }
  }

  copy(source: Bytes, target: Bytes, length: Bytes): void {
    if (source + length > target && target + length > source) {
      throw new AssertionError(`${this.path}: copy of ${length} from ${source} to ${target}`)
    }
    const content = Buffer.alloc(length)
    this.read(content, 0, length, source)
    this.write(content, 0, length, target)
  }

  punch(offset: Bytes, length: Bytes): void {
    this.#check(offset, length)
    const end = offset + length
    for (const page of this.#written()) {
      const from = Math.max(page * PAGE, offset)
      const to = Math.min(page * PAGE + PAGE, end)
      if (to - from === PAGE) this.#pages.set(page, null)
      else if (to > from) this.write(ZEROS, 0, to - from, bytes(from))
    }
  }

  async punchLater(offset: Bytes, length: Bytes): Promise<void> {
    this.punch(offset, length)
  }

  zero(offset: Bytes, length: Bytes): void {
    this.punch(offset, length)
  }

  nextData(offset: Bytes): Bytes {
    let found: number = this.size
    for (const page of this.#written()) {
      const end = page * PAGE + PAGE
      if (this.#isData(page) && end > offset) found = Math.min(found, Math.max(page * PAGE, offset))
    }
    return bytes(found)
  }

  nextHole(offset: Bytes): Bytes {
    let at: number = offset
    while (at < this.size && this.#isData(Math.floor(at / PAGE))) {
      at = (Math.floor(at / PAGE) + 1) * PAGE
    }
    return bytes(Math.min(at, this.size))
  }

  async sync(): Promise<void> {
    this.#mustBeOpen()
    await new Promise(resolve => setImmediate(resolve))
    this.#mustBeOpen()
  }

  measure(): void {}

  grow(size: Bytes): void {
    this.size = size
  }

  close(): void {
    this.#closed = true
  }

  /** All of it, as it is now. */
  image(): Buffer {
    const image = Buffer.alloc(this.size)
    this.#base.copy(image)
    for (const [page, content] of this.#pages) (content ?? ZEROS).copy(image, page * PAGE)
    return image
  }

  #page(page: number): Buffer {
    const written = this.#pages.get(page)
    if (written !== undefined) return written ?? ZEROS
    const at = page * PAGE
    if (at + PAGE <= this.#base.length) return this.#base.subarray(at, at + PAGE)
    const content = Buffer.alloc(PAGE)
    if (at < this.#base.length) this.#base.copy(content, 0, at)
    return content
  }

  /** Pages that may have something in them. */
  #written(): Set<number> {
    const pages = new Set(this.#pages.keys())
    for (let page = 0; page * PAGE < this.#base.length; page++) pages.add(page)
    return pages
  }

  #isData(page: number): boolean {
    const written = this.#pages.get(page)
    return written === undefined ? page * PAGE < this.#base.length : written !== null
  }

  #check(offset: number, length: number): void {
    this.#mustBeOpen()
    if (!(offset >= 0) || !(length >= 0)) {
      throw new AssertionError(`${this.path}: ${length} bytes at ${offset}`)
    }
    if (offset + length > this.size) {
      throw new ThinfsError('IO_ERROR', `${this.path}: ${length} bytes at ${offset}: past the end`)
    }
  }

  #mustBeOpen(): void {
    if (this.#closed) throw new AssertionError(`${this.path}: used after it was closed`)
  }
}

function place(offset: number, left: number): [page: number, skip: number, part: number] {
  const page = Math.floor(offset / PAGE)
  const skip = offset - page * PAGE
  return [page, skip, Math.min(PAGE - skip, left)]
}
