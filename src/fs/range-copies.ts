/**
 * copy_file_range(2): a range of one volume in another. Whole blocks that lie alike in both are
 * shared, and copied only when one side writes to them; the rest is read and written.
 */
import { GIB, heldRequester, MAX_IO, MIB, refused, unlessAborted } from '../base/index.js'
import type { ThinDevice, ThinPool } from '../pool/index.js'
import type { Volume } from '../volumes/index.js'
import { mustBeAbleToEnd } from './volume-ends.js'

/**
 * Bytes that one request handles at most. A shorter answer is allowed, and the caller asks again: a
 * request that runs on cannot be interrupted.
 */
const SHARE_MAX = 4 * GIB - MIB
const COPY_MAX = 64 * MIB

export interface RangeCopiesParts {
  pool: ThinPool
  /** Makes a device longer, for what was written past its end. */
  extend(device: ThinDevice, size: number): void
  /** The content of a volume changes now. */
  touch(volume: Volume): void
}

/** A place in a volume, in bytes. */
export interface Place {
  volume: Volume
  offset: number
}

export class RangeCopies {
  readonly #parts: RangeCopiesParts

  constructor(parts: RangeCopiesParts) {
    this.#parts = parts
  }

  /**
   * @param signal ends a wait for space with its reason; what was copied stays
   * @returns bytes that were copied: fewer than `length` where that is much, or the source ends
   */
  async copy(from: Place, to: Place, length: number, signal?: AbortSignal): Promise<number> {
    const { pool, extend, touch } = this.#parts
    const { blockSize } = pool
    const source = from.volume
    const target = to.volume
    // A layer before the device has to see the bytes.
    const arePlain = source.io === source.device && target.io === target.device
    const alike =
      arePlain &&
      from.offset % blockSize === to.offset % blockSize &&
      source.device.sharable &&
      target.device.sharable
    const most = Math.min(length, alike ? SHARE_MAX : COPY_MAX)
    const left = Math.min(most, source.device.size - from.offset)
    if (left <= 0) return 0
    const end = to.offset + left
    if (end > target.device.size) mustBeAbleToEnd(target, end)
    if (source === target && Math.abs(from.offset - to.offset) < left) {
      throw refused('EINVAL', 'the ranges overlap')
    }
    pool.mustBeWritable()
    if (end > target.device.size) await unlessAborted(target.device.clearPastEnd(), signal)
    extend(target.device, end)
    touch(target)
    const head = Math.min((blockSize - (from.offset % blockSize)) % blockSize, left)
    const whole = Math.floor((left - head) / blockSize) * blockSize
    if (!alike || whole === 0) {
      await this.#copyBytes(from, to, 0, left, signal)
      return left
    }
    await this.#copyBytes(from, to, 0, head, signal)
    const [begin, where] = [from.offset + head, to.offset + head]
    await target.device.share(source.device, begin, where, whole, signal)
    const done = head + whole
    extend(target.device, to.offset + done)
    await this.#copyBytes(from, to, done, left - done, signal)
    return left
  }

  /**
   * Copies bytes that cannot be shared; holes stay holes where whole blocks are.
   * @param skip bytes of both ranges that come before
   */
  async #copyBytes(
    from: Place,
    to: Place,
    skip: number,
    length: number,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    if (length <= 0) return
    const { pool, extend } = this.#parts
    const [source, target] = [from.offset + skip, to.offset + skip]
    const buffer = Buffer.allocUnsafe(Math.min(length, MAX_IO))
    const requester = heldRequester(signal)
    for (let done = 0; done < length; ) {
      const size = Math.min(buffer.length, length - done)
      if (!from.volume.io.read(source + done, size, buffer, 0)) {
        await from.volume.io.readLater(source + done, size, buffer, 0)
      }
      await to.volume.io.write(target + done, size, buffer, 0, requester)
      // Somebody may have cut the volume off meanwhile: what is written is not past its end.
      extend(to.volume.device, target + done + size)
      done += size
      await pool.clock.yield()
    }
  }
}
