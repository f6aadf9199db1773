import { write } from 'node:fs'
import { native, type Watch } from '../native.js'
import { errnoNumber } from './errno.js'
import type { Slots } from './slots.js'

/**
 * A batch ends after so many bytes: what was read is best worked on while the CPU's cache has it.
 */
const ENOUGH = 256 * 1024

/** One end of a FUSE connection: where requests are read and replies are written. */
export interface FuseDevice {
  /** Slots of its own, which keep a request until it is answered; null: it reads to any. */
  readonly slots: Slots | null
  /**
   * Reads the requests that wait, at most `count`; where each begins in `slots` goes to `places`,
   * its size to `lengths`. Does not sleep, but looks for the first one for `spin` microseconds.
   * @returns how many; -1 when the file system is unmounted
   */
  read(slots: Slots, count: number, places: Uint32Array, lengths: Uint32Array, spin: number): number
  /**
   * Writes a reply or notification; what is in a slot of its own may be kept until `flush` or
   * `read`.
   * @returns 0 or the negative errno
   */
  write(buffer: Buffer, at: number, length: number): number
  /** Sends what was kept. */
  flush(): void
  /** Writes a notification off the caller's thread. Resolves with 0 or the negative errno. */
  writeLater(buffer: Buffer): Promise<number>
  /** Calls `onReadable` again and again while there is something to read. */
  watch(onReadable: () => void): void
  unwatch(): void
  /** Reads no more requests. Those that were read can still be answered. */
  close(): void
}

/** The kernel's end: a descriptor of /dev/fuse, non-blocking, which belongs to the caller. */
export class KernelDevice implements FuseDevice {
  readonly slots = null
  readonly #fd: number
  #watch: Watch | null = null

  constructor(fd: number) {
    this.#fd = fd
  }

  read(
    slots: Slots,
    count: number,
    places: Uint32Array,
    lengths: Uint32Array,
    spin: number,
  ): number {
    for (let i = 0; i < count; i++) places[i] = i * slots.size
    return native.fuse_read(this.#fd, slots.buffer, slots.size, count, lengths, ENOUGH, spin)
  }

  write(buffer: Buffer, at: number, length: number): number {
    return native.fuse_write(this.#fd, buffer, at, length)
  }

  flush(): void {}

  writeLater(buffer: Buffer): Promise<number> {
    return new Promise(resolve =>
      write(this.#fd, buffer, 0, buffer.length, null, err => resolve(err ? -errnoNumber(err)! : 0)),
    )
  }

  watch(onReadable: () => void): void {
    this.#watch ??= native.poll_watch(this.#fd, onReadable)
  }

  unwatch(): void {
    if (this.#watch !== null) native.poll_unwatch(this.#watch)
    this.#watch = null
  }

  close(): void {
    this.unwatch()
  }
}
