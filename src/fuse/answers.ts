/**
 * Answers to requests: each request is answered exactly once. When a reply leaves is decided in
 * replies.ts, where it is made in reply-places.ts. Here, and only here, errors become errnos.
 */
import type { Later } from '../base/index.js'
import { IN_HEADER, OUT_HEADER, opcodeName } from './abi.js'
import type { Encode } from './encode.js'
import { errnoNumber } from './errno.js'
import type { Interrupts } from './interrupts.js'
import type { Replies } from './replies.js'
import { ReplyPlaces } from './reply-places.js'
import { numberAt, type Slots } from './slots.js'

export interface AnswersOptions {
  /** The file system failed a request; it was answered with the error's errno. */
  onError(opcode: string, ino: number, err: unknown): void
  /** A bug of ours, in an answer that came later. */
  onFatal(err: unknown): void
}

export class Answers {
  readonly #options: AnswersOptions
  readonly places: ReplyPlaces
  readonly #interrupts: Interrupts
  /** The slots that hold requests, and the replies that answer them. */
  #slots: Slots
  #replies: Replies
  #stopped = false

  constructor(slots: Slots, replies: Replies, interrupts: Interrupts, options: AnswersOptions) {
    this.#options = options
    this.#interrupts = interrupts
    this.#slots = slots
    this.#replies = replies
    this.places = new ReplyPlaces(slots)
  }

  /** Requests come in other slots from now on, which stay theirs until they are answered. */
  moveTo(slots: Slots, replies: Replies): void {
    this.#slots = slots
    this.#replies = replies
    this.places.moveTo(slots)
  }

  /** The slots that requests are in. */
  get slots(): Slots {
    return this.#slots
  }

  /** Nothing is answered any more. */
  stop(): void {
    this.#stopped = true
  }

  /**
   * Answers the request in the slot at byte `base` with the `length` bytes of payload behind its
   * header.
   */
  reply(base: number, length: number): void {
    this.#replies.reply(this.#slots, base, length, 0)
  }

  /** As `reply`, with a payload that was made in the slot of `place` at byte `at`. */
  replyFrom(place: Slots, at: number, base: number, length: number): void {
    if (place !== this.#slots) copyUnique(this.#slots, base, place)
    this.#replies.reply(place, at, length, 0)
  }

  refuse(base: number, errno: number): void {
    this.#replies.reply(this.#slots, base, 0, errno)
  }

  /** Answers with the errno of what handling a request threw. Throws that when it is a bug. */
  fail(opcode: number, base: number, ino: number, err: unknown): void {
    this.refuse(base, this.#errno(opcode, ino, err))
  }

  /** Answers with a value, when it is there. */
  answer<T>(opcode: number, base: number, ino: number, value: Later<T>, encode: Encode<T>): void {
    if (value instanceof Promise) {
      const place = this.places.later
      const at = place === this.#slots ? base : 0
      void this.answerLater(opcode, base, ino, value, encode, place, at)
    } else {
      this.reply(base, encode(this.#slots, base, value))
    }
  }

  /**
   * Answers when `promise` has ended, with a reply made in the slot of `place` at byte `at`.
   * @returns a promise that never fails: when the slot is free again
   */
  answerLater<T>(
    opcode: number,
    base: number,
    ino: number,
    promise: Promise<T>,
    encode: Encode<T>,
    place: Slots,
    at: number,
  ): Promise<void> {
    const number = numberAt(this.#slots, base + IN_HEADER.at.unique)
    const low = this.#slots.u32(base + IN_HEADER.at.unique)
    const high = this.#slots.u32(base + IN_HEADER.at.unique + 4)
    const reply = (length: number, errno: number): void => {
      this.#interrupts.answered(number)
      if (this.#stopped) return
      place.setU32(at + OUT_HEADER.at.unique, low)
      place.setU32(at + OUT_HEADER.at.unique + 4, high)
      this.#replies.replyLater(place, at, length, errno)
    }
    return (
      promise
        .then(value => reply(encode(place, at, value), 0))
        // A value that cannot be encoded counts as the file system's error.
        .catch(err => reply(0, this.#errno(opcode, ino, err)))
        .catch(bug => this.#options.onFatal(bug))
    )
  }

  /** The errno to answer an error with. Throws the error when it is a bug. */
  #errno(opcode: number, ino: number, err: unknown): number {
    const errno = errnoNumber(err)
    if (errno === null) throw err
    this.#options.onError(opcodeName(opcode), ino, err)
    return errno
  }
}

/** Copies the request's id into the first slot of `to`, which makes that the reply. */
function copyUnique(slots: Slots, base: number, to: Slots): void {
  const { unique } = IN_HEADER.at
  to.setU32(OUT_HEADER.at.unique, slots.u32(base + unique))
  to.setU32(OUT_HEADER.at.unique + 4, slots.u32(base + unique + 4))
}
