/**
 * Growth of a pool: it becomes as large as its files are, or the block devices have become.
 *
 * A store is made longer first, and then the space map over it. So a death between the two leaves
 * a store that is longer than the pool, and the next opening, or the next look, goes on from there.
 * Nothing ever becomes smaller.
 */
import {
  bytes,
  type Clock,
  MAX_METADATA_BLOCKS,
  METADATA_BLOCK_SIZE,
  MIB,
  ThinfsError,
} from '../base/index.js'
import type { DataBlocks } from '../device/index.js'
import { MAX_DATA_BLOCKS, type ThinMetadata } from '../metadata/index.js'
import type { Store } from '../storage/index.js'
import type { CommitPipeline } from './commit-pipeline.js'
import type { PoolEvents } from './options.js'
import type { PoolState } from './pool-state.js'

/**
 * Data blocks by which a pool that is served grows in one turn of the thread: 64 bitmaps, which
 * take less than a millisecond. More come in the turns that follow.
 */
const PIECE = 64 * 16320

/** Sizes in bytes; what is left out stays as it is. */
export interface Extension {
  data?: number
  metadata?: number
}

export interface GrowthParts {
  metadata: ThinMetadata
  /** Where the metadata is. */
  store: Store
  blocks: DataBlocks
  commits: CommitPipeline
  state: PoolState
  clock: Clock
  events: Pick<PoolEvents, 'warning'>
  /** Metadata blocks that have to be free when the data has grown. */
  reserve(): number
  /** The pool has grown. */
  grown(): void
}

export class Growth {
  readonly #parts: GrowthParts
  /** Why the pool is smaller than its data file; null when it is not. */
  #refusal: string | null = null
  /** The turns in which a growth goes on; null when there is none. */
  #goingOn: Promise<void> | null = null

  constructor(parts: GrowthParts) {
    this.#parts = parts
  }

  /** Why the pool is smaller than its data file: a sentence; null when it is not. */
  get refusal(): string | null {
    return this.#refusal
  }

  /**
   * Makes the pool as large as its stores have become.
   * @param atOnce all of it; otherwise what takes long goes on in later turns
   * @returns whether it grew
   */
  toStores(atOnce: boolean): boolean {
    const { metadata, store, blocks, commits, state, grown } = this.#parts
    if (!state.writable) return false
    blocks.measure()
    store.measure()
    const metadataWanted = Math.min(
      Math.floor(store.size / METADATA_BLOCK_SIZE),
      MAX_METADATA_BLOCKS,
    )
    const growsMetadata = metadataWanted > metadata.nrMetadataBlocks
    if (growsMetadata) commits.change(() => metadata.growMetadata(metadataWanted))
    const dataWanted = Math.min(Math.floor(blocks.size / blocks.blockSize), MAX_DATA_BLOCKS)
    const { nrDataBlocks } = metadata
    const growsData = dataWanted > nrDataBlocks && this.#canGrowData(dataWanted)
    if (growsData) {
      const next = atOnce ? dataWanted : Math.min(dataWanted, nrDataBlocks + PIECE)
      blocks.hasGrown()
      commits.change(() => metadata.growData(next))
      if (next < dataWanted) this.#goOn()
    }
    if (growsMetadata || growsData) grown()
    return growsMetadata || growsData
  }

  /**
   * Makes files longer, and the pool as large as they are then: also where they, or block devices,
   * were longer than the pool already. Either all of it is done or nothing.
   * @throws BAD_ARGUMENT for a smaller size, one that the format or the file system does not have,
   *   or that a block device does not have yet; NO_METADATA_SPACE where the metadata has no room
   *   for the bitmaps of more data; IO_ERROR
   */
  async extend(wanted: Extension): Promise<void> {
    const { store, blocks, state, commits } = this.#parts
    state.mustBeWritable()
    // Where the host has no room for what was changed already, this is what fails.
    if (commits.stalled) await commits.commit()
    state.mustBeWritable()
    blocks.measure()
    store.measure()
    const metadataSize = this.#metadataSize(wanted.metadata)
    const dataSize = this.#dataSize(wanted.data)
    this.#mustHoldBitmaps(dataSize, metadataSize)
    // The one that a file system may refuse comes first.
    if (dataSize > blocks.size) blocks.grow(bytes(dataSize))
    if (metadataSize > store.size) store.grow(bytes(metadataSize))
    this.toStores(false)
    while (this.#goingOn !== null) await this.#goingOn
    state.mustBeWritable()
    await commits.commit()
  }

  /** The size that the data store is to have, in whole blocks. */
  #dataSize(wanted: number | undefined): number {
    const { blocks, metadata } = this.#parts
    const has = metadata.nrDataBlocks * blocks.blockSize
    if (wanted === undefined) return Math.max(blocks.size, has)
    const size = wholeBlocks(wanted, blocks.blockSize)
    mustNotShrink(blocks.path, size, has)
    const most = MAX_DATA_BLOCKS * blocks.blockSize
    // A double is exact up to there.
    mustNotExceed(blocks.path, size, Math.min(most, Number.MAX_SAFE_INTEGER))
    if (blocks.hostRoom() === null) mustHave(blocks, size)
    return Math.max(size, blocks.size)
  }

  /** The same of the metadata. */
  #metadataSize(wanted: number | undefined): number {
    const { store, metadata } = this.#parts
    const has = metadata.nrMetadataBlocks * METADATA_BLOCK_SIZE
    if (wanted === undefined) return Math.max(store.size, has)
    const size = wholeBlocks(wanted, METADATA_BLOCK_SIZE)
    mustNotShrink(store.path, size, has)
    mustNotExceed(store.path, size, MAX_METADATA_BLOCKS * METADATA_BLOCK_SIZE)
    if (store.hostRoom?.() === null) mustHave(store, size)
    return Math.max(size, store.size)
  }

  /** @throws NO_METADATA_SPACE, before anything has grown */
  #mustHoldBitmaps(dataSize: number, metadataSize: number): void {
    const { metadata, blocks, store } = this.#parts
    const gained =
      Math.min(Math.floor(metadataSize / METADATA_BLOCK_SIZE), MAX_METADATA_BLOCKS) -
      metadata.nrMetadataBlocks
    const lacking = this.#lacking(Math.floor(dataSize / blocks.blockSize), gained)
    if (lacking <= 0) return
    const detail = `${store.path}: the map of so much data takes ${lacking} blocks more than are free`
    const more = Math.ceil((2 * lacking * METADATA_BLOCK_SIZE) / MIB)
    throw new ThinfsError('NO_METADATA_SPACE', `${detail}: thinfs extend --metadata +${more}M`)
  }

  /** Metadata blocks that are missing for so many data blocks, when `gained` more are there. */
  #lacking(dataBlocks: number, gained: number): number {
    const { metadata, reserve } = this.#parts
    if (metadata.nrDataBlocks === 0 || dataBlocks <= metadata.nrDataBlocks) return 0
    const free = metadata.nrAllocatableMetadataBlocks + gained
    return metadata.growDataCost(dataBlocks) + reserve() - free
  }

  /**
   * Whether the metadata has room for the bitmaps of so many data blocks. Without it, a pool
   * reports that and keeps its size, and a new pool is refused.
   */
  #canGrowData(dataBlocks: number): boolean {
    const { metadata, blocks, commits, events, reserve } = this.#parts
    if (commits.stalled) return false
    if (this.#lacking(dataBlocks, 0) <= 0) {
      this.#refusal = null
      return true
    }
    const before = this.#refusal
    const free = Math.max(0, metadata.nrAllocatableMetadataBlocks - reserve())
    this.#refusal =
      `${blocks.path}: has ${dataBlocks} blocks, the pool stays at ${metadata.nrDataBlocks}: ` +
      `that takes ${metadata.growDataCost(dataBlocks)} metadata blocks, ${free} are free`
    if (before === null) events.warning(this.#refusal)
    return false
  }

  /** Goes on in turns of its own, until the pool is as large as its stores. */
  #goOn(): void {
    this.#goingOn ??= this.#pieces().finally(() => {
      this.#goingOn = null
    })
  }

  async #pieces(): Promise<void> {
    const { clock, blocks, metadata } = this.#parts
    try {
      do await clock.yield()
      while (
        this.toStores(false) &&
        metadata.nrDataBlocks < Math.floor(blocks.size / blocks.blockSize)
      )
    } catch {} // change() has failed the pool, or it is being closed
  }
}

/** Rounded up to whole blocks. */
const wholeBlocks = (size: number, blockSize: number): number =>
  Math.ceil(size / blockSize) * blockSize

function mustNotShrink(path: string, size: number, has: number): void {
  if (size >= has) return
  const what = `${path}: ${size} bytes are less than the ${has} that the pool has`
  throw new ThinfsError('BAD_ARGUMENT', `${what}: a pool does not become smaller`)
}

function mustNotExceed(path: string, size: number, most: number): void {
  if (size <= most) return
  throw new ThinfsError('BAD_ARGUMENT', `${path}: ${size} bytes, at most ${most} are possible`)
}

/** A block device has to be longer already. */
function mustHave({ path, size }: { path: string; size: number }, wanted: number): void {
  if (wanted <= size) return
  const found = `is a device of ${size} bytes, ${wanted} are wanted: make the device larger first`
  throw new ThinfsError('BAD_ARGUMENT', `${path}: ${found}`)
}
