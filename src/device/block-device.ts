/**
 * A disk as thinfs serves it: what FUSE files and device tables read and write. A thin device is
 * one, a linear, striped, zero or error target is another.
 *
 * Offsets and lengths are bytes; a caller stays within `size`. A method throws an error whose errno
 * (`errnoOf`) the requester gets.
 */
import type { Later, Requester } from '../base/index.js'

export interface BlockDevice {
  /** Bytes. */
  readonly size: number
  /** True once the device was deleted or its table was dropped: every call throws from then on. */
  readonly gone: boolean

  /**
   * Fills `size` bytes of `buffer` at `at` from `offset`, if no disk has to be waited for.
   * @returns false when `readLater` has to be called instead: what is in `buffer` then means
   *   nothing
   */
  read(offset: number, size: number, buffer: Uint8Array, at: number): boolean
  /** As `read`, and waits for the disk. */
  readLater(offset: number, size: number, buffer: Uint8Array, at: number): Promise<void>
  /**
   * Writes `size` bytes of `buffer` from `at`, all or none. A device that answers with a promise
   * has copied the bytes before it returns.
   * @param requester whose signal ends the wait for space: nothing was written then
   */
  write(
    offset: number,
    size: number,
    buffer: Uint8Array,
    at: number,
    requester?: Requester,
  ): Later<void>
  /**
   * Gives the space of a range back; the range reads as zeros where the device says so.
   * @param waits edges that need a block wait for one where the pool is full; default: they do
   * @param signal ends that wait with its reason
   */
  discard(offset: number, length: number, waits?: boolean, signal?: AbortSignal): Later<void>
  /** Makes a range read as zeros. @param signal ends a wait for space with its reason */
  zero(offset: number, length: number, signal?: AbortSignal): Later<void>
  /** Makes everything that was acknowledged before the call durable. */
  flush(): Promise<void>

  /** First byte at or after `offset` that may hold data; `size` when there is none. */
  nextData(offset: number): Later<number>
  /** First byte at or after `offset` in a hole; `size` when there is none. */
  nextHole(offset: number): Later<number>
}
