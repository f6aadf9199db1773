/**
 * Space map: how many owners each block has.
 *
 * 0..2 sit in bitmaps of two bits a block, larger counts in an overflow tree as well. A block freed
 * in a transaction is not handed out again until that transaction is durable, or a crash would
 * leave it with two owners. This is the part that the maps of data and of metadata blocks share;
 * they differ in where the entries that describe their bitmaps are kept.
 * Source: drivers/md/persistent-data/dm-space-map-common.c.
 */
import { assert, ThinfsError, VERIFY_ALL } from '../../base/index.js'
import { BITMAP_ENTRIES_AT, BITMAP_KIND, type Block, type BlockKind } from '../blocks/block.js'
import type { Transaction } from '../blocks/transaction.js'
import { BTree } from '../btree/btree.js'
import { ENTRIES_PER_BITMAP } from '../format.js'
import { BlockSet } from './block-set.js'

export interface SpaceMapRoot {
  nrBlocks: number
  nrAllocated: number
  bitmapRoot: number
  refCountRoot: number
}

/** Describes a bitmap; the numbers of INDEX_ENTRY. */
export interface IndexEntry {
  blockNr: number
  nrFree: number
  noneFreeBefore: number
  changed: boolean
}

/** The value in a bitmap for counts that the overflow tree has. */
const MANY = 3
/** Largest count: entries of the overflow tree have 32 bits. */
const MAX_COUNT = 0xffff_ffff
/** Blocks that 32 bits of a bitmap describe. */
const WORD_ENTRIES = 16
/** The lower of the two bits of each block. */
const LOW_BITS = 0x5555_5555

export abstract class SpaceMap {
  /** For messages: data or metadata. */
  readonly #name: string
  readonly transaction: Transaction
  protected readonly overflow: BTree
  nrBlocks = 0
  nrAllocated = 0
  /** Whether an index entry changed since the index was written. */
  protected indexChanged = false
  /** The block at which the search for a free one begins. */
  #cursor = 0
  /** Blocks below are taken before those above. */
  #preferredEnd = Number.POSITIVE_INFINITY
  /** No block from here on is allocated: the map is about to end here. */
  #end = Number.POSITIVE_INFINITY
  /** Blocks with owners from there on. */
  #nrOwnedAbove = 0
  /** Free blocks that somebody has spoken for in memory. */
  #reserved = new BlockSet()
  /** Blocks whose count fell to 0 in the running transaction. */
  #freed = new BlockSet()
  /** The same of sealed ones, a set for each, until `release`. */
  #frozen: BlockSet[] = []
  /** Blocks that were freed between `hold` and `letGo`; null outside of that. */
  #held: BlockSet | null = null
  /**
   * Whether a block lost one of several owners in the running transaction, and in the sealed one.
   */
  #disowned = false
  #disownedFrozen = false

  constructor(name: string, transaction: Transaction, overflowKind: BlockKind) {
    this.#name = name
    this.transaction = transaction
    this.overflow = new BTree({ transaction, kind: overflowKind, refs: null }, 0)
  }

  /** Starts from the roots in a superblock, as on opening. */
  reset(root: SpaceMapRoot): void {
    this.nrBlocks = root.nrBlocks
    this.nrAllocated = root.nrAllocated
    this.overflow.root = root.refCountRoot
    this.indexChanged = false
    this.#cursor = 0
    this.#end = Number.POSITIVE_INFINITY
    this.#nrOwnedAbove = 0
    this.#reserved = new BlockSet()
    this.#freed = new BlockSet()
    this.#frozen = []
    if (this.#held !== null) this.#held = new BlockSet()
    this.#disowned = false
    this.#disownedFrozen = false
  }

  /** Whether some block had more owners as of the last durable transaction than it has now. */
  get hasDisowned(): boolean {
    return this.#disowned || this.#disownedFrozen
  }

  /** Blocks that the running transaction freed. */
  get nrFreed(): number {
    return this.#freed.size
  }

  /** Runs of neighbours among the blocks that the running transaction freed. */
  get nrFreedRuns(): number {
    return this.#freed.nrRuns
  }

  /** Blocks that earlier transactions freed and that are not released. */
  get nrUnreleased(): number {
    let nr = 0
    for (const { size } of this.#frozen) nr += size
    return nr
  }

  /** Blocks that can be allocated now: those without an owner, but not those freed lately. */
  get nrAllocatable(): number {
    let taken = this.#freed.size - this.#freed.nrAbove + (this.#held?.size ?? 0)
    for (const { size, nrAbove } of this.#frozen) taken += size - nrAbove
    return Math.max(this.nrFree - this.#reserved.size - taken, 0)
  }

  /** Blocks without an owner that are not above the end of allocation. */
  get nrFree(): number {
    return this.#last - (this.nrAllocated - this.#nrOwnedAbove)
  }

  /** Blocks above the end of allocation that have owners. */
  get nrOwnedAbove(): number {
    return this.#nrOwnedAbove
  }

  /** Blocks above the end of allocation that have owners, or were freed and are not released. */
  get nrTakenAbove(): number {
    let nr = this.#nrOwnedAbove + this.#freed.nrAbove
    for (const { nrAbove } of this.#frozen) nr += nrAbove
    return nr
  }

  /** The block from which on none is allocated. */
  get end(): number {
    return this.#last
  }

  get #last(): number {
    return Math.min(this.#end, this.nrBlocks)
  }

  /**
   * Allocates no block from `end` on. Looks at the bitmaps from there to the end before, so callers
   * lower it piece by piece; to raise it to the number of blocks costs nothing.
   */
  allocateBelow(end: number): void {
    if (end >= this.nrBlocks) {
      this.#end = Number.POSITIVE_INFINITY
      this.#nrOwnedAbove = 0
    } else {
      assert(end <= this.#last, 'the end of allocation is lowered, or taken away')
      this.#nrOwnedAbove += this.countOwned(end, this.#last)
      this.#end = end
    }
    this.#freed.countFrom(this.#end)
    for (const set of this.#frozen) set.countFrom(this.#end)
  }

  /** How many blocks of [begin, end) have owners. */
  countOwned(begin: number, end: number): number {
    let count = 0
    for (let block = begin; block < end; ) {
      const index = Math.floor(block / ENTRIES_PER_BITMAP)
      const bitmap = this.#bitmap(this.indexEntry(index))
      const first = index * ENTRIES_PER_BITMAP
      const last = Math.min(end - first, ENTRIES_PER_BITMAP)
      for (let bit = block - first; bit < last; ) {
        const isWhole = bit % WORD_ENTRIES === 0 && bit + WORD_ENTRIES <= last
        const isFree = isWhole && bitmap.view.getUint32(wordAt(bit), true) === 0
        if (!isFree && entryCount(bitmap, bit) > 0) count++
        bit += isFree ? WORD_ENTRIES : 1
      }
      block = first + ENTRIES_PER_BITMAP
    }
    return count
  }

  /** Keeps a free block from being allocated, in memory alone. @returns -1 when there is none */
  reserve(): number {
    const block = this.findFree()
    if (block >= 0) this.#reserved.add(block)
    return block
  }

  /** Undoes `reserve`. */
  unreserve(block: number): void {
    this.#reserved.delete(block)
  }

  /** Ends the transaction. @returns the blocks it freed, ascending */
  seal(): Float64Array {
    const freed = this.#freed.toArray()
    if (VERIFY_ALL) {
      for (const block of freed) {
        assert(
          this.bitmapCount(block) === 0,
          `${this.#name} block ${block}: freed, yet it is owned`,
        )
      }
    }
    this.#frozen = this.#frozen.filter(({ size }) => size > 0)
    if (freed.length > 0) this.#frozen.push(this.#freed)
    this.#freed = new BlockSet()
    this.#freed.countFrom(this.#end)
    this.#disownedFrozen = this.#disowned
    this.#disowned = false
    return freed
  }

  /** The sealed transaction is durable: a power cut cannot bring back owners that it took away. */
  durable(): void {
    this.#disownedFrozen = false
  }

  /**
   * Makes blocks that a durable transaction freed, or that were reserved, allocatable: these, or
   * all that were freed.
   */
  release(blocks?: ArrayLike<number>): void {
    if (blocks !== undefined) {
      for (let i = 0; i < blocks.length; i++) this.#reserved.delete(blocks[i]!)
      for (const set of this.#frozen) {
        for (let i = 0; i < blocks.length; i++) set.delete(blocks[i]!)
      }
      return
    }
    for (const set of this.#held === null ? [] : this.#frozen) {
      for (const block of set.toArray()) this.#held!.add(block)
    }
    this.#frozen = []
  }

  /**
   * Keeps released blocks from being allocated until `letGo`: somebody reads them.
   */
  hold(): void {
    this.#held = new BlockSet()
  }

  letGo(): void {
    this.#held = null
  }

  /** Whether a block has no owner now and had none as of the last durable transaction. */
  isFree(block: number): boolean {
    return this.bitmapCount(block) === 0 && !this.isTaken(block)
  }

  count(block: number): number {
    const count = this.bitmapCount(block)
    return count < MANY ? count : this.#overflowCount(block)
  }

  /** As `count`, but 3 for all that is larger. */
  protected bitmapCount(block: number): number {
    this.#checkRange(block)
    const entry = this.indexEntry(Math.floor(block / ENTRIES_PER_BITMAP))
    return entryCount(this.#bitmap(entry), block % ENTRIES_PER_BITMAP)
  }

  /**
   * Changes a count.
   * @throws METADATA_CORRUPT when it would fall below 0
   */
  protected add(block: number, delta: number, reusable = false): void {
    this.#checkRange(block)
    const entry = this.indexEntry(Math.floor(block / ENTRIES_PER_BITMAP))
    const bit = block % ENTRIES_PER_BITMAP
    const bitmap = this.transaction.shadow(this.#bitmap(entry))
    entry.blockNr = bitmap.nr
    let old = entryCount(bitmap, bit)
    if (old === MANY) old = this.#overflowCount(block)
    const count = old + delta
    if (count < 0) throw this.#corrupt(block, 'has no owner, yet one gives it up')
    if (count > MAX_COUNT) throw this.#corrupt(block, `has ${old} owners, the most there can be`)
    setEntryCount(bitmap, bit, Math.min(count, MANY))
    if (count >= MANY) {
      this.overflow.insert(block)
      this.overflow.view.setUint32(this.overflow.at, count, true)
    } else if (old >= MANY) {
      this.overflow.remove(block)
    }
    if (delta < 0 && count > 0) this.#disowned = true
    if (old === 0) {
      this.nrAllocated++
      if (block >= this.#end) this.#nrOwnedAbove++
      // The number of free blocks is a hint: other tools may have left it too small.
      entry.nrFree = Math.max(entry.nrFree - 1, 0)
      if (entry.noneFreeBefore === bit) entry.noneFreeBefore = bit + 1
    } else if (count === 0) {
      this.nrAllocated--
      if (block >= this.#end) this.#nrOwnedAbove--
      entry.nrFree++
      entry.noneFreeBefore = Math.min(entry.noneFreeBefore, bit)
      if (!reusable) this.#freed.add(block)
    }
    this.noteChanged(entry)
    if (VERIFY_ALL) this.#verify(block, count)
  }

  /** Bitmap, hint and overflow tree agree about a block whose count was changed. */
  #verify(block: number, count: number): void {
    const entry = this.indexEntry(Math.floor(block / ENTRIES_PER_BITMAP))
    const found = this.bitmapCount(block)
    assert(found === Math.min(count, MANY), `${this.#name} block ${block}: ${found}, not ${count}`)
    // Damage may have left it entries of other blocks.
    const isThere = count < MANY || this.overflow.search(block)
    assert(isThere, `${this.#name} block ${block}: not in the overflow tree, with count ${count}`)
    const isHidden = count === 0 && block % ENTRIES_PER_BITMAP < entry.noneFreeBefore
    assert(!isHidden, `${this.#name} block ${block}: free, but the index says that none is`)
  }

  /**
   * Finds an allocatable block, from where the last search ended; the next one begins after it.
   * Changes no count. Kernel's sm_ll_find_common_free_block.
   * @returns -1 when there is none
   */
  protected findFree(): number {
    if (this.nrAllocatable === 0) return -1
    const last = this.#last
    const end = Math.min(this.#preferredEnd, last)
    const cursor = this.#cursor < end ? this.#cursor : 0
    let block = this.#search(cursor, end)
    if (block < 0) block = this.#search(0, cursor)
    if (block < 0 && end < last) block = this.#search(end, last)
    if (block < 0) {
      // The hints in the index hid it.
      this.#recount(0)
      block = this.#search(0, last)
    }
    if (block >= 0) this.#cursor = block + 1
    return block
  }

  /** Makes allocation take blocks below `end` first. */
  prefer(end: number): void {
    this.#preferredEnd = end
  }

  /** Lets the next search for a free block begin at `block`. */
  protected moveCursor(block: number): void {
    this.#cursor = block
  }

  /**
   * @param visit gets runs [begin, end) of blocks without an owner, ascending
   * @param from the block to begin with, which a bitmap begins with
   * @param to the block before which to end
   */
  forEachFreeRun(visit: (begin: number, end: number) => void, from = 0, to = this.nrBlocks): void {
    let begin = -1
    for (let first = from; first < to; first += ENTRIES_PER_BITMAP) {
      const { view } = this.#bitmap(this.indexEntry(first / ENTRIES_PER_BITMAP))
      const end = Math.min(to - first, ENTRIES_PER_BITMAP)
      for (let bit = 0; bit < end; bit++) {
        const rest = view.getUint32(wordAt(bit), true) >>> ((bit % WORD_ENTRIES) * 2)
        // Most words are all free or all taken: then no block needs a look of its own.
        const whole = bit % WORD_ENTRIES === 0 && bit + WORD_ENTRIES <= end
        if ((rest & 3) === 0) {
          if (begin < 0) begin = first + bit
          if (whole && rest === 0) bit += WORD_ENTRIES - 1
        } else {
          if (begin >= 0) visit(begin, first + bit)
          begin = -1
          if (whole && !hasFree(rest)) bit += WORD_ENTRIES - 1
        }
      }
    }
    if (begin >= 0) visit(begin, to)
  }

  /**
   * Extends the map, whose new bitmaps exist. Free blocks of the bitmap that was the last are
   * counted anew: some programs leave out those past the end, which now become blocks.
   */
  protected extend(nrBlocks: number): void {
    const last = Math.ceil(this.nrBlocks / ENTRIES_PER_BITMAP) - 1
    const partial = this.nrBlocks % ENTRIES_PER_BITMAP !== 0
    this.nrBlocks = nrBlocks
    if (partial) this.#recount(last, last + 1)
  }

  /** The entry of a bitmap; the caller notes it when it changes it. */
  protected abstract indexEntry(index: number): IndexEntry

  protected noteChanged(entry: IndexEntry): void {
    entry.changed = true
    this.indexChanged = true
  }

  /** Whether a block that the bitmaps show as free is spoken for all the same. */
  protected isTaken(block: number): boolean {
    if (this.#freed.has(block) || this.#held?.has(block) === true) return true
    if (this.#reserved.has(block)) return true
    for (const set of this.#frozen) if (set.has(block)) return true
    return false
  }

  #search(begin: number, end: number): number {
    for (let from = begin; from < end; ) {
      const index = Math.floor(from / ENTRIES_PER_BITMAP)
      const first = index * ENTRIES_PER_BITMAP
      const entry = this.indexEntry(index)
      if (entry.nrFree > 0) {
        const bit = Math.max(from - first, entry.noneFreeBefore)
        const block = this.#searchBitmap(
          entry,
          first,
          bit,
          Math.min(end - first, ENTRIES_PER_BITMAP),
        )
        if (block >= 0) return block
      }
      from = first + ENTRIES_PER_BITMAP
    }
    return -1
  }

  #searchBitmap(entry: IndexEntry, first: number, begin: number, end: number): number {
    const bitmap = this.#bitmap(entry)
    for (let bit = begin; bit < end; ) {
      if (bit % WORD_ENTRIES === 0 && !hasFree(bitmap.view.getUint32(wordAt(bit), true))) {
        bit += WORD_ENTRIES
      } else {
        if (entryCount(bitmap, bit) === 0 && !this.isTaken(first + bit)) return first + bit
        bit++
      }
    }
    return -1
  }

  /** Recomputes the hints of bitmaps. */
  #recount(from: number, to = Math.ceil(this.nrBlocks / ENTRIES_PER_BITMAP)): void {
    for (let index = from; index < to; index++) {
      const entry = this.indexEntry(index)
      const bitmap = this.#bitmap(entry)
      let nrFree = ENTRIES_PER_BITMAP
      let firstFree = ENTRIES_PER_BITMAP
      for (let bit = ENTRIES_PER_BITMAP - 1; bit >= 0; bit--) {
        if (entryCount(bitmap, bit) === 0) firstFree = bit
        else nrFree--
      }
      if (entry.nrFree === nrFree && entry.noneFreeBefore <= firstFree) continue
      entry.nrFree = nrFree
      entry.noneFreeBefore = firstFree
      this.noteChanged(entry)
    }
  }

  #bitmap(entry: IndexEntry): Block {
    return this.transaction.cache.read(entry.blockNr, BITMAP_KIND)
  }

  #overflowCount(block: number): number {
    if (!this.overflow.search(block))
      throw this.#corrupt(block, 'has no entry in the overflow tree')
    return this.overflow.view.getUint32(this.overflow.at, true)
  }

  #checkRange(block: number): void {
    if (block < this.nrBlocks) return
    throw this.#corrupt(block, `is outside of the ${this.nrBlocks} blocks of the space map`)
  }

  #corrupt(block: number, what: string): ThinfsError {
    return new ThinfsError('METADATA_CORRUPT', `${this.#name} block ${block} ${what}`)
  }
}

/** Byte offset of the 32 bits that hold an entry. */
const wordAt = (bit: number): number => BITMAP_ENTRIES_AT + Math.floor(bit / WORD_ENTRIES) * 4

/** Whether one of 16 entries is 0. */
const hasFree = (word: number): boolean => ((word | (word >>> 1)) & LOW_BITS) !== LOW_BITS

/** Of an entry's two bits the lower one is the high bit of the count. */
function entryCount(bitmap: Block, bit: number): number {
  const raw = (bitmap.view.getUint32(wordAt(bit), true) >>> ((bit % WORD_ENTRIES) * 2)) & 3
  return ((raw & 1) << 1) | (raw >>> 1)
}

function setEntryCount(bitmap: Block, bit: number, count: number): void {
  const at = wordAt(bit)
  const shift = (bit % WORD_ENTRIES) * 2
  const raw = ((count & 1) << 1) | (count >>> 1)
  const word = bitmap.view.getUint32(at, true)
  bitmap.view.setUint32(at, ((word & ~(3 << shift)) | (raw << shift)) >>> 0, true)
}
