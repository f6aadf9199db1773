import { readFileSync } from 'node:fs'
import { assert, errnoOf, ThinfsError } from '../base/index.js'
import { native, type RingHandle, type Watch } from '../native.js'
import { CANCEL_ALL, CANCEL_ANY, CQE, OPERATION, SQE } from './abi.js'

const HIGH = 0x1_0000_0000
/** Words of a structure, and of its fields. */
const CQE_WORDS = CQE.size / 4
const OPCODE = SQE.at.opcode / 4
const FD = SQE.at.fd / 4
const OFF = SQE.at.off / 4
const ADDR = SQE.at.addr / 4
const LEN = SQE.at.len / 4
const OP_FLAGS = SQE.at.opFlags / 4
const TAG = SQE.at.userData / 4
const COMMAND = SQE.at.command / 4
const CQE_TAG = CQE.at.userData / 4
const CQE_RES = CQE.at.res / 4

/** The high word of `user_data`: the kind of an entry. */
const KIND = { COMMAND: 0, READ: 1, CANCEL: 2 } as const

export interface RingOptions {
  /** Entries that can be pushed between two calls of `submit`; twice as many can be under way. */
  entries: number
  /** Whether `command` is used: entries of 128 bytes, which needs Linux 5.19. Default: false. */
  commands?: boolean
  /** Bytes of memory at `arenaAddress`. Not taken before they are used. Default: 0. */
  arenaSize?: number
}

/**
 * An io_uring of this thread: operations go to the kernel many at a time, and complete in any
 * order.
 *
 * Entries are pushed, then submitted together; each completes once, with the `tag` it was pushed
 * with and a result, which is a negative errno when it failed. Nothing is allocated per entry.
 * Memory that an entry names by its address belongs to the kernel until the entry has completed.
 */
export class Ring {
  /** Memory of the ring's own, which has an address for entries. Empty after `close`. */
  readonly arena: ArrayBuffer
  readonly arenaAddress: number
  /** The entries as words: `command` tells where its own are. */
  readonly words: Uint32Array
  readonly #handle: RingHandle
  readonly #fd: number
  readonly #cqes: Int32Array
  readonly #sqEntries: number
  readonly #cqEntries: number
  readonly #entryWords: number
  #sqTail = 0
  /** Entries up to here are the kernel's. */
  #submitted = 0
  #cqHead = 0
  #cqTail = 0
  #readsUnderWay = 0
  #watch: Watch | null = null
  #closed = false

  /** @throws NOT_SUPPORTED, with the reason, where io_uring is not there or not allowed */
  constructor({ entries, commands = false, arenaSize = 0 }: RingOptions) {
    let opened: ReturnType<typeof native.ring_open>
    try {
      opened = native.ring_open(entries, commands ? 1 : 0, arenaSize)
    } catch (err) {
      throw refused(err)
    }
    this.arena = opened.arena
    this.arenaAddress = opened.arenaAddress
    this.words = new Uint32Array(opened.sqes)
    this.#handle = opened.ring
    this.#fd = opened.fd
    this.#cqes = new Int32Array(opened.cqes)
    this.#sqEntries = opened.sqEntries
    this.#cqEntries = opened.cqEntries
    this.#entryWords = (commands ? 2 * SQE.size : SQE.size) / 4
  }

  /** How many entries can be under way, pushed ones included. More is a mistake. */
  get capacity(): number {
    // One is for `close`.
    return this.#cqEntries - 1
  }

  /**
   * Pushes a read of `length` bytes at `offset` of a file to memory at `address`. It results in the
   * bytes read: fewer at the end of the file, and wherever read(2) gives fewer.
   * @param tag any u32
   */
  read(fd: number, offset: number, address: number, length: number, tag: number): void {
    const at = this.#push(OPERATION.READ, fd, address, length, tag, KIND.READ)
    this.words[at + OFF] = offset
    this.words[at + OFF + 1] = Math.floor(offset / HIGH)
    this.#readsUnderWay++
  }

  /**
   * Pushes a command of a driver (IORING_OP_URING_CMD).
   * @param operation the driver's number of it
   * @param tag any u32
   * @returns where the 20 words of its arguments, now zero, are in `words`
   */
  command(fd: number, operation: number, address: number, length: number, tag: number): number {
    const at = this.#push(OPERATION.URING_CMD, fd, address, length, tag, KIND.COMMAND)
    this.words[at + OFF] = operation
    return at + COMMAND
  }

  /** Submits the pushed entries. @returns how many completions wait; the watch reports them too */
  submit(): number {
    const count = this.#enter(0, 0)
    if (count > 0 && this.#watch !== null) native.ring_signal(this.#handle)
    return count
  }

  /**
   * As `submit`, for a caller that takes the completions itself: the watch does not report them.
   * When nothing has completed, looks for a completion for `spin` microseconds.
   */
  poll(spin: number): number {
    return this.#enter(0, spin)
  }

  /** Submits the pushed entries, and sleeps until `count` completions wait. @returns how many do */
  wait(count: number): number {
    assert(count <= this.#underWay, 'who waits has something under way')
    return this.#enter(count, 0)
  }

  /** Passes at most `most` waiting completions to `onCompletion`, which may push and submit. */
  take(onCompletion: (tag: number, result: number) => void, most = Number.POSITIVE_INFINITY): void {
    for (let taken = 0; taken < most && this.#cqHead !== this.#cqTail; taken++) {
      const at = (this.#cqHead & (this.#cqEntries - 1)) * CQE_WORDS
      const kind = this.#cqes[at + CQE_TAG + 1]
      const tag = this.#cqes[at + CQE_TAG]! >>> 0
      const result = this.#cqes[at + CQE_RES]!
      this.#cqHead = (this.#cqHead + 1) >>> 0
      if (kind === KIND.READ) this.#readsUnderWay--
      if (kind !== KIND.CANCEL) onCompletion(tag, result)
    }
  }

  /** Calls `onCompletions` from the event loop for completions that `poll` has not returned. */
  watch(onCompletions: () => void): void {
    this.#watch ??= native.poll_watch(this.#fd, () => {
      native.ring_calm(this.#handle)
      onCompletions()
    })
    // Completions that arrived before the watch raised no event, so raise one now.
    native.ring_signal(this.#handle)
  }

  unwatch(): void {
    if (this.#watch !== null) native.poll_unwatch(this.#watch)
    this.#watch = null
  }

  /**
   * Cancels the operations under way and frees the ring. Sleeps until no read is under way: memory
   * that reads filled is the caller's again. Nothing completes afterwards.
   */
  close(): void {
    if (this.#closed) return
    this.unwatch()
    if (this.#readsUnderWay > 0) {
      const at = this.#push(OPERATION.ASYNC_CANCEL, -1, 0, 0, 0, KIND.CANCEL)
      this.words[at + OP_FLAGS] = CANCEL_ALL | CANCEL_ANY
    }
    // A kernel before Linux 5.19 does not know the flags: then reads end by themselves.
    while (this.#readsUnderWay > 0) {
      this.take(() => {})
      if (this.#readsUnderWay > 0) this.#enter(1, 0)
    }
    this.#closed = true
    this.#cqTail = this.#cqHead
    native.ring_close(this.#handle)
  }

  get #underWay(): number {
    return (this.#sqTail - this.#cqHead) >>> 0
  }

  #enter(wait: number, spin: number): number {
    this.#cqTail = native.ring_enter(this.#handle, this.#sqTail, this.#cqHead, wait, spin)
    this.#submitted = this.#sqTail
    return (this.#cqTail - this.#cqHead) >>> 0
  }

  /** Fills the next entry. @returns its first word */
  #push(
    operation: number,
    fd: number,
    address: number,
    length: number,
    tag: number,
    kind: number,
  ): number {
    assert(!this.#closed, 'the ring is open')
    assert(
      this.#underWay < this.capacity || kind === KIND.CANCEL,
      'a ring has room for every completion',
    )
    if ((this.#sqTail - this.#submitted) >>> 0 === this.#sqEntries) this.#enter(0, 0)
    const { words } = this
    const at = (this.#sqTail & (this.#sqEntries - 1)) * this.#entryWords
    words.fill(0, at, at + this.#entryWords)
    words[at + OPCODE] = operation
    words[at + FD] = fd
    words[at + ADDR] = address
    words[at + ADDR + 1] = Math.floor(address / HIGH)
    words[at + LEN] = length
    words[at + TAG] = tag
    words[at + TAG + 1] = kind
    this.#sqTail = (this.#sqTail + 1) >>> 0
    return at
  }
}

function refused(err: unknown): ThinfsError {
  const errno = errnoOf(err)
  const reason = {
    EPERM: whyForbidden(),
    ENOSYS: 'the kernel has none',
    EINVAL: 'the kernel is too old',
  }
  const detail = `io_uring: ${reason[errno as keyof typeof reason] ?? (err as Error).message}`
  return new ThinfsError('NOT_SUPPORTED', detail, { cause: err, errno })
}

function whyForbidden(): string {
  const path = '/proc/sys/kernel/io_uring_disabled'
  try {
    const value = readFileSync(path, 'latin1').trim()
    if (value !== '0') return `forbidden by sysctl kernel.io_uring_disabled, which is ${value}`
  } catch {
    // Before Linux 6.6 there is no such sysctl.
  }
  return 'forbidden, as containers do by seccomp'
}
