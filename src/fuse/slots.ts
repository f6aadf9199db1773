/**
 * Requests arrive, and each is answered, in equal slots of one long-lived memory.
 *
 * The headers of request and reply begin a slot and have `unique` at the same place, so a reply is
 * made in its request's slot: two words of the header change, the payload goes to its place, and
 * all 64 bits of `unique` come back as they came. Byte offsets of slots are multiples of 4.
 */
import { IN_HEADER, OUT_HEADER } from './abi.js'

/** The places of the parts of a request and its reply: bytes from the start of a slot. */
export interface SlotLayout {
  /** The structure of a request. */
  readonly body: number
  /** The names or data after the structure; null: they come directly behind it. */
  readonly rest: number | null
  /** The payload of a reply. */
  readonly payload: number
}

/** As read(2) and write(2) on /dev/fuse have it: one behind the other. */
export const DEV_LAYOUT: SlotLayout = {
  body: IN_HEADER.size,
  rest: null,
  payload: OUT_HEADER.size,
}

const HIGH = 0x1_0000_0000

export class Slots {
  readonly size: number
  readonly count: number
  /** Of the slots' layout. */
  readonly body: number
  readonly payload: number
  readonly buffer: Buffer
  readonly view: DataView
  readonly words: Uint32Array
  readonly #rest: number | null

  /**
   * @param size bytes of a slot, a multiple of 8
   * @param memory `size * count` bytes, less than 4 GiB; made here by default
   */
  constructor(
    size: number,
    count: number,
    layout: SlotLayout = DEV_LAYOUT,
    memory: ArrayBufferLike = Buffer.allocUnsafeSlow(size * count).buffer,
  ) {
    this.size = size
    this.count = count
    this.body = layout.body
    this.payload = layout.payload
    this.buffer = Buffer.from(memory, 0, size * count)
    this.view = new DataView(memory)
    this.words = new Uint32Array(memory)
    this.#rest = layout.rest
  }

  /** The byte after a structure of `bodySize` bytes in the slot at byte `base`. */
  rest(base: number, bodySize: number): number {
    return this.#rest === null ? base + this.body + bodySize : base + this.#rest
  }

  /** The u32 at byte `at`. */
  u32(at: number): number {
    return this.words[at >>> 2]!
  }

  /** The u64 at byte `at`, which only has to be a multiple of 4. */
  u64(at: number): number {
    return this.words[at >>> 2]! + this.words[(at >>> 2) + 1]! * HIGH
  }

  setU32(at: number, value: number): void {
    this.words[at >>> 2] = value
  }

  setU64(at: number, value: number): void {
    this.words[at >>> 2] = value
    this.words[(at >>> 2) + 1] = Math.floor(value / HIGH)
  }
}

/** The number in the `unique` at byte `at`: the same when the request is sent again. */
export const numberAt = (slots: Slots, at: number): number =>
  (slots.u32(at + 4) & 0x7fff_ffff) * HIGH + slots.u32(at)

/**
 * Memory for slots that the kernel writes requests to, with all of its pages present. When a
 * process is killed while the kernel copies a request to a page that is not present, the copy
 * fails, and the caller gets EIO instead of an answer from the next process.
 * Source: fuse_dev_do_read() in fs/fuse/dev.c, fatal_signal_pending() in mm/gup.c.
 */
export function residentMemory(size: number): ArrayBufferLike {
  return Buffer.allocUnsafeSlow(size).fill(0).buffer
}
