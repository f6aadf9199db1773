/**
 * Mapping trees as they are in the store, for a reader in another process: it changes nothing, takes
 * little memory, and somebody else sees to it that the trees stay as they are.
 */
import type { DataBlock } from '../base/index.js'
import type { Store } from '../storage/index.js'
import { nodeKind } from './blocks/block.js'
import { BlockCache } from './blocks/block-cache.js'
import { Transaction } from './blocks/transaction.js'
import { type DifferenceRange, differences } from './btree/difference.js'
import type { TreeInfo } from './btree/tree.js'
import { mappedBlock } from './mapping.js'

/** 1 MiB of metadata blocks: those near the roots. */
const CACHE_BLOCKS = 256

/** The data blocks that two devices map a virtual block to; -1 where one does not map it. */
export type VisitPair = (vblock: number, left: DataBlock | -1, right: DataBlock | -1) => void

export class MetadataView {
  readonly #mappings: TreeInfo

  /** @param store in which nothing changes of what is looked at */
  constructor(store: Store) {
    const transaction = new Transaction(new BlockCache(store, CACHE_BLOCKS))
    this.#mappings = { transaction, kind: nodeKind('mapping', 8), refs: null }
  }

  /**
   * Visits the virtual blocks, ascending, that two mapping trees may map to different data blocks.
   * Yields where work may pause, some hundred visits apart at most.
   * @param left root of a mapping tree; null for a device that maps nothing
   * @throws METADATA_CORRUPT
   */
  compare(
    left: number | null,
    right: number | null,
    range: DifferenceRange,
    visit: VisitPair,
  ): Generator<void> {
    return differences(this.#mappings, left, right, range, {
      leftOnly: (vblock, view, at) => visit(vblock, mappedBlock(view, at), -1),
      rightOnly: (vblock, view, at) => visit(vblock, -1, mappedBlock(view, at)),
      both: (vblock, one, at, other, otherAt) =>
        visit(vblock, mappedBlock(one, at), mappedBlock(other, otherAt)),
    })
  }
}
