import { ThinfsError } from '../base/index.js'
import type { ThinPool } from '../pool/index.js'
import type { NameTransactions } from './name-transactions.js'
import type { Volume } from './volume.js'

export interface ReaperParts {
  pool: ThinPool
  names: NameTransactions
  /** Whether the volume has not gone another way, and the pool is not being closed. */
  mayGo(volume: Volume): boolean
  /** True ends the work early: the next opening goes on. */
  isClosing(): boolean
  /** The device was deleted. */
  gone(volume: Volume): void
  /** The space could not be given back, for the time being. */
  failed(volume: Volume, err: unknown): void
}

/** Returns the space of volumes whose names are gone. */
export class Reaper {
  readonly #parts: ReaperParts
  readonly #underWay = new Set<Promise<void>>()

  constructor(parts: ReaperParts) {
    this.#parts = parts
  }

  /** Resolves when the work of the moment has ended, well or not. */
  async ended(): Promise<void> {
    await Promise.allSettled(this.#underWay)
  }

  /** Never rejects: the entry in volumes.json says that the volume was removed. */
  reap(volume: Volume): Promise<void> {
    const { pool, names, failed } = this.#parts
    const drop = (): Promise<void> =>
      names.commit(new Map([[volume.devId, null]]), () => pool.devices.delete(volume.device.devId))
    return this.reapBy(volume, drop).catch(err => failed(volume, err))
  }

  /**
   * As `reap`, and rejects.
   * @param drop deletes the device, which is nearly empty, and its entry
   */
  reapBy(volume: Volume, drop: () => Promise<void>): Promise<void> {
    const work = this.#reap(volume, drop)
    this.#underWay.add(work)
    void work.catch(() => {}).then(() => this.#underWay.delete(work))
    return work
  }

  async #reap(volume: Volume, drop: () => Promise<void>): Promise<void> {
    const { pool, names, mayGo, isClosing, gone } = this.#parts
    for (;;) {
      // It makes room for the drop as well, or fails.
      if (!(await pool.devices.empty(volume.device, isClosing))) return
      try {
        return await names.exclusive(async () => {
          if (!mayGo(volume)) return
          await drop()
          gone(volume)
        })
      } catch (err) {
        // Other removals may have used that room meanwhile.
        if (!(err instanceof ThinfsError && err.code === 'NO_METADATA_SPACE')) throw err
      }
    }
  }
}
