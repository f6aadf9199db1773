/**
 * The space map of the data blocks. Its bitmaps are described by a tree, whose entries are read
 * when they are needed and written back when a transaction ends.
 * Source: drivers/md/persistent-data/dm-space-map-disk.c.
 */
import { assert, ThinfsError } from '../../base/index.js'
import { BITMAP_KIND, nodeKind } from '../blocks/block.js'
import type { Transaction } from '../blocks/transaction.js'
import { BTree } from '../btree/btree.js'
import { ENTRIES_PER_BITMAP, INDEX_ENTRY, MAX_DATA_BLOCKS } from '../format.js'
import { type IndexEntry, SpaceMap, type SpaceMapRoot } from './space-map.js'

export class DataSpaceMap extends SpaceMap {
  readonly #index: BTree
  /** Entries read or made so far: one for 16320 data blocks. */
  readonly #entries = new Map<number, IndexEntry>()

  constructor(transaction: Transaction) {
    super('data', transaction, nodeKind('data reference count', 4))
    const kind = nodeKind('data bitmap index', INDEX_ENTRY.size)
    this.#index = new BTree({ transaction, kind, refs: null }, 0)
  }

  override reset(root: SpaceMapRoot): void {
    super.reset(root)
    this.#index.root = root.bitmapRoot
    this.#entries.clear()
  }

  get root(): SpaceMapRoot {
    return {
      nrBlocks: this.nrBlocks,
      nrAllocated: this.nrAllocated,
      bitmapRoot: this.#index.root,
      refCountRoot: this.overflow.root,
    }
  }

  /** Takes a free block and sets its count to 1. @returns -1 when there is none */
  allocate(): number {
    const block = this.findFree()
    if (block >= 0) this.add(block, 1)
    else if (this.nrAllocatable > 0) {
      throw new ThinfsError(
        'METADATA_CORRUPT',
        `data space map: ${this.nrAllocatable} more blocks should be free than are`,
      )
    }
    return block
  }

  /** Takes a certain free block. The next search begins after it. */
  allocateAt(block: number): void {
    this.add(block, 1)
    this.moveCursor(block + 1)
  }

  inc(block: number): void {
    this.add(block, 1)
  }

  dec(block: number): void {
    this.add(block, -1)
  }

  /** Lets all owners of `from` own `to` instead, which `reserve` has returned. */
  moveOwners(from: number, to: number, owners: number): void {
    this.unreserve(to)
    this.add(to, owners)
    this.add(from, -owners)
  }

  /** Takes back a block that was allocated and that nothing came to point to: free at once. */
  releaseUnused(block: number): void {
    this.add(block, -1, true)
  }

  /** Writes changed entries into the index tree. */
  flushIndex(): void {
    if (!this.indexChanged) return
    const changed = [...this.#entries].filter(([, entry]) => entry.changed)
    for (const [index, entry] of changed.sort(([a], [b]) => a - b)) {
      this.#index.insert(index)
      INDEX_ENTRY.write(this.#index.view, this.#index.at, entry)
      entry.changed = false
    }
    this.indexChanged = false
  }

  /** Extends the map by blocks without owners. */
  grow(nrBlocks: number): void {
    if (nrBlocks < this.nrBlocks || nrBlocks > MAX_DATA_BLOCKS) {
      throw new ThinfsError(
        'BAD_ARGUMENT',
        `the data has ${this.nrBlocks} blocks and may have ${MAX_DATA_BLOCKS}, not ${nrBlocks}`,
      )
    }
    const nrBitmaps = Math.ceil(nrBlocks / ENTRIES_PER_BITMAP)
    for (let i = Math.ceil(this.nrBlocks / ENTRIES_PER_BITMAP); i < nrBitmaps; i++) {
      const entry = {
        blockNr: this.transaction.create(BITMAP_KIND).nr,
        nrFree: ENTRIES_PER_BITMAP,
        noneFreeBefore: 0,
        changed: true,
      }
      this.#entries.set(i, entry)
      this.noteChanged(entry)
    }
    this.extend(nrBlocks)
  }

  /** Takes the last blocks away, which nobody owns, and the bitmaps that only they had. */
  shrink(nrBlocks: number): void {
    assert(this.nrTakenAbove === 0 && nrBlocks === this.end, 'no block past the new end is in use')
    const nrBitmaps = Math.ceil(nrBlocks / ENTRIES_PER_BITMAP)
    for (let i = nrBitmaps; i < Math.ceil(this.nrBlocks / ENTRIES_PER_BITMAP); i++) {
      this.transaction.counts.dec(this.indexEntry(i).blockNr)
      this.#entries.delete(i)
    }
    this.#index.removeRange(nrBitmaps, Number.POSITIVE_INFINITY)
    this.nrBlocks = nrBlocks
    this.allocateBelow(nrBlocks)
  }

  protected override indexEntry(index: number): IndexEntry {
    return this.#entries.get(index) ?? this.#load(index)
  }

  #load(index: number): IndexEntry {
    if (!this.#index.search(index)) {
      throw new ThinfsError(
        'METADATA_CORRUPT',
        `data space map: bitmap ${index} has no entry in the index`,
      )
    }
    const entry = { ...INDEX_ENTRY.read(this.#index.view, this.#index.at), changed: false }
    this.#entries.set(index, entry)
    return entry
  }
}
