import { readlinkSync } from 'node:fs'
import {
  type Bytes,
  bytes,
  errnoOf,
  FALLOC_KEEP_SIZE,
  FALLOC_PUNCH_HOLE,
  FALLOC_ZERO_RANGE,
  heldPath,
  MIB,
  PAGE_SIZE,
} from '../base/index.js'
import { native } from '../native.js'
import { clears } from './clearing.js'
import { LateAllocations } from './late-allocations.js'
import { ioError } from './store.js'

/** Modes that leave the length as it is. */
const PUNCH_HOLE = FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE
const ZERO_RANGE = FALLOC_KEEP_SIZE | FALLOC_ZERO_RANGE

const ZEROS = new Uint8Array(MIB)

export interface FileClearerOptions {
  readOnly: boolean
  isDevice: boolean
  /** Writes bytes, as the file's store does. */
  write(buffer: Uint8Array, at: number, length: number, offset: Bytes): void
}

/**
 * Clears ranges of a file or device: by holes, by what the file system or the device has for zeros,
 * and where neither works by writing zeros. A range lies within the file.
 */
export class FileClearer {
  readonly #fd: number
  /** Names the file in messages. */
  readonly #path: string
  readonly #options: FileClearerOptions
  /**
   * The modes of fallocate that make holes and zeros: the first of each that the system supports.
   */
  readonly #punchModes: number[]
  readonly #zeroModes: number[] = [ZERO_RANGE]
  /** Whether the modes have been judged, before the first use of any. */
  #isTried = false
  readonly #punches: boolean
  readonly #allocations: LateAllocations

  /** @param size of the file, in bytes */
  constructor(fd: number, path: string, size: number, options: FileClearerOptions) {
    const { isDevice, readOnly } = options
    this.#fd = fd
    this.#path = path
    this.#options = options
    this.#allocations = new LateAllocations(fd)
    this.#punchModes = isDevice ? [PUNCH_HOLE, ZERO_RANGE] : [PUNCH_HOLE]
    this.#punches = !isDevice && !readOnly && punchesAt(fd, size)
  }

  /** Whether `punch` gives the space back, and leaves holes. */
  get punches(): boolean {
    return this.#punches && this.#tried(this.#punchModes).length > 0
  }

  /** Makes a range a hole, or zeros where there are no holes. */
  punch(offset: Bytes, length: Bytes): void {
    this.#clear('punch', this.#punchModes, offset, length)
  }

  /** Makes a range zeros. */
  zero(offset: Bytes, length: Bytes): void {
    this.#clear('zero', this.#zeroModes, offset, length)
  }

  /** As `punch`, off the thread. */
  async punchLater(offset: Bytes, length: Bytes): Promise<void> {
    const { begin, end } = this.#clearable(offset, length)
    const modes = this.#tried(this.#punchModes)
    while (modes.length > 0 && begin < end) {
      const mode = modes[0]!
      try {
        await this.#allocations.call(mode, begin, end - begin)
        this.#writeZeros(offset, begin)
        this.#writeZeros(end, offset + length)
        return
      } catch (err) {
        this.#unsupported('punch', modes, mode, err)
      }
    }
    for (let done = 0; done < length; done += MIB) {
      this.#writeZeros(offset + done, Math.min(offset + done + MIB, offset + length))
      await new Promise(resolve => setImmediate(resolve))
    }
  }

  #clear(what: string, modes: number[], offset: Bytes, length: Bytes): void {
    const { begin, end } = this.#clearable(offset, length)
    this.#tried(modes)
    while (modes.length > 0 && begin < end) {
      const mode = modes[0]!
      try {
        native.file_allocate(this.#fd, mode, begin, end - begin)
        this.#writeZeros(offset, begin)
        this.#writeZeros(end, offset + length)
        return
      } catch (err) {
        this.#unsupported(what, modes, mode, err)
      }
    }
    this.#writeZeros(offset, offset + length)
  }

  /** Drops the modes that leave something, unless that is done. @returns `modes` */
  #tried(modes: number[]): number[] {
    const { isDevice, readOnly } = this.#options
    if (this.#isTried) return modes
    this.#isTried = true
    if (isDevice || readOnly) return modes
    // Wherever the folder has been moved to.
    const path = readlinkSync(heldPath(this.#fd))
    for (const list of [this.#punchModes, this.#zeroModes]) {
      if (list.length > 0 && !clears(this.#fd, path, list[0]!)) list.shift()
    }
    return modes
  }

  /**
   * The part of a range that fallocate takes: of a file any bytes, of a device whole logical
   * blocks, which are no larger than pages.
   */
  #clearable(offset: number, length: number): { begin: number; end: number } {
    if (!this.#options.isDevice) return { begin: offset, end: offset + length }
    const begin = Math.ceil(offset / PAGE_SIZE) * PAGE_SIZE
    return { begin, end: Math.max(begin, Math.floor((offset + length) / PAGE_SIZE) * PAGE_SIZE) }
  }

  /** Drops a mode that the system refuses for good; any other failure is the caller's. */
  #unsupported(what: string, modes: number[], mode: number, err: unknown): void {
    if (errnoOf(err) !== 'EOPNOTSUPP') throw ioError(this.#path, what, err)
    // Another call may have found out meanwhile.
    if (modes[0] === mode) modes.shift()
  }

  #writeZeros(begin: number, end: number): void {
    for (let at = begin; at < end; at += ZEROS.length) {
      this.#options.write(ZEROS, 0, Math.min(ZEROS.length, end - at), bytes(at))
    }
  }

  /** All that was begun with `punchLater` has to have ended. */
  close(): void {
    this.#allocations.close()
  }
}

/**
 * Punches past the end of a file, where no byte can be lost, to see whether its file system can.
 */
function punchesAt(fd: number, size: number): boolean {
  try {
    native.file_allocate(fd, PUNCH_HOLE, size, PAGE_SIZE)
    return true
  } catch (err) {
    if (errnoOf(err) !== 'EOPNOTSUPP') throw err
    return false
  }
}
