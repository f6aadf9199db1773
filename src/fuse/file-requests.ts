/** Requests about the content of files. READ and WRITE allocate nothing. */
import { constants } from 'node:os'
import { assert, type Later, MAX_IO, type Requester } from '../base/index.js'
import {
  COPY_FILE_RANGE_IN,
  FALLOCATE_IN,
  FSYNC_FDATASYNC,
  FSYNC_IN,
  IN_HEADER,
  LSEEK_IN,
  OPCODE,
  OPEN_IN,
  READ_IN,
  RELEASE_IN,
  WRITE_CACHE,
  WRITE_IN,
  WRITE_LOCKOWNER,
} from './abi.js'
import type { Answers } from './answers.js'
import {
  encodeCopy64,
  encodeNothing,
  encodeOpen,
  encodeOpenDirect,
  encodeRead,
  encodeSeek,
  encodeWrite,
} from './encode.js'
import { type FileSystem, WAITS } from './file-system.js'
import { later } from './later.js'
import type { Request } from './request.js'
import type { Slots } from './slots.js'
import { LEAST_PART, SplitWrites } from './split-writes.js'

const { EINVAL } = constants.errno

/** Bytes of a request without its data, for the hot path. */
const READ_LENGTH = IN_HEADER.size + READ_IN.size
const WRITE_LENGTH = IN_HEADER.size + WRITE_IN.size

/** Flags of WRITEs whose callers hear of every error: of memory maps, and past the page cache. */
const HEARD = WRITE_CACHE | WRITE_LOCKOWNER

export class FileRequests {
  readonly #fs: FileSystem
  readonly #answers: Answers
  readonly #requester: Requester
  readonly #splits = new SplitWrites()
  /** READs and FSYNCs that wait for a disk. */
  #nrLater = 0

  /** @param requester of the request at hand */
  constructor(fileSystem: FileSystem, answers: Answers, requester: Requester) {
    this.#fs = fileSystem
    this.#answers = answers
    this.#requester = requester
  }

  /** Whether a READ or an FSYNC waits for a disk. */
  get waitsForDisk(): boolean {
    return this.#nrLater > 0
  }

  /** READ: the request of `length` bytes in the slot at byte `base`. */
  read(slots: Slots, base: number, length: number, ino: number): void {
    const answers = this.#answers
    const at = base + slots.body
    const size = slots.u32(at + READ_IN.at.size)
    if (length < READ_LENGTH || size > MAX_IO) {
      answers.refuse(base, EINVAL)
      return
    }
    const offset = slots.u64(at + READ_IN.at.offset)
    const place = answers.places.forRead(size, this.#fs.unsettled)
    const to = place === slots ? base : 0
    const got = this.#fs.read(ino, offset, size, place.buffer, to + place.payload)
    // No message that names the sizes: it would be built for every request.
    assert(got <= size, 'a READ was answered with more than was asked for')
    if (got === WAITS) this.#readLater(base, ino, offset, size)
    else answers.replyFrom(place, to, base, got)
  }

  #readLater(base: number, ino: number, offset: number, size: number): void {
    const answers = this.#answers
    const place = answers.places.take(size)
    const at = place === answers.slots ? base : 0
    const read = this.#fs.readLater(ino, offset, size, place.buffer, at + place.payload)
    this.#nrLater++
    const ended = (): void => {
      this.#nrLater--
      answers.places.free(place)
    }
    void answers.answerLater(OPCODE.READ, base, ino, read, encodeRead, place, at).then(ended)
  }

  /** WRITE, likewise. */
  write(slots: Slots, base: number, length: number, ino: number): void {
    const answers = this.#answers
    const at = base + slots.body
    const size = slots.u32(at + WRITE_IN.at.size)
    if (length < WRITE_LENGTH || size > length - WRITE_LENGTH) {
      answers.refuse(base, EINVAL)
      return
    }
    const offset = slots.u64(at + WRITE_IN.at.offset)
    const from = slots.rest(base, WRITE_IN.size)
    const mayBeSplit = size >= LEAST_PART || this.#splits.expectsParts
    const put =
      mayBeSplit && this.#isPart(slots, at, offset, size)
        ? this.#writePart(slots, at, ino, offset, size, from)
        : this.#fs.write(ino, offset, size, slots.buffer, from, this.#requester)
    if (typeof put === 'number') {
      // A loop device would take a short answer for success.
      assert(put === size, 'a WRITE was answered short')
      answers.reply(base, encodeWrite(slots, base, size))
    } else {
      const whole = put.then(value => {
        assert(value === size, 'a WRITE was answered short')
        return value
      })
      answers.answer(OPCODE.WRITE, base, ino, whole, encodeWrite)
    }
  }

  /** As one that may be another part of a write(2). Kept apart: its closure costs. */
  #writePart(
    slots: Slots,
    at: number,
    ino: number,
    offset: number,
    size: number,
    from: number,
  ): Later<number> {
    const { buffer } = slots
    const fh = slots.u64(at + WRITE_IN.at.fh)
    return this.#splits.part(fh, () =>
      this.#fs.write(ino, offset, size, buffer, from, this.#requester),
    )
  }

  #isPart(slots: Slots, at: number, offset: number, size: number): boolean {
    if ((slots.u32(at + WRITE_IN.at.writeFlags) & HEARD) !== 0) return false
    return this.#splits.begun(slots.u64(at + WRITE_IN.at.fh), offset, size)
  }

  /** All others. @returns false for a request that is about something else */
  handle(request: Request): boolean {
    const fs = this.#fs
    const { opcode, ino, at, slots } = request
    switch (opcode) {
      case OPCODE.OPEN: {
        const fh = request.number
        const opened = fs.open(ino, request.u32(OPEN_IN.at.flags), fh)
        const encode = fs.directIo ? encodeOpenDirect : encodeOpen
        request.answer(
          later(opened, () => fh),
          encode,
        )
        return true
      }
      case OPCODE.RELEASE: {
        const fh = request.u64(RELEASE_IN.at.fh)
        this.#splits.forget(fh)
        request.answer(fs.release(ino, fh), encodeNothing)
        return true
      }
      case OPCODE.FSYNC: {
        const dataOnly = (request.u32(FSYNC_IN.at.fsyncFlags) & FSYNC_FDATASYNC) !== 0
        const fh = request.u64(FSYNC_IN.at.fh)
        this.#nrLater++
        const flush = async (): Promise<void> => this.#splits.flushed(fh, fs.fsync(ino, dataOnly))
        request.answer(
          flush().finally(() => this.#nrLater--),
          encodeNothing,
        )
        return true
      }
      case OPCODE.FALLOCATE: {
        const { offset, length, mode } = FALLOCATE_IN.read(slots.view, at)
        const done = fs.fallocate(ino, mode, offset, length, this.#requester)
        request.answer(done, encodeNothing)
        return true
      }
      case OPCODE.LSEEK: {
        const { offset, whence } = LSEEK_IN.read(slots.view, at)
        request.answer(fs.lseek(ino, offset, whence), encodeSeek)
        return true
      }
      case OPCODE.COPY_FILE_RANGE:
      case OPCODE.COPY_FILE_RANGE_64: {
        const { offIn, nodeidOut, offOut, len } = COPY_FILE_RANGE_IN.read(slots.view, at)
        const encode = opcode === OPCODE.COPY_FILE_RANGE ? encodeWrite : encodeCopy64
        const copied = fs.copyFileRange(ino, offIn, nodeidOut, offOut, len, this.#requester)
        request.answer(copied, encode)
        return true
      }
      default:
        return false
    }
  }
}
