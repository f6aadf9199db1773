/**
 * A range of bytes that lasts: what data and metadata are kept in.
 *
 * Reads and writes are whole: they move every byte asked for or throw. They are synchronous where
 * memory answers: a server whose store is the page cache would lose more by waiting for a thread than
 * by the call itself. What waits for a device is not: `readLater` after `readNow`, `sync`.
 */
import type { Bytes } from '../base/index.js'

/** What the file system below a store says of its space, in bytes. */
export interface HostRoom {
  /** What it can give to files that grow. */
  available: number
  /** What it has given to the store already. */
  allocated: number
}

export interface Store {
  /** Names the store in messages: the file's path. */
  readonly path: string
  /** Current length. */
  readonly size: Bytes
  /** Whether `punch` gives the space back and leaves a hole that `nextData` sees. */
  readonly punches: boolean

  /** Fills `length` bytes of `buffer` at `at` from byte `offset`. Past the end of the store is an error. */
  read(buffer: Uint8Array, at: number, length: number, offset: Bytes): void
  /**
   * As `read`, but only what can be had without waiting for a device.
   * @returns false when that is not all; what is in `buffer` then means nothing
   */
  readNow(buffer: Uint8Array, at: number, length: number, offset: Bytes): boolean
  /** As `read`, off the caller's thread; `buffer` has to stay. */
  readLater(buffer: Uint8Array, at: number, length: number, offset: Bytes): Promise<void>
  /** Writes `length` bytes of `buffer` from `at` to byte `offset`. Never extends the store. */
  write(buffer: Uint8Array, at: number, length: number, offset: Bytes): void
  /** Whether `copy` of whole pages shares them on the host, and so reads nothing. */
  readonly copiesShare: boolean
  /** Copies bytes within the store; the ranges do not overlap. */
  copy(source: Bytes, target: Bytes, length: Bytes): void
  /** Makes the range a hole where the store can, else zeros: it reads as zeros either way. Any alignment. */
  punch(offset: Bytes, length: Bytes): void
  /** As `punch`, off the caller's thread: for ranges that may take long. */
  punchLater(offset: Bytes, length: Bytes): Promise<void>
  /** Makes the range read as zeros; may keep the space. Any alignment. */
  zero(offset: Bytes, length: Bytes): void
  /** First byte at or after `offset` that is not in a hole; `size` when there is none. */
  nextData(offset: Bytes): Bytes
  /** First byte at or after `offset` that is in a hole; `size` when there is none. */
  nextHole(offset: Bytes): Bytes
  /** fdatasync: resolves when every write that returned before the call is durable. */
  sync(): Promise<void>
  /** What the host has left; null where that is no question, as of a block device. */
  hostRoom?(): HostRoom | null
  /**
   * Has the host set the space for a range aside, so that writes to it find room. Content stays.
   * @returns false where it cannot do that
   * @throws IO_ERROR, ENOSPC or EDQUOT when it has no room; some of the range may be set aside then
   */
  reserve?(offset: Bytes, length: Bytes): boolean
  /** Takes note of a length that somebody else has changed; what is past the end then is an error. */
  measure(): void
  /** Extends the store; the new part reads as zeros. Never shrinks. */
  grow(size: Bytes): void
  close(): void
}
