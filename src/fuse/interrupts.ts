import { assert, interrupted, type Requester } from '../base/index.js'
import { IN_HEADER } from './abi.js'
import { numberAt, type Slots } from './slots.js'

/** Stands for a slot while no request is being handled. */
const NONE = -1
/** At most so many interrupts of requests that have not come yet are remembered. */
const MAX_EARLY = 64

/**
 * Signals that callers get while they wait. The file system sees it as the requester of the request
 * at hand.
 */
export class Interrupts implements Requester {
  #slots: Slots
  /** The slot of the request that is being handled. */
  #base = NONE
  /** Of requests that may have to wait, by their number. */
  readonly #controllers = new Map<number, AbortController>()
  /** Requests, by their number, that an interrupt came for before them. */
  readonly #early = new Set<number>()

  constructor(slots: Slots) {
    this.#slots = slots
  }

  /** The request in the slot at byte `base` is being handled, until `handled`. */
  handling(slots: Slots, base: number): void {
    this.#slots = slots
    this.#base = base
  }

  handled(): void {
    this.#base = NONE
  }

  signal(): AbortSignal {
    assert(this.#base !== NONE, 'a request asks for its signal before it waits')
    const number = numberAt(this.#slots, this.#base + IN_HEADER.at.unique)
    let controller = this.#controllers.get(number)
    if (controller === undefined) {
      controller = new AbortController()
      this.#controllers.set(number, controller)
      if (this.#early.delete(number)) controller.abort(interrupted())
    }
    return controller.signal
  }

  /** The request of that number has been answered. */
  answered(number: number): void {
    this.#controllers.delete(number)
  }

  /**
   * The caller of a request has got a signal: what only waits ends with EINTR. There is no answer
   * to the interrupt itself.
   *
   * The kernel sends it once, behind its request; but a ring may bring the request later, for which
   * the answer EAGAIN would get nobody another interrupt. So it is remembered. The numbers of
   * requests that have been answered are among those, and harmless: none comes again.
   * @param at where in `slots` the `unique` of the request is
   */
  interrupt(slots: Slots, at: number): void {
    const number = numberAt(slots, at)
    const controller = this.#controllers.get(number)
    if (controller !== undefined) {
      controller.abort(interrupted())
      return
    }
    this.#early.add(number)
    if (this.#early.size <= MAX_EARLY) return
    for (const oldest of this.#early) {
      this.#early.delete(oldest)
      break
    }
  }
}
