import type { DevId } from '../base/index.js'
import type { ThinPool } from '../pool/index.js'
import type { VolumeInfo } from './admin.js'
import type { Volume } from './volume.js'
import type { VolumeSet } from './volume-set.js'

/** The facts about volumes that commands and attributes show. */
export class VolumeInfos {
  readonly #pool: ThinPool
  readonly #volumes: VolumeSet

  constructor(pool: ThinPool, volumes: VolumeSet) {
    this.#pool = pool
    this.#volumes = volumes
  }

  /** All but what is exclusive, which takes a walk of the volume's mappings. */
  of(volume: Volume): VolumeInfo {
    const { entry } = volume
    return {
      name: entry.name,
      devId: volume.devId,
      size: volume.device.size,
      mapped: this.mappedBytes(volume),
      exclusive: null,
      limit: entry.limit ?? null,
      reserve: entry.reserve ?? null,
      onFull: entry.on_full ?? null,
      queueTimeout: entry.queue_timeout ?? null,
      origin: this.originOf(volume),
      externalOrigin: entry.external_origin?.path ?? null,
      created: entry.created,
      open: volume.opens > 0,
    }
  }

  /** Name of the volume that a volume is a snapshot of; null for none or when that is gone. */
  originOf({ entry, generation }: Volume): string | null {
    const origin = entry.origin === null ? undefined : this.#volumes.byDevId(entry.origin)
    // A device that is younger than its snapshot has the id only.
    return origin && !origin.entry.removed && origin.generation <= generation ? origin.name : null
  }

  /** Bytes of the data blocks that a volume maps. */
  mappedBytes(volume: Volume): number {
    return this.#pool.metadata.details(volume.devId as DevId).mappedBlocks * this.#pool.blockSize
  }
}
