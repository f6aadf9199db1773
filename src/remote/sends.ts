/** The dirty pages of the cache, on their way to the disk. */
import { allEnded, PAGE_SIZE } from '../base/index.js'
import { ioError } from '../storage/index.js'
import type { Answers } from './answers.js'
import { type CacheMemory, RUN, RUN_SLOTS, SLOT, SLOT_PAGES } from './cache-memory.js'
import { countOf } from './pages.js'
import type { RemoteDisk } from './remote-disk.js'
import type { Slots } from './slots.js'
import type { Unflushed } from './unflushed.js'

/** Runs that are written back at a time. */
const DEPTH = 32
const RUN_PAGES = RUN_SLOTS * SLOT_PAGES

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
}

export class Sends {
  readonly #disk: RemoteDisk
  readonly #memory: CacheMemory
  readonly #slots: Slots
  readonly #unflushed: Unflushed
  readonly #answers: Answers
  /** All that was ever sent. */
  readonly all: Sent = { bytes: 0, requests: 0 }
  /** By run: the part of the disk that is being sent. */
  readonly #sending = new Map<number, Promise<void>>()

  constructor({ disk, memory, slots, unflushed, answers }: SendsOptions) {
    this.#disk = disk
    this.#memory = memory
    this.#slots = slots
    this.#unflushed = unflushed
    this.#answers = answers
  }

  /** Sends what is dirty now. Nothing else is being sent. @throws IO_ERROR */
  async writeBack(): Promise<Sent> {
    const runs = this.#unflushed.dirtyRuns
    const sent: Sent = { bytes: 0, requests: 0 }
    let next = 0
    const work = async (): Promise<void> => {
      while (next < runs.length) await this.#send(runs[next++]!, sent)
    }
    try {
      await allEnded(Array.from({ length: Math.min(DEPTH, runs.length) }, work))
    } finally {
      this.all.bytes += sent.bytes
      this.all.requests += sent.requests
    }
    return sent
  }

  /** The sending that is under way of a range. */
  of(begin: number, end: number): Promise<void>[] {
    const sends: Promise<void>[] = []
    for (const [run, sending] of this.#sending) {
      if (run * RUN < end && begin < (run + 1) * RUN) sends.push(sending)
    }
    return sends
  }

  /** Sends the dirty pages of a run. @throws IO_ERROR; they are dirty again then */
  #send(run: number, sent: Sent): Promise<void> {
    const slots: number[] = []
    const pages: number[] = []
    for (let i = 0; i < RUN_SLOTS; i++) {
      const slot = this.#slots.find(run * RUN_SLOTS + i)
      slots.push(slot)
      pages.push(slot < 0 ? 0 : this.#unflushed.beginSend(slot))
      sent.bytes += countOf(pages[i]!) * PAGE_SIZE
    }
    const sending = this.#sendPages(run, slots, pages, sent)
    this.#sending.set(run, sending)
    return sending
  }

  async #sendPages(
    run: number,
    slots: readonly number[],
    pages: readonly number[],
    sent: Sent,
  ): Promise<void> {
    const isSent = (page: number): boolean =>
      (pages[Math.floor(page / SLOT_PAGES)]! & (1 << (page % SLOT_PAGES))) !== 0
    const writes: Promise<void>[] = []
    for (let page = 0; page < RUN_PAGES; page++) {
      if (!isSent(page)) continue
      const first = page
      while (page < RUN_PAGES && isSent(page)) page++
      const content = this.#bytesOf(slots, first, page)
      const write = this.#disk.write(content, run * RUN + first * PAGE_SIZE)
      writes.push(this.#answers.of(write))
      sent.requests++
    }
    let isDone = false
    try {
      await allEnded(writes)
      isDone = true
    } catch (err) {
      throw ioError(this.#disk.path, 'write', err)
    } finally {
      this.#sending.delete(run)
      for (const [i, slot] of slots.entries()) {
        if (pages[i] !== 0) this.#unflushed.endSend(slot, isDone)
      }
    }
  }

  /** The pages [first, end) of a run: those of the cache itself where they are together there. */
  #bytesOf(slots: readonly number[], first: number, end: number): Uint8Array {
    const memory = this.#memory
    const length = (end - first) * PAGE_SIZE
    const begin = Math.floor(first / SLOT_PAGES)
    const last = Math.floor((end - 1) / SLOT_PAGES)
    let isTogether = true
    for (let i = begin + 1; i <= last; i++) {
      if (!memory.follows(slots[i]!, slots[i - 1]!)) isTogether = false
    }
    const at = (first % SLOT_PAGES) * PAGE_SIZE
    if (isTogether) {
      const from = memory.beginOf(slots[begin]!) + at
      return memory.bytesOf(slots[begin]!).subarray(from, from + length)
    }
    const held = Buffer.allocUnsafeSlow(length)
    for (let i = begin, done = 0; i <= last; i++) {
      const skipped = i === begin ? at : 0
      const size = Math.min(SLOT - skipped, length - done)
      const from = memory.beginOf(slots[i]!) + skipped
      held.set(memory.bytesOf(slots[i]!).subarray(from, from + size), done)
      done += size
    }
    return held
  }
}
