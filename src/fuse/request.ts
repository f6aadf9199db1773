/**
 * The request at hand: its parts, and its answer.
 *
 * One object is filled anew for each request that is not a READ or WRITE. So it is good until its
 * handler returns: a handler decodes first, and keeps no request.
 */
import type { Later } from '../base/index.js'
import {
  COPY_FILE_RANGE_IN,
  CREATE_IN,
  FALLOCATE_IN,
  FLUSH_IN,
  FSYNC_IN,
  GETATTR_IN,
  GETXATTR_IN,
  IN_HEADER,
  INIT_IN,
  IOCTL_IN,
  LSEEK_IN,
  MKNOD_IN,
  OPCODE,
  OPEN_IN,
  READ_IN,
  RELEASE_IN,
  RENAME_IN,
  RENAME2_IN,
  SETATTR_IN,
} from './abi.js'
import type { Answers } from './answers.js'
import type { Encode } from './encode.js'
import type { Caller } from './file-system.js'
import { readNames } from './names.js'
import { numberAt, type Slots } from './slots.js'

/** Bytes of the structure behind a request's header, by opcode. */
const BODY_SIZES = new Map<number, number>([
  [OPCODE.GETATTR, GETATTR_IN.size],
  [OPCODE.SETATTR, SETATTR_IN.size],
  [OPCODE.MKNOD, MKNOD_IN.size],
  [OPCODE.RENAME, RENAME_IN.size],
  [OPCODE.OPEN, OPEN_IN.size],
  [OPCODE.RELEASE, RELEASE_IN.size],
  [OPCODE.FSYNC, FSYNC_IN.size],
  [OPCODE.GETXATTR, GETXATTR_IN.size],
  [OPCODE.LISTXATTR, GETXATTR_IN.size],
  [OPCODE.FLUSH, FLUSH_IN.size],
  [OPCODE.INIT, INIT_IN.size],
  [OPCODE.IOCTL, IOCTL_IN.size],
  [OPCODE.OPENDIR, OPEN_IN.size],
  [OPCODE.READDIR, READ_IN.size],
  [OPCODE.RELEASEDIR, RELEASE_IN.size],
  [OPCODE.CREATE, CREATE_IN.size],
  [OPCODE.FALLOCATE, FALLOCATE_IN.size],
  [OPCODE.READDIRPLUS, READ_IN.size],
  [OPCODE.RENAME2, RENAME2_IN.size],
  [OPCODE.LSEEK, LSEEK_IN.size],
  [OPCODE.COPY_FILE_RANGE, COPY_FILE_RANGE_IN.size],
  [OPCODE.COPY_FILE_RANGE_64, COPY_FILE_RANGE_IN.size],
])

export class Request {
  readonly #answers: Answers
  opcode = 0
  ino = 0
  /** Byte of the slot that it is in. */
  base = 0
  /** Byte of the structure behind its header. */
  at = 0
  /** Byte of what follows that, and how many bytes that is. */
  rest = 0
  restSize = 0

  constructor(answers: Answers) {
    this.#answers = answers
  }

  /**
   * Takes the request of `length` bytes in the slot at byte `base`.
   * @returns false when it is too short
   */
  take(opcode: number, base: number, length: number, ino: number): boolean {
    const { slots } = this
    const bodySize = BODY_SIZES.get(opcode) ?? 0
    this.opcode = opcode
    this.ino = ino
    this.base = base
    this.at = base + slots.body
    this.rest = slots.rest(base, bodySize)
    this.restSize = length - IN_HEADER.size - bodySize
    return this.restSize >= 0
  }

  // --- its parts ---

  get slots(): Slots {
    return this.#answers.slots
  }

  /** The field at byte `offset` of the structure. */
  u32(offset: number): number {
    return this.slots.u32(this.at + offset)
  }

  /** The same, of 64 bits. */
  u64(offset: number): number {
    return this.slots.u64(this.at + offset)
  }

  /** The name behind the structure. @throws BAD_NAME */
  get name(): string {
    return this.names(1)[0]!
  }

  /** The `count` names behind the structure. @throws BAD_NAME */
  names(count: number): string[] {
    return readNames(this.slots, this.rest, this.rest + this.restSize, count)
  }

  get caller(): Caller {
    const { slots, base } = this
    return {
      uid: slots.u32(base + IN_HEADER.at.uid),
      gid: slots.u32(base + IN_HEADER.at.gid),
      pid: slots.u32(base + IN_HEADER.at.pid),
    }
  }

  /** Identifies the request, and what it opens: the same when it is sent again, and no other's. */
  get number(): number {
    return numberAt(this.slots, this.base + IN_HEADER.at.unique)
  }

  /** Whether the request was sent before, to an earlier process. */
  get isResent(): boolean {
    return isResent(this.slots, this.base)
  }

  // --- its answer ---

  /** Answers with a value, when it is there. */
  answer<T>(value: Later<T>, encode: Encode<T>): void {
    this.#answers.answer(this.opcode, this.base, this.ino, value, encode)
  }

  /** Answers with the `length` bytes of payload that are in the slot. */
  reply(length: number): void {
    this.#answers.reply(this.base, length)
  }

  refuse(errno: number): void {
    this.#answers.refuse(this.base, errno)
  }
}

/** Whether the request in the slot at byte `base` was sent before, to an earlier process. */
export const isResent = (slots: Slots, base: number): boolean =>
  slots.u32(base + IN_HEADER.at.unique + 4) >>> 31 === 1
