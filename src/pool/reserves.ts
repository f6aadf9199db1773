/**
 * Data blocks that are kept for devices.
 *
 * A device with a reserve gets blocks until so many are its own: mapped by it and reachable by
 * nothing else. The pool keeps what it lacks of them. A snapshot makes all that a device maps
 * shared, and so the pool has to keep the whole reserve again, as ZFS does for a refreservation.
 *
 * The count of a device's own blocks is never too high, so that never too little is kept. Changes
 * of its mappings are counted as they happen. When another device stops sharing, the count is too
 * low until blocks are counted anew, in slices: after a device was deleted, and at opening.
 */
import { type Clock, type DevId, Slice, ThinfsError } from '../base/index.js'
import type { ThinMetadata } from '../metadata/index.js'

type Metadata = Pick<ThinMetadata, 'hasDevice'> & {
  mappings: Pick<ThinMetadata['mappings'], 'forEachExclusive' | 'isExclusive'>
}

/** A device's reserve. */
interface Reserve {
  devId: DevId
  /** Data blocks; what is kept is those of them that are not its own yet. */
  blocks: number
  /** Its own, or fewer. */
  own: number
  /** Own blocks that were counted below virtual block `at`; Infinity: all of them. */
  counted: number
  at: number
}

const keptFor = ({ blocks, own }: Reserve): number => Math.max(0, blocks - own)

export class Reserves {
  readonly #metadata: Metadata
  readonly #clock: Clock
  readonly #freed: () => void
  readonly #all = new Map<DevId, Reserve>()
  /** Sum of what is kept. */
  #kept = 0
  #counting: Promise<void> | null = null

  /** @param freed is told when less may be kept than before */
  constructor(metadata: Metadata, clock: Clock, freed: () => void) {
    this.#metadata = metadata
    this.#clock = clock
    this.#freed = freed
  }

  /** How many devices have one. */
  get count(): number {
    return this.#all.size
  }

  /** Free data blocks that are kept, for all devices together. */
  get kept(): number {
    return this.#kept
  }

  /** Those that are kept for one. */
  keptFor(devId: DevId): number {
    if (this.#all.size === 0) return 0
    const reserve = this.#all.get(devId)
    return reserve === undefined ? 0 : keptFor(reserve)
  }

  /** Those that have one. */
  devices(): Iterable<DevId> {
    return this.#all.keys()
  }

  has(devId: DevId): boolean {
    return this.#all.size > 0 && this.#all.has(devId)
  }

  /** Data blocks of a device's reserve; 0: it has none. */
  blocksOf(devId: DevId): number {
    return this.#all.get(devId)?.blocks ?? 0
  }

  /**
   * Counts what a device has of its own, and goes on counting until its reserve is set.
   * @returns data blocks; fewer than it has where counting was cut short
   */
  async ownOf(devId: DevId): Promise<number> {
    const reserve = this.#all.get(devId) ?? this.#add(devId, 0)
    reserve.counted = 0
    reserve.at = 0
    this.#startCounting()
    while (reserve.at !== Number.POSITIVE_INFINITY && this.#counting !== null) await this.#counting
    return reserve.own
  }

  /** Resolves when blocks have been counted; null while nobody counts. */
  get counting(): Promise<void> | null {
    return this.#counting
  }

  /**
   * Sets a device's reserve. Setting the same again changes nothing.
   * @param blocks 0: none
   */
  set(devId: DevId, blocks: number): void {
    const reserve = this.#all.get(devId)
    const before = reserve?.blocks ?? 0
    if (blocks === 0) this.forget(devId)
    else if (reserve === undefined) this.#add(devId, blocks)
    else {
      this.#kept -= keptFor(reserve)
      reserve.blocks = blocks
      this.#kept += keptFor(reserve)
    }
    if (blocks < before) this.#freed()
  }

  #add(devId: DevId, blocks: number): Reserve {
    const reserve = { devId, blocks, own: 0, counted: 0, at: 0 }
    this.#all.set(devId, reserve)
    this.#kept += blocks
    this.#startCounting()
    return reserve
  }

  /** The device has no reserve any more. */
  forget(devId: DevId): void {
    const reserve = this.#all.get(devId)
    if (reserve === undefined) return
    this.#kept -= keptFor(reserve)
    this.#all.delete(devId)
  }

  /** The pool is of no use any more: nothing is kept, nor counted. */
  end(): void {
    this.#all.clear()
    this.#kept = 0
  }

  /** The metadata is that of the last commit again. */
  rolledBack(): void {
    for (const reserve of this.#all.values()) {
      this.#setOwn(reserve, 0)
      if (!this.#metadata.hasDevice(reserve.devId)) this.forget(reserve.devId)
    }
    this.recount()
  }

  /** Blocks may have become a device's own: counts them anew. */
  recount(): void {
    if (this.#all.size === 0) return
    for (const reserve of this.#all.values()) {
      reserve.counted = 0
      reserve.at = 0
    }
    this.#startCounting()
  }

  /** How many more blocks are kept once all that some devices map is shared. */
  costOfSharing(devIds: Iterable<DevId>): number {
    let cost = 0
    for (const devId of devIds) {
      const reserve = this.#all.get(devId)
      if (reserve !== undefined) cost += reserve.blocks - keptFor(reserve)
    }
    return cost
  }

  // --- changes ---

  /** All that a device maps is shared from now on. */
  shared(devId: DevId): void {
    const reserve = this.#all.get(devId)
    if (reserve === undefined) return
    this.#setOwn(reserve, 0)
    reserve.counted = 0
    reserve.at = Number.POSITIVE_INFINITY
  }

  /** Whether mapping a virtual block anew gives a device one more block of its own. */
  gains(devId: DevId, vblock: number): boolean {
    return !this.#metadata.mappings.isExclusive(devId, vblock)
  }

  /** A virtual block was mapped for which `gains` was true before. */
  gained(devId: DevId, vblock: number): void {
    const reserve = this.#all.get(devId)
    if (reserve === undefined) return
    if (vblock < reserve.at) reserve.counted++
    this.#setOwn(reserve, reserve.own + 1)
  }

  /** A range of virtual blocks is about to be unmapped. */
  unmapping(devId: DevId, begin: number, end: number): void {
    const reserve = this.#all.get(devId)
    if (reserve === undefined) return
    let lost = 0
    let lostCounted = 0
    const visit = (vblock: number): void => {
      if (vblock >= end) return
      lost++
      if (vblock < reserve.at) lostCounted++
    }
    for (let at = begin; at < end; ) {
      at = this.#metadata.mappings.forEachExclusive(devId, at, visit)
    }
    reserve.counted = Math.max(0, reserve.counted - lostCounted)
    this.#setOwn(reserve, Math.max(0, reserve.own - lost))
  }

  // --- inside ---

  #setOwn(reserve: Reserve, own: number): void {
    this.#kept -= keptFor(reserve)
    reserve.own = own
    this.#kept += keptFor(reserve)
  }

  #startCounting(): void {
    this.#counting ??= this.#count().finally(() => {
      this.#counting = null
      // One that was asked for as this one ended found it under way.
      if (this.#uncounted() !== null) this.#startCounting()
      if (this.#all.size > 0) this.#freed()
    })
  }

  async #count(): Promise<void> {
    const slice = new Slice(this.#clock)
    // The caller has yet to note that counting goes on.
    await Promise.resolve()
    for (;;) {
      const reserve = this.#uncounted()
      if (reserve === null) return
      this.#countPiece(reserve)
      if (slice.isOver) await slice.yield()
    }
  }

  #uncounted(): Reserve | null {
    for (const reserve of this.#all.values()) {
      if (reserve.at !== Number.POSITIVE_INFINITY) return reserve
    }
    return null
  }

  #countPiece(reserve: Reserve): void {
    const { devId, at } = reserve
    try {
      reserve.at = this.#metadata.mappings.forEachExclusive(devId, at, () => {
        reserve.counted++
      })
    } catch (err) {
      if (!(err instanceof ThinfsError)) throw err
      // A reader of that part of the metadata hears of it. Too much is kept for this device.
      reserve.at = Number.POSITIVE_INFINITY
    }
    this.#setOwn(reserve, Math.max(reserve.own, reserve.counted))
  }
}
