import { MIB, ThinfsError } from '../base/index.js'
import { native } from '../native.js'

/** Bytes of one visit to the thread pool. Closing the file waits for as many. */
const PART = MIB / 2
/** Visits at a time: the pool's other threads flush and punch. */
const VISITS_MAX = 4

/** A part of a copy that waits for a thread. */
interface Visit {
  begin(): void
  refuse(err: ThinfsError): void
}

/**
 * Copies within a file, off the caller's thread: long ones, of which the read-ahead alone would
 * stop it for milliseconds. Each waits for the disk, so that it is the copy's caller who pays for
 * what it writes, and not the next flush. Copies that are in flight together take turns.
 */
export class LateCopies {
  readonly #fd: number
  readonly #waiting: Visit[] = []
  #visiting = 0

  constructor(fd: number) {
    this.#fd = fd
  }

  /**
   * @param keepHoles what is a hole of the source is not written
   * @throws errors of pread(2) and pwrite(2)
   */
  async copy(source: number, target: number, length: number, keepHoles: boolean): Promise<void> {
    for (let done = 0; done < length; done += PART) {
      const size = Math.min(PART, length - done)
      await this.#turn()
      try {
        await native.file_copy_async(this.#fd, source + done, target + done, size, keepHoles)
      } finally {
        this.#visiting--
        this.#waiting.shift()?.begin()
      }
    }
  }

  /** The file is about to be closed: copies that wait for a thread fail. */
  close(): void {
    const err = new ThinfsError('IO_ERROR', 'copy: the file was closed', { errno: 'EBADF' })
    for (const { refuse } of this.#waiting.splice(0)) refuse(err)
  }

  /** Resolves when a thread may be visited; the visit counts from then. */
  async #turn(): Promise<void> {
    if (this.#visiting < VISITS_MAX && this.#waiting.length === 0) {
      this.#visiting++
      return
    }
    await new Promise<void>((resolve, refuse) => {
      const begin = (): void => {
        this.#visiting++
        resolve()
      }
      this.#waiting.push({ begin, refuse })
    })
  }
}
