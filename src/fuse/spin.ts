/** What a wake-up takes, roughly, in microseconds: a request that came after it had come before. */
const WAKE_UP = 50
/** The first try, in microseconds. */
const SHORTEST = 10

/**
 * How long to look for the next request before sleeping.
 *
 * Sleeping and waking takes longer than serving a small request, so a caller that sends one after
 * the other mostly waits for our wake-ups. Looking again and again for a moment spares them, and is
 * wasted when nothing comes. So what it would have paid the last time decides: as the kernel does for
 * idle virtual CPUs (Documentation/virt/kvm/halt-polling.rst), the time doubles while requests come
 * soon, and is nothing after one that did not.
 */
export class Spin {
  readonly #most: number
  #microseconds = 0
  /** When the thread began to look before it fell asleep, in microseconds; 0 while it is awake. */
  #since = 0

  /** @param most microseconds; 0: never */
  constructor(most: number) {
    this.#most = most
  }

  /** How long to look now. */
  get microseconds(): number {
    return this.#microseconds
  }

  /** The thread has looked for `microseconds`, found nothing, and goes to sleep. */
  sleeps(): void {
    if (this.#most > 0) this.#since = performance.now() * 1000 - this.#microseconds
  }

  /** A request has come. */
  wakes(): void {
    if (this.#since === 0) return
    const waited = performance.now() * 1000 - this.#since
    this.#since = 0
    this.#microseconds =
      waited > this.#most + WAKE_UP
        ? 0
        : Math.min(this.#most, Math.max(SHORTEST, this.#microseconds * 2))
  }
}
