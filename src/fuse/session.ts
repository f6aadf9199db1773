/**
 * A FUSE connection served by a FileSystem.
 *
 * Requests are read in batches and handled one after the other, by requests.ts. They come by /dev/fuse,
 * and after INIT through a ring where that is wanted and to be had.
 */
import { constants } from 'node:os'
import { assert, ThinfsError } from '../base/index.js'
import { NOTIFY_INVAL_INODE, NOTIFY_INVAL_INODE_OUT, OUT_HEADER } from './abi.js'
import { type FuseDevice, KernelDevice } from './device.js'
import type { FileSystem } from './file-system.js'
import {
  encodeInit,
  MAX_BACKGROUND,
  MAX_IO,
  type Negotiated,
  negotiate,
  type Transport,
  transportOf,
  withoutRing,
} from './init.js'
import { Replies } from './replies.js'
import { Requests } from './requests.js'
import { requestResend } from './resend.js'
import { RingDevice, whyNotOffered } from './ring-device.js'
import { Slots } from './slots.js'
import { Spin } from './spin.js'

const { ENODEV, ENOENT } = constants.errno

/** Requests of one batch. A batch begins small and doubles while it comes back full. */
const NR_SLOTS = 16
/** The largest WRITE and its header: less makes read(2) fail. */
const SLOT_SIZE = MAX_IO + 4096
/** Requests, and batches, handled before timers and sockets get their turn. */
const MAX_REQUESTS_PER_TURN = 256
const MAX_BATCHES_PER_TURN = 64
export interface FuseSessionOptions {
  /** Of /dev/fuse, non-blocking. Belongs to the caller, who closes it. */
  fd: number
  fileSystem: FileSystem
  /** Microseconds to look for a request before sleeping, at most; where that pays. Default: 0. */
  spin?: number
  /**
   * How requests should come; where the machine or the kernel cannot have them come through a ring,
   * what is negotiated says why. Default: 'dev'.
   */
  transport?: Transport
  /** Of a connection that another process has initialised, and whose requests come by /dev/fuse. */
  negotiated?: Negotiated
  /** INIT was answered. Not called for a connection that was taken over. */
  onInitialized(negotiated: Negotiated): void
  /**
   * Called once, when all requests that waited in the beginning, those that `resend` asked for among
   * them, were handled: each was answered, or waits for something.
   */
  onCaughtUp?(): void
  /** The connection has ended; called once, and nothing is read any more. */
  onUnmounted(): void
  /** A bug of ours, or a descriptor that fails. Nothing more is read or answered: the process has to end. */
  onFatal(err: unknown): void
  /** The file system failed a request; it was answered with the error's errno. */
  onError?(opcode: string, ino: number, err: unknown): void
  /** Stands for `fd`. */
  device?: FuseDevice
}

/** Serves from when it is made until the file system is unmounted or `close` is called. */
export class FuseSession {
  readonly #options: FuseSessionOptions
  readonly #requests: Requests
  readonly #places = new Uint32Array(NR_SLOTS)
  readonly #lengths = new Uint32Array(NR_SLOTS)
  readonly #drain = (): void => this.#handleWaiting()
  readonly #spin: Spin
  #device: FuseDevice
  #replies: Replies
  /** Where requests are to come from once INIT is answered; null: from where they do. */
  #ring: RingDevice | null = null
  #whyDev: string | null = null
  /** What an INIT has settled that is answered, or about to be. */
  #agreed: Negotiated | null = null
  /** Requests of the batch under way. */
  #slots = new Slots(SLOT_SIZE, NR_SLOTS)
  #batchSize = 1
  #ended = false
  #failed = false
  #caughtUp = false
  /** Whether the last batch had a request that was sent again. */
  #hadResent = false

  constructor(options: FuseSessionOptions) {
    const { negotiated } = options
    assert(negotiated === undefined || negotiated.maxWrite <= MAX_IO, 'slots hold every WRITE')
    this.#options = options
    this.#spin = new Spin(options.spin ?? 0)
    this.#device = options.device ?? new KernelDevice(options.fd)
    this.#replies = this.#repliesTo(this.#device)
    this.#requests = new Requests(this.#slots, this.#replies, {
      fileSystem: options.fileSystem,
      onInit: (slots, base) => this.#init(slots, base),
      onError: (opcode, ino, err) => options.onError?.(opcode, ino, err),
      onFatal: err => this.#fail(err),
    })
    if (options.transport === 'uring' && negotiated === undefined) this.#makeRing()
    this.#device.watch(this.#drain)
  }

  #repliesTo(device: FuseDevice): Replies {
    return new Replies(this.#slots, {
      device,
      fileSystem: this.#options.fileSystem,
      onHold: hold => this.#hold(hold),
      onFatal: err => this.#fail(err),
      onSettleError: err => this.#options.onError?.('settle', 0, err),
    })
  }

  /** Before INIT is answered: nothing can be taken back afterwards. */
  #makeRing(): void {
    try {
      this.#ring = new RingDevice(this.#options.fd)
    } catch (err) {
      this.#whyDev = whyNotSupported(err)
    }
  }

  #init(slots: Slots, base: number): number {
    this.#agreed = negotiate(slots, base, this.#ring === null ? 'dev' : 'uring')
    const most = Math.min(MAX_BACKGROUND, this.#ring?.maxBackground ?? MAX_BACKGROUND)
    return encodeInit(slots, base, this.#agreed, most)
  }

  /** INIT was answered: from now on requests come as it says. */
  #initialized(agreed: Negotiated): void {
    const ring = this.#ring
    this.#ring = null
    let negotiated = agreed
    if (ring !== null) {
      if (transportOf(agreed) === 'dev') {
        this.#whyDev = whyNotOffered()
        ring.abandon()
      } else if (!this.#switchTo(ring)) negotiated = withoutRing(agreed)
    }
    if (this.#whyDev !== null) negotiated = { ...negotiated, whyDev: this.#whyDev }
    this.#options.onInitialized(negotiated)
  }

  /** @returns false when the kernel refuses: all goes on as before */
  #switchTo(ring: RingDevice): boolean {
    try {
      ring.register()
    } catch (err) {
      this.#whyDev = whyNotSupported(err)
      return false
    }
    this.#device.unwatch()
    this.#device = ring
    this.#slots = ring.slots
    this.#replies = this.#repliesTo(ring)
    this.#requests.moveTo(this.#slots, this.#replies)
    ring.watch(this.#drain)
    return true
  }

  /** Reads no more requests. What is being worked on is still answered. */
  close(): void {
    this.#ended = true
    this.#device.close()
  }

  /** Asks for what an earlier process has read and not answered; see requestResend. */
  resend(): boolean {
    return requestResend(this.#device)
  }

  /**
   * Has the kernel forget what it caches of an inode: its attributes, and content from byte `offset`.
   * Resolves when it has: it may write dirty pages to us before, which therefore must not wait for it.
   */
  async invalidate(ino: number, offset: number): Promise<void> {
    const notification = new Slots(OUT_HEADER.size + NOTIFY_INVAL_INODE_OUT.size, 1)
    notification.buffer.fill(0)
    notification.setU32(OUT_HEADER.at.len, notification.size)
    notification.setU32(OUT_HEADER.at.error, NOTIFY_INVAL_INODE)
    NOTIFY_INVAL_INODE_OUT.write(notification.view, notification.payload, {
      ino,
      off: offset,
      len: 0,
    })
    const result = await this.#device.writeLater(notification.buffer)
    // ENOENT: the kernel does not know the inode, or not any more.
    assert(
      result === 0 || result === -ENOENT || result === -ENODEV,
      `FUSE_NOTIFY_INVAL_INODE: ${result}`,
    )
  }

  #hold(hold: boolean): void {
    if (this.#ended) return
    if (hold) this.#device.unwatch()
    else this.#device.watch(this.#drain)
  }

  #handleWaiting(): void {
    const spin = this.#spin
    spin.wakes()
    try {
      for (
        let handled = 0, batches = 0;
        handled < MAX_REQUESTS_PER_TURN && batches < MAX_BATCHES_PER_TURN;
        batches++
      ) {
        if (this.#ended || this.#replies.held) return
        if (this.#agreed !== null) {
          const agreed = this.#agreed
          this.#agreed = null
          this.#initialized(agreed)
        }
        const count = this.#device.read(
          this.#slots,
          this.#batchSize,
          this.#places,
          this.#lengths,
          // A disk that answers is not seen while looking for requests.
          this.#requests.waitsForDisk ? 0 : spin.microseconds,
        )
        if (count === 0) {
          this.#catchUp()
          spin.sleeps()
          return
        }
        if (count < 0) {
          this.close()
          this.#options.onUnmounted()
          return
        }
        this.#handleBatch(count)
        handled += count
        this.#batchSize = count < this.#batchSize ? count : Math.min(count * 2, NR_SLOTS)
      }
      this.#device.flush()
      // What is sent again comes before what is new.
      if (!this.#hadResent) this.#catchUp()
      // Others have their turn; who sleeps then would have to be woken for what is about to come.
      if (spin.microseconds > 0) setImmediate(this.#drain)
    } catch (err) {
      this.#fail(err)
    }
  }

  #catchUp(): void {
    if (this.#caughtUp) return
    this.#caughtUp = true
    this.#options.onCaughtUp?.()
  }

  #handleBatch(count: number): void {
    if (!this.#caughtUp) this.#hadResent = this.#hasResent(count)
    for (let i = 0; i < count; i++) this.#requests.handle(this.#places[i]!, this.#lengths[i]!)
    this.#replies.release()
  }

  #hasResent(count: number): boolean {
    for (let i = 0; i < count; i++) if (this.#requests.isResent(this.#places[i]!)) return true
    return false
  }

  #fail(err: unknown): void {
    if (this.#failed) return
    this.#failed = true
    this.#requests.stop()
    this.close()
    this.#options.onFatal(err)
  }
}

/** The reason in a NOT_SUPPORTED. Throws any other error. */
function whyNotSupported(err: unknown): string {
  if (err instanceof ThinfsError && err.code === 'NOT_SUPPORTED') return err.message
  throw err
}
