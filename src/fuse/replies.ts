import { constants } from 'node:os'
import { assert, type Later } from '../base/index.js'
import { OUT_HEADER } from './abi.js'
import type { FuseDevice } from './device.js'
import { errnoNumber } from './errno.js'
import type { FileSystem } from './file-system.js'
import type { Slots } from './slots.js'

const { ENODEV, ENOENT } = constants.errno

export interface RepliesOptions {
  device: FuseDevice
  fileSystem: FileSystem
  /**
   * Replies wait in slots for `settle`: true when it begins, and nothing may be read until false.
   */
  onHold(hold: boolean): void
  onFatal(err: unknown): void
  onSettleError(err: unknown): void
}

/** A reply whose header is at byte `at`. */
interface WaitingReply {
  buffer: Buffer
  at: number
}

/**
 * Replies on their way to the kernel.
 *
 * A reply is sent at once unless there are unsettled changes. Then it waits for the end of the
 * batch, when `settle` writes the journal: a caller must never see a success that our crash would
 * undo. One settling serves all replies that wait.
 */
export class Replies {
  readonly #options: RepliesOptions
  readonly #device: FuseDevice
  readonly #fs: FileSystem
  /** Replies of this batch that wait: where they begin in `#slots`. */
  readonly #staged: Uint32Array
  #nrStaged = 0
  #slots: Slots
  /**
   * Replies outside of the batch that wait; at most as many as the kernel has requests under way.
   */
  #waiting: WaitingReply[] = []
  #releaseQueued = false
  #settling = false

  /** @param slots those of the first batch */
  constructor(slots: Slots, options: RepliesOptions) {
    this.#options = options
    this.#device = options.device
    this.#fs = options.fileSystem
    this.#staged = new Uint32Array(slots.count)
    this.#slots = slots
  }

  /** True from `onHold(true)` to `onHold(false)`. */
  get held(): boolean {
    return this.#settling
  }

  /** Replies from the slot of the batch at byte `base`: `length` bytes of payload, or an errno. */
  reply(slots: Slots, base: number, length: number, errno: number): void {
    writeHeader(slots, base, length, errno)
    if (this.#fs.unsettled) {
      this.#slots = slots
      this.#staged[this.#nrStaged++] = base
    } else {
      this.#send(slots.buffer, base)
    }
  }

  /**
   * Replies to a request of a batch that is over; a slot that is not the device's may be used
   * again.
   */
  replyLater(slots: Slots, base: number, length: number, errno: number): void {
    writeHeader(slots, base, length, errno)
    if (!this.#fs.unsettled && !this.#settling) {
      this.#send(slots.buffer, base)
      this.#device.flush()
      return
    }
    this.#waiting.push(
      slots === this.#device.slots
        ? { buffer: slots.buffer, at: base }
        : { buffer: copyOf(slots.buffer, base, OUT_HEADER.size + length), at: 0 },
    )
    if (this.#releaseQueued) return
    this.#releaseQueued = true
    // Answers of one cause, such as all that waited for a commit, share a settling.
    queueMicrotask(() => {
      this.#releaseQueued = false
      try {
        this.release()
      } catch (err) {
        this.#options.onFatal(err)
      }
    })
  }

  /** Settles what there is to settle, then sends what waited for it: at the end of every batch. */
  release(): void {
    if (this.#settling || (this.#nrStaged === 0 && this.#waiting.length === 0)) return
    const waiting = this.#waiting
    this.#waiting = []
    let settled: Later<void>
    try {
      settled = this.#fs.unsettled ? this.#fs.settle() : undefined
    } catch (err) {
      this.#sendHeld(waiting, this.#settleErrno(err))
      return
    }
    if (!(settled instanceof Promise)) {
      this.#sendHeld(waiting, 0)
      return
    }
    this.#settling = true
    this.#options.onHold(true)
    settled
      .then(
        () => 0,
        err => this.#settleErrno(err),
      )
      .then(errno => {
        this.#sendHeld(waiting, errno)
        this.#settling = false
        this.release()
        if (!this.#settling) this.#options.onHold(false)
      })
      .catch(err => this.#options.onFatal(err))
  }

  /** A crash would undo changes that could not be settled, so their callers get the error. */
  #settleErrno(err: unknown): number {
    const errno = errnoNumber(err)
    if (errno === null) throw err
    this.#options.onSettleError(err)
    return errno
  }

  /** @param errno sent instead of what waited, when it is not 0 */
  #sendHeld(waiting: readonly WaitingReply[], errno: number): void {
    for (let i = 0; i < this.#nrStaged; i++) {
      const base = this.#staged[i]!
      if (errno !== 0) writeHeader(this.#slots, base, 0, errno)
      this.#send(this.#slots.buffer, base)
    }
    this.#nrStaged = 0
    for (const { buffer, at } of waiting) {
      if (errno !== 0) {
        buffer.writeUInt32LE(OUT_HEADER.size, at + OUT_HEADER.at.len)
        buffer.writeInt32LE(-errno, at + OUT_HEADER.at.error)
      }
      this.#send(buffer, at)
    }
    this.#device.flush()
  }

  /** Writes the reply whose header is at byte `at`. */
  #send(buffer: Buffer, at: number): void {
    const result = this.#device.write(buffer, at, buffer.readUInt32LE(at + OUT_HEADER.at.len))
    if (result === 0) return
    // ENOENT: the caller was killed. ENODEV: unmounted meanwhile.
    assert(result === -ENOENT || result === -ENODEV, `the kernel refused a reply: ${result}`)
  }
}

function copyOf(buffer: Buffer, at: number, length: number): Buffer {
  return Buffer.from(buffer.subarray(at, at + length))
}

function writeHeader(slots: Slots, base: number, length: number, errno: number): void {
  slots.setU32(base + OUT_HEADER.at.len, OUT_HEADER.size + length)
  slots.setU32(base + OUT_HEADER.at.error, -errno)
}
