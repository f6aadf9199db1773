/**
 * Changes of names and sizes, one after the other.
 *
 * Each is volumes.json first, for the next transaction id, then the pool's metadata with that id:
 * the file may be one ahead of the pool, as a crash between the two leaves it, and never two.
 */
import type { ThinPool } from '../pool/index.js'
import { followEntry, type Volume } from './volume.js'
import type { EntryChanges, VolumeTable } from './volume-table.js'

export class NameTransactions {
  readonly #pool: ThinPool
  readonly #table: VolumeTable
  readonly #find: (devId: number) => Volume | undefined
  #last: Promise<unknown> = Promise.resolve()

  /** @param find the volume whose entry changed */
  constructor(pool: ThinPool, table: VolumeTable, find: (devId: number) => Volume | undefined) {
    this.#pool = pool
    this.#table = table
    this.#find = find
  }

  /** Runs `change` when all before it have ended. */
  exclusive<T>(change: () => Promise<T>): Promise<T> {
    const result = this.#last.then(change)
    this.#last = result.catch(() => {})
    return result
  }

  /**
   * Changes entries of volumes.json and, by `act`, the pool; durable when this resolves, undone
   * where it rejects. Callers are within `exclusive`.
   * @param next the transaction id that both get
   * @param exchange see `VolumeTable.exchange`
   */
  async commit(
    changes: EntryChanges,
    act: () => void = () => {},
    next = this.#pool.metadata.transactionId + 1,
    exchange: string | null = this.#table.exchange,
  ): Promise<void> {
    const pool = this.#pool
    pool.mustBeWritable()
    // The file may be one ahead of the pool, not two.
    if (pool.stalled) await pool.commit()
    const current = pool.metadata.transactionId
    const revert = await this.#table.change(changes, next, exchange)
    try {
      act()
      pool.setTransactionId(current, next)
      await pool.commitOrUndo()
    } catch (err) {
      revert()
      throw err
    }
    for (const [devId, entry] of changes) {
      const volume = this.#find(devId)
      if (volume && entry) {
        volume.entry = entry
        followEntry(pool, volume)
      }
      if (volume) volume.changed = Date.now()
    }
  }

  /**
   * Sets the transaction id, to one that may be far ahead, or behind. Callers are within
   * `exclusive`.
   */
  async jump(current: number, next: number): Promise<void> {
    if (next === current || next === current + 1) return this.commit(new Map(), () => {}, next)
    this.#pool.mustBeWritable()
    // A crash before the last step must not make the file one that is behind.
    await this.#table.change(new Map(), current, this.#table.exchange, next)
    this.#pool.setTransactionId(current, next)
    await this.#pool.commitOrUndo()
    await this.#table.change(new Map(), next)
  }
}
