import type { ThinPool } from '../pool/index.js'
import type { Store } from '../storage/index.js'
import type { CheckProgress, CheckReport } from './admin.js'
import { checkFiles, isDamaged, withData } from './check-files.js'
import type { NameTransactions } from './name-transactions.js'
import type { TableFile } from './volume-table.js'

export interface PoolCheckParts {
  /** Name of the pool. */
  name: string
  pool: ThinPool
  metadata: Store
  table: TableFile
  names: NameTransactions
  /** The name of a thin device in a report. */
  nameOf(devId: number): string
  /** @throws NOT_MOUNTED when the pool is being closed */
  mustNotBeClosing(): void
}

/** Checks an open pool while it serves: in slices, one check at a time. */
export class PoolCheck {
  readonly #parts: PoolCheckParts
  #last: Promise<unknown> = Promise.resolve()
  /** How far the check is that is under way; null without one. */
  progress: CheckProgress | null = null

  constructor(parts: PoolCheckParts) {
    this.#parts = parts
  }

  /** Resolves when no check is under way. */
  get ended(): Promise<unknown> {
    return this.#last
  }

  /** @param deep reads all data too */
  run(deep: boolean): Promise<CheckReport> {
    const check = this.#last
      .then(() => this.#run(deep))
      .finally(() => {
        this.progress = null
      })
    this.#last = check.catch(() => {})
    return check
  }

  async #run(deep: boolean): Promise<CheckReport> {
    const { name, pool, metadata: store, table, names, nameOf } = this.#parts
    const { metadata, blocks: data } = pool
    const steps = checkFiles({ name, metadata: store, data, table }, (done, all) => {
      this.progress = { part: 'metadata', done, all }
    })
    const held = await names.exclusive(async () => {
      if (pool.writable) await pool.commit()
      const held = metadata.holdBlocks()
      // Reads superblock and volumes.json, which go together now.
      steps.next()
      return held
    })
    let report: CheckReport
    try {
      let step = steps.next()
      for (; !step.done; step = steps.next()) {
        // When metadata is short, writers need the held blocks: wait for them once, at the end.
        if (pool.space.metadata.hasRoom) await this.#turnOfOthers()
      }
      report = step.value
    } finally {
      held.release()
    }
    if (!deep || isDamaged(report)) return report
    const all = Math.max(report.usedDataBlocks, 1) * pool.blockSize
    return await withData(report, {
      metadata,
      data,
      freeMeansHole: data.freeMeansHole && pool.writable,
      nameOf,
      pause: () => this.#turnOfOthers(),
      onProgress: done => {
        this.progress = { part: 'data', done, all }
      },
    })
  }

  /** Between two slices. */
  async #turnOfOthers(): Promise<void> {
    await this.#parts.pool.clock.yield()
    this.#parts.mustNotBeClosing()
  }
}
