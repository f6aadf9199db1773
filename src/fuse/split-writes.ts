/**
 * Failures of WRITEs that their caller may not have heard of.
 *
 * The kernel sends a long write(2) as several WRITEs, each when the one before has succeeded. If a
 * later one fails, write(2) ends short, without an error. A program asks for the rest and is told
 * then; the driver of loop devices takes it for success (lo_complete_rq in drivers/block/loop.c,
 * Linux 6.18). So the next FSYNC of the same open file fails with that error: what was not written
 * is never taken to be flushed.
 */
import { errnoOf, KIB, type Later } from '../base/index.js'
import { later } from './later.js'

/**
 * Bytes of a WRITE that another part may follow: 32 pages, the fewest of a kernel, less an edge.
 */
export const LEAST_PART = 124 * KIB

export class SplitWrites {
  /** The end of the last WRITE of at least LEAST_PART bytes, by open file. */
  readonly #ends = new Map<number, number>()
  readonly #failures = new Map<number, unknown>()

  /** Whether any WRITE may be another part. */
  get expectsParts(): boolean {
    return this.#ends.size > 0
  }

  /** Notes a WRITE of the open file `fh`. @returns whether it may be another part */
  begun(fh: number, offset: number, size: number): boolean {
    const isPart = this.#ends.get(fh) === offset
    if (size >= LEAST_PART) this.#ends.set(fh, offset + size)
    return isPart
  }

  /** Makes the write of such a part. */
  part(fh: number, write: () => Later<number>): Later<number> {
    const failed = (err: unknown): never => {
      // After a signal its caller knows that write(2) may have ended short.
      if (errnoOf(err) !== 'EINTR') this.#failures.set(fh, err)
      throw err
    }
    try {
      const put = write()
      return put instanceof Promise ? put.catch(failed) : put
    } catch (err) {
      return failed(err)
    }
  }

  /**
   * The outcome of an FSYNC of the open file `fh`: that of the flush, or what nobody has heard of.
   */
  flushed(fh: number, flush: Later<void>): Later<void> {
    const failure = this.#failures.get(fh)
    if (failure === undefined) return flush
    this.#failures.delete(fh)
    return later(flush, () => {
      throw failure
    })
  }

  /** The file was closed. */
  forget(fh: number): void {
    this.#ends.delete(fh)
    this.#failures.delete(fh)
  }
}
