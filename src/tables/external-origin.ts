/**
 * A thin device that shows another device where it maps nothing: its external origin, which is only
 * read. A new block gets its bytes outside of the write from there.
 */
import { MAX_IO, refused, ThinfsError } from '../base/index.js'
import type { OpenSource } from './source.js'
import type { TargetDevice } from './target-device.js'
import type { ThinTarget } from './thin-target.js'

const ZEROS = Buffer.alloc(MAX_IO)

export class ThinWithOrigin implements TargetDevice {
  readonly size: number
  readonly #thin: ThinTarget
  readonly #origin: OpenSource
  readonly #blockSize: number
  /** Writes to unmapped blocks run one after the other: each sees the mappings of the last. */
  #last: Promise<unknown> = Promise.resolve()

  /**
   * @param thin closed with this, as is `origin`
   * @throws BAD_ARGUMENT for blocks that one write cannot fill
   */
  constructor(thin: ThinTarget, origin: OpenSource) {
    if (thin.blockSize > MAX_IO) {
      throw refused(
        'EINVAL',
        `blocks of ${thin.blockSize} bytes with an external origin: at most ${MAX_IO}`,
      )
    }
    this.size = thin.size
    this.#thin = thin
    this.#origin = origin
    this.#blockSize = thin.blockSize
  }

  get gone(): boolean {
    return this.#thin.gone
  }

  get writesWaiting(): number {
    return this.#thin.writesWaiting
  }

  read(): boolean {
    return false
  }

  async readLater(offset: number, size: number, buffer: Uint8Array, at: number): Promise<void> {
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

  async write(offset: number, size: number, buffer: Uint8Array, at: number): Promise<void> {
    const held = Buffer.from(buffer.subarray(at, at + size))
    if (await this.#isMapped(offset, size)) return this.#thin.write(offset, size, held, 0)
    const written = this.#last.then(() => this.#provision(offset, held))
    this.#last = written.catch(() => {})
    return written
  }

  /** Refused: the origin would show through the hole. */
  discard(): void {
    throw new ThinfsError('NOT_SUPPORTED', 'discards with an external origin')
  }

  async zero(offset: number, length: number): Promise<void> {
    for (let done = 0; done < length; done += MAX_IO) {
      await this.write(offset + done, Math.min(MAX_IO, length - done), ZEROS, 0)
    }
  }

  flush(): Promise<void> {
    return this.#thin.flush()
  }

  nextData(offset: number): number {
    return offset
  }

  nextHole(): number {
    return this.size
  }

  check(): void {}

  resume(): Promise<void> {
    return this.#thin.resume()
  }

  status(): string {
    return this.#thin.status()
  }

  async close(): Promise<void> {
    this.#origin.close()
    await this.#thin.close()
  }

  async #isMapped(offset: number, size: number): Promise<boolean> {
    if ((await this.#thin.nextData(offset)) !== offset) return false
    return (await this.#thin.nextHole(offset)) >= offset + size
  }

  /** Writes block by block; those that are not mapped as a whole. */
  async #provision(offset: number, bytes: Buffer): Promise<void> {
    const end = offset + bytes.length
    for (let from = offset; from < end; ) {
      const begin = Math.floor(from / this.#blockSize) * this.#blockSize
      const blockEnd = Math.min(begin + this.#blockSize, this.size)
      const to = Math.min(blockEnd, end)
      const piece = bytes.subarray(from - offset, to - offset)
      if ((from === begin && to === blockEnd) || (await this.#isMapped(from, to - from))) {
        await this.#thin.write(from, to - from, piece, 0)
      } else {
        const whole = Buffer.alloc(blockEnd - begin)
        await this.#readOrigin(begin, whole.length, whole, 0)
        whole.set(piece, from - begin)
        await this.#thin.write(begin, whole.length, whole, 0)
      }
      from = to
    }
  }

  /** Bytes past the end of the origin read as zeros. */
  async #readOrigin(offset: number, size: number, buffer: Uint8Array, at: number): Promise<void> {
    const { device, start } = this.#origin
    const there = Math.max(0, Math.min(size, device.size - start - offset))
    buffer.fill(0, at + there, at + size)
    if (there > 0 && !device.read(start + offset, there, buffer, at)) {
      await device.readLater(start + offset, there, buffer, at)
    }
  }
}
