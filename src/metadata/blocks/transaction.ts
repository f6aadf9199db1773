/**
 * The running transaction: copy on write of metadata blocks.
 *
 * Blocks that the last commit can reach never change. A block is changed in place when it was
 * allocated in this transaction and has one owner; else its shadow is, a copy at a new place.
 * Source: drivers/md/persistent-data/dm-transaction-manager.c.
 */

import { METADATA_BLOCK_SIZE } from '../../base/index.js'
import { type Block, type BlockKind, DIRTY } from './block.js'
import type { BlockCache } from './block-cache.js'

/** Reference counts of metadata blocks; what the metadata space map is to a transaction. */
export interface MetadataCounts {
  /** Takes a free block and sets its count to 1. @throws NO_METADATA_SPACE */
  allocate(): number
  inc(nr: number): void
  dec(nr: number): void
  /**
   * Passes so many references on `from` to `to`, a copy that was allocated with one and replaces
   * it.
   * @returns whether `from` keeps others
   */
  pass(from: number, to: number, references: number): boolean
  count(nr: number): number
  /** Whether the count is above 1. */
  isShared(nr: number): boolean
}

export class Transaction {
  readonly cache: BlockCache
  /** Set by the metadata space map, which needs a transaction to be made. */
  counts!: MetadataCounts

  constructor(cache: BlockCache) {
    this.cache = cache
  }

  /** A new block, all zeros. */
  create(kind: BlockKind): Block {
    return this.cache.create(this.counts.allocate(), kind, Buffer.alloc(METADATA_BLOCK_SIZE))
  }

  /** A copy of a block at a new place; the caller's reference on the old one is dropped. */
  copy(block: Block): Block {
    const nr = this.counts.allocate()
    this.counts.dec(block.nr)
    const content = Buffer.allocUnsafeSlow(METADATA_BLOCK_SIZE)
    block.bytes.copy(content)
    return this.cache.create(nr, block.kind, content)
  }

  /** The block to change in place of one that has a single owner always, such as a bitmap. */
  shadow(block: Block): Block {
    return block.writable ? block : this.copy(block)
  }

  /** Whether a block may be changed in place; looks it up where `writable` does not say. */
  isWritable(block: Block): boolean {
    if (!block.writable && block.state === DIRTY) {
      block.writable = !this.counts.isShared(block.nr)
    }
    return block.writable
  }
}
