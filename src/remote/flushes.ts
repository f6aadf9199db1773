/**
 * Flushes, and what becomes of them with the epochs of the disk: a flush covers what was sent in
 * the epoch in which it ended. What the disk had acknowledged before is sent once more.
 */
import type { Clock } from '../base/index.js'
import { ioError } from '../storage/index.js'
import type { Answers } from './answers.js'
import { Passes } from './passes.js'
import { NO_EPOCH, type RemoteDisk } from './remote-disk.js'
import type { Room } from './room.js'
import type { Sends, Sent } from './sends.js'
import type { Unflushed } from './unflushed.js'
import type { Zeroing } from './zeroing.js'

export interface FlushesOptions {
  disk: RemoteDisk
  unflushed: Unflushed
  zeroing: Zeroing
  sends: Sends
  room: Room
  answers: Answers
  clock: Clock
  /** That of the disk before anything was sent. */
  epoch: number
}

export class Flushes {
  readonly #disk: RemoteDisk
  readonly #unflushed: Unflushed
  readonly #zeroing: Zeroing
  readonly #sends: Sends
  readonly #room: Room
  readonly #answers: Answers
  readonly #clock: Clock
  /** How often what was written was made durable. */
  nrFlushes = 0
  /** The epoch of the disk in which everything was sent that no flush has covered. */
  #epoch: number
  readonly #passes = new Passes(() => this.#save())

  constructor({ disk, unflushed, zeroing, sends, room, answers, clock, epoch }: FlushesOptions) {
    this.#disk = disk
    this.#unflushed = unflushed
    this.#zeroing = zeroing
    this.#sends = sends
    this.#room = room
    this.#answers = answers
    this.#clock = clock
    this.#epoch = epoch
  }

  /** Makes durable what was written before the call. @throws IO_ERROR */
  flush(): Promise<void> {
    return this.#passes.next()
  }

  async #save(): Promise<void> {
    const begun = this.#clock.now()
    let sent: Sent | null = null
    this.#room.passBegins()
    try {
      sent = await this.#saveOnce()
      // The time that a lost connection has cost says nothing of the disk's speed.
      if (sent === null) while ((await this.#saveOnce()) === null);
    } finally {
      this.#room.passEnded(sent, this.#clock.now() - begun)
      this.#room.wake()
    }
  }

  /** @returns null where a connection was lost, and all is to be sent again */
  async #saveOnce(): Promise<Sent | null> {
    const { epoch } = this.#disk
    if (epoch !== this.#epoch) await this.#sendAgain(epoch)
    const isAll = this.#unflushed.nrPending === 0 && this.#zeroing.nrUnflushed === 0
    const sent = await this.#sends.writeBack(isAll)
    // Zeros that came meanwhile are not: they are for a flush.
    if (sent.isDurable) {
      if (this.#disk.epoch !== epoch) return null
      this.#unflushed.endFlush(this.#unflushed.beginFlush())
      this.nrFlushes++
      return sent
    }
    const covered = this.#unflushed.beginFlush()
    const zeroed = this.#zeroing.beginFlush()
    try {
      await this.#answers.of(this.#disk.flush())
    } catch (err) {
      // The disk may have lost all that this flush was to cover, and does not say so a second time:
      // fsync(2) of a server's file reports the error once.
      this.#epoch = NO_EPOCH
      throw ioError(this.#disk.path, 'flush', err)
    }
    if (this.#disk.epoch !== epoch) return null
    // First the zeros: a page that is written after them is not flushed as long as they are not.
    this.#zeroing.endFlush(zeroed)
    this.#unflushed.endFlush(covered)
    this.nrFlushes++
    return sent
  }

  /** The disk may have lost all that no flush has covered: zeros first, then the pages. */
  async #sendAgain(epoch: number): Promise<void> {
    try {
      await this.#zeroing.again(() => this.#unflushed.addAgain())
      this.#epoch = epoch
    } catch (err) {
      throw ioError(this.#disk.path, 'zeroing once more', err)
    }
  }
}
