import { type Clock, ThinfsError } from '../base/index.js'

/** Bytes of payload that waiting writes may keep in memory. */
const HELD_MAX = 128 * 1024 * 1024

interface Waiter {
  /** On whose behalf it waits. */
  owner: object
  resolve(): void
  reject(err: Error): void
}

/**
 * Writes that wait for a free data block.
 *
 * The clock starts when the first one waits. When it runs out all of them fail, and later ones fail
 * at once (`expired`) until there is space: dm-thin turns queue_if_no_space into error_if_no_space.
 */
export class SpaceQueue {
  readonly #clock: Clock
  /** Milliseconds; 0: for ever. */
  #timeout: number
  #waiting: Waiter[] = []
  #held = 0
  #stopClock: (() => void) | null = null
  #expired = false
  /** How often something has waited. */
  #nrWaits = 0

  /** @param timeout milliseconds that the first may wait; 0: for ever */
  constructor(clock: Clock, timeout: number) {
    this.#clock = clock
    this.#timeout = timeout
  }

  /** Milliseconds; 0: for ever. */
  get timeout(): number {
    return this.#timeout
  }

  /** Sets another time, which begins now for those that wait already. */
  set timeout(timeout: number) {
    this.#timeout = timeout
    this.#stopClock?.()
    this.#stopClock = null
    if (!this.isEmpty) this.#startClock()
  }

  get isEmpty(): boolean {
    return this.#waiting.length === 0
  }

  /** How many wait. */
  get length(): number {
    return this.#waiting.length
  }

  /** How many of them on behalf of `owner`. */
  lengthOf(owner: object): number {
    return this.#waiting.filter(waiter => waiter.owner === owner).length
  }

  /** How often something has waited, up to now. */
  get nrWaits(): number {
    return this.#nrWaits
  }

  get expired(): boolean {
    return this.#expired
  }

  /**
   * Resolves when space came.
   * @param owner on whose behalf: `cancel` ends all waits of one
   * @param held bytes kept meanwhile
   * @param signal ends the wait with its reason
   * @throws NO_DATA_SPACE when time ran out, or too much is held already
   */
  wait(owner: object, held: number, signal?: AbortSignal): Promise<void> {
    if (this.#held + held > HELD_MAX) {
      return Promise.reject(new ThinfsError('NO_DATA_SPACE', 'too many writes wait for space'))
    }
    this.#held += held
    this.#nrWaits++
    this.#startClock()
    let leave = (): void => {}
    const waited = new Promise<void>((resolve, reject) => {
      const waiter = { owner, resolve, reject }
      this.#waiting.push(waiter)
      leave = () => this.#rejectSome(other => other === waiter, signal?.reason)
    })
    signal?.addEventListener('abort', leave)
    return waited.finally(() => {
      signal?.removeEventListener('abort', leave)
      this.#held -= held
    })
  }

  /** Fails all that wait on behalf of `owner`. */
  cancel(owner: object, err: Error): void {
    this.#rejectSome(waiter => waiter.owner === owner, err)
  }

  /** Space came: all try again, in the order they came. */
  wake(): void {
    this.#expired = false
    for (const waiter of this.#stop()) waiter.resolve()
  }

  /** Space may have come: all try again; a caller that has to wait again keeps its deadline. */
  retry(): void {
    for (const waiter of this.#take()) waiter.resolve()
  }

  /** Fails all that wait. */
  reject(err: Error): void {
    for (const waiter of this.#stop()) waiter.reject(err)
  }

  #startClock(): void {
    const timeout = this.#timeout
    if (timeout === 0) return
    this.#stopClock ??= this.#clock.after(timeout, () => {
      this.#stopClock = null
      if (this.isEmpty) return // space came for all of them, one by one
      this.#expired = true
      this.reject(new ThinfsError('NO_DATA_SPACE', `no space came within ${timeout / 1000} s`))
    })
  }

  #stop(): Waiter[] {
    this.#stopClock?.()
    this.#stopClock = null
    return this.#take()
  }

  #rejectSome(isOne: (waiter: Waiter) => boolean, err: Error): void {
    const rejected = this.#waiting.filter(isOne)
    if (rejected.length === this.#waiting.length) {
      this.reject(err)
      return
    }
    this.#waiting = this.#waiting.filter(waiter => !isOne(waiter))
    for (const waiter of rejected) waiter.reject(err)
  }

  #take(): Waiter[] {
    const taken = this.#waiting
    this.#waiting = []
    return taken
  }
}
