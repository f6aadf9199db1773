/**
 * The free data blocks of a pool: which of them are kept for whom, and when few of them are left.
 */
import { type DevId, ThinfsError } from '../base/index.js'
import type { DataBlocks } from '../device/index.js'
import type { ThinMetadata } from '../metadata/index.js'
import type { HostSpace } from './host-space.js'
import { LowWater } from './low-water.js'
import type { PoolEvents, PoolOptions } from './options.js'
import type { PoolState } from './pool-state.js'
import type { Reserves } from './reserves.js'

/**
 * This part of the data blocks, at most 1024, is kept back for the edges of discards: a full pool
 * is emptied by discards, and whoever sends them stops at the first that fails. ZFS keeps as much
 * back, for the same reason (spa_slop_shift). A pool that is too small for it to matter keeps
 * nothing back.
 */
const DISCARD_PART = 32
const DISCARD_MAX = 1024
const DISCARD_FROM = 2048

const NO_DATA_BLOCKS = 'no free data blocks'
const RESERVED_BLOCKS = 'what is free is reserved for volumes: thinfs list says for which'

export interface DataRoomParts {
  metadata: ThinMetadata
  blocks: DataBlocks
  state: PoolState
  host: HostSpace
  reserves: Reserves
  events: PoolEvents
}

export class DataRoom {
  readonly #parts: DataRoomParts
  readonly #low: LowWater
  #lowWaterMarkOf: PoolOptions['lowWaterMark']
  /** Whether the host was told to have less than the low water mark. */
  #hostLowSeen = false

  constructor(parts: DataRoomParts, lowWaterMark: PoolOptions['lowWaterMark']) {
    this.#parts = parts
    this.#lowWaterMarkOf = lowWaterMark
    this.#low = new LowWater(free => parts.events.lowWater(free))
  }

  // --- what there is; in data blocks ---

  get nrFree(): number {
    return this.#parts.metadata.nrFreeDataBlocks
  }

  /** Blocks that are free but wait for a commit. */
  get nrFrozen(): number {
    const { metadata, blocks } = this.#parts
    return this.nrFree - metadata.nrAllocatableDataBlocks - blocks.freed.nrReleasing
  }

  /** Those kept back for the edges of discards. */
  get discardReserve(): number {
    const { nrDataBlocks } = this.#parts.metadata
    if (nrDataBlocks < DISCARD_FROM) return 0
    return Math.min(DISCARD_MAX, Math.floor(nrDataBlocks / DISCARD_PART))
  }

  /** Free ones that writes can have, whichever device they are for. */
  get nrWritable(): number {
    return Math.max(0, this.nrFree - this.discardReserve - this.#parts.reserves.kept)
  }

  /** Those that writes to one device can have. */
  nrWritableFor(devId: DevId): number {
    const { reserves } = this.#parts
    const kept = reserves.keptFor(devId)
    if (kept === 0) return this.nrWritable
    const free = this.nrFree - (reserves.kept - kept)
    return Math.max(0, Math.min(free, kept), free - this.discardReserve)
  }

  /** Those that a write can be given now, whichever device it is for. */
  get nrAvailable(): number {
    const { metadata, reserves } = this.#parts
    return metadata.nrAllocatableDataBlocks - this.discardReserve - reserves.kept
  }

  /**
   * The same, for a write of so many to one device: what is kept for others is not its.
   * @param discards whether they may be of those that are kept back for the edges of discards
   */
  availableFor(devId: DevId, count: number, discards: boolean): number {
    const { metadata, reserves } = this.#parts
    const kept = reserves.keptFor(devId)
    const available = metadata.nrAllocatableDataBlocks - (reserves.kept - kept)
    return discards || count <= kept ? available : available - this.discardReserve
  }

  /** Why a write finds none. */
  get whyFull(): string {
    const hasFree = this.#parts.reserves.kept > 0 && this.nrFree > this.discardReserve
    return hasFree ? RESERVED_BLOCKS : NO_DATA_BLOCKS
  }

  // --- what is kept for a device ---

  /**
   * Keeps data blocks for a device, as many as it lacks of so many of its own. Called again, it
   * sets another number.
   * @param blocks 0: none
   * @throws NO_DATA_SPACE when the pool has fewer that nobody has or is promised
   */
  async reserve(devId: DevId, blocks: number): Promise<void> {
    const { reserves, state } = this.#parts
    const before = reserves.blocksOf(devId)
    if (blocks <= before) {
      reserves.set(devId, blocks)
      return
    }
    try {
      // Blocks that the device has already are not kept for it.
      const own = await reserves.ownOf(devId)
      state.mustBeWritable()
      this.mustKeep(Math.max(0, blocks - own) - reserves.keptFor(devId))
      reserves.set(devId, blocks)
    } finally {
      if (reserves.blocksOf(devId) === 0) reserves.forget(devId)
    }
  }

  /** @throws NO_DATA_SPACE when so many more cannot be kept */
  mustKeep(blocks: number): void {
    if (blocks <= this.nrWritable) return
    const { blockSize, path } = this.#parts.blocks
    const wanted = blocks * blockSize
    const has = this.nrWritable * blockSize
    const what = `${path}: ${wanted} bytes more would have to be reserved, ${has} are free`
    const cure = 'thinfs extend --data makes the pool larger'
    throw new ThinfsError('NO_DATA_SPACE', `${what}: ${cure}`)
  }

  // --- when few are left ---

  get lowWaterMark(): number {
    const mark = this.#lowWaterMarkOf
    return typeof mark === 'number' ? mark : mark(this.#parts.metadata.nrDataBlocks)
  }

  get belowLowWater(): boolean {
    return this.nrFree <= this.lowWaterMark
  }

  /** Sets the mark. It is told of anew. */
  setLowWaterMark(mark: PoolOptions['lowWaterMark']): void {
    this.#lowWaterMarkOf = mark
    this.#low.reset()
  }

  /** The kernel's rule: told when a block is wanted while no more than the mark are free. */
  noteWanted(count: number): void {
    this.#low.note(this.nrFree - (count - 1), this.lowWaterMark)
  }

  /** Bytes that the host can still give to free data blocks; null where that is no question. */
  get hostRoom(): number | null {
    const { metadata, blocks, host } = this.#parts
    return host.availableForData(metadata.nrAllocatedDataBlocks * blocks.blockSize)
  }

  /**
   * A sentence that the host can give less than the low water mark, and less than is free; null
   * otherwise.
   */
  get hostLow(): string | null {
    const room = this.hostRoom
    if (room === null) return null
    const { blockSize } = this.#parts.blocks
    const blocks = Math.floor(room / blockSize)
    if (blocks > this.lowWaterMark || blocks >= this.nrFree) return null
    const free = this.nrFree * blockSize
    return `the host's disk has ${room} bytes left, the pool has ${free} bytes free`
  }

  /** Notes the space that the host has: the log has to say so before it is used up. */
  noteHostLow(): void {
    const low = this.hostLow
    if (low !== null && !this.#hostLowSeen) this.#parts.events.warning(low, 'host_low')
    this.#hostLowSeen = low !== null
  }
}
