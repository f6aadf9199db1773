/**
 * The pool as a thin device needs it. The pool implements it; nothing here knows how.
 *
 * The rules come from drivers/md/dm-thin.c. Every call acts at once, on the running transaction;
 * what returns a promise may find the device gone, or the pool read-only, when it resolves.
 */
import type { Bytes, Clock, DataBlock, DevId, Later, Slice, VirtualBlock } from '../base/index.js'
import type { Mappings, ThinMetadata } from '../metadata/index.js'
import type { DataBlocks } from './data-blocks.js'

/** The metadata, to be read: `Provisioner` changes it. */
export interface DeviceMetadata extends Pick<ThinMetadata, 'details' | 'time'> {
  readonly mappings: Pick<Mappings, 'find' | 'forEach' | 'isReallyShared' | 'mappedUntil' | 'next'>
}

/** On whose behalf space is waited for: the wait ends when it is deleted. */
export interface SpaceOwner {
  readonly devId: DevId
  /** True once the device was deleted. */
  readonly gone: boolean
  /** The device's own answer to a full pool; null: the pool's. */
  readonly onFull: 'queue' | 'error' | null
}

/** The pool's space as a device asks for it: free blocks, and waiting for them. */
export interface ProvisionerSpace {
  readonly metadata: {
    /** Whether a request may change mappings, and a commit still has room afterwards. */
    readonly hasRoom: boolean
    /** The same for unmapping, which takes blocks before it gives more back. */
    readonly hasRoomToUnmap: boolean
    /** The same, of the metadata alone: the host need not have room for it in reserve. */
    readonly canUnmap: boolean
    /** Commits, until `canUnmap`. @throws NO_METADATA_SPACE when that is not enough */
    makeRoomToUnmap(): Promise<void>
  }
  readonly data: {
    /** Free data blocks that writes to a device can have. */
    nrWritableFor(devId: DevId): number
  }
  readonly reserves: {
    /** Whether data blocks are kept for a device: what it maps is not shared one by one. */
    has(devId: DevId): boolean
  }
  /**
   * Whether `count` data blocks can be taken now; `withSpace` is the way to wait for them.
   * @param devId the device that they are for
   * @param discards whether they may be of those that are kept back for the edges of discards
   */
  canAllocate(devId: DevId, count: number, discards: boolean): boolean
  /** Notes that new blocks were written: when the host had no room before, it has now. */
  provisioned(): void
  /** Notes that the host had no room for a write to the data. The pool is as good as full then. */
  hostRefused(err: unknown): void
  /**
   * Tries again until there is space: after a commit that frees blocks, when the files have grown,
   * and, with `on_full: queue`, whenever blocks become free, or the host has room, within
   * the pool's `queue_timeout`.
   * @param owner on whose behalf; the wait ends when it is deleted
   * @param held bytes that waiting keeps in memory
   * @param attempt returns null when there is no room
   * @param signal ends the wait with its reason: no attempt follows
   * @throws NO_DATA_SPACE, NO_METADATA_SPACE, DEVICE_MISSING
   */
  withSpace<T>(
    owner: SpaceOwner,
    held: number,
    attempt: () => Later<T | null>,
    signal?: AbortSignal,
  ): Promise<T>
  /** As `withSpace`, but only with what is free already or becomes so with a commit. */
  withSpaceNow<T>(owner: SpaceOwner, attempt: () => Later<T | null>): Promise<T>
}

export interface Provisioner {
  readonly blocks: DataBlocks
  readonly metadata: DeviceMetadata
  readonly space: ProvisionerSpace
  readonly clock: Clock

  // --- what may be done now ---

  /** Whether metadata may change. */
  readonly writable: boolean
  /** @throws POOL_FAILED when the metadata cannot be relied on, or the pool is closed */
  mustBeReadable(): void
  /** @throws POOL_READ_ONLY, POOL_FAILED when no metadata may change */
  mustBeWritable(): void

  // --- data blocks ---

  /** Takes `count` data blocks, which can be taken, into `out`. */
  allocate(out: Float64Array, count: number): void
  /** Gives back blocks that nothing points to yet, after a failed write may have touched them. */
  giveBack(blocks: Float64Array, count: number): Later<void>
  /**
   * Makes the next commit wait for `mapped` before it seals: until then the blocks that a request
   * took are neither mapped nor given back, and nobody would own them after a crash.
   */
  awaitMapping(mapped: Promise<unknown>): void

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
   * Does a piece of a long unmapping: lets others have their turn before when it is time, and
   * commits when much was freed or room is short.
   * @param unmap called in the turn in which there is room
   * @throws NO_METADATA_SPACE, or when no metadata may change any more
   */
  unmapInSlices<T>(slice: Slice, unmap: () => T): Promise<T>
  /** Tells whoever listens that a write was refused for the limit of its device. */
  limitReached(devId: DevId): void
  /** Makes what was acknowledged of one device durable. @throws after a rollback, for good */
  flush(devId: DevId): Promise<void>
  /** Tells whoever listens of a failed read or write. @returns the error, to be thrown */
  ioError(operation: string, error: unknown, devId: DevId, block: number): unknown
}
