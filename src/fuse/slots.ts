/**
 * Where requests arrive, and where each is answered: equal slots of one long-lived buffer.
 *
 * The headers of request and reply have `unique` at the same place, so a reply is made in its
 * request's slot: two words of the header change, the payload goes behind it, and all 64 bits of
 * `unique` come back as they came. Byte offsets of slots are multiples of 4.
 */
import { IN_HEADER, OUT_HEADER } from './abi.js'

/** Where the payload of a reply begins, from the start of its slot. */
export const PAYLOAD = OUT_HEADER.size
/** Where the structure of a request begins, from the start of its slot. */
export const BODY = IN_HEADER.size

const HIGH = 0x1_0000_0000

export class Slots {
  readonly size: number
  readonly count: number
  readonly buffer: Buffer
  readonly view: DataView
  readonly words: Uint32Array

  /** @param size bytes of a slot, a multiple of 8 */
  constructor(size: number, count: number) {
    this.size = size
    this.count = count
    this.buffer = Buffer.allocUnsafeSlow(size * count)
    this.view = new DataView(this.buffer.buffer)
    this.words = new Uint32Array(this.buffer.buffer)
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
