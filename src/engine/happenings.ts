import { METADATA_BLOCK_SIZE } from '../base/index.js'
import type { Told } from '../control/index.js'
import type { PoolEvents, PoolMode, ThinPool } from '../pool/index.js'

/** Modes that are events of their own; all others are `mode`. */
const FULL: { readonly [M in PoolMode]?: string } = {
  out_of_data_space: 'full_data',
  out_of_metadata_space: 'full_metadata',
}

/** The events of a pool, in the words of docs/MONITORING.md. */
export class Happenings {
  readonly #tell: (event: Told) => void
  #pool: ThinPool | null = null
  /** Events before the pool was open. */
  readonly #early: [name: string, detail: string, more: Pick<Told, 'volume'>][] = []
  readonly #nameOf: (devId: number) => string

  /**
   * @param tell gives an event to whoever keeps it
   * @param nameOf the volume of a thin device
   */
  constructor(tell: (event: Told) => void, nameOf: (devId: number) => string) {
    this.#tell = tell
    this.#nameOf = nameOf
  }

  /** The pool is open: from now on its numbers are known. */
  opened(pool: ThinPool): void {
    this.#pool = pool
    for (const early of this.#early.splice(0)) this.#happened(...early)
  }

  /** Events that are told of as well as given to another listener. */
  besides(events: PoolEvents): PoolEvents {
    return {
      ...events,
      mode: (mode, reason) => {
        events.mode(mode, reason)
        this.#happened(FULL[mode] ?? 'mode', reason ?? '')
      },
      lowWater: free => {
        events.lowWater(free)
        this.#happened('low_water_data', '')
      },
      lowWaterMetadata: free => {
        events.lowWaterMetadata(free)
        this.#happened('low_water_metadata', '')
      },
      limitReached: devId => {
        events.limitReached(devId)
        const volume = this.#nameOf(devId)
        this.#happened('limit_reached', `${volume} maps its limit`, { volume })
      },
      extended: (part, size) => {
        events.extended(part, size)
        this.#happened(`extended_${part}`, '')
      },
      warning: (what, kind) => {
        events.warning(what, kind)
        this.#happened(kind ?? 'warning', what)
      },
    }
  }

  #happened(event: string, detail: string, more: Pick<Told, 'volume'> = {}): void {
    const pool = this.#pool
    if (pool === null) {
      this.#early.push([event, detail, more])
      return
    }
    const { metadata, mode, blockSize } = pool
    this.#tell({
      time: Date.now() / 1000,
      event,
      detail,
      mode,
      dataUsed: metadata.nrAllocatedDataBlocks * blockSize,
      dataSize: metadata.nrDataBlocks * blockSize,
      metadataUsed: metadata.nrAllocatedMetadataBlocks * METADATA_BLOCK_SIZE,
      metadataSize: metadata.nrMetadataBlocks * METADATA_BLOCK_SIZE,
      writesWaiting: pool.space.writesWaiting,
      ...more,
    })
  }
}
