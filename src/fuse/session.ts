/**
 * A FUSE connection served by a FileSystem.
 *
 * Requests are read in batches and handled one after the other, by requests.ts. They come by
 * /dev/fuse, and after INIT by way of an upgrade where that is wanted and to be had.
 */
import { constants } from 'node:os'
import { assert, MAX_IO, ThinfsError, workWaits } from '../base/index.js'
import { NOTIFY_INVAL_INODE, NOTIFY_INVAL_INODE_OUT, OUT_HEADER } from './abi.js'
import { type FuseDevice, KernelDevice } from './device.js'
import { encodeInit, MAX_BACKGROUND, type Negotiated, negotiate } from './init.js'
import { ownDescriptor } from './own-descriptor.js'
import { Replies } from './replies.js'
import { Requests } from './requests.js'
import { requestResend } from './resend.js'
import { DEV_LAYOUT, residentMemory, Slots } from './slots.js'
import { Spin } from './spin.js'
import type { Session, SessionOptions } from './transport.js'

const { ENODEV, ENOENT } = constants.errno

/** Requests of one batch. A batch begins small and doubles while it comes back full. */
const NR_SLOTS = 16
/** The largest WRITE and its header: less makes read(2) fail. */
const SLOT_SIZE = MAX_IO + 4096
/** Requests, and batches, handled before timers and sockets get their turn. */
const MAX_REQUESTS_PER_TURN = 256
const MAX_BATCHES_PER_TURN = 64
/** Microseconds of looking for requests after which timers and sockets get their turn. */
const MAX_LOOKED_PER_TURN = 500

/** Another way for requests to come, on which INIT can agree. */
export interface Upgrade {
  /** The bit of INIT's flags2 by which the kernel offers it, and is told that it is wanted. */
  readonly flag2: number
  /**
   * Prepares it, before INIT is answered: nothing can be taken back afterwards.
   * @throws NOT_SUPPORTED, with the reason, where the machine cannot have it
   */
  open(fd: number): UpgradeDevice
  /** Why the kernel did not offer it. */
  whyNotOffered(): string
}

/** The source of requests once INIT was answered. */
export interface UpgradeDevice extends FuseDevice {
  readonly slots: Slots
  /** Asynchronous requests that the kernel may have under way at a time. */
  readonly maxBackground: number
  /** Told of an interrupt, which comes another way than requests: see `Requests.interrupt`. */
  onInterrupt: (slots: Slots, at: number) => void
  /**
   * Makes the kernel send requests this way: called once, directly after the answer to INIT.
   * @throws NOT_SUPPORTED when the kernel refuses: requests go on coming as they did
   */
  register(): void
  /** Frees it, where it is not wanted after all. */
  abandon(): void
}

/** Serves from when it is made until the file system is unmounted or `close` is called. */
export class FuseSession implements Session {
  readonly #options: SessionOptions
  readonly #upgrade: Upgrade | null
  readonly #requests: Requests
  readonly #places = new Uint32Array(NR_SLOTS)
  readonly #lengths = new Uint32Array(NR_SLOTS)
  readonly #drain = (): void => this.#handleWaiting()
  readonly #spin: Spin
  #device: FuseDevice
  #replies: Replies
  /** The next source of requests, once INIT is answered; null: the one of now. */
  #next: UpgradeDevice | null = null
  #whyDev: string | null = null
  /** The terms of an INIT that is answered, or about to be. */
  #agreed: Negotiated | null = null
  /** Requests of the batch under way. */
  #slots = new Slots(SLOT_SIZE, NR_SLOTS, DEV_LAYOUT, residentMemory(SLOT_SIZE * NR_SLOTS))
  #batchSize = 1
  #ended = false
  #failed = false
  #caughtUp = false
  /** Whether the last batch had a request that was sent again. */
  #hadResent = false

  /**
   * @param upgrade where the machine or the kernel cannot have it, what is negotiated says why
   * @param device stands for the descriptor
   */
  constructor(
    options: SessionOptions,
    upgrade: Upgrade | null = null,
    device: FuseDevice = new KernelDevice(ownDescriptor(options.fd)),
  ) {
    const { negotiated } = options
    assert(negotiated === undefined || negotiated.maxWrite <= MAX_IO, 'slots hold every WRITE')
    this.#options = options
    this.#upgrade = upgrade
    this.#spin = new Spin(options.spin ?? 0, options.spinShare ?? 1)
    this.#device = device
    this.#replies = this.#repliesTo(device)
    this.#requests = new Requests(this.#slots, this.#replies, {
      fileSystem: options.fileSystem,
      onInit: (slots, base) => this.#init(slots, base),
      onError: (opcode, ino, err) => options.onError?.(opcode, ino, err),
      onFatal: err => this.#fail(err),
    })
    if (upgrade !== null && negotiated === undefined) this.#prepare(upgrade)
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

  #prepare(upgrade: Upgrade): void {
    try {
      this.#next = upgrade.open(this.#options.fd)
    } catch (err) {
      this.#whyDev = whyNotSupported(err)
    }
  }

  #init(slots: Slots, base: number): number {
    const wanted = this.#next === null ? 0 : this.#upgrade!.flag2
    this.#agreed = negotiate(slots, base, wanted)
    const most = Math.min(MAX_BACKGROUND, this.#next?.maxBackground ?? MAX_BACKGROUND)
    return encodeInit(slots, base, this.#agreed, most)
  }

  /** INIT was answered: from now on requests come as it says. */
  #initialized(agreed: Negotiated): void {
    const next = this.#next
    this.#next = null
    let negotiated = agreed
    if (next !== null) {
      const { flag2, whyNotOffered } = this.#upgrade!
      if ((agreed.flags2 & flag2) === 0) {
        this.#whyDev = whyNotOffered()
        next.abandon()
      } else if (!this.#switchTo(next)) {
        negotiated = { ...agreed, flags2: agreed.flags2 & ~flag2 }
      }
    }
    if (this.#whyDev !== null) negotiated = { ...negotiated, whyDev: this.#whyDev }
    this.#options.onInitialized(negotiated)
  }

  /** @returns false when the kernel refuses: all goes on as before */
  #switchTo(next: UpgradeDevice): boolean {
    try {
      next.register()
    } catch (err) {
      this.#whyDev = whyNotSupported(err)
      return false
    }
    this.#device.unwatch()
    this.#device = next
    this.#slots = next.slots
    this.#replies = this.#repliesTo(next)
    this.#requests.moveTo(this.#slots, this.#replies)
    next.onInterrupt = (slots, at) => this.#requests.interrupt(slots, at)
    next.watch(this.#drain)
    return true
  }

  close(): void {
    this.#ended = true
    this.#device.close()
  }

  resend(): boolean {
    return requestResend(this.#device)
  }

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
        handled < MAX_REQUESTS_PER_TURN &&
        batches < MAX_BATCHES_PER_TURN &&
        spin.looked < MAX_LOOKED_PER_TURN;
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
          // While this thread looks for requests it sees no disk's answer, and no other work goes
          // on.
          this.#requests.waitsForDisk || workWaits() ? 0 : spin.begins(),
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
        spin.finds(count)
        this.#handleBatch(count)
        handled += count
        this.#batchSize = count < this.#batchSize ? count : Math.min(count * 2, NR_SLOTS)
      }
      this.#device.flush()
      // The kernel sends resent requests before new ones.
      if (!this.#hadResent) this.#catchUp()
      // Let timers and sockets run, but do not sleep: another request is about to come.
      if (spin.looks) setImmediate(this.#drain)
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
