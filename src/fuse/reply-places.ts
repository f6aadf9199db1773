/**
 * The places in which replies are made.
 *
 * A ring's slot stays its request's until that is answered, so the reply is made there. Slots of
 * /dev/fuse hold other requests once their batch is over: a reply that comes later is made on a
 * desk that all such replies share, or, when a disk fills it meanwhile, in a slot of its own.
 */
import { KIB } from '../base/index.js'
import { DEV_LAYOUT, Slots } from './slots.js'

/**
 * Payload of a slot for a READ that waits, at least; up to MAX_SPARE of just this size are reused.
 */
const SPARE_IO = 128 * KIB
const MAX_SPARE = 64
const SPARE_SIZE = slotSize(SPARE_IO)
/**
 * From this size on, a READ that is answered at once is answered on the desk: its memory stays in
 * the CPU's cache, while a slot is used too seldom to.
 */
const LARGE_IO = 64 * KIB

export class ReplyPlaces {
  #slots: Slots
  #keepsSlots = false
  readonly #desk: Slots
  readonly #spare: Slots[] = []

  /** @param slots of requests that come by /dev/fuse */
  constructor(slots: Slots) {
    this.#slots = slots
    this.#desk = new Slots(slots.size, 1)
  }

  /** Requests come in other slots from now on, which stay theirs until they are answered. */
  moveTo(slots: Slots): void {
    this.#slots = slots
    this.#keepsSlots = true
  }

  /**
   * For a READ of `size` bytes that is answered at once: the slots of requests, or the desk.
   * @param isHeld whether the reply may have to wait for the end of the batch
   */
  forRead(size: number, isHeld: boolean): Slots {
    return size >= LARGE_IO && !this.#keepsSlots && !isHeld ? this.#desk : this.#slots
  }

  /** For an answer that is encoded when it has come: the slots of requests, or the desk. */
  get later(): Slots {
    return this.#keepsSlots ? this.#slots : this.#desk
  }

  /**
   * For a READ of `size` bytes that a disk answers: the slots of requests, or one slot until
   * `free`.
   */
  take(size: number): Slots {
    if (this.#keepsSlots) return this.#slots
    return (
      (size <= SPARE_IO && this.#spare.pop()) || new Slots(slotSize(Math.max(size, SPARE_IO)), 1)
    )
  }

  free(place: Slots): void {
    if (place === this.#slots || place.size !== SPARE_SIZE) return
    if (this.#spare.length < MAX_SPARE) this.#spare.push(place)
  }
}

/** Bytes of a slot, in the layout of /dev/fuse, that has room for a reply's payload. */
function slotSize(payload: number): number {
  return Math.ceil((DEV_LAYOUT.payload + payload) / 8) * 8
}
