import { bytes } from '../base/index.js'
import type { PoolConfig } from '../config/index.js'
import type { PoolAdmin } from './admin.js'
import { type ExternalOrigins, sizeOn } from './external-origin.js'
import type { NameParts } from './namespace.js'
import type { Volume } from './volume.js'
import { unnamed, type VolumeEntry } from './volume-table.js'

type Wanted = PoolConfig['volumes']

/** The volumes that pool.yaml names: names for devices that are there, and those that are not. */
export class WantedVolumes {
  readonly #parts: NameParts
  readonly #origins: ExternalOrigins

  constructor(parts: NameParts, origins: ExternalOrigins) {
    this.#parts = parts
    this.#origins = origins
  }

  /**
   * Gives devices that another program made the names, sizes and origins that pool.yaml has for
   * their ids.
   */
  async adopt(wanted: Wanted): Promise<void> {
    const { pool, volumes } = this.#parts
    for (const [name, { id, size: given, snapshotOf, externalOrigin }] of Object.entries(wanted)) {
      const volume = id === undefined ? undefined : volumes.byDevId(id)
      if (volume?.name !== unnamed(id!) || volume.entry.removed || volumes.find(name)) continue
      const origin = snapshotOf === undefined ? null : (wanted[snapshotOf]?.id ?? null)
      const file = externalOrigin && this.#origins.describe(externalOrigin)
      const size = given ?? (file ? sizeOn(file) : volume.entry.size)
      const shows = file && { external_origin: { ...file, shown: Math.min(file.size, size) } }
      const entry = { ...volume.entry, name, size, origin, ...shows }
      if (pool.writable) await this.#adopt(volume, entry)
      else this.#name(volume, volume.name, entry)
    }
  }

  /** Gives a device that another program made the entry that it lacks. */
  #adopt(volume: Volume, entry: VolumeEntry): Promise<void> {
    const { names, onChange } = this.#parts
    return names.exclusive(async () => {
      const before = volume.name
      await names.commit(new Map([[volume.devId, entry]]))
      this.#name(volume, before, entry)
      onChange(`named, ${entry.size} bytes`, entry.name, volume.devId)
    })
  }

  #name(volume: Volume, before: string, entry: VolumeEntry): void {
    const { volumes } = this.#parts
    volume.entry = entry
    volume.device.size = bytes(entry.size)
    volumes.showOrigin(volume)
    volumes.renamed(volume, before)
  }

  /**
   * Makes the volumes that pool.yaml names and the pool lacks, origins before their snapshots.
   * @param admin makes them
   */
  async makeMissing(
    wanted: Wanted,
    admin: Pick<PoolAdmin, 'create' | 'snapshot' | 'resize' | 'setVolume'>,
  ): Promise<void> {
    const { volumes, reaper } = this.#parts
    const missing = Object.entries(wanted).filter(([name]) => !volumes.find(name))
    // An id of one of them may belong to a volume that is on its way out.
    if (missing.length > 0) await reaper.ended()
    while (missing.length > 0) {
      const ready = missing.findIndex(
        ([, { snapshotOf }]) => snapshotOf === undefined || volumes.find(snapshotOf),
      )
      const [[name, volume]] = missing.splice(Math.max(ready, 0), 1) as [(typeof missing)[number]]
      const request = { name, ...(volume.id === undefined ? {} : { devId: volume.id }) }
      const { limit = 0, reserve = 0 } = volume
      if (volume.snapshotOf === undefined) {
        const { size, externalOrigin } = volume
        await admin.create({
          ...request,
          ...(size !== null && { size }),
          ...(externalOrigin !== undefined && { externalOrigin }),
          ...{ limit, reserve },
        })
      } else {
        await admin.snapshot({ ...request, origin: volume.snapshotOf })
        if (volume.size !== null) await admin.resize({ name, size: volume.size, shrink: true })
        if (limit > 0 || reserve > 0) await admin.setVolume({ name, limit, reserve })
      }
    }
  }
}
