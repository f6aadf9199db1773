/** The places of what is cached: a slot of the cache for each 64 KiB of the disk that it has. */
import { PAGE_SIZE } from '../base/index.js'
import type { DataMap } from '../storage/index.js'
import { type CacheMemory, FREE, SLOT, SLOT_PAGES } from './cache-memory.js'
import { countOf, forEachRun, pagesOf } from './pages.js'
import type { Zones } from './zones.js'

export interface SlotsOptions {
  memory: CacheMemory
  /** The holes of the disk, which read as zeros without a slot. */
  data: DataMap
  zones: Zones
  /** Bytes of a hole at least. */
  granule: number
  /** Bytes of the disk. */
  size: number
}

export class Slots {
  readonly #memory: CacheMemory
  readonly #data: DataMap
  readonly #zones: Zones
  readonly #granule: number
  #size: number
  /** By the number of 64 KiB of the disk: the slot that has it. */
  readonly #slots = new Map<number, number>()
  readonly #free: number[] = []
  /** The slot from which the search for one to be reused goes on. */
  #hand = 0
  /** By slot: whether it was used since the search came by. */
  readonly #recent: Uint8Array
  /** By slot: calls that need it to stay. */
  readonly #pins: Uint16Array
  /** By slot and page: what the disk is filling. Nobody else writes to these bytes meanwhile. */
  readonly filling: Uint16Array
  /** By slot and page: what was read ahead, and nobody has asked for yet. */
  readonly #ahead: Uint16Array
  /** Pages that were read ahead: those that somebody asked for, and those that nobody did. */
  nrAheadUsed = 0
  nrAheadWasted = 0

  /** With what another process has left in the memory. */
  constructor({ memory, data, zones, granule, size }: SlotsOptions) {
    this.#memory = memory
    this.#data = data
    this.#zones = zones
    this.#granule = granule
    this.#size = size
    const { nrSlots, blocks, dirty, pending, valid } = memory
    this.#recent = new Uint8Array(nrSlots)
    this.#pins = new Uint16Array(nrSlots)
    this.filling = new Uint16Array(nrSlots)
    this.#ahead = new Uint16Array(nrSlots)
    for (let slot = nrSlots - 1; slot >= 0; slot--) {
      if (blocks[slot] !== FREE) {
        this.#slots.set(blocks[slot]!, slot)
        const newer = dirty[slot]! | pending[slot]!
        if (newer !== 0) this.#noteData(slot, newer)
        continue
      }
      // The process that began to fill it was killed.
      valid[slot] = dirty[slot] = pending[slot] = 0
      this.#free.push(slot)
    }
  }

  /** The disk has become larger. */
  grow(size: number): void {
    this.#size = size
  }

  /** The slot that has 64 KiB of the disk; -1: none. */
  find(block: number): number {
    return this.#slots.get(block) ?? -1
  }

  /**
   * The slot that has 64 KiB of the disk, or takes them.
   * @returns -1 when all slots have to stay
   */
  slotOf(block: number): number {
    return this.#slots.get(block) ?? this.#take(block)
  }

  // --- bytes ---

  /** Whether the bytes [from, to) of one slot can be had at once. */
  has(from: number, to: number): boolean {
    const slot = this.#slots.get(Math.floor(from / SLOT))
    if (slot !== undefined) {
      const wanted = pagesOf(from, to)
      if ((this.#memory.valid[slot]! & wanted) === wanted) return true
    }
    return this.#data.isHole(from, to - from) && !this.#zones.touches(from, to)
  }

  /** Copies bytes of one slot, all of which can be had, to `buffer` at `at`. */
  copyOut(buffer: Uint8Array, at: number, from: number, to: number): void {
    const block = Math.floor(from / SLOT)
    const slot = this.#slots.get(block)
    if (slot === undefined) {
      buffer.fill(0, at, at + (to - from))
      return
    }
    const wanted = pagesOf(from, to)
    if ((this.#memory.valid[slot]! & wanted) !== wanted) {
      buffer.fill(0, at, at + (to - from))
      return
    }
    this.#recent[slot] = 1
    if (this.#ahead[slot] !== 0) this.#useAhead(slot, wanted)
    const begin = this.#memory.beginOf(slot) + (from - block * SLOT)
    buffer.set(this.#memory.bytesOf(slot).subarray(begin, begin + (to - from)), at)
  }

  /** Copies bytes to a slot, whose pages at the edges are valid, or are written whole. */
  copyIn(slot: number, buffer: Uint8Array, at: number, from: number, to: number): void {
    const { blocks, dirty, valid } = this.#memory
    const begin = this.#memory.beginOf(slot) + (from - blocks[slot]! * SLOT)
    this.#memory.bytesOf(slot).set(buffer.subarray(at, at + (to - from)), begin)
    const pages = pagesOf(from, to)
    valid[slot]! |= pages
    this.#recent[slot] = 1
    const fresh = pages & ~dirty[slot]!
    if (fresh !== 0) this.#noteData(slot, fresh)
  }

  /** Notes that pages of a slot are no hole of the disk, or will not be. */
  #noteData(slot: number, pages: number): void {
    const block = this.#memory.blocks[slot]! * SLOT
    if (this.#granule === SLOT) {
      this.#data.add(block, 1)
      return
    }
    for (let i = 0; i < SLOT_PAGES; i++) {
      if ((pages & (1 << i)) !== 0) this.#data.add(block + i * PAGE_SIZE, PAGE_SIZE)
    }
  }

  /**
   * The disk is about to fill pages, or has done so.
   * @param isAhead whether nobody has asked for them
   */
  beginFill(slot: number, pages: number, isAhead: boolean): void {
    this.filling[slot]! |= pages
    if (isAhead) this.#ahead[slot]! |= pages
  }

  endFill(slot: number, pages: number, isFilled: boolean): void {
    this.filling[slot]! &= ~pages
    if (isFilled) this.#memory.valid[slot]! |= pages
    else this.#ahead[slot]! &= ~pages
  }

  #useAhead(slot: number, pages: number): void {
    this.nrAheadUsed += countOf(this.#ahead[slot]! & pages)
    this.#ahead[slot]! &= ~pages
  }

  /** Makes pages that are not valid zeros. */
  fillHoles(slot: number, pages: number): void {
    const { valid } = this.#memory
    const begin = this.#memory.beginOf(slot)
    const contents = this.#memory.bytesOf(slot)
    forEachRun(pages & ~valid[slot]!, (first, end) => {
      contents.fill(0, begin + first * PAGE_SIZE, begin + end * PAGE_SIZE)
    })
    valid[slot]! |= pages
  }

  /** Makes pages zeros, which the disk is about to have as well. */
  blank(slot: number, pages: number): void {
    this.#memory.valid[slot]! &= ~pages
    this.fillHoles(slot, pages)
  }

  /** Makes pages that are not newer than the disk zeros, which it has there. */
  blankClean(slot: number, pages: number): void {
    const { dirty, pending } = this.#memory
    this.blank(slot, pages & ~dirty[slot]! & ~pending[slot]!)
  }

  // --- which slot has what ---

  /** Calls `use` with each slot that has a part of a range, and which pages. */
  forEachIn(begin: number, end: number, use: (slot: number, pages: number) => void): void {
    const inSlot = (block: number, slot: number): void => {
      const from = Math.max(begin, block * SLOT)
      const to = Math.min(end, (block + 1) * SLOT)
      if (from < to) use(slot, pagesOf(from, to))
    }
    const [first, last] = [Math.floor(begin / SLOT), Math.ceil(end / SLOT)]
    if (last - first > this.#slots.size) {
      for (const [block, slot] of [...this.#slots]) inSlot(block, slot)
      return
    }
    for (let block = first; block < last; block++) {
      const slot = this.#slots.get(block)
      if (slot !== undefined) inSlot(block, slot)
    }
  }

  /** Keeps a slot from being reused until `unpin`. */
  pin(slot: number): void {
    this.#pins[slot]!++
  }

  /** @returns whether no other call needs the slot to stay */
  unpin(slot: number): boolean {
    this.#pins[slot]!--
    return this.#pins[slot] === 0
  }

  isPinned(slot: number): boolean {
    return this.#pins[slot] !== 0
  }

  /** Forgets what a slot has, which is free then. */
  drop(slot: number): void {
    this.#empty(slot)
    this.#free.push(slot)
  }

  /**
   * Gives 64 KiB of the disk a slot, in which its holes are valid.
   * @returns -1 when none is left
   */
  #take(block: number): number {
    const slot = this.#free.pop() ?? this.#evict()
    if (slot < 0) return -1
    const { valid, blocks } = this.#memory
    valid[slot] = 0
    blocks[slot] = block
    this.#slots.set(block, slot)
    this.#recent[slot] = 1
    const begin = this.#memory.beginOf(slot)
    const contents = this.#memory.bytesOf(slot)
    let holes = 0
    for (let at = 0; at < SLOT; at += this.#granule) {
      const from = block * SLOT + at
      if (from >= this.#size) break
      if (!this.#data.isHole(from, this.#granule)) continue
      if (this.#zones.touches(from, from + this.#granule)) continue
      contents.fill(0, begin + at, begin + at + this.#granule)
      holes |= pagesOf(at, at + this.#granule)
    }
    valid[slot] = holes
    return slot
  }

  /** Takes a slot from what nobody has used for a while. @returns -1 when all have to stay */
  #evict(): number {
    const { nrSlots, blocks, dirty, pending } = this.#memory
    for (let looked = 0; looked < 2 * nrSlots; looked++) {
      const slot = this.#hand
      this.#hand = slot + 1 === nrSlots ? 0 : slot + 1
      if (blocks[slot] === FREE || this.#pins[slot] !== 0) continue
      // Unflushed bytes are nowhere else.
      if (dirty[slot] !== 0 || pending[slot] !== 0) continue
      if (this.#recent[slot] !== 0) {
        this.#recent[slot] = 0
        continue
      }
      this.#empty(slot)
      return slot
    }
    return -1
  }

  #empty(slot: number): void {
    const { blocks, valid, dirty, pending } = this.#memory
    this.#slots.delete(blocks[slot]!)
    blocks[slot] = FREE
    valid[slot] = 0
    dirty[slot] = 0
    pending[slot] = 0
    this.nrAheadWasted += countOf(this.#ahead[slot]!)
    this.#ahead[slot] = 0
  }
}
