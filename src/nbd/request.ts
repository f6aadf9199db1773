/** A request, from its caller to the end, over as many connections as that takes. */
import type { ThinfsError } from '../base/index.js'

/** A run of bytes with the flags of base:allocation (ALLOCATION). */
export interface AllocationRun {
  length: number
  flags: number
}

export class Request {
  readonly command: number
  readonly flags: number
  readonly offset: number
  readonly length: number
  /** The bytes of a WRITE. */
  readonly data: readonly Uint8Array[] | null
  /** The memory that the bytes of a READ go to. */
  readonly into: readonly Uint8Array[] | null
  /** Milliseconds of the clock by which it has to have ended. */
  readonly deadline: number
  readonly #resolve: () => void
  readonly #reject: (err: Error) => void
  /** What the server has said of it so far. */
  error: ThinfsError | null = null
  runs: AllocationRun[] = []
  /** Bytes of a READ that came in order; then those [from, to) that came after one that did not. */
  #end = 0
  #others: [from: number, to: number][] | null = null

  constructor(
    what: Pick<Request, 'command' | 'flags' | 'offset' | 'length' | 'data' | 'into' | 'deadline'>,
    resolve: () => void,
    reject: (err: Error) => void,
  ) {
    this.command = what.command
    this.flags = what.flags
    this.offset = what.offset
    this.length = what.length
    this.data = what.data
    this.into = what.into
    this.deadline = what.deadline
    this.#resolve = resolve
    this.#reject = reject
  }

  /** Forgets what a connection that ended has said. */
  restart(): void {
    this.error = null
    this.runs = []
    this.#end = 0
    this.#others = null
  }

  /** Bytes [from, to), from the request's own begin, have come. */
  came(from: number, to: number): void {
    if (from === this.#end && this.#others === null) this.#end = to
    else {
      this.#others ??= []
      this.#others.push([from, to])
    }
  }

  /** Whether each byte of a READ came exactly once. */
  get isWhole(): boolean {
    let end = this.#end
    for (const [from, to] of this.#others?.sort(([one], [other]) => one - other) ?? []) {
      if (from !== end) return false
      end = to
    }
    return end === this.length
  }

  /** The reply is whole. */
  end(): void {
    if (this.error === null) this.#resolve()
    else this.#reject(this.error)
  }

  fail(err: Error): void {
    this.#reject(err)
  }
}
