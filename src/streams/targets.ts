import { closeSync, fsync, ftruncate, openSync, write } from 'node:fs'
import { promisify } from 'node:util'
import {
  errnoOf,
  FALLOC_KEEP_SIZE,
  FALLOC_PUNCH_HOLE,
  FALLOC_ZERO_RANGE,
  isNoSpace,
  ThinfsError,
} from '../base/index.js'
import { native } from '../native.js'
import type { ReceiveTarget } from './receive.js'

const writeLater = promisify(write)
const syncLater = promisify(fsync)
const truncateLater = promisify(ftruncate)

/** A volume's file in the mount. The kernel makes the writer wait for the engine. */
export class FileTarget implements ReceiveTarget {
  readonly fd: number
  #mode = FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE

  constructor(path: string) {
    this.fd = openSync(path, 'r+')
  }

  async write(offset: number, content: Uint8Array): Promise<void> {
    try {
      for (let done = 0; done < content.length; ) {
        const part = await writeLater(this.fd, content, done, content.length - done, offset + done)
        done += part.bytesWritten
      }
    } catch (err) {
      throw failed(err)
    }
  }

  async discard(offset: number, length: number): Promise<void> {
    try {
      await native.file_allocate_async(this.fd, this.#mode, Float64Array.of(offset, length))[0]
    } catch (err) {
      // A pool that ignores discards writes zeros.
      if (errnoOf(err) !== 'EOPNOTSUPP' || (this.#mode & FALLOC_PUNCH_HOLE) === 0) throw failed(err)
      this.#mode = FALLOC_KEEP_SIZE | FALLOC_ZERO_RANGE
      await this.discard(offset, length)
    }
  }

  resize(size: number): Promise<void> {
    return truncateLater(this.fd, size)
  }

  sync(): Promise<void> {
    return syncLater(this.fd)
  }

  close(): void {
    closeSync(this.fd)
  }
}

/** The error of a write that was received and not taken. */
function failed(cause: unknown): ThinfsError {
  const errno = errnoOf(cause)
  if (!isNoSpace(cause)) {
    const detail = `the new volume: ${(cause as Error).message}`
    return new ThinfsError('IO_ERROR', detail, { cause, errno })
  }
  const detail = 'the pool is full: make room, and receive it again'
  return new ThinfsError('NO_DATA_SPACE', detail, { cause, errno })
}
