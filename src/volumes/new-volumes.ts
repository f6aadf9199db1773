import { ThinfsError } from '../base/index.js'
import { mustBeFillable } from '../pool/index.js'
import type { PoolAdmin, VolumeInfo } from './admin.js'
import { type ExternalOrigins, sizeOn } from './external-origin.js'
import type { NameParts } from './namespace.js'
import { checkSize } from './sizes.js'
import { reserveOf, type Volume } from './volume.js'
import { type RulesOfEntry, withRules } from './volume-rules.js'
import type { VolumeEntry } from './volume-table.js'

/** Owner and mode of a volume: chmod and chown change these. */
export interface Ownership {
  mode?: number
  uid?: number
  gid?: number
}

export type CreateRequest = Parameters<PoolAdmin['create']>[0]

/** Makes volumes: empty ones, and those that show an image until they are written to. */
export class NewVolumes {
  readonly #parts: NameParts
  readonly #origins: ExternalOrigins

  constructor(parts: NameParts, origins: ExternalOrigins) {
    this.#parts = parts
    this.#origins = origins
  }

  /** See `PoolAdmin.create`. */
  async create({
    name,
    size,
    devId,
    externalOrigin,
    ...rules
  }: CreateRequest): Promise<VolumeInfo> {
    const { infos } = this.#parts
    const more = withRules({}, rules)
    if (externalOrigin === undefined) {
      if (size === undefined) {
        throw new ThinfsError('BAD_ARGUMENT', `${name}: a volume needs a size`)
      }
      return infos.of(await this.make(name, size, devId, more))
    }
    mustBeFillable(this.#parts.pool.blockSize)
    const origin = this.#origins.describe(externalOrigin)
    const shown = Math.min(origin.size, size ?? origin.size)
    const all = { ...more, external_origin: { ...origin, shown } }
    return infos.of(await this.make(name, size ?? sizeOn(origin), devId, all))
  }

  /** As `create`. @param more of the entry: permission bits and owner of the file, rules */
  make(
    name: string,
    size: number,
    wanted?: number,
    more: Ownership & RulesOfEntry & Pick<VolumeEntry, 'external_origin'> = {},
  ): Promise<Volume> {
    const { pool, names, volumes, onChange } = this.#parts
    return names.exclusive(async () => {
      checkSize(size)
      volumes.mustBeNew(name)
      const devId = volumes.newDevId(wanted)
      const entry = { ...volumes.newEntry(name, devId, size), ...more }
      const { space, devices } = pool
      space.mustHaveMinFree()
      if (!space.metadata.hasRoom) await space.metadata.makeRoom()
      await names.commit(new Map([[devId, entry]]), () => {
        const kept = reserveOf(pool, entry)
        space.data.mustKeep(kept)
        devices.createThin(devId)
        space.reserves.set(devId, kept)
      })
      onChange('created', name, devId)
      return volumes.add(devId)
    })
  }
}
