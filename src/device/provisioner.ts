/**
 * What a thin device needs of its pool. The pool implements it; nothing here knows how.
 *
 * The rules come from drivers/md/dm-thin.c. Every call acts at once, on the running transaction; what
 * returns a promise may find the device gone, or the pool read-only, when it resolves.
 */
import type { Bytes, Clock, DataBlock, DevId, Slice, VirtualBlock } from '../base/index.js'
import type { ThinMetadata } from '../metadata/index.js'
import type { Store } from '../storage/index.js'

/** The mappings of all devices, to be read. */
export type Mappings = Pick<
  ThinMetadata,
  'details' | 'find' | 'forEachMapping' | 'isReallyShared' | 'mappedUntil' | 'next' | 'time'
>

/** On whose behalf space is waited for: the wait ends when it is deleted. */
export interface SpaceOwner {
  readonly devId: DevId
  /** True once the device was deleted. */
  readonly gone: boolean
}

export interface Provisioner {
  /** Size of a data block in bytes. */
  readonly blockSize: number
  /** Where free data blocks are holes, a new block needs no zeroing. */
  readonly freeMeansHole: boolean
  readonly data: Store
  readonly metadata: Mappings
  readonly clock: Clock

  // --- what may be done now ---

  /** Whether metadata may change. */
  readonly writable: boolean
  /** @throws POOL_FAILED when the metadata cannot be relied on, or the pool is closed */
  mustBeReadable(): void
  /** @throws POOL_READ_ONLY, POOL_FAILED when no metadata may change */
  mustBeWritable(): void
  /** Whether a request may change mappings, and a commit still has room afterwards. */
  readonly hasMetadataRoom: boolean
  /** The same for unmapping, which takes blocks before it gives more back. */
  readonly hasRoomToUnmap: boolean
  /** Commits, until `hasRoomToUnmap`. @throws NO_METADATA_SPACE when that is not enough */
  makeRoomToUnmap(): Promise<void>

  // --- data blocks ---

  /** Free data blocks that writes can have. */
  readonly nrWritableDataBlocks: number
  /**
   * Takes `count` data blocks into `out`, or none.
   * @param discards whether they may be of those that are kept back for the edges of discards
   * @returns false when there is no room; `withSpace` is the way to wait for it
   */
  allocate(out: Float64Array, count: number, discards: boolean): boolean
  /** Gives back blocks that nothing points to yet, after a failed write may have touched them. */
  giveBack(blocks: Float64Array, count: number): void
  /** Notes that new blocks were written: when the host had no room before, it has now. */
  provisioned(): void
  /** Notes that the host had no room for a write to the data. The pool is as good as full then. */
  hostRefused(err: unknown): void
  /**
   * Tries again until there is space: after a commit that frees blocks, when the files have grown,
   * and, with `on_full: queue`, whenever blocks become free, or the host has room, within 60 s.
   * @param owner on whose behalf; the wait ends when it is deleted
   * @param held bytes that waiting keeps in memory
   * @param attempt returns null when there is no room
   * @param signal ends the wait with CANCELLED
   * @throws NO_DATA_SPACE, NO_METADATA_SPACE, DEVICE_MISSING
   */
  withSpace<T>(
    owner: SpaceOwner,
    held: number,
    attempt: () => T | null,
    signal?: AbortSignal,
  ): Promise<T>
  /** As `withSpace`, but only with what is free already or becomes so with a commit. */
  withSpaceNow<T>(owner: SpaceOwner, attempt: () => T | null): Promise<T>

  // --- mappings ---

  /** Maps a block; the caller's reference on `dataBlock` goes into the mapping. */
  map(devId: DevId, vblock: VirtualBlock, dataBlock: DataBlock, time: number): void
  /** Maps a block that another mapping has already. */
  mapShared(devId: DevId, vblock: VirtualBlock, dataBlock: DataBlock, time: number): void
  /** Unmaps [begin, end). @returns how many blocks were mapped */
  unmap(devId: DevId, begin: number, end: number): number
  /** Makes all that the two devices map look shared to dm-thin. */
  markShared(one: DevId, other: DevId): void
  /** Notes that a write made a device longer: the journal has it until whoever keeps sizes does. */
  extended(devId: DevId, size: Bytes): void

  // --- the thread, and what lasts ---

  /** When a slice is over, within one request that changes much: settles, and lets others go on. */
  pause(slice: Slice): Promise<void>
  /**
   * Between two pieces of unmapping: lets others have their turn when it is time, and commits when
   * much was freed or room is short.
   * @throws NO_METADATA_SPACE, or when no metadata may change any more
   */
  betweenSlices(slice: Slice): Promise<void>
  /** Makes what was acknowledged of one device durable. @throws after a rollback, for good */
  flush(devId: DevId): Promise<void>
  /** Notes that the data store was written to. */
  wrote(): void
  /** Keeps the data blocks [begin, end) from being released until `read` ends. */
  reading(read: Promise<void>, begin: number, end: number): void
  /** Tells whoever listens of a failed read or write. @returns the error, to be thrown */
  ioError(operation: string, error: unknown, devId: DevId, block: number): unknown
}
