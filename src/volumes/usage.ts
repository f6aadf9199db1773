/** The exclusive space of volumes, counted in slices and cached until mappings change. */
import { type DataBlock, Slice } from '../base/index.js'
import type { ThinPool } from '../pool/index.js'
import type { Volume } from './volume.js'

/** Data blocks whose counters are made at once: 16 KiB. */
const COUNTERS = 4096

/** A number for each data block, from 0: four bytes for those near the ones that were counted. */
class Counters {
  readonly #parts = new Map<number, Uint32Array>()

  /** @returns how often it was called for a block */
  add(block: number): number {
    const nr = Math.floor(block / COUNTERS)
    let part = this.#parts.get(nr)
    if (part === undefined) {
      part = new Uint32Array(COUNTERS)
      this.#parts.set(nr, part)
    }
    return ++part[block - nr * COUNTERS]!
  }
}

/**
 * Visits the data blocks that only this volume maps. Looks at all mappings in parts of the tree
 * that are not shared: seconds for terabytes, during which requests run. If mappings change
 * meanwhile the result is approximate.
 * @param mustGoOn throws when the work has to end
 * @throws DEVICE_MISSING when the volume is removed meanwhile
 */
export async function forEachExclusive(
  { metadata, clock }: ThinPool,
  { device }: Volume,
  mustGoOn: () => void,
  visit: (vblock: number, dataBlock: DataBlock) => void,
): Promise<void> {
  const slice = new Slice(clock)
  for (let at = 0; at < Number.POSITIVE_INFINITY; ) {
    mustGoOn()
    device.mustBeReadable()
    at = metadata.mappings.forEachExclusive(device.devId, at, visit)
    if (slice.isOver) await slice.yield()
  }
}

interface Count {
  bytes: Promise<number>
  /** `mappingChanges` when counting began. */
  asOf: number
}

export class Usage {
  readonly #pool: ThinPool
  /** Throws when counting has to end. */
  readonly #mustGoOn: () => void
  /** Counted last, or being counted. */
  readonly #counts = new WeakMap<Volume, Count>()

  constructor(pool: ThinPool, mustGoOn: () => void) {
    this.#pool = pool
    this.#mustGoOn = mustGoOn
  }

  /** Bytes of the data blocks that only this volume maps; see `forEachExclusive`. */
  exclusiveBytes(volume: Volume): Promise<number> {
    const asOf = this.#pool.metadata.mappingChanges
    const last = this.#counts.get(volume)
    if (last?.asOf === asOf) return last.bytes
    const bytes = this.#count(volume)
    const count = { bytes, asOf }
    this.#counts.set(volume, count)
    bytes.catch(() => {
      if (this.#counts.get(volume) === count) this.#counts.delete(volume)
    })
    return bytes
  }

  /**
   * As `exclusiveBytes`, of the blocks that only these volumes map, one or several of them: what
   * removing all of them gives back.
   * @throws DEVICE_MISSING when one is removed meanwhile
   */
  async exclusiveTogether(volumes: readonly Volume[]): Promise<number> {
    const { metadata, clock, blockSize } = this.#pool
    const devIds = volumes.map(({ device }) => device.devId)
    const slice = new Slice(clock)
    const shared = new Counters()
    let blocks = 0
    const visit = (_vblock: number, dataBlock: DataBlock, count: number): void => {
      // Each mapping in the volumes' own leaves is one owner.
      if (count === 1 || shared.add(dataBlock) === count) blocks++
    }
    for (const nr of devIds.keys()) {
      for (let at = 0; at < Number.POSITIVE_INFINITY; ) {
        this.#mustGoOn()
        for (const { device } of volumes) device.mustBeReadable()
        at = metadata.mappings.forEachExclusiveTogether(devIds, nr, at, visit)
        if (slice.isOver) await slice.yield()
      }
    }
    return blocks * blockSize
  }

  async #count(volume: Volume): Promise<number> {
    let blocks = 0
    await forEachExclusive(this.#pool, volume, this.#mustGoOn, () => {
      blocks++
    })
    return blocks * this.#pool.blockSize
  }
}
