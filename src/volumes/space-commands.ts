import { isQueueTimeout, METADATA_BLOCK_SIZE, QUEUE_TIMEOUTS, ThinfsError } from '../base/index.js'
import type { ThinPool } from '../pool/index.js'
import type { PoolSettings } from './admin.js'

/**
 * Commands that concern the space of the whole pool: how much there is, and what a full one does.
 */
export class SpaceCommands {
  readonly #pool: ThinPool
  /** Whether a command may be reading the pool's files by itself: no block is moved then. */
  readonly #areRead: () => boolean
  readonly #mustNotBeClosing: () => void
  /** Ends what makes the pool smaller. */
  readonly #closed = new AbortController()
  #shrinking: Promise<unknown> = Promise.resolve()

  constructor(pool: ThinPool, areRead: () => boolean, mustNotBeClosing: () => void) {
    this.#pool = pool
    this.#areRead = areRead
    this.#mustNotBeClosing = mustNotBeClosing
  }

  /** See `PoolAdmin.extend`. */
  async extend(request: {
    data?: number
    metadata?: number
  }): Promise<{ data: number; metadata: number }> {
    const { metadata, blockSize, space } = this.#pool
    this.#mustNotBeClosing()
    await space.extend(request)
    return {
      data: metadata.nrDataBlocks * blockSize,
      metadata: metadata.nrMetadataBlocks * METADATA_BLOCK_SIZE,
    }
  }

  /** See `PoolAdmin.shrink`. */
  async shrink(
    { data, dryRun = false }: { data: number; dryRun?: boolean },
    signal?: AbortSignal,
  ): Promise<{ data: number; moved: number }> {
    const { metadata, blockSize, shrink } = this.#pool
    this.#mustNotBeClosing()
    if (dryRun) {
      const { blocks, moves } = await shrink.plan(data)
      return { data: blocks * blockSize, moved: moves * blockSize }
    }
    const ends = [this.#closed.signal, ...(signal === undefined ? [] : [signal])]
    const moving = shrink.run(data, {
      signal: AbortSignal.any(ends),
      mayMove: () => !this.#areRead(),
    })
    this.#shrinking = Promise.allSettled([this.#shrinking, moving])
    const moves = await moving
    return { data: metadata.nrDataBlocks * blockSize, moved: moves * blockSize }
  }

  /** See `PoolAdmin.set`. */
  set({ onFull, queueTimeout, minFreeSpace }: PoolSettings): void {
    const { space } = this.#pool
    this.#mustNotBeClosing()
    if (onFull !== undefined && onFull !== 'queue' && onFull !== 'error') {
      throw new ThinfsError('BAD_ARGUMENT', `on_full ${onFull}: queue and error are allowed`)
    }
    if (queueTimeout !== undefined && !isQueueTimeout(queueTimeout)) {
      throw new ThinfsError('BAD_ARGUMENT', `queue_timeout ${queueTimeout}: ${QUEUE_TIMEOUTS}`)
    }
    if (minFreeSpace !== undefined && !(minFreeSpace >= 0 && minFreeSpace < 100)) {
      const allowed = 'percent from 0 to 99 are allowed'
      throw new ThinfsError('BAD_ARGUMENT', `min_free_space ${minFreeSpace}: ${allowed}`)
    }
    if (minFreeSpace !== undefined) space.minFree = minFreeSpace
    if (queueTimeout !== undefined) space.queueTimeout = queueTimeout
    if (onFull !== undefined) space.setOnFull(onFull)
  }

  /** Gives up a shrink that is under way: resolves when it has ended. */
  async close(): Promise<void> {
    this.#closed.abort(new ThinfsError('NOT_MOUNTED', 'the pool is being closed'))
    await this.#shrinking
  }
}
