/**
 * Hands each request to what it is about: the content of a file, names and attributes, or the mount
 * as a whole, which is here.
 */
import { constants } from 'node:os'
import { IN_HEADER, INTERRUPT_IN, IOCTL_IN, OPCODE, OUT_HEADER } from './abi.js'
import { Answers, type AnswersOptions } from './answers.js'
import { encodeIoctl, encodeNothing, encodeStatistics } from './encode.js'
import { FileRequests } from './file-requests.js'
import type { FileSystem, IoctlAnswer } from './file-system.js'
import { Interrupts } from './interrupts.js'
import { NameRequests } from './name-requests.js'
import type { Replies } from './replies.js'
import { isResent, Request } from './request.js'
import type { Slots } from './slots.js'

const { EINVAL, EIO, ENOSYS, ENOTDIR, ENOTTY, EOPNOTSUPP, EPERM } = constants.errno

/** Operations that this file system lacks, refused as other Linux file systems refuse them. */
const REFUSALS = new Map<number, number>([
  [OPCODE.MKDIR, EPERM],
  [OPCODE.RMDIR, ENOTDIR],
  [OPCODE.LINK, EPERM],
  [OPCODE.TMPFILE, EOPNOTSUPP],
  [OPCODE.SETXATTR, EOPNOTSUPP],
  [OPCODE.REMOVEXATTR, EOPNOTSUPP],
])

export interface RequestsOptions extends AnswersOptions {
  fileSystem: FileSystem
  /** Answers an INIT in the slot at byte `base`. @returns bytes of the payload */
  onInit(slots: Slots, base: number): number
}

/** Answers requests, for a session. */
export class Requests {
  readonly #fs: FileSystem
  readonly #options: RequestsOptions
  readonly #answers: Answers
  readonly #request: Request
  readonly #files: FileRequests
  readonly #names: NameRequests
  readonly #interrupts: Interrupts

  constructor(slots: Slots, replies: Replies, options: RequestsOptions) {
    this.#fs = options.fileSystem
    this.#options = options
    const interrupts = new Interrupts(slots)
    this.#interrupts = interrupts
    this.#answers = new Answers(slots, replies, interrupts, options)
    this.#request = new Request(this.#answers)
    this.#files = new FileRequests(options.fileSystem, this.#answers, interrupts)
    this.#names = new NameRequests(options.fileSystem, interrupts)
  }

  /** Requests come in other slots from now on, which stay theirs until they are answered. */
  moveTo(slots: Slots, replies: Replies): void {
    this.#answers.moveTo(slots, replies)
  }

  /** Whether a READ or an FSYNC waits for a disk. */
  get waitsForDisk(): boolean {
    return this.#files.waitsForDisk
  }

  /** Nothing is answered any more. */
  stop(): void {
    this.#answers.stop()
  }

  /** Whether the request in the slot at byte `base` was sent before, to an earlier process. */
  isResent(base: number): boolean {
    return isResent(this.#answers.slots, base)
  }

  /** See `Interrupts.interrupt`. */
  interrupt(slots: Slots, at: number): void {
    this.#interrupts.interrupt(slots, at)
  }

  /**
   * Answers the request of `length` bytes in the slot at byte `base`, or sees to it that it will
   * be.
   */
  handle(base: number, length: number): void {
    const { slots } = this.#answers
    // Without a `unique` no reply is possible.
    if (length < OUT_HEADER.size) return
    const opcode = slots.u32(base + IN_HEADER.at.opcode)
    if (length < IN_HEADER.size || slots.u32(base + IN_HEADER.at.len) !== length) {
      this.#answers.refuse(base, EIO)
      return
    }
    const ino = slots.u64(base + IN_HEADER.at.nodeid)
    this.#interrupts.handling(slots, base)
    try {
      if (opcode === OPCODE.READ) this.#files.read(slots, base, length, ino)
      else if (opcode === OPCODE.WRITE) this.#files.write(slots, base, length, ino)
      else if (this.#request.take(opcode, base, length, ino)) this.#dispatch(this.#request)
      else this.#answers.refuse(base, EINVAL)
    } catch (err) {
      this.#answers.fail(opcode, base, ino, err)
    } finally {
      this.#interrupts.handled()
    }
  }

  #dispatch(request: Request): void {
    if (this.#files.handle(request) || this.#names.handle(request)) return
    const fs = this.#fs
    switch (request.opcode) {
      case OPCODE.FORGET:
      case OPCODE.BATCH_FORGET:
      case OPCODE.NOTIFY_REPLY:
        break // Not answered, and inodes here live without being looked up.
      case OPCODE.INTERRUPT:
        if (request.restSize < INTERRUPT_IN.size) break
        this.interrupt(request.slots, request.at + INTERRUPT_IN.at.unique)
        break
      case OPCODE.INIT:
        request.reply(this.#options.onInit(request.slots, request.base))
        break
      case OPCODE.DESTROY:
      case OPCODE.SYNCFS:
      case OPCODE.FSYNCDIR:
        request.answer(fs.syncfs(), encodeNothing)
        break
      case OPCODE.STATFS:
        request.answer(fs.statfs(), encodeStatistics)
        break
      case OPCODE.IOCTL:
        this.#ioctl(request)
        break
      default:
        // ENOSYS is remembered by the kernel, which then goes without: ACCESS, POLL, STATX, BMAP,
        // and FLUSH, which comes with every close(2). The kernel writes back before that, all the
        // same, what was mapped and written to (fuse_flush in fs/fuse/file.c), and a WRITE is
        // settled already.
        request.refuse(REFUSALS.get(request.opcode) ?? ENOSYS)
    }
  }

  #ioctl(request: Request): void {
    const fs = this.#fs
    const { slots, at, rest, restSize, caller, isResent } = request
    const { cmd: command, arg: argument, inSize, outSize } = IOCTL_IN.read(slots.view, at)
    if (fs.ioctl === undefined || inSize > restSize) {
      request.refuse(ENOTTY)
      return
    }
    const input = Buffer.from(slots.buffer.subarray(rest, rest + inSize))
    const call = {
      ...{ command, argument, input, outputSize: outSize },
      ...{ caller, isResent, signal: this.#interrupts.signal() },
    }
    request.answer<IoctlAnswer>(fs.ioctl(request.ino, call), encodeIoctl)
  }
}
