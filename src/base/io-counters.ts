/**
 * Counters of requests, and histograms of how long they took.
 *
 * Counting takes a few additions to a typed array and no allocation: it happens for every request.
 * The counts as plain objects are for whoever asks, now and then.
 */

/** The operations that are counted, and the place of each in the array of `IoCounters`. */
export const OPERATION = { read: 0, write: 1, discard: 2, flush: 3 } as const
export type Operation = keyof typeof OPERATION
export const OPERATIONS = Object.keys(OPERATION) as Operation[]

/** Octaves of the histogram from 1 microsecond on: the last one begins at 33 seconds. */
const OCTAVES = 26

/**
 * Microseconds below which the durations of a bucket are: 1, 2, 3, 4, 6, 8, 12, 16, 24 and so on,
 * two buckets an octave. One more bucket has all that is longer.
 */
export const LATENCY_BOUNDS: readonly number[] = [
  1,
  2,
  ...Array.from({ length: OCTAVES - 1 }, (_, i) => [3 * 2 ** i, 2 ** (i + 2)]).flat(),
]
const NR_BUCKETS = LATENCY_BOUNDS.length + 1
const LONGEST = LATENCY_BOUNDS.at(-1)!

/** The bucket of a duration in whole microseconds. */
function bucketOf(microseconds: number): number {
  if (microseconds < 2) return microseconds
  if (microseconds >= LONGEST) return NR_BUCKETS - 1
  const octave = 31 - Math.clz32(microseconds)
  return 2 * octave + ((microseconds >>> (octave - 1)) & 1)
}

/** One operation's counts, as plain JSON. */
export interface OperationCounts {
  /** Requests that were answered with success. */
  count: number
  bytes: number
  /** Milliseconds that all of them took together. */
  ms: number
  /** How many took how long, by LATENCY_BOUNDS; zeros at the end are left out. */
  buckets: number[]
}

/** The counts of all operations, as plain JSON. */
export interface IoCounts extends Record<Operation, OperationCounts> {
  /** Reads among the others that had to wait for a disk. */
  coldReads: number
}

/** Numbers of one operation: count, bytes, milliseconds, buckets. */
const STRIDE = 3 + NR_BUCKETS
const COLD_READS = OPERATIONS.length * STRIDE

/** The counters of a volume, or of a pool. */
export class IoCounters {
  readonly #numbers = new Float64Array(COLD_READS + 1)

  /**
   * Counts a request.
   * @param operation of OPERATION
   * @param milliseconds that it took
   */
  count(operation: number, bytes: number, milliseconds: number): void {
    const numbers = this.#numbers
    const at = operation * STRIDE
    numbers[at]! += 1
    numbers[at + 1]! += bytes
    numbers[at + 2]! += milliseconds
    const microseconds = Math.min(LONGEST, Math.max(0, milliseconds * 1000)) | 0
    numbers[at + 3 + bucketOf(microseconds)]! += 1
  }

  /** A read has to wait for a disk. */
  coldRead(): void {
    this.#numbers[COLD_READS]! += 1
  }

  /** Whether nothing was counted yet. */
  get isEmpty(): boolean {
    return this.#numbers.every(number => number === 0)
  }

  /** Adds what another process has counted. */
  add(counts: IoCounts): void {
    this.#addTimes(1, counts)
  }

  /** Takes away what `add` added. */
  subtract(counts: IoCounts): void {
    this.#addTimes(-1, counts)
  }

  /** Adds the counts of another. */
  addAll(other: IoCounters): void {
    const numbers = this.#numbers
    for (const [i, number] of other.#numbers.entries()) numbers[i]! += number
  }

  #addTimes(factor: 1 | -1, counts: IoCounts): void {
    const numbers = this.#numbers
    for (const operation of OPERATIONS) {
      const at = OPERATION[operation] * STRIDE
      const { count, bytes, ms, buckets } = counts[operation]
      const values = [count, bytes, ms, ...buckets.slice(0, NR_BUCKETS)]
      for (const [i, value] of values.entries()) numbers[at + i]! += factor * value
    }
    numbers[COLD_READS]! += factor * counts.coldReads
  }

  get counts(): IoCounts {
    const { read, write, discard, flush } = OPERATION
    return {
      read: this.#countsOf(read),
      write: this.#countsOf(write),
      discard: this.#countsOf(discard),
      flush: this.#countsOf(flush),
      coldReads: this.#numbers[COLD_READS]!,
    }
  }

  #countsOf(operation: number): OperationCounts {
    const at = operation * STRIDE
    const [count, bytes, ms, ...buckets] = this.#numbers.subarray(at, at + STRIDE)
    while (buckets.at(-1) === 0) buckets.pop()
    return { count: count!, bytes: bytes!, ms: Math.round(ms! * 1000) / 1000, buckets }
  }
}

/** The counts between two moments. If a counter went back, all of `after` is new. */
export function countsBetween(before: IoCounts, after: IoCounts): IoCounts {
  const isBack = OPERATIONS.some(operation => after[operation].count < before[operation].count)
  if (isBack) return after
  const between = (operation: Operation): OperationCounts => {
    const [from, to] = [before[operation], after[operation]]
    return {
      count: to.count - from.count,
      bytes: to.bytes - from.bytes,
      ms: to.ms - from.ms,
      buckets: to.buckets.map((count, i) => count - (from.buckets[i] ?? 0)),
    }
  }
  return {
    read: between('read'),
    write: between('write'),
    discard: between('discard'),
    flush: between('flush'),
    coldReads: after.coldReads - before.coldReads,
  }
}

/** The counts of several operations as if they were one. */
export function countsTogether(parts: readonly OperationCounts[]): OperationCounts {
  const longest = Math.max(0, ...parts.map(({ buckets }) => buckets.length))
  const sum = (of: (part: OperationCounts) => number): number =>
    parts.reduce((all, part) => all + of(part), 0)
  return {
    count: sum(({ count }) => count),
    bytes: sum(({ bytes }) => bytes),
    ms: sum(({ ms }) => ms),
    buckets: Array.from({ length: longest }, (_, i) => sum(({ buckets }) => buckets[i] ?? 0)),
  }
}

/** Milliseconds that a request took in the mean; 0 without any. */
export const meanOf = ({ count, ms }: OperationCounts): number => (count === 0 ? 0 : ms / count)

/**
 * Milliseconds that this share of the requests stayed below, as exact as the buckets are: within a
 * bucket they count as spread evenly. 0 without requests.
 * @param share 0 to 1
 */
export function quantileOf({ buckets }: OperationCounts, share: number): number {
  const count = buckets.reduce((all, one) => all + one, 0)
  if (count === 0) return 0
  let left = share * count
  for (const [i, here] of buckets.entries()) {
    if (here > 0 && left <= here) {
      const begin = i === 0 ? 0 : LATENCY_BOUNDS[i - 1]!
      const end = LATENCY_BOUNDS[i] ?? begin
      return (begin + ((end - begin) * left) / here) / 1000
    }
    left -= here
  }
  return LONGEST / 1000
}
