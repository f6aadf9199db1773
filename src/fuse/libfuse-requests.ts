import type { Later } from '../base/index.js'
import { errnoNumber } from './errno.js'
import type { FileSystem } from './file-system.js'

/**
 * Milliseconds after which a request is answered with ETIMEDOUT: it holds one of libfuse's threads,
 * and a mount without a free one hangs. The longest wait of a pool, for space, is 60 s.
 */
const DEADLINE_MS = 180_000

/** @param errno 0, or a positive number: then there is no value */
type Reply<T> = (errno: number, value: T) => void

export interface LibfuseRequestsOptions {
  fileSystem: Pick<FileSystem, 'unsettled' | 'settle'>
  onError(operation: string, err: unknown): void
  /** A bug, which must not be answered. */
  onFatal(err: unknown): void
  deadlineMs?: number
}

interface Waiting {
  reply: Reply<unknown>
  errno: number
  value: unknown
}

/**
 * Answers requests that come one by one: each exactly once, when the changes that it may tell of
 * would survive this process, or at its deadline.
 */
export class LibfuseRequests {
  readonly #options: LibfuseRequestsOptions
  readonly #deadlineMs: number
  /** Answers that wait for `settle`. */
  #waiting: Waiting[] = []
  #releaseQueued = false
  #settling = false
  /** Requests that came while changes were being settled. */
  #held: (() => void)[] = []
  #stopped = false

  constructor(options: LibfuseRequestsOptions) {
    this.#options = options
    this.#deadlineMs = options.deadlineMs ?? DEADLINE_MS
  }

  /** Requests that come are not handled any more; those that were are answered. */
  stop(): void {
    this.#stopped = true
  }

  /**
   * @param work what is asked for; it throws what the caller is to get
   * @param reply called once, or never after `stop` and after a bug
   * @param tooLate called instead of `reply` with a value that came after the deadline
   */
  handle<T>(
    operation: string,
    work: () => Later<T>,
    reply: Reply<T>,
    tooLate: (value: T) => void = () => {},
  ): void {
    if (this.#stopped) return
    if (this.#settling) {
      this.#held.push(() => this.handle(operation, work, reply, tooLate))
      return
    }
    let value: Later<T>
    try {
      value = work()
    } catch (err) {
      this.#refuse(operation, err, reply)
      return
    }
    if (value instanceof Promise) this.#answerLater(operation, value, reply, tooLate)
    else this.#answer(reply, 0, value)
  }

  #answerLater<T>(
    operation: string,
    value: Promise<T>,
    reply: Reply<T>,
    tooLate: (value: T) => void,
  ): void {
    let isOver = false
    const deadline = setTimeout(() => {
      isOver = true
      this.#refuse(operation, Object.assign(new Error('no answer'), { code: 'ETIMEDOUT' }), reply)
    }, this.#deadlineMs)
    const end = (): boolean => {
      clearTimeout(deadline)
      return isOver
    }
    value
      .then(
        got => (end() ? tooLate(got) : this.#answer(reply, 0, got)),
        err => {
          if (!end() || errnoNumber(err) === null) this.#refuse(operation, err, reply)
        },
      )
      .catch(err => this.#options.onFatal(err))
  }

  #refuse<T>(operation: string, err: unknown, reply: Reply<T>): void {
    const errno = errnoNumber(err)
    if (errno === null) {
      this.stop()
      this.#options.onFatal(err)
      return
    }
    this.#options.onError(operation, err)
    this.#answer(reply, errno, undefined as T)
  }

  #answer<T>(reply: Reply<T>, errno: number, value: T): void {
    if (!this.#options.fileSystem.unsettled && !this.#settling) {
      reply(errno, value)
      return
    }
    this.#waiting.push({ reply: reply as Reply<unknown>, errno, value })
    if (this.#releaseQueued) return
    this.#releaseQueued = true
    // All requests of this turn of the loop share a settling.
    setImmediate(() => {
      this.#releaseQueued = false
      this.#release()
    })
  }

  /** Settles what there is to settle, then answers those that waited for it. */
  #release(): void {
    if (this.#settling) return
    const waiting = this.#waiting
    this.#waiting = []
    const { fileSystem } = this.#options
    let settled: Later<void>
    try {
      settled = fileSystem.unsettled ? fileSystem.settle() : undefined
    } catch (err) {
      this.#answerAll(waiting, err)
      return
    }
    if (!(settled instanceof Promise)) {
      this.#answerAll(waiting)
      return
    }
    this.#settling = true
    settled
      .then(
        () => this.#answerAll(waiting),
        err => this.#answerAll(waiting, err),
      )
      .then(() => {
        this.#settling = false
        const held = this.#held
        this.#held = []
        for (const handle of held) handle()
        if (this.#waiting.length > 0) this.#release()
      })
      .catch(err => this.#options.onFatal(err))
  }

  /**
   * @param failure changes that could not be settled are undone by a crash: who made them is told
   */
  #answerAll(waiting: readonly Waiting[], failure?: unknown): void {
    if (failure === undefined) {
      for (const { reply, errno, value } of waiting) reply(errno, value)
      return
    }
    const errno = errnoNumber(failure)
    if (errno === null) {
      this.stop()
      this.#options.onFatal(failure)
      return
    }
    this.#options.onError('settle', failure)
    for (const { reply } of waiting) reply(errno, undefined)
  }
}
