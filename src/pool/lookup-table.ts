/**
 * Lookup tables: where each virtual block of an open thin device lives, as plain arrays.
 *
 * A page answers for 512 blocks and is filled from the mapping tree the first time one of them is
 * asked for; after that a lookup is an array access. The pages of all devices share one budget.
 * An entry holds a data block and whether it must not be written in place.
 */
import type { DevId } from '../base/index.js'
import type { ThinMetadata } from '../metadata/index.js'

const PAGE_ENTRIES = 512

/** Entry of a virtual block that no data block backs. */
export const UNMAPPED = 0
/** True when the entry's data block looks shared: it may not be written before a closer look. */
export const isShared = (entry: number): boolean => entry % 2 === 1
/** The data block of a mapped entry. */
export const dataBlockOf = (entry: number): number => Math.floor(entry / 2) - 1
const encode = (dataBlock: number, shared: boolean): number =>
  (dataBlock + 1) * 2 + (shared ? 1 : 0)

/** How many pages all tables of a pool may hold together: 16384 pages are 64 MiB. */
export class PageBudget {
  readonly #slots: ({ table: LookupTable; index: number } | undefined)[]
  #hand = 0

  constructor(pages: number) {
    this.#slots = new Array(pages)
  }

  /** Makes room for one page, the oldest goes. */
  add(table: LookupTable, index: number): void {
    const oldest = this.#slots[this.#hand]
    if (oldest) oldest.table.evict(oldest.index)
    this.#slots[this.#hand] = { table, index }
    this.#hand = (this.#hand + 1) % this.#slots.length
  }
}

/** Stands for the page used last when there is none: tables that nobody uses hold nothing. */
const NO_PAGE: Float64Array = new Float64Array(0)

export class LookupTable {
  readonly #metadata: ThinMetadata
  readonly #devId: DevId
  readonly #budget: PageBudget
  readonly #pages = new Map<number, Float64Array>()
  // The page used last: requests come in runs.
  #lastIndex = -1
  #lastPage = NO_PAGE
  // Arguments of #visit, so that filling a page makes no closure.
  #fillBase = 0
  #fillTime = 0
  readonly #visit = (vblock: number, dataBlock: number, time: number): void => {
    this.#lastPage[vblock - this.#fillBase] = encode(dataBlock, this.#fillTime > time)
  }

  constructor(metadata: ThinMetadata, devId: DevId, budget: PageBudget) {
    this.#metadata = metadata
    this.#devId = devId
    this.#budget = budget
  }

  /** The entry of a virtual block: UNMAPPED, or for isShared() and dataBlockOf(). */
  get(vblock: number): number {
    const index = Math.floor(vblock / PAGE_ENTRIES)
    if (index !== this.#lastIndex) this.#turnTo(index)
    return this.#lastPage[vblock - index * PAGE_ENTRIES]!
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
    for (const [index, page] of this.#pages) {
      const base = index * PAGE_ENTRIES
      if (base < end && base + PAGE_ENTRIES > begin) {
        page.fill(UNMAPPED, Math.max(begin - base, 0), Math.min(end - base, PAGE_ENTRIES))
      }
    }
  }

  /** Forgets all: after a snapshot, when everything is shared, and after a rollback. */
  clear(): void {
    this.#pages.clear()
    this.#lastIndex = -1
    this.#lastPage = NO_PAGE
  }

  /** For the budget: drops the page at `index`, if there is one; it may be younger than its turn. */
  evict(index: number): void {
    this.#pages.delete(index)
    if (this.#lastIndex !== index) return
    this.#lastIndex = -1
    this.#lastPage = NO_PAGE
  }

  #note(vblock: number, entry: number): void {
    const index = Math.floor(vblock / PAGE_ENTRIES)
    const page = index === this.#lastIndex ? this.#lastPage : this.#pages.get(index)
    if (page) page[vblock - index * PAGE_ENTRIES] = entry
  }

  #turnTo(index: number): void {
    let page = this.#pages.get(index)
    if (page) {
      this.#lastIndex = index
      this.#lastPage = page
      return
    }
    page = new Float64Array(PAGE_ENTRIES)
    this.#lastIndex = -1 // until it is filled: a metadata error must not leave half a page
    this.#lastPage = page
    this.#fillBase = index * PAGE_ENTRIES
    this.#fillTime = this.#metadata.details(this.#devId).snapshottedTime
    this.#metadata.forEachMapping(
      this.#devId,
      this.#fillBase,
      this.#fillBase + PAGE_ENTRIES,
      this.#visit,
    )
    this.#budget.add(this, index)
    this.#pages.set(index, page)
    this.#lastIndex = index
  }
}
