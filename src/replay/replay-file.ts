import { closeSync, openSync, readSync } from 'node:fs'
import { FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE } from '../base/index.js'
import { native } from '../native.js'
import type { ReplayTarget } from './replay.js'

/** A volume's file in the mount. */
export class ReplayFile implements ReplayTarget {
  readonly #fd: number

  constructor(path: string) {
    this.#fd = openSync(path, 'r+')
  }

  write(buffer: Uint8Array, length: number, offset: number): void {
    native.file_write(this.#fd, buffer, 0, length, offset)
  }

  clear(offset: number, length: number, discards: boolean): void {
    const mode = FALLOC_KEEP_SIZE | (discards ? FALLOC_PUNCH_HOLE : FALLOC_ZERO_RANGE)
    native.file_allocate(this.#fd, mode, offset, length)
  }

  /** Fills a buffer from byte `offset`. */
  read(buffer: Buffer, offset: number): void {
    for (let done = 0; done < buffer.length; ) {
      const read = readSync(this.#fd, buffer, done, buffer.length - done, offset + done)
      if (read === 0) return
      done += read
    }
  }

  close(): void {
    closeSync(this.#fd)
  }
}
