/**
 * Lookup tables: where each virtual block of an open thin device lives, as plain arrays.
 *
 * A page of entries is filled from the mapping tree the first time one of them is asked for; after
 * that a lookup is an array access. An entry holds a data block and whether it must not be written
 * in place.
 */
import type { DevId } from '../base/index.js'
import type { Mappings, ThinMetadata } from '../metadata/index.js'
import { type Entries, PAGE_ENTRIES, type PageCache, type PageOwner } from './page-cache.js'

/** Entry of a virtual block that no data block backs. */
export const UNMAPPED = 0
/** True when the entry's data block looks shared: it may not be written before a closer look. */
export const isShared = (entry: number): boolean => entry % 2 === 1
/** The data block of a mapped entry. */
export const dataBlockOf = (entry: number): number => Math.floor(entry / 2) - 1
const encode = (dataBlock: number, shared: boolean): number =>
  (dataBlock + 1) * 2 + (shared ? 1 : 0)

/** Stands for the page used last when there is none: tables that nobody uses hold nothing. */
const NO_ENTRIES: Entries = new Uint32Array(0)
/** A page that is being filled: a metadata error must not leave half a page. */
const filling = new Float64Array(PAGE_ENTRIES)

/** The mappings that pages are filled from. */
export interface MappingSource extends Pick<ThinMetadata, 'details'> {
  readonly mappings: Pick<Mappings, 'forEach'>
}

export class LookupTable implements PageOwner {
  readonly #metadata: MappingSource
  readonly #devId: DevId
  readonly #cache: PageCache
  /** Pages of the cache by what they answer for. */
  readonly #pages = new Map<number, number>()
  // The page used last: requests come in runs.
  #lastIndex = -1
  #lastEntries = NO_ENTRIES
  /** Turns a virtual block of that page into an index of its entries, when it is added. */
  #lastShift = 0
  // For #visit, so that filling a page makes no closure.
  #fillBase = 0
  #fillTime = 0
  #fillMax = 0
  readonly #visit = (vblock: number, dataBlock: number, time: number): void => {
    const entry = encode(dataBlock, this.#fillTime > time)
    filling[vblock - this.#fillBase] = entry
    this.#fillMax = Math.max(this.#fillMax, entry)
  }

  constructor(metadata: MappingSource, devId: DevId, cache: PageCache) {
    this.#metadata = metadata
    this.#devId = devId
    this.#cache = cache
  }

  /** The entry of a virtual block: UNMAPPED, or for isShared() and dataBlockOf(). */
  get(vblock: number): number {
    const index = Math.floor(vblock / PAGE_ENTRIES)
    if (index !== this.#lastIndex) this.#turnTo(index)
    return this.#lastEntries[vblock + this.#lastShift]!
  }

  /** Notes a mapping that this device alone has. */
  set(vblock: number, dataBlock: number): void {
    this.#note(vblock, encode(dataBlock, false))
  }

  /** Notes a mapping that it shares. */
  setShared(vblock: number, dataBlock: number): void {
    this.#note(vblock, encode(dataBlock, true))
  }

  /** Notes that [begin, end) is unmapped. */
  unmap(begin: number, end: number): void {
    const first = Math.floor(begin / PAGE_ENTRIES)
    const last = Math.ceil(end / PAGE_ENTRIES)
    if (last - first > this.#pages.size) {
      for (const index of this.#pages.keys()) this.#unmapWithin(index, begin, end)
    } else {
      for (let index = first; index < last; index++) this.#unmapWithin(index, begin, end)
    }
  }

  /** Notes that what was in one data block is in another: whoever mapped that maps this. */
  moved(vblock: number, from: number, to: number): void {
    const index = Math.floor(vblock / PAGE_ENTRIES)
    const page = this.#pages.get(index)
    if (page === undefined) return
    const at = this.#cache.beginOf(page) + vblock - index * PAGE_ENTRIES
    const entries = this.#cache.entriesOf(page)
    const entry = entries[at]!
    if (entry !== UNMAPPED && dataBlockOf(entry) === from) entries[at] = encode(to, isShared(entry))
  }

  /** Forgets all: after a snapshot, when everything is shared, and after a rollback. */
  clear(): void {
    for (const page of this.#pages.values()) this.#cache.giveBack(page)
    this.#pages.clear()
    this.#forgetLast()
  }

  evict(index: number): void {
    this.#pages.delete(index)
    if (this.#lastIndex === index) this.#forgetLast()
  }

  #note(vblock: number, entry: number): void {
    if (entry > this.#cache.entryMax) this.#cache.widen()
    const index = Math.floor(vblock / PAGE_ENTRIES)
    const page = this.#pages.get(index)
    if (page === undefined) return
    const begin = this.#cache.beginOf(page)
    this.#cache.entriesOf(page)[begin + vblock - index * PAGE_ENTRIES] = entry
  }

  #unmapWithin(index: number, begin: number, end: number): void {
    const page = this.#pages.get(index)
    const base = index * PAGE_ENTRIES
    const from = Math.max(begin - base, 0)
    const to = Math.min(end - base, PAGE_ENTRIES)
    if (page === undefined || from >= to) return
    const at = this.#cache.beginOf(page)
    this.#cache.entriesOf(page).fill(UNMAPPED, at + from, at + to)
  }

  #forgetLast(): void {
    this.#lastIndex = -1
    this.#lastEntries = NO_ENTRIES
  }

  #turnTo(index: number): void {
    const page = this.#pages.get(index) ?? this.#fill(index)
    this.#lastIndex = index
    this.#lastEntries = this.#cache.entriesOf(page)
    this.#lastShift = this.#cache.beginOf(page) - index * PAGE_ENTRIES
  }

  #fill(index: number): number {
    this.#fillBase = index * PAGE_ENTRIES
    this.#fillTime = this.#metadata.details(this.#devId).snapshottedTime
    this.#fillMax = UNMAPPED
    filling.fill(UNMAPPED)
    const end = this.#fillBase + PAGE_ENTRIES
    this.#metadata.mappings.forEach(this.#devId, this.#fillBase, end, this.#visit)
    if (this.#fillMax > this.#cache.entryMax) this.#cache.widen()
    const page = this.#cache.take(this, index)
    this.#cache.entriesOf(page).set(filling, this.#cache.beginOf(page))
    this.#pages.set(index, page)
    return page
  }
}
