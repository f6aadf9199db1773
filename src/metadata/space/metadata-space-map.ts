/**
 * The space map of the metadata itself: the blocks that hold it are counted in it.
 *
 * Changing a count shadows a bitmap, which takes a block, whose count changes. So changes queue up:
 * one is applied at a time, and those it causes wait behind it. Each bitmap is shadowed once in a
 * transaction, so this ends. Source: drivers/md/persistent-data/dm-space-map-metadata.c.
 */
import { MAX_METADATA_BLOCKS, METADATA_BLOCK_SIZE, ThinfsError } from '../../base/index.js'
import { BITMAP_KIND, INDEX_ENTRIES_AT, INDEX_KIND, nodeKind } from '../blocks/block.js'
import type { MetadataCounts, Transaction } from '../blocks/transaction.js'
import { ENTRIES_PER_BITMAP, INDEX_ENTRY } from '../format.js'
import { type IndexEntry, SpaceMap, type SpaceMapRoot } from './space-map.js'

export class MetadataSpaceMap extends SpaceMap implements MetadataCounts {
  #indexBlock = 0
  readonly #entries: IndexEntry[] = []
  /** Changes to come: a block's number and what its count changes by, in turn. */
  readonly #queue: number[] = []
  #queueHead = 0
  #draining = false

  constructor(transaction: Transaction) {
    super('metadata', transaction, nodeKind('metadata reference count', 4))
    transaction.counts = this
  }

  override reset(root: SpaceMapRoot): void {
    super.reset(root)
    this.#queue.length = 0
    this.#queueHead = 0
    this.#draining = false
    this.#indexBlock = root.bitmapRoot
    this.#entries.length = 0
    const { view } = this.transaction.cache.read(root.bitmapRoot, INDEX_KIND)
    for (let i = 0; i < Math.ceil(root.nrBlocks / ENTRIES_PER_BITMAP); i++) {
      const entry = INDEX_ENTRY.read(view, INDEX_ENTRIES_AT + i * INDEX_ENTRY.size)
      this.#entries.push({ ...entry, changed: false })
    }
  }

  get root(): SpaceMapRoot {
    return {
      nrBlocks: this.nrBlocks,
      nrAllocated: this.nrAllocated,
      bitmapRoot: this.#indexBlock,
      refCountRoot: this.overflow.root,
    }
  }

  /** @throws NO_METADATA_SPACE */
  allocate(): number {
    const block = this.findFree()
    if (block < 0) {
      throw new ThinfsError(
        'NO_METADATA_SPACE',
        `${this.nrAllocated} of ${this.nrBlocks} metadata blocks have owners, no other is free yet`,
      )
    }
    this.#apply(block, 1)
    return block
  }

  inc(block: number): void {
    const cached = this.transaction.cache.peek(block)
    if (cached !== undefined) cached.writable = false
    this.#apply(block, 1)
  }

  dec(block: number): void {
    this.#apply(block, -1)
  }

  /**
   * Passes so many references on `from` to `to`, a copy that was allocated with one and replaces
   * it.
   * @returns whether `from` keeps others
   */
  pass(from: number, to: number, references: number): boolean {
    if (references > 1) this.#apply(to, references - 1)
    this.#apply(from, -references)
    return this.count(from) > 0
  }

  override count(block: number): number {
    return super.count(block) + this.#pending(block)
  }

  isShared(block: number): boolean {
    const count = this.bitmapCount(block)
    // The queue is empty but while a bitmap or an overflow node is shadowed.
    return (this.#queue.length === 0 ? count : count + this.#pending(block)) > 1
  }

  /** Writes the index entries into a shadow of the index block. */
  flushIndex(): void {
    if (!this.indexChanged) return
    const { cache } = this.transaction
    const index = this.transaction.shadow(cache.read(this.#indexBlock, INDEX_KIND))
    this.#indexBlock = index.nr
    // Written last: shadowing the index block changes entries.
    this.#entries.forEach((entry, i) => {
      INDEX_ENTRY.write(index.view, INDEX_ENTRIES_AT + i * INDEX_ENTRY.size, entry)
      entry.changed = false
    })
    this.indexChanged = false
  }

  /**
   * Extends the map. There may be no free block left to do it with, so the new bitmaps go to the
   * beginning of the new area, and the search for free blocks goes on behind them.
   * @param nrBlocks that the store has already
   */
  grow(nrBlocks: number): void {
    if (nrBlocks < this.nrBlocks || nrBlocks > MAX_METADATA_BLOCKS) {
      throw new ThinfsError(
        'BAD_ARGUMENT',
        `the metadata has ${this.nrBlocks} blocks and may have ${MAX_METADATA_BLOCKS}, ` +
          `not ${nrBlocks}`,
      )
    }
    let next = this.nrBlocks
    const nrBitmaps = Math.ceil(nrBlocks / ENTRIES_PER_BITMAP)
    for (let i = this.#entries.length; i < nrBitmaps; i++) {
      const content = Buffer.alloc(METADATA_BLOCK_SIZE)
      const bitmap = this.transaction.cache.create(next++, BITMAP_KIND, content)
      this.#entries.push({
        blockNr: bitmap.nr,
        nrFree: ENTRIES_PER_BITMAP,
        noneFreeBefore: 0,
        changed: true,
      })
      this.#queue.push(bitmap.nr, 1)
    }
    this.moveCursor(next)
    this.extend(nrBlocks)
    this.indexChanged = true
    this.#drain()
  }

  protected override indexEntry(index: number): IndexEntry {
    return this.#entries[index]!
  }

  protected override isTaken(block: number): boolean {
    return super.isTaken(block) || this.#pending(block) !== 0
  }

  #apply(block: number, delta: number): void {
    this.#queue.push(block, delta)
    if (!this.#draining) this.#drain()
  }

  #drain(): void {
    this.#draining = true
    for (; this.#queueHead < this.#queue.length; this.#queueHead += 2) {
      this.add(this.#queue[this.#queueHead]!, this.#queue[this.#queueHead + 1]!)
    }
    this.#queue.length = 0
    this.#queueHead = 0
    this.#draining = false
  }

  /** The sum of queued changes to a count, the one that is being applied included. */
  #pending(block: number): number {
    let delta = 0
    for (let i = this.#queueHead; i < this.#queue.length; i += 2) {
      if (this.#queue[i] === block) delta += this.#queue[i + 1]!
    }
    return delta
  }
}
