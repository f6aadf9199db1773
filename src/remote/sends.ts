/** The dirty pages of the cache, on their way to the disk. */
import { allEnded, PAGE_SIZE } from '../base/index.js'
import { ioError } from '../storage/index.js'
import type { Answers } from './answers.js'
import { type CacheMemory, REQUEST, RUN_SLOTS, SLOT, SLOT_PAGES } from './cache-memory.js'
import { countOf } from './pages.js'
import type { RemoteDisk } from './remote-disk.js'
import type { Slots } from './slots.js'
import type { Unflushed } from './unflushed.js'

/** Parts of the disk, of REQUEST bytes, that are written back at a time. */
const DEPTH = 16
const PART_SLOTS = REQUEST / SLOT
const PART_PAGES = PART_SLOTS * SLOT_PAGES

export interface SendsOptions {
  disk: RemoteDisk
  memory: CacheMemory
  slots: Slots
  unflushed: Unflushed
  answers: Answers
}

/** The bytes that a pass has sent. */
export interface Sent {
  bytes: number
  /** Requests to the disk. */
  requests: number
  /** Whether all of it is durable, without a flush. */
  isDurable: boolean
}

export class Sends {
  readonly #disk: RemoteDisk
  readonly #memory: CacheMemory
  readonly #slots: Slots
  readonly #unflushed: Unflushed
  readonly #answers: Answers
  /** All that was ever sent. */
  readonly all = { bytes: 0, requests: 0 }
  /** By part of the disk: what is being sent of it. */
  readonly #sending = new Map<number, Promise<void>>()

  constructor({ disk, memory, slots, unflushed, answers }: SendsOptions) {
    this.#disk = disk
    this.#memory = memory
    this.#slots = slots
    this.#unflushed = unflushed
    this.#answers = answers
  }

  /**
   * Sends what is dirty now. Nothing else is being sent.
   * @param isAll whether a flush has nothing to cover but this: then a single request is durable,
   *   which spares the flush
   * @throws IO_ERROR
   */
  async writeBack(isAll: boolean): Promise<Sent> {
    const dirty = this.#unflushed.dirtyRuns.map(run => Math.floor((run * RUN_SLOTS) / PART_SLOTS))
    const parts = [...new Set(dirty)]
    const sent: Sent = { bytes: 0, requests: 0, isDurable: isAll && parts.length === 1 }
    let next = 0
    const work = async (): Promise<void> => {
      while (next < parts.length) await this.#send(parts[next++]!, sent)
    }
    try {
      await allEnded(Array.from({ length: Math.min(DEPTH, parts.length) }, work))
    } finally {
      this.all.bytes += sent.bytes
      this.all.requests += sent.requests
    }
    return sent
  }

  /** The sending that is under way of a range. */
  of(begin: number, end: number): Promise<void>[] {
    const sends: Promise<void>[] = []
    for (const [part, sending] of this.#sending) {
      if (part * REQUEST < end && begin < (part + 1) * REQUEST) sends.push(sending)
    }
    return sends
  }

  /** Sends the dirty pages of a part. @throws IO_ERROR; they are dirty again then */
  #send(part: number, sent: Sent): Promise<void> {
    const slots: number[] = []
    const pages: number[] = []
    for (let i = 0; i < PART_SLOTS; i++) {
      const slot = this.#slots.find(part * PART_SLOTS + i)
      slots.push(slot)
      pages.push(slot < 0 ? 0 : this.#unflushed.beginSend(slot))
      sent.bytes += countOf(pages[i]!) * PAGE_SIZE
    }
    const sending = this.#sendPages(part, slots, pages, sent)
    this.#sending.set(part, sending)
    return sending
  }

  async #sendPages(
    part: number,
    slots: readonly number[],
    pages: readonly number[],
    sent: Sent,
  ): Promise<void> {
    const isSent = (page: number): boolean =>
      (pages[Math.floor(page / SLOT_PAGES)]! & (1 << (page % SLOT_PAGES))) !== 0
    const runs: [first: number, end: number][] = []
    for (let page = 0; page < PART_PAGES; page++) {
      if (!isSent(page)) continue
      const first = page
      while (page < PART_PAGES && isSent(page)) page++
      runs.push([first, page])
    }
    sent.requests += runs.length
    if (runs.length > 1) sent.isDurable = false
    const { isDurable } = sent
    const writes = runs.map(([first, end]) => {
      const content = this.#bytesOf(slots, first, end)
      const at = part * REQUEST + first * PAGE_SIZE
      return this.#answers.of(this.#disk.write(content, at, isDurable))
    })
    let isDone = false
    try {
      await allEnded(writes)
      isDone = true
    } catch (err) {
      throw ioError(this.#disk.path, 'write', err)
    } finally {
      this.#sending.delete(part)
      for (const [i, slot] of slots.entries()) {
        if (pages[i] !== 0) this.#unflushed.endSend(slot, isDone)
      }
    }
  }

  /** The pages [first, end) of a part, where the cache has them. */
  #bytesOf(slots: readonly number[], first: number, end: number): readonly Uint8Array[] {
    const pieces: Uint8Array[] = []
    for (let page = first; page < end; ) {
      const i = Math.floor(page / SLOT_PAGES)
      const next = Math.min(end, (i + 1) * SLOT_PAGES)
      const skipped = (page % SLOT_PAGES) * PAGE_SIZE
      pieces.push(this.#memory.piece(slots[i]!, skipped, (next - page) * PAGE_SIZE))
      page = next
    }
    return pieces
  }
}
