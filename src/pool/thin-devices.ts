/**
 * The thin devices of a pool by id: how they come and go, and what is known of those in use.
 *
 * Beside mappings, which are metadata, two things belong to a device: the size that a write gave it
 * until whoever keeps sizes has saved it, and the handles that have it open. Both are in memory and
 * in the journal, for the next process.
 */
import { type Bytes, type DataBlock, type DevId, MIB, Slice, ThinfsError } from '../base/index.js'
import {
  goneError,
  type LookupTable,
  PageCache,
  type Provisioner,
  ThinDevice,
  WritePlan,
} from '../device/index.js'
import type { ThinMetadata } from '../metadata/index.js'
import type { CommitPipeline } from './commit-pipeline.js'
import type { Journal } from './journal.js'
import type { OpenHandles } from './open-handles.js'
import type { Space } from './space.js'

/** Memory of all lookup tables together: 64 KiB for each GiB of 64 KiB blocks. */
const LOOKUP_SIZE = 64 * MIB
/** Metadata blocks that a snapshot takes at most: two leaves, and half of each when it splits. */
const SNAPSHOT_COST = 4
/** Leaves of a mapping tree that are emptied between two looks at the clock. */
export const DELETE_LEAVES = 4

export interface ThinDevicesParts {
  /** The pool as each device sees it. */
  pool: Provisioner
  metadata: ThinMetadata
  commits: CommitPipeline
  journal: Journal
  space: Space
  /** Sizes of devices that writes have extended, until `sizeSaved`. */
  extended: Map<DevId, Bytes>
  handles: OpenHandles
}

export class ThinDevices {
  readonly #parts: ThinDevicesParts
  /** Those that were asked for. */
  readonly #devices = new Map<DevId, ThinDevice>()
  readonly #pages = new PageCache(LOOKUP_SIZE)
  readonly #plan: WritePlan

  constructor(parts: ThinDevicesParts) {
    this.#parts = parts
    this.#plan = new WritePlan(parts.pool)
  }

  /**
   * The device for I/O.
   * @param size the caller's to know: dm-thin does not store it
   * @throws DEVICE_MISSING
   */
  get(devId: DevId, size: Bytes): ThinDevice {
    const { pool, metadata } = this.#parts
    let device = this.#devices.get(devId)
    if (!device) {
      if (!metadata.hasDevice(devId)) throw new ThinfsError('DEVICE_MISSING', `device ${devId}`)
      device = new ThinDevice(pool, devId, size, this.#pages, this.#plan)
      this.#devices.set(devId, device)
    }
    return device
  }

  // --- how they come and go ---

  /** Makes an empty thin device. Durable with the next commit. @throws NO_METADATA_SPACE */
  createThin(devId: DevId): void {
    const { pool, metadata, commits, space } = this.#parts
    pool.mustBeWritable()
    space.metadata.mustHaveRoom(space.metadata.hasRoom)
    commits.change(() => metadata.createThin(devId))
  }

  /**
   * Makes a snapshot of a device as it is now. Durable with the next commit.
   * @throws NO_METADATA_SPACE; NO_DATA_SPACE when the origin has a reserve, and the pool cannot
   *   keep as many blocks as that takes once all is shared
   */
  createSnap(devId: DevId, origin: DevId): void {
    this.createSnaps([[devId, origin]])
  }

  /**
   * As `createSnaps`, of some in whose place a device is deleted next, or that are themselves: with
   * the room that is kept for what gives some back.
   */
  createSnapsInPlace(snapshots: readonly (readonly [devId: DevId, origin: DevId])[]): void {
    const more = (snapshots.length - 1) * SNAPSHOT_COST
    this.#createSnaps(snapshots, this.#parts.space.metadata.hasRoomToReplaceBeside(more))
  }

  /** As `createSnap`, of several devices at one moment: all snapshots are made, or none. */
  createSnaps(snapshots: readonly (readonly [devId: DevId, origin: DevId])[]): void {
    const { metadata, space } = this.#parts
    // The first has its room as every change of a mapping has.
    const more = (snapshots.length - 1) * SNAPSHOT_COST
    const free = metadata.nrAllocatableMetadataBlocks - space.metadata.reserve
    this.#createSnaps(snapshots, space.metadata.hasRoom && (more === 0 || free > more))
  }

  #createSnaps(snapshots: readonly (readonly [DevId, DevId])[], hasRoom: boolean): void {
    const { pool, metadata, commits, space } = this.#parts
    pool.mustBeWritable()
    space.metadata.mustHaveRoom(hasRoom)
    if (space.reserves.count > 0) {
      const origins = new Set(snapshots.map(([, origin]) => origin))
      space.data.mustKeep(space.reserves.costOfSharing(origins))
    }
    commits.change(() => metadata.createSnaps(snapshots))
    for (const [, origin] of snapshots) {
      this.table(origin)?.clear()
      space.reserves.shared(origin)
    }
  }

  /**
   * Unmaps all of a device but what a last step can drop at once, in slices between which requests
   * go on. Slices may be committed one by one: the caller has noted that the device is going.
   * @param stop asked between slices; true ends it early
   * @returns whether it came to the end
   */
  async empty(device: ThinDevice, stop: () => boolean): Promise<boolean> {
    const { pool, metadata } = this.#parts
    const { devId } = device
    // No request looks anything up any more: updating its pages would be work for every slice.
    device.table.clear()
    /** @returns whether that was the end; null when it was stopped */
    const piece = (): boolean | null => {
      if (stop()) return null
      if (device.gone) throw goneError(devId)
      const begin = metadata.mappings.sliceBegin(devId, DELETE_LEAVES)
      if (begin <= 0) return true
      if (pool.unmap(devId, begin, Number.MAX_SAFE_INTEGER) === 0) {
        const what = `device ${devId}: nothing is mapped from block ${begin} on, where leaves are`
        throw new ThinfsError('METADATA_CORRUPT', what)
      }
      return false
    }
    const slice = new Slice(pool.clock)
    for (;;) {
      const ended = await pool.unmapInSlices(slice, piece)
      if (ended !== false) return ended === true
    }
  }

  /**
   * Deletes a device. At once: a large one is emptied first. Durable with the next commit.
   * @throws NO_METADATA_SPACE before anything is done, when others have used the room for it
   */
  delete(devId: DevId): void {
    const { pool, metadata, commits, space, extended, handles } = this.#parts
    pool.mustBeWritable()
    space.metadata.mustHaveRoom(space.metadata.canUnmap)
    commits.change(() => metadata.deleteDevice(devId))
    const device = this.#devices.get(devId)
    if (device) this.#forget(device)
    space.reserves.forget(devId)
    // Blocks that it shared may be one other device's now.
    space.reserves.recount()
    extended.delete(devId)
    handles.forget(devId)
  }

  /** Ends what waits on behalf of a device that the metadata has no more: its id is free. */
  #forget(device: ThinDevice): void {
    device.gone = true
    device.table.clear()
    this.#devices.delete(device.devId)
    this.#parts.space.forget(device)
  }

  // --- what was looked up ---

  /** The lookup table of a device that is in use. */
  table(devId: DevId): LookupTable | undefined {
    return this.#devices.get(devId)?.table
  }

  /**
   * Whether a write is under way, to whichever device, that may change the mapping of a virtual
   * block.
   */
  isWriting(vblock: number): boolean {
    for (const device of this.#devices.values()) if (device.isWriting(vblock)) return true
    return false
  }

  /** A data block was moved: whoever mapped it there maps another. */
  moved(vblock: number, from: DataBlock, to: DataBlock): void {
    for (const { table } of this.#devices.values()) table.moved(vblock, from, to)
  }

  /** Every mapping may look shared from now on. */
  clearTables(): void {
    for (const { table } of this.#devices.values()) table.clear()
  }

  /** The metadata is that of the last commit again: devices that it does not have are gone. */
  rolledBack(): void {
    this.clearTables()
    this.#parts.space.reserves.rolledBack()
    for (const device of this.#devices.values()) {
      if (!this.#parts.metadata.hasDevice(device.devId)) this.#forget(device)
    }
  }

  // --- sizes and handles ---

  /** Notes that a write made a device longer: the journal has it until whoever keeps sizes does. */
  extended(devId: DevId, size: Bytes): void {
    this.#parts.extended.set(devId, size)
    this.#parts.journal.pending.extend(devId, size)
  }

  /** Sizes that a dead process of this boot, or writes since, gave devices and nobody saved yet. */
  get unsavedSizes(): ReadonlyMap<DevId, Bytes> {
    return this.#parts.extended
  }

  /** The size of a device is kept elsewhere now, durable with the next commit. */
  sizeSaved(devId: DevId): void {
    this.#parts.extended.delete(devId)
  }

  /**
   * Notes that `handle` has a device open: the next process has to know. Idempotent: the kernel
   * sends the request to that process too.
   */
  opened(devId: DevId, handle: number): void {
    const { pool, journal, handles } = this.#parts
    handles.add(devId, handle)
    if (!pool.writable) return
    journal.pending.open(devId, handle)
    this.#boundJournal()
  }

  /** Undoes `opened`. Idempotent. */
  closed(devId: DevId, handle: number): void {
    const { pool, journal, handles } = this.#parts
    handles.drop(devId, handle)
    if (!pool.writable) return
    journal.pending.close(devId, handle)
    this.#boundJournal()
  }

  /**
   * How many handles have a device open, those of the process whose place this one takes included.
   */
  openCount(devId: DevId): number {
    return this.#parts.handles.count(devId)
  }

  /**
   * Opens and closes alone cause no commit, so commit here, or the journal would grow without end.
   */
  #boundJournal(): void {
    const { pool, journal, metadata, commits } = this.#parts
    if (!journal.large) return
    pool.mustBeWritable()
    commits.change(() => metadata.touch())
  }
}
