/** A transaction that has ended and waits to become durable. */
import { assert, bytes, isNoSpace, type Later, METADATA_BLOCK_SIZE } from '../base/index.js'
import type { Store } from '../storage/index.js'
import type { Block } from './blocks/block.js'
import { type BlockCache, NO_PAUSES, type Pauses } from './blocks/block-cache.js'
import { SUPERBLOCK_LOCATION } from './format.js'
import type { DataSpaceMap } from './space/data-space-map.js'
import type { MetadataSpaceMap } from './space/metadata-space-map.js'

interface Parts {
  store: Store
  cache: BlockCache
  data: DataSpaceMap
  metadata: MetadataSpaceMap
}

export class SealedTransaction {
  /** The 4096 bytes of the superblock that will be written. */
  readonly superblock: Buffer
  /** Data blocks whose count fell to 0, ascending. */
  readonly freed: Float64Array
  readonly #parts: Parts
  readonly #blocks: readonly Block[]
  #state: 'sealed' | 'writing' | 'durable' | 'failed' = 'sealed'
  #over = false

  constructor(parts: Parts, blocks: readonly Block[], superblock: Buffer, freed: Float64Array) {
    this.#parts = parts
    this.#blocks = blocks
    this.superblock = superblock
    this.freed = freed
  }

  /** Whether another transaction may be sealed. */
  get over(): boolean {
    return this.#over
  }

  /** Whether it can still be written. */
  get waits(): boolean {
    return this.#state === 'sealed'
  }

  get durable(): boolean {
    return this.#state === 'durable'
  }

  get writing(): boolean {
    return this.#state === 'writing'
  }

  /**
   * Writes all blocks of the transaction, then the superblock, each followed by a sync. The caller
   * has synced the data before. Requests run whenever a slice of `pauses` is over: sealed blocks do
   * not change.
   * @param mayWrite called when all but the superblock is durable, which stays as it is where that
   *   throws
   * @throws what the store throws; then only `ThinMetadata.rollback` may follow, or another try
   *   when it `waits`
   */
  async write(pauses = NO_PAUSES, mayWrite: () => Later<void> = () => {}): Promise<void> {
    assert(this.#state === 'sealed', 'a sealed transaction is written once')
    const { store } = this.#parts
    this.#state = 'writing'
    try {
      await this.#writeBlocks(pauses)
      await store.sync()
      const asked = mayWrite()
      if (asked !== undefined) await asked
      const at = bytes(SUPERBLOCK_LOCATION * METADATA_BLOCK_SIZE)
      store.write(this.superblock, 0, METADATA_BLOCK_SIZE, at)
      await store.sync()
      this.#state = 'durable'
    } finally {
      if (this.#state === 'writing') this.#state = 'failed'
    }
  }

  /** Whether the write failed for lack of space, and no flush was lost: it may be tried again. */
  async #writeBlocks(pauses: Pauses): Promise<void> {
    try {
      await this.#parts.cache.write(this.#blocks, pauses)
    } catch (err) {
      if (isNoSpace(err)) this.#state = 'sealed'
      throw err
    }
  }

  /**
   * Lets the metadata blocks that the transaction freed be allocated; after `write`, and before the
   * next one is sealed. The data blocks of `freed` stay out of use until
   * `ThinMetadata.releaseData`.
   */
  end(): void {
    assert(this.#state === 'durable' && !this.#over, 'a transaction ends once, after its write')
    this.#over = true
    this.#parts.metadata.durable()
    this.#parts.metadata.release()
    this.#parts.data.durable()
  }
}
