import { type Clock, ThinfsError } from '../base/index.js'

/** Bytes of payload that waiting writes may keep in memory. */
const HELD_MAX = 128 * 1024 * 1024

interface Waiter {
  /** On whose behalf it waits. */
  owner: object
  resolve(): void
  reject(err: Error): void
}

/** The time that some owners' waits may take: the pool's, or one owner's own. */
interface Limit {
  /** Milliseconds; 0: for ever. */
  timeout: number
  /** Stops its clock; null while that does not run. */
  stop: (() => void) | null
  expired: boolean
}

/**
 * Writes that wait for a free data block.
 *
 * The clock starts when the first one waits. When it runs out all of them fail, and later ones fail
 * at once (`expired`) until there is space: dm-thin turns queue_if_no_space into error_if_no_space.
 * An owner may have a time, and so a clock, of its own.
 */
export class SpaceQueue {
  readonly #clock: Clock
  readonly #common: Limit
  readonly #own = new Map<object, Limit>()
  #waiting: Waiter[] = []
  #held = 0
  /** How often something has waited. */
  #nrWaits = 0

  /** @param timeout milliseconds that the first may wait; 0: for ever */
  constructor(clock: Clock, timeout: number) {
    this.#clock = clock
    this.#common = { timeout, stop: null, expired: false }
  }

  /** Milliseconds; 0: for ever. */
  get timeout(): number {
    return this.#common.timeout
  }

  /** Sets another time, which begins now for those that wait already. */
  set timeout(timeout: number) {
    this.#common.timeout = timeout
    this.#startOver(this.#common)
  }

  /** The same for one owner; null: the common time. */
  setTimeoutOf(owner: object, timeout: number | null): void {
    const before = this.#own.get(owner)
    if ((before?.timeout ?? null) === timeout) return
    before?.stop?.()
    if (timeout === null) this.#own.delete(owner)
    else this.#own.set(owner, { timeout, stop: null, expired: false })
    this.#stopIdle()
    if (this.lengthOf(owner) > 0) this.#startClock(this.#limitOf(owner))
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

  /** Whether waits of the common time were in vain, and space did not come since. */
  get expired(): boolean {
    return this.#common.expired
  }

  /** The same for the time of one owner. */
  hasExpiredFor(owner: object): boolean {
    return this.#limitOf(owner).expired
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
    this.#startClock(this.#limitOf(owner))
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
    for (const limit of this.#limits()) limit.expired = false
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

  #limitOf(owner: object): Limit {
    return this.#own.get(owner) ?? this.#common
  }

  *#limits(): Iterable<Limit> {
    yield this.#common
    yield* this.#own.values()
  }

  #startOver(limit: Limit): void {
    limit.stop?.()
    limit.stop = null
    if (this.#isAwaited(limit)) this.#startClock(limit)
  }

  #isAwaited(limit: Limit): boolean {
    return this.#waiting.some(({ owner }) => this.#limitOf(owner) === limit)
  }

  #startClock(limit: Limit): void {
    const { timeout } = limit
    if (timeout === 0) return
    limit.stop ??= this.#clock.after(timeout, () => {
      limit.stop = null
      if (!this.#isAwaited(limit)) return // space came for all of them, one by one
      limit.expired = true
      const err = new ThinfsError('NO_DATA_SPACE', `no space came within ${timeout / 1000} s`)
      this.#rejectSome(({ owner }) => this.#limitOf(owner) === limit, err)
    })
  }

  /** Stops the clocks that nobody waits for. */
  #stopIdle(): void {
    for (const limit of this.#limits()) {
      if (limit.stop === null || this.#isAwaited(limit)) continue
      limit.stop()
      limit.stop = null
    }
  }

  #stop(): Waiter[] {
    const taken = this.#take()
    this.#stopIdle()
    return taken
  }

  #rejectSome(isOne: (waiter: Waiter) => boolean, err: Error): void {
    const rejected = this.#waiting.filter(isOne)
    this.#waiting = this.#waiting.filter(waiter => !isOne(waiter))
    this.#stopIdle()
    for (const waiter of rejected) waiter.reject(err)
  }

  #take(): Waiter[] {
    const taken = this.#waiting
    this.#waiting = []
    return taken
  }
}
