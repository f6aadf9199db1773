/**
 * A thin device that shows something else where it maps nothing: its external origin, which is only
 * read. A new block gets its bytes outside of the write from there.
 *
 * The kernel lets the origin show again in a block that was discarded. Here a discarded range reads
 * as zeros, as users of a file and of a loop device expect: so it is refused where the origin has
 * data. Source: Documentation/admin-guide/device-mapper/thin-provisioning.rst, "External
 * snapshots".
 */
import {
  heldRequester,
  type Later,
  MAX_IO,
  type Requester,
  refused,
  ThinfsError,
} from '../base/index.js'
import type { BlockDevice } from './block-device.js'

const ZEROS = Buffer.alloc(MAX_IO)

/** The image that shows: behind its end, and in its holes, are zeros. */
export interface Origin {
  /** Bytes. */
  readonly size: number
  /** @returns false when `readLater` has to be called instead */
  read(offset: number, size: number, buffer: Uint8Array, at: number): boolean
  readLater(offset: number, size: number, buffer: Uint8Array, at: number): Promise<void>
  /** First byte at or after `offset` that may be no zero; past the end when there is none. */
  nextData(offset: number): Later<number>
  /** First byte at or after `offset` in a hole; `size`, or more, when there is none. */
  nextHole(offset: number): Later<number>
}

/** The answer of the thin device below. */
export interface MappedDevice extends BlockDevice {
  /** Bytes of a data block. */
  readonly blockSize: number
  /** Whether all blocks of a range are mapped. */
  isMapped(offset: number, size: number): boolean
}

export class WithOrigin implements BlockDevice {
  readonly #thin: MappedDevice
  readonly #origin: Origin
  /** Writes to unmapped blocks run one after the other: each sees the mappings of the last. */
  #last: Promise<unknown> = Promise.resolve()

  /** @throws BAD_ARGUMENT for blocks that one write cannot fill */
  constructor(thin: MappedDevice, origin: Origin) {
    mustBeFillable(thin.blockSize)
    this.#thin = thin
    this.#origin = origin
  }

  get size(): number {
    return this.#thin.size
  }

  get gone(): boolean {
    return this.#thin.gone
  }

  read(offset: number, size: number, buffer: Uint8Array, at: number): boolean {
    return this.#isOwn(offset, size) && this.#thin.read(offset, size, buffer, at)
  }

  async readLater(offset: number, size: number, buffer: Uint8Array, at: number): Promise<void> {
    if (this.#isOwn(offset, size)) return this.#thin.readLater(offset, size, buffer, at)
    const end = offset + size
    for (let from = offset; from < end; ) {
      const mapped = Math.min(await this.#thin.nextData(from), end)
      const to = mapped > from ? mapped : Math.min(await this.#thin.nextHole(from), end)
      const place = at + (from - offset)
      if (mapped > from) await this.#readOrigin(from, to - from, buffer, place)
      else if (!this.#thin.read(from, to - from, buffer, place)) {
        await this.#thin.readLater(from, to - from, buffer, place)
      }
      from = to
    }
  }

  write(
    offset: number,
    size: number,
    buffer: Uint8Array,
    at: number,
    requester?: Requester,
  ): Later<void> {
    if (this.#isOwn(offset, size)) return this.#thin.write(offset, size, buffer, at, requester)
    const held = Buffer.from(buffer.subarray(at, at + size))
    const signal = requester?.signal()
    const written = this.#last.then(() => this.#provision(offset, held, heldRequester(signal)))
    this.#last = written.catch(() => {})
    return written
  }

  /** Refused where the origin has data: it would show through the hole. */
  async discard(
    offset: number,
    length: number,
    waits?: boolean,
    signal?: AbortSignal,
  ): Promise<void> {
    if ((await this.#nextOriginData(offset)) < offset + length) {
      throw new ThinfsError('NOT_SUPPORTED', 'discards where the external origin has data')
    }
    await this.#thin.discard(offset, length, waits, signal)
  }

  async zero(offset: number, length: number, signal?: AbortSignal): Promise<void> {
    const end = offset + length
    for (let from = offset; from < end; ) {
      const data = Math.min(await this.#nextOriginData(from), end)
      if (data > from) {
        await this.#thin.zero(from, data - from, signal)
        from = data
        continue
      }
      const hole = Math.min(await this.#origin.nextHole(from), end)
      const size = Math.min(hole - from, MAX_IO)
      await this.write(from, size, ZEROS, 0, heldRequester(signal))
      from += size
    }
  }

  flush(): Promise<void> {
    return this.#thin.flush()
  }

  async nextData(offset: number): Promise<number> {
    return Math.min(await this.#thin.nextData(offset), await this.#nextOriginData(offset))
  }

  async nextHole(offset: number): Promise<number> {
    for (let at = offset; at < this.size; ) {
      const unmapped = await this.#thin.nextHole(at)
      if (unmapped >= this.size) break
      const hole = unmapped < this.#origin.size ? await this.#origin.nextHole(unmapped) : unmapped
      if (hole === unmapped) return hole
      at = hole
    }
    return this.size
  }

  /** Whether all that a range shows is the thin device's own. */
  #isOwn(offset: number, size: number): boolean {
    const { blockSize } = this.#thin
    return (
      offset >= Math.ceil(this.#origin.size / blockSize) * blockSize ||
      this.#thin.isMapped(offset, size)
    )
  }

  async #nextOriginData(offset: number): Promise<number> {
    if (offset >= this.#origin.size) return this.size
    const data = await this.#origin.nextData(offset)
    return data >= this.#origin.size ? Math.max(this.size, offset) : data
  }

  /** Writes block by block; those that are not mapped as a whole. */
  async #provision(offset: number, bytes: Buffer, requester?: Requester): Promise<void> {
    const { blockSize } = this.#thin
    const end = offset + bytes.length
    for (let from = offset; from < end; ) {
      const begin = Math.floor(from / blockSize) * blockSize
      // A write past the end makes the device longer afterwards.
      const blockEnd = Math.min(begin + blockSize, Math.max(this.size, end))
      const to = Math.min(blockEnd, end)
      const piece = bytes.subarray(from - offset, to - offset)
      if ((from === begin && to === blockEnd) || this.#isOwn(from, to - from)) {
        await this.#thin.write(from, to - from, piece, 0, requester)
      } else {
        const whole = Buffer.alloc(blockEnd - begin)
        await this.#readOrigin(begin, whole.length, whole, 0)
        whole.set(piece, from - begin)
        await this.#thin.write(begin, whole.length, whole, 0, requester)
      }
      from = to
    }
  }

  /** Bytes past the end of the origin read as zeros. */
  async #readOrigin(offset: number, size: number, buffer: Uint8Array, at: number): Promise<void> {
    const there = Math.max(0, Math.min(size, this.#origin.size - offset))
    buffer.fill(0, at + there, at + size)
    if (there > 0 && !this.#origin.read(offset, there, buffer, at)) {
      await this.#origin.readLater(offset, there, buffer, at)
    }
  }
}

/** @throws BAD_ARGUMENT for blocks that one write cannot fill */
export function mustBeFillable(blockSize: number): void {
  if (blockSize <= MAX_IO) return
  const what = `blocks of ${blockSize} bytes with an external origin: at most ${MAX_IO}`
  throw refused('EINVAL', what)
}
