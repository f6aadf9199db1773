import { readFileSync } from 'node:fs'
import { constants } from 'node:os'
import { assert, MAX_IO, ThinfsError } from '../base/index.js'
import { Ring, type RingOptions } from '../ring/index.js'
import {
  IN_HEADER,
  IO_URING_CMD,
  OUT_HEADER,
  URING_CMD_REQ,
  URING_ENT_IN_OUT,
  URING_REQ_HEADER,
} from './abi.js'
import { KernelDevice } from './device.js'
import { Refusal } from './refusal.js'
import type { UpgradeDevice } from './session.js'
import { type SlotLayout, Slots } from './slots.js'

const { ECANCELED, ECONNABORTED, ENOTCONN } = constants.errno

/** Headers have a page of their own, so that payloads begin at a page. */
const HEADERS = 4096
const LAYOUT: SlotLayout = { body: URING_REQ_HEADER.at.opIn, rest: HEADERS, payload: HEADERS }
const SLOT_SIZE = HEADERS + MAX_IO
/** Two struct iovec: headers and payload. */
const IOVECS = 32

/** Entries of one CPU's queue; when all are taken more requests wait in the kernel. */
const DEPTH_MAX = 640
const DEPTH_MIN = 8
/** Less than 2 GiB, of which what is never used takes nothing. */
const SLOTS_MAX = 2000
/** Part of a queue that asynchronous requests of all CPUs together can take. */
const BACKGROUND = 0.8
/** Replies to requests of so many bytes are sent before the batch ends: their callers can go on. */
const ENOUGH = 256 * 1024

/** Words from the start of a slot. */
const COMMIT_ID = (URING_REQ_HEADER.at.ringEntInOut + URING_ENT_IN_OUT.at.commitId) / 4
const PAYLOAD_SZ = (URING_REQ_HEADER.at.ringEntInOut + URING_ENT_IN_OUT.at.payloadSz) / 4
/** Words from the start of a command's arguments. */
const CMD_COMMIT_ID = URING_CMD_REQ.at.commitId / 4
const CMD_QID = URING_CMD_REQ.at.qid / 4

/**
 * FUSE over io_uring: every entry of the ring has a slot; the kernel completes it with a request
 * there, and takes the reply from there with the entry that asks for the next one.
 *
 * Replies of a batch and the wish for more are one system call. FORGET, INTERRUPT and the news of
 * the unmounting still come by /dev/fuse, and notifications go there.
 *
 * An entry belongs to its request until that is answered, also when it waits for something, and
 * what it waits for may have to come through the same queue. So queues are deeper than the kernel
 * sends asynchronous requests at a time; entries that were used last are used first.
 *
 * The kernel gives a request that it has put into a ring to nobody else: it ends with this process.
 * Source: fs/fuse/dev_uring.c of Linux 6.18; Documentation/filesystems/fuse-io-uring.rst.
 */
export class RingDevice implements UpgradeDevice {
  readonly slots: Slots
  onInterrupt: UpgradeDevice['onInterrupt'] = () => {}
  readonly #fd: number
  readonly #ring: Ring
  readonly #dev: KernelDevice
  readonly #nrQueues: number
  readonly #depth: number
  /** Bytes moved for replies that were not sent yet. */
  #kept = 0
  /** Entries that have brought a request. */
  readonly #proven: Uint8Array
  #refusal = 0
  #aside: Refusal | null = null
  #unmounted = false
  #onReadable: (() => void) | null = null
  /** The places that `read` has to fill. */
  #places: Uint32Array = new Uint32Array(0)
  #lengths: Uint32Array = new Uint32Array(0)
  #count = 0

  /**
   * @param fd of /dev/fuse, non-blocking; belongs to the caller
   * @param makeRing stands for the kernel's in tests
   * @throws NOT_SUPPORTED, with the reason, where the machine has no ring for it
   */
  constructor(fd: number, makeRing = (options: RingOptions): Ring => new Ring(options)) {
    this.#fd = fd
    this.#nrQueues = nrPossibleCpus()
    this.#depth = Math.min(DEPTH_MAX, Math.floor(SLOTS_MAX / this.#nrQueues))
    if (this.#depth < DEPTH_MIN) {
      const most = SLOTS_MAX / DEPTH_MIN
      throw new ThinfsError('NOT_SUPPORTED', `${this.#nrQueues} possible CPUs; at most ${most}`)
    }
    const nrSlots = this.#nrQueues * this.#depth
    this.#ring = makeRing({
      entries: nrSlots,
      commands: true,
      arenaSize: nrSlots * (SLOT_SIZE + IOVECS),
    })
    this.slots = new Slots(SLOT_SIZE, nrSlots, LAYOUT, this.#ring.arena)
    this.#proven = new Uint8Array(nrSlots)
    this.#dev = new KernelDevice(fd)
  }

  get maxBackground(): number {
    return Math.floor(this.#depth * BACKGROUND)
  }

  register(): void {
    for (let queue = 0; queue < this.#nrQueues; queue++) this.#register(queue * this.#depth)
    this.#ring.submit()
    this.#ring.take(this.#onCompletion)
    if (this.#refusal !== 0) {
      const reason = `FUSE_IO_URING_CMD_REGISTER failed with errno ${-this.#refusal}`
      this.abandon()
      throw new ThinfsError('NOT_SUPPORTED', reason)
    }
    // From here on the kernel has switched over.
    for (let entry = 0; entry < this.slots.count; entry++) {
      if (entry % this.#depth !== 0) this.#register(entry)
    }
    this.#ring.submit()
  }

  abandon(): void {
    this.#ring.close()
  }

  read(
    _slots: Slots,
    count: number,
    places: Uint32Array,
    lengths: Uint32Array,
    spin: number,
  ): number {
    if (this.#unmounted) return -1
    this.#places = places
    this.#lengths = lengths
    this.#count = 0
    this.#kept = 0
    for (let waiting = this.#ring.poll(spin); waiting > 0; waiting = this.#ring.poll(0)) {
      this.#ring.take(this.#onCompletion, count)
      // No further event announces the completions behind refused entries: go on with those.
      if (this.#count > 0) break
    }
    return this.#count
  }

  write(buffer: Buffer, at: number, length: number): number {
    if (buffer !== this.slots.buffer) return this.#dev.write(buffer, at, length)
    this.#commit(at, length - OUT_HEADER.size)
    if (this.#kept >= ENOUGH) {
      this.#kept = 0
      this.#ring.poll(0)
    }
    return 0
  }

  flush(): void {
    this.#kept = 0
    this.#ring.submit()
  }

  writeLater(buffer: Buffer): Promise<number> {
    return this.#dev.writeLater(buffer)
  }

  watch(onReadable: () => void): void {
    this.#onReadable = onReadable
    this.#ring.watch(onReadable)
    const unmounted = (): void => {
      this.#unmounted = true
      this.#onReadable?.()
    }
    this.#aside ??= new Refusal(this.#fd, unmounted, (slots, at) => this.onInterrupt(slots, at))
    if (this.#unmounted) queueMicrotask(onReadable)
  }

  unwatch(): void {
    this.#onReadable = null
    this.#ring.unwatch()
  }

  close(): void {
    this.unwatch()
    this.#aside?.close()
  }

  #queueOf(entry: number): number {
    return Math.floor(entry / this.#depth)
  }

  /** Gives the kernel an entry for its queue. */
  #register(entry: number): void {
    const { slots } = this
    const headers = this.#ring.arenaAddress + entry * SLOT_SIZE
    const iovecs = slots.count * SLOT_SIZE + entry * IOVECS
    slots.setU64(iovecs, headers)
    slots.setU64(iovecs + 8, URING_REQ_HEADER.size)
    slots.setU64(iovecs + 16, headers + HEADERS)
    slots.setU64(iovecs + 24, MAX_IO)
    const address = this.#ring.arenaAddress + iovecs
    const args = this.#ring.command(this.#fd, IO_URING_CMD.REGISTER, address, 2, entry)
    this.#ring.words[args + CMD_QID] = this.#queueOf(entry)
  }

  /**
   * Answers the request in the slot at byte `base` with `size` bytes of payload and asks for the
   * next.
   */
  #commit(base: number, size: number): void {
    const { words } = this.slots
    const slot = base >>> 2
    const entry = Math.floor(base / SLOT_SIZE)
    this.#kept += size + words[slot + PAYLOAD_SZ]!
    words[slot + PAYLOAD_SZ] = size
    const args = this.#ring.command(this.#fd, IO_URING_CMD.COMMIT_AND_FETCH, 0, 0, entry)
    const command = this.#ring.words
    command[args + CMD_COMMIT_ID] = words[slot + COMMIT_ID]!
    command[args + CMD_COMMIT_ID + 1] = words[slot + COMMIT_ID + 1]!
    command[args + CMD_QID] = this.#queueOf(entry)
  }

  readonly #onCompletion = (entry: number, result: number): void => {
    if (result < 0) {
      this.#refused(entry, result)
      return
    }
    this.#proven[entry] = 1
    const base = entry * SLOT_SIZE
    this.#places[this.#count] = base
    this.#lengths[this.#count] = this.slots.u32(base + IN_HEADER.at.len)
    this.#count++
  }

  #refused(entry: number, result: number): void {
    this.#refusal = result
    // /dev/fuse says that the file system is unmounted.
    const hasEnded = result === -ENOTCONN || result === -ECONNABORTED || result === -ECANCELED
    // An entry that could not be registered is one less. A reply that is refused leaves a caller
    // waiting.
    assert(hasEnded || this.#proven[entry] === 0, `the kernel refused a reply: ${result}`)
  }
}

/** Why the kernel does not offer FUSE over io_uring in INIT. */
export function whyNotOffered(): string {
  const path = '/sys/module/fuse/parameters/enable_uring'
  try {
    return readFileSync(path, 'latin1').trim() === 'Y'
      ? 'fuse.enable_uring was off when the pool was mounted'
      : `fuse.enable_uring is off: echo Y > ${path}`
  } catch {
    return 'the kernel has no FUSE over io_uring: Linux 6.14 has, with CONFIG_FUSE_IO_URING'
  }
}

/** How many queues the kernel has: one for each CPU that could ever be. */
function nrPossibleCpus(): number {
  const list = readFileSync('/sys/devices/system/cpu/possible', 'latin1').trim()
  return list.split(',').reduce((sum, range) => {
    const [first, last = first] = range.split('-').map(Number)
    return sum + last! - first! + 1
  }, 0)
}
