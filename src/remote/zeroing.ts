/**
 * Zeroing parts of the disk. What the disk has zeroed may be lost as what it has written: the
 * ranges are noted in the cache's memory until a flush has covered them.
 */
import { allEnded } from '../base/index.js'
import { type DataMap, ioError } from '../storage/index.js'
import type { Answers } from './answers.js'
import { ALL_PAGES, type CacheMemory, ZEROED_MAX } from './cache-memory.js'
import type { ColdReads } from './cold-reads.js'
import type { RemoteDisk } from './remote-disk.js'
import type { Sends } from './sends.js'
import type { Slots } from './slots.js'
import type { Unflushed } from './unflushed.js'
import type { Zones } from './zones.js'

/** Ranges that are zeroed again at a time. */
const AGAIN_DEPTH = 16

export interface ZeroingOptions {
  disk: RemoteDisk
  memory: CacheMemory
  data: DataMap
  zones: Zones
  slots: Slots
  unflushed: Unflushed
  sends: Sends
  reads: ColdReads
  answers: Answers
  /** Flushes the disk, which forgets ranges. */
  sync: () => Promise<void>
}

export class Zeroing {
  readonly #disk: RemoteDisk
  readonly #memory: CacheMemory
  readonly #data: DataMap
  readonly #zones: Zones
  readonly #slots: Slots
  readonly #unflushed: Unflushed
  readonly #sends: Sends
  readonly #reads: ColdReads
  readonly #answers: Answers
  readonly #sync: () => Promise<void>
  /** Requests that the disk has not answered. */
  readonly #calls = new Set<Promise<void>>()
  /** Places in CacheMemory.zeroed of what the disk has zeroed. */
  readonly #zeroed: Set<number>
  /** While ranges are zeroed once more: no other is zeroed. */
  #gate: Promise<void> | null = null

  /** With the ranges that another process has left. */
  constructor(parts: ZeroingOptions) {
    const { disk, memory, data, zones, slots, unflushed, sends, reads, answers, sync } = parts
    this.#disk = disk
    this.#memory = memory
    this.#data = data
    this.#zones = zones
    this.#slots = slots
    this.#unflushed = unflushed
    this.#sends = sends
    this.#reads = reads
    this.#answers = answers
    this.#sync = sync
    this.#zeroed = new Set(memory.zeroedPlaces())
    // The process that noted a range may have died before it had blanked the cache there. They are
    // not read from the disk, which may lose its zeros again before a flush.
    for (const place of this.#zeroed) {
      const [begin, length] = [memory.zeroed[place]!, memory.zeroed[place + 1]!]
      slots.forEachIn(begin, begin + length, (slot, pages) => slots.blankClean(slot, pages))
    }
  }

  /** Makes the disk zero a range of whole granules. */
  clear(begin: number, end: number): Promise<void> {
    return this.#zones.run(begin, end, () => this.#clear(begin, end))
  }

  /** Ranges that are zeroed, or being zeroed, and not for good. */
  get nrUnflushed(): number {
    return this.#memory.nrZeroed
  }

  /** The ranges that a flush covers which begins now. */
  beginFlush(): number[] {
    return [...this.#zeroed]
  }

  /** Ranges are zeroed for good. */
  endFlush(covered: readonly number[]): void {
    for (const place of covered) {
      this.#zeroed.delete(place)
      this.#memory.forgetZeroed(place)
    }
  }

  /**
   * Zeroes once more what the disk may have lost.
   * @param before called when nothing is being zeroed
   */
  async again(before: () => void): Promise<void> {
    let open = (): void => {}
    this.#gate = new Promise(resolve => {
      open = resolve
    })
    try {
      await Promise.allSettled(this.#calls)
      before()
      const { zeroed } = this.#memory
      const places = [...this.#zeroed]
      let next = 0
      const work = async (): Promise<void> => {
        while (next < places.length) {
          const at = places[next++]!
          await this.#answers.of(this.#disk.zero(zeroed[at]!, zeroed[at + 1]!))
        }
      }
      await allEnded(Array.from({ length: AGAIN_DEPTH }, work))
    } finally {
      this.#gate = null
      open()
    }
  }

  async #clear(begin: number, end: number): Promise<void> {
    for (;;) {
      if (this.#gate !== null) await this.#gate
      else if (this.#memory.nrZeroed >= ZEROED_MAX) await this.#sync()
      else {
        const calls = [...this.#sends.of(begin, end), ...this.#reads.of(begin, end)]
        if (calls.length === 0) break
        await Promise.allSettled(calls)
      }
    }
    const place = this.#memory.noteZeroed(begin, end - begin)
    this.#slots.forEachIn(begin, end, (slot, pages) => this.#blank(slot, pages))
    const zeroing = this.#answers.of(this.#disk.zero(begin, end - begin))
    this.#calls.add(zeroing)
    try {
      await zeroing
    } catch (err) {
      throw ioError(this.#disk.path, `zeroing ${end - begin} bytes at ${begin}`, err)
    } finally {
      this.#calls.delete(zeroing)
      // A call that failed may have been carried out all the same, and be lost again.
      this.#zeroed.add(place)
    }
    this.#data.remove(begin, end - begin)
    // Slots that came meanwhile have these pages as others have holes.
    this.#slots.forEachIn(begin, end, (slot, pages) => this.#slots.fillHoles(slot, pages))
  }

  /** Pages of a slot are zeros now, and nobody has to write that. */
  #blank(slot: number, pages: number): void {
    this.#unflushed.forget(slot, pages)
    if (pages === ALL_PAGES && !this.#slots.isPinned(slot)) this.#slots.drop(slot)
    else this.#slots.blank(slot, pages)
  }
}
