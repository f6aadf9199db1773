import { type Bytes, bytes, ThinfsError } from '../../src/base/index.js'
import type { Label, Store } from '../../src/storage/index.js'

const PAGE = 4096
const ZEROS = Buffer.alloc(PAGE)

/**
 * A Store in memory that knows its holes, and what a power cut would leave.
 *
 * Writes go to the volatile image at once and to the durable one at `sync`. `crash(keep)` makes
 * what a disk could hold after a power cut: the durable image with those unflushed writes that
 * `keep` chooses, in order. `onWrite` sees each write, punch and sync before it happens, and may
 * throw.
 */
export class MemoryStore implements Store {
  readonly path: string
  readonly punches: boolean
  readonly copiesShare = false
  tellsHoles = true
  size: Bytes
  /** What `readNow` answers: false when nothing is to be had without waiting. */
  inMemory = true
  label: Label | null = null
  keepsLabels = true
  onWrite: ((op: 'write' | 'punch' | 'sync', offset: number, length: number) => void) | undefined
  #image: Buffer
  /** The same buffer until the first write. */
  #durable: Buffer
  #data: Set<number> // pages that are not holes
  #pending: { offset: number; content: Buffer | number }[] = [] // a number: punched length

  /** @param options.image taken over, not copied */
  constructor(size: number, options: { path?: string; punches?: boolean; image?: Buffer } = {}) {
    this.path = options.path ?? 'memory'
    this.punches = options.punches ?? true
    this.size = bytes(size)
    this.#image = options.image ?? Buffer.alloc(size)
    this.#durable = this.#image
    this.#data = new Set()
    if (!options.image) return
    for (let at = 0; at < size; at += PAGE) {
      const end = Math.min(at + PAGE, size)
      if (this.#image.compare(ZEROS, 0, end - at, at, end) !== 0) this.#data.add(at / PAGE)
    }
  }

  /** What is there now, flushed or not. */
  get image(): Buffer {
    return this.#image
  }

  read(buffer: Uint8Array, at: number, length: number, offset: Bytes): void {
    this.#range(offset, length)
    this.#image.copy(buffer, at, offset, offset + length)
  }

  readNow(buffer: Uint8Array, at: number, length: number, offset: Bytes): boolean {
    if (this.inMemory) this.read(buffer, at, length, offset)
    return this.inMemory
  }

  async readLater(buffer: Uint8Array, at: number, length: number, offset: Bytes): Promise<void> {
    await new Promise(resolve => setImmediate(resolve))
    this.read(buffer, at, length, offset)
  }

  write(buffer: Uint8Array, at: number, length: number, offset: Bytes): void {
    this.#range(offset, length)
    this.onWrite?.('write', offset, length)
    this.#part()
    const content = Buffer.from(buffer.subarray(at, at + length))
    content.copy(this.#image, offset)
    this.#pending.push({ offset, content })
    for (let p = Math.floor(offset / PAGE); p * PAGE < offset + length; p++) this.#data.add(p)
  }

  copy(source: Bytes, target: Bytes, length: Bytes): void {
    this.#range(source, length)
    this.write(Buffer.from(this.#image.subarray(source, source + length)), 0, length, target)
  }

  punch(offset: Bytes, length: Bytes): void {
    this.#range(offset, length)
    this.onWrite?.('punch', offset, length)
    this.#part()
    this.#image.fill(0, offset, offset + length)
    this.#pending.push({ offset, content: length })
    if (!this.punches) return
    for (let p = Math.ceil(offset / PAGE); (p + 1) * PAGE <= offset + length; p++)
      this.#data.delete(p)
  }

  async punchLater(offset: Bytes, length: Bytes): Promise<void> {
    this.punch(offset, length)
  }

  zero(offset: Bytes, length: Bytes): void {
    this.write(Buffer.alloc(length), 0, length, offset)
  }

  nextData(offset: Bytes): Bytes {
    for (let p = Math.floor(offset / PAGE); p * PAGE < this.size; p++) {
      if (this.#data.has(p)) return bytes(Math.max(offset, p * PAGE))
    }
    return this.size
  }

  nextHole(offset: Bytes): Bytes {
    for (let p = Math.floor(offset / PAGE); p * PAGE < this.size; p++) {
      if (!this.#data.has(p)) return bytes(Math.max(offset, p * PAGE))
    }
    return this.size
  }

  async sync(): Promise<void> {
    // What is written while the flush is under way is not promised to be in it.
    const flushed = this.#pending.length
    this.onWrite?.('sync', 0, 0)
    await new Promise(resolve => setImmediate(resolve))
    for (const write of this.#pending.splice(0, flushed)) apply(this.#durable, write)
  }

  measure(): void {}

  grow(size: Bytes): void {
    if (size < this.size) throw new ThinfsError('BAD_ARGUMENT', 'a store does not shrink')
    const more = Buffer.alloc(size - this.size)
    this.#image = Buffer.concat([this.#image, more])
    this.#durable = Buffer.concat([this.#durable, more])
    this.size = size
  }

  cut(size: Bytes): void {
    this.#part()
    this.#image = Buffer.from(this.#image.subarray(0, size))
    this.#durable = Buffer.from(this.#durable.subarray(0, size))
    this.#pending = this.#pending.filter(({ offset }) => offset < size)
    for (const page of this.#data) if (page * PAGE >= size) this.#data.delete(page)
    this.size = size
  }

  close(): void {}

  /**
   * What a flush that failed does: what was to be flushed is there to be read, but never on the
   * disk.
   */
  loseUnflushed(): void {
    this.#part()
    this.#pending = []
  }

  /**
   * A store holding what the disk may hold after a power cut now; `keep` decides for each unflushed
   * write.
   */
  crash(keep: (index: number, total: number) => boolean): MemoryStore {
    const image = Buffer.from(this.#durable)
    this.#pending.forEach((write, i) => {
      if (keep(i, this.#pending.length)) apply(image, write)
    })
    return this.#with(image)
  }

  /**
   * A store as a new process on the same machine finds it: all that was written, flushed or not.
   */
  reopen(): MemoryStore {
    return this.#with(Buffer.from(this.#image))
  }

  #with(image: Buffer): MemoryStore {
    const store = new MemoryStore(this.size, { path: this.path, punches: this.punches, image })
    store.label = this.label
    return store
  }

  readLabel(): Label | null {
    return this.label
  }

  writeLabel(label: Label): boolean {
    if (this.keepsLabels) this.label = label
    return this.keepsLabels
  }

  #part(): void {
    if (this.#image === this.#durable) this.#image = Buffer.from(this.#durable)
  }

  #range(offset: number, length: number): void {
    if (offset < 0 || length < 0 || offset + length > this.size) {
      throw new ThinfsError('IO_ERROR', `${this.path}: ${length} bytes at ${offset}: past the end`)
    }
  }
}

function apply(image: Buffer, write: { offset: number; content: Buffer | number }): void {
  if (typeof write.content === 'number') image.fill(0, write.offset, write.offset + write.content)
  else write.content.copy(image, write.offset)
}
