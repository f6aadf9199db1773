/**
 * Reads of what the cache does not have: from the disk straight into the cache, many at a time. A
 * page that is being read is read once, whoever wants it, and is written to when it has come.
 */
import { allEnded, MIB, PAGE_SIZE } from '../base/index.js'
import { ioError } from '../storage/index.js'
import type { Answers } from './answers.js'
import { type CacheMemory, REQUEST, SLOT } from './cache-memory.js'
import { edgesOf, forEachRun, pagesOf, slotEnd } from './pages.js'
import { ReadAhead } from './read-ahead.js'
import type { RemoteDisk } from './remote-disk.js'
import type { Room } from './room.js'
import type { Slots } from './slots.js'
import type { Zones } from './zones.js'

/** Bytes that are read ahead of a reader at most, and the share of the cache. */
const AHEAD_MAX = 4 * MIB
const AHEAD_SHARE = 8

export interface ColdReadsOptions {
  disk: RemoteDisk
  memory: CacheMemory
  slots: Slots
  zones: Zones
  room: Room
  answers: Answers
  /** Bytes of the disk. */
  size: number
}

/** A request to the disk: bytes of it. */
interface Fetch {
  readonly begin: number
  readonly end: number
  readonly ended: Promise<void>
}

export class ColdReads {
  readonly #disk: RemoteDisk
  readonly #memory: CacheMemory
  readonly #slots: Slots
  readonly #zones: Zones
  readonly #room: Room
  readonly #answers: Answers
  #size: number
  readonly #ahead: ReadAhead
  readonly #fetches = new Set<Fetch>()

  constructor({ disk, memory, slots, zones, room, answers, size }: ColdReadsOptions) {
    this.#disk = disk
    this.#memory = memory
    this.#slots = slots
    this.#zones = zones
    this.#room = room
    this.#answers = answers
    this.#size = size
    const share = Math.floor(memory.nrSlots / AHEAD_SHARE) * SLOT
    this.#ahead = new ReadAhead(Math.min(AHEAD_MAX, share))
  }

  /** The disk has become larger. */
  grow(size: number): void {
    this.#size = size
  }

  /** The read that is under way of a range. */
  of(begin: number, end: number): Promise<void>[] {
    const reads: Promise<void>[] = []
    for (const fetch of this.#fetches) {
      if (fetch.begin < end && begin < fetch.end) reads.push(fetch.ended)
    }
    return reads
  }

  /** Reads bytes of the disk that the cache may not have. @throws IO_ERROR */
  async read(buffer: Uint8Array, at: number, from: number, to: number): Promise<void> {
    if (this.#zones.touches(from, to)) await this.#zones.end(from, to)
    const pinned: number[] = []
    const reads: Promise<void>[] = []
    for (let begin = from; begin < to; begin = slotEnd(begin)) {
      const slot = this.#slots.slotOf(Math.floor(begin / SLOT))
      pinned.push(slot)
      if (slot >= 0) this.#slots.pin(slot)
      else {
        const end = Math.min(to, slotEnd(begin))
        reads.push(this.#readAround(buffer, at + (begin - from), begin, end))
      }
    }
    reads.push(this.#fetch(from, to))
    this.readOn(from, to)
    try {
      await allEnded(reads)
      let i = 0
      for (let begin = from; begin < to; begin = slotEnd(begin)) {
        if (pinned[i++]! < 0) continue
        this.#slots.copyOut(buffer, at + (begin - from), begin, Math.min(to, slotEnd(begin)))
      }
    } finally {
      for (const slot of pinned) if (slot >= 0) this.#unpin(slot)
    }
  }

  /**
   * Calls `use`, which writes to bytes [from, to) of a slot, until it says that it did: when the
   * pages at the edges are there, and none is being read. The slot stays meanwhile.
   * @throws IO_ERROR
   */
  async forWrite(slot: number, from: number, to: number, use: () => boolean): Promise<void> {
    this.#slots.pin(slot)
    try {
      do {
        const others = this.of(from, to)
        const missing = edgesOf(from, to) & ~this.#memory.valid[slot]!
        const edges: Promise<void>[] = []
        if ((missing & pagesOf(from, from + 1)) !== 0) edges.push(this.#fetch(from, from + 1))
        if ((missing & pagesOf(to - 1, to)) !== 0) edges.push(this.#fetch(to - 1, to))
        await allEnded(edges)
        await Promise.allSettled(others)
      } while (!use())
    } finally {
      this.#unpin(slot)
    }
  }

  /** Somebody reads what nobody had asked for before: what he is likely to want next is read. */
  readOn(from: number, to: number): void {
    const ahead = this.#ahead
    ahead.judge(this.#slots.nrAheadUsed, this.#slots.nrAheadWasted)
    if (!ahead.next(from, to)) return
    const end = Math.min(ahead.end, this.#size)
    let until = ahead.begin
    while (until < end) {
      const next = Math.min(end, slotEnd(until))
      if (!this.#slots.has(until, next)) {
        if (this.#zones.touches(until, next)) break
        if (this.#slots.slotOf(Math.floor(until / SLOT)) < 0) break
      }
      until = next
    }
    // A failure is for him to hear of who asks for these bytes.
    for (const read of this.#begin(ahead.begin, until, true)) read.catch(() => {})
  }

  /**
   * Makes the pages of a range valid, as far as it has slots, which are pinned.
   * @throws IO_ERROR
   */
  async #fetch(from: number, to: number): Promise<void> {
    for (;;) {
      const others = this.of(from, to)
      await allEnded(this.#begin(from, to, false))
      if (others.length === 0) return
      // A failure of one of them says nothing of these pages: they are asked for again.
      await Promise.allSettled(others)
    }
  }

  /**
   * Begins to read the pages of a range that have slots, are not there, and are not being read.
   * @returns a promise for each request
   */
  #begin(from: number, to: number, isAhead: boolean): Promise<void>[] {
    const { valid } = this.#memory
    const fetches: Promise<void>[] = []
    // The request that is being made up: bytes of the disk, and their slots.
    let [begin, end] = [0, 0]
    let slots: number[] = []
    const request = (): void => {
      if (end > begin) fetches.push(this.#request(slots, begin, end, isAhead))
      begin = end = 0
    }
    for (let at = from; at < to; at = slotEnd(at)) {
      const block = Math.floor(at / SLOT)
      const slot = this.#slots.find(block)
      if (slot < 0) continue
      const wanted = pagesOf(at, Math.min(to, slotEnd(at)))
      forEachRun(wanted & ~valid[slot]! & ~this.#slots.filling[slot]!, (page, endPage) => {
        const next = block * SLOT + page * PAGE_SIZE
        if (next !== end || next % REQUEST === 0) {
          request()
          begin = next
          slots = []
        }
        end = block * SLOT + endPage * PAGE_SIZE
        if (slots.at(-1) !== slot) slots.push(slot)
      })
    }
    request()
    return fetches
  }

  /**
   * Reads [begin, end) of the disk into slots.
   * @param slots one for each 64 KiB, of which the first and the last may be filled in part
   * @throws IO_ERROR
   */
  #request(slots: readonly number[], begin: number, end: number, isAhead: boolean): Promise<void> {
    const into: Uint8Array[] = []
    let at = begin
    for (const slot of slots) {
      const next = Math.min(end, slotEnd(at))
      this.#slots.pin(slot)
      this.#slots.beginFill(slot, pagesOf(at, next), isAhead)
      into.push(this.#memory.piece(slot, at % SLOT, next - at))
      at = next
    }
    const ended = this.#answers.of(this.#disk.read(into, begin)).then(
      () => this.#end(fetch, slots, true),
      err => {
        this.#end(fetch, slots, false)
        throw ioError(this.#disk.path, `read of ${end - begin} bytes`, err)
      },
    )
    const fetch: Fetch = { begin, end, ended }
    this.#fetches.add(fetch)
    return ended
  }

  #end(fetch: Fetch, slots: readonly number[], isFilled: boolean): void {
    const { begin, end } = fetch
    this.#fetches.delete(fetch)
    let at = begin
    for (const slot of slots) {
      const next = Math.min(end, slotEnd(at))
      this.#slots.endFill(slot, pagesOf(at, next), isFilled)
      this.#unpin(slot)
      at = next
    }
  }

  #unpin(slot: number): void {
    if (this.#slots.unpin(slot)) this.#room.wake()
  }

  /** Reads what no slot is to be had for. */
  async #readAround(buffer: Uint8Array, at: number, from: number, to: number): Promise<void> {
    const begin = Math.floor(from / PAGE_SIZE) * PAGE_SIZE
    const content = Buffer.allocUnsafeSlow(Math.ceil(to / PAGE_SIZE) * PAGE_SIZE - begin)
    try {
      await this.#answers.of(this.#disk.read(content, begin))
    } catch (err) {
      throw ioError(this.#disk.path, `read of ${content.length} bytes`, err)
    }
    for (let page = begin; page < to; page += PAGE_SIZE) {
      const [first, end] = [Math.max(from, page), Math.min(to, page + PAGE_SIZE)]
      // Bytes that were written meanwhile are newer.
      if (this.#slots.has(first, end)) this.#slots.copyOut(buffer, at + (first - from), first, end)
      else buffer.set(content.subarray(first - begin, end - begin), at + (first - from))
    }
  }
}
