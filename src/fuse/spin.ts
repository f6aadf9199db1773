/** A wake-up, roughly, in microseconds: a request that ends a sleep arrived that much earlier. */
const WAKE_UP = 50
/** The shortest look, in microseconds: a system call or two. */
const SHORTEST = 10
/** One gap in 16 counts towards how many are short. */
const WEIGHT = 1 / 16
/** Looking is worth a try while at least this share of the gaps is short. */
const MOST = 0.5
/** Up by a quarter when a gap is longer than expected, down by 3 % when not: 7 of 8 are shorter. */
const LONGER = 1.25
const SHORTER = 0.97
/** A look goes on for this many times the gap that 7 of 8 stay below. */
const MARGIN = 1.5
/** Looking time that can be saved up, in microseconds. */
const SAVED = 20_000
/** Requests that are served one way before their cost is taken. */
const ROUND = 128
/** Rounds one way before a trial of the other, at least and at most. */
const ROUNDS_MIN = 2
const ROUNDS_MAX = 64
/** The other way is taken when it costs less than this share. */
const BETTER = 0.95
/** A wait of more microseconds is a pause of the callers, and no cost of either way. */
const PAUSE = 1000

/**
 * How long to look for the next request before sleeping.
 *
 * A thread that sleeps and wakes takes longer than a small request does, so a caller that sends one
 * request after the other mostly waits for wake-ups. A thread that looks again and again spares
 * them, wastes the time when nothing comes, and takes a CPU from whoever wants it, the caller too.
 * So three things decide:
 *
 * - The gaps between requests: the thread looks a little longer than most gaps last, and only while
 *   most gaps end before `most`. An idle thread sleeps. The kernel's halt polling decides in a
 *   similar way (Documentation/virt/kvm/halt-polling.rst).
 * - What a request costs: now and then the thread tries the other way for a round of requests, and
 *   keeps to the one by which requests come faster.
 * - Its share of the time.
 */
export class Spin {
  readonly #most: number
  readonly #share: number
  /** Whether the thread looks, and whether requests came faster so: they differ during a trial. */
  #looking = false
  #better = false
  /** Microseconds of a request the better way, of late; 0: not known. */
  #cost = 0
  /**
   * Rounds of sleeping, and of looking, before the other is tried: the more often one proved right,
   * the more.
   */
  readonly #rounds = [ROUNDS_MIN, ROUNDS_MIN]
  #untilTrial = ROUNDS_MIN
  /** Requests of this round, when it began in microseconds, and the pauses in it. */
  #served = 0
  #roundBegan = 0
  #paused = 0
  /** How long to look, in microseconds. */
  #microseconds = 0
  /** When the thread began to wait for a request, in microseconds; 0 when it does not. */
  #since = 0
  /** The gap that most gaps stay below, in microseconds. */
  #gap = SHORTEST
  /** The share of the last gaps that ended before `most`. */
  #short = 0
  /** Microseconds since the turn began that the thread has looked for requests that came. */
  #looked = 0
  /** Looking time that is left, in microseconds, and since when it has grown. */
  #left = SAVED
  #grownAt = 0

  /**
   * @param most microseconds of one look; 0: never
   * @param share of the time that may pass looking, over 0 to 1
   */
  constructor(most: number, share: number) {
    this.#most = most
    this.#share = share
  }

  /** Whether the thread looks before it sleeps. */
  get looks(): boolean {
    return this.#microseconds > 0
  }

  /** Looking time of this turn, in microseconds: timers and sockets wait for its end. */
  get looked(): number {
    return this.#looked
  }

  /** The thread is going to look: for how long, in microseconds. */
  begins(): number {
    if (this.#microseconds > 0) this.#since = performance.now() * 1000
    return this.#microseconds
  }

  /** Requests came, perhaps while the thread looked. */
  finds(count: number): void {
    if (this.#most === 0) return
    if (this.#since > 0) {
      const now = performance.now() * 1000
      const looked = now - this.#since
      this.#since = 0
      this.#looked += looked
      this.#spend(looked, now)
      this.#learn(looked)
    }
    this.#served += count
    if (this.#served >= ROUND) this.#endRound(performance.now() * 1000)
  }

  /** No request came, and the thread goes to sleep. */
  sleeps(): void {
    if (this.#most === 0) return
    const now = performance.now() * 1000
    if (this.#since === 0) this.#since = now
    this.#spend(now - this.#since, now)
  }

  /** A turn begins: a request ended the sleep, or the last turn had no end of requests. */
  wakes(): void {
    this.#looked = 0
    if (this.#since === 0) return
    const waited = performance.now() * 1000 - this.#since
    this.#since = 0
    if (waited > PAUSE) this.#paused += waited - PAUSE
    this.#learn(Math.max(0, waited - WAKE_UP))
  }

  #learn(gap: number): void {
    const short = gap <= this.#most
    this.#short += ((short ? 1 : 0) - this.#short) * WEIGHT
    if (short) {
      this.#gap =
        gap > this.#gap
          ? Math.min(this.#most, this.#gap * LONGER)
          : Math.max(SHORTEST, this.#gap * SHORTER)
    }
    this.#microseconds =
      !this.#looking || this.#short < MOST || this.#left <= 0
        ? 0
        : Math.min(this.#most, Math.round(this.#gap * MARGIN))
  }

  #spend(looked: number, now: number): void {
    this.#left = Math.min(SAVED, this.#left + (now - this.#grownAt) * this.#share) - looked
    this.#grownAt = now
  }

  #endRound(now: number): void {
    const cost = (now - this.#roundBegan - this.#paused) / this.#served
    this.#served = 0
    this.#roundBegan = now
    this.#paused = 0
    if (this.#looking !== this.#better) {
      const lost = cost < this.#cost * BETTER
      const last = this.#rounds[Number(this.#better)]!
      this.#rounds[Number(this.#better)] = lost
        ? Math.max(ROUNDS_MIN, last / 2)
        : Math.min(ROUNDS_MAX, last * 2)
      if (lost) {
        this.#better = this.#looking
        this.#cost = cost
      }
      this.#looking = this.#better
      this.#untilTrial = this.#rounds[Number(this.#better)]!
    } else {
      this.#cost = this.#cost === 0 ? cost : this.#cost + (cost - this.#cost) / 4
      if (--this.#untilTrial === 0) this.#looking = !this.#looking
    }
    if (!this.#looking) this.#microseconds = 0
  }
}
