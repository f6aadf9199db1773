/**
 * The metadata of a pool: its thin devices, their mappings, and what is free.
 *
 * Everything here acts on the running transaction, in memory and at once. `seal` ends it; the
 * sealed one is written while the next is running already. An error in the middle of a change
 * leaves the running transaction unusable: only `rollback` helps then.
 * Source of the rules: drivers/md/dm-thin-metadata.c; docs/FORMAT.md.
 */
import {
  assert,
  type DataBlock,
  type DevId,
  MAX_DEV_ID,
  METADATA_BLOCK_SIZE,
  ThinfsError,
} from '../base/index.js'
import type { Store } from '../storage/index.js'
import { nodeKind } from './blocks/block.js'
import { BlockCache } from './blocks/block-cache.js'
import { Transaction } from './blocks/transaction.js'
import { BTree } from './btree/btree.js'
import type { TreeInfo } from './btree/tree.js'
import type { DeviceDetails } from './device.js'
import { DeviceTable } from './device-table.js'
import { ENTRIES_PER_BITMAP, FLAG_NEEDS_CHECK, MAX_TIME, uuidText } from './format.js'
import { type FormatOptions, writeFreshMetadata } from './fresh-metadata.js'
import { MappingRefs } from './mapping.js'
import { Mappings } from './mappings.js'
import { MetadataSnapshot } from './metadata-snapshot.js'
import { Relocation } from './relocation.js'
import { SealedTransaction } from './sealed-transaction.js'
import { DataSpaceMap } from './space/data-space-map.js'
import { MetadataSpaceMap } from './space/metadata-space-map.js'
import { readSuperblock, type Superblock, superblockImage } from './superblock.js'

const { MAX_SAFE_INTEGER, POSITIVE_INFINITY } = Number

/** 48 MiB of metadata blocks. */
const DEFAULT_CACHE_BLOCKS = 12288

export class ThinMetadata {
  readonly #store: Store
  readonly #cache: BlockCache
  readonly #metadataMap: MetadataSpaceMap
  readonly #dataMap: DataSpaceMap
  /** Kind of the devices' trees: virtual block to mapping. */
  readonly #info: TreeInfo
  readonly #devices: DeviceTable
  readonly #snapshot: MetadataSnapshot
  /** The data block of each virtual block of each device. */
  readonly mappings: Mappings
  /** Moves data blocks: everything that maps one is made to map another. */
  readonly relocation: Relocation
  /** Space map roots and tree roots are those of the last commit; all else is as of now. */
  #superblock: Superblock
  #superblockChanged = false
  #sealed: SealedTransaction | null = null

  /**
   * Writes fresh metadata over a store: no devices, and data of no blocks until `growData`. The
   * caller syncs.
   * @throws BAD_ARGUMENT
   */
  static format(store: Store, options: FormatOptions): void {
    writeFreshMetadata(store, options)
  }

  /**
   * Reads no more than the superblock and the index of the metadata space map.
   * @param options.cacheBlocks metadata blocks kept in memory, besides changed ones
   * @throws METADATA_CORRUPT, METADATA_UNSUPPORTED
   */
  static open(store: Store, options: { cacheBlocks?: number } = {}): ThinMetadata {
    return new ThinMetadata(store, options.cacheBlocks ?? DEFAULT_CACHE_BLOCKS)
  }

  private constructor(store: Store, cacheBlocks: number) {
    this.#store = store
    this.#cache = new BlockCache(store, cacheBlocks)
    const transaction = new Transaction(this.#cache)
    this.#metadataMap = new MetadataSpaceMap(transaction)
    this.#dataMap = new DataSpaceMap(transaction)
    const refs = new MappingRefs(this.#dataMap)
    this.#info = { transaction, kind: nodeKind('mapping', 8), refs }
    const devices = new DeviceTable(this.#info)
    this.#devices = devices
    this.#snapshot = new MetadataSnapshot(transaction, this.#metadataMap, this.#info, devices)
    const maps = { data: this.#dataMap, metadata: this.#metadataMap }
    this.mappings = new Mappings(this.#info, devices, maps)
    this.relocation = new Relocation(this.#info, devices, this.#dataMap)
    this.#superblock = readSuperblock(store)
    this.#adopt()
  }

  // --- the pool ---

  /** The first damaged block that was met since it was opened; null: none. */
  get damage(): string | null {
    return this.#cache.damage
  }

  /** Id of the pool; null where it was made without one. */
  get uuid(): string | null {
    return uuidText(this.#superblock.uuid)
  }

  get dataBlockSectors(): number {
    return this.#superblock.dataBlockSectors
  }
  /** The snapshot clock. */
  get time(): number {
    return this.#superblock.time
  }
  get transactionId(): number {
    return this.#superblock.transactionId
  }
  /** Metadata block of the metadata snapshot, 0 for none. */
  get heldRoot(): number {
    return this.#superblock.heldRoot
  }
  get needsCheck(): boolean {
    return (this.#superblock.flags & FLAG_NEEDS_CHECK) !== 0
  }
  get nrDataBlocks(): number {
    return this.#dataMap.nrBlocks
  }
  get nrAllocatedDataBlocks(): number {
    return this.#dataMap.nrAllocated
  }
  /** Data blocks without an owner, but for those above `dataEnd`. */
  get nrFreeDataBlocks(): number {
    return this.#dataMap.nrFree
  }
  /** The data block from which on none is allocated: their number, unless it is about to shrink. */
  get dataEnd(): number {
    return this.#dataMap.end
  }
  /** Data blocks from `dataEnd` on that have owners. */
  get nrOwnedAboveEnd(): number {
    return this.#dataMap.nrOwnedAbove
  }
  /** The same, with those that were freed and are not released. */
  get nrTakenAboveEnd(): number {
    return this.#dataMap.nrTakenAbove
  }
  /** Data blocks that `allocateData` could return now. */
  get nrAllocatableDataBlocks(): number {
    return this.#dataMap.nrAllocatable
  }
  get nrMetadataBlocks(): number {
    return this.#metadataMap.nrBlocks
  }
  get nrAllocatedMetadataBlocks(): number {
    return this.#metadataMap.nrAllocated
  }
  get nrAllocatableMetadataBlocks(): number {
    return this.#metadataMap.nrAllocatable
  }
  /** Another number after any change of any device's mappings: a key for caches of sums. */
  get mappingChanges(): number {
    return this.#devices.mappingChanges
  }
  get nrFreedDataBlocks(): number {
    return this.#dataMap.nrFreed
  }
  /** Data blocks that wait for `releaseData`. */
  get nrUnreleasedDataBlocks(): number {
    return this.#dataMap.nrUnreleased
  }
  /** Runs of neighbours among the data blocks that the running transaction has freed. */
  get nrFreedDataRuns(): number {
    return this.#dataMap.nrFreedRuns
  }
  /** Whether the running transaction has changes that the last sealed one lacks. */
  get changed(): boolean {
    return this.#superblockChanged || this.#cache.hasDirty
  }

  /** @throws TRANSACTION_MISMATCH when the id is not `current`, METADATA_LIMIT */
  setTransactionId(current: number, next: number): void {
    if (next > MAX_SAFE_INTEGER) {
      throw new ThinfsError('METADATA_LIMIT', `transaction id ${next}: ids end at 2^53`)
    }
    if (this.#superblock.transactionId !== current) {
      throw new ThinfsError(
        'TRANSACTION_MISMATCH',
        `the transaction id is ${this.#superblock.transactionId}, not ${current}`,
      )
    }
    this.#superblock.transactionId = next
    this.#superblockChanged = true
  }

  /** Makes the next `seal` end a transaction even if nothing changed. */
  touch(): void {
    this.#superblockChanged = true
  }

  setNeedsCheck(): void {
    this.#superblock.flags |= FLAG_NEEDS_CHECK
    this.#superblockChanged = true
  }

  clearNeedsCheck(): void {
    this.#superblock.flags &= ~FLAG_NEEDS_CHECK
    this.#superblockChanged = true
  }

  /** Metadata blocks that `growData` takes at most, with what its commit takes beside. */
  growDataCost(nrBlocks: number): number {
    const bitmaps = Math.ceil(nrBlocks / ENTRIES_PER_BITMAP)
    const more = bitmaps - Math.ceil(this.nrDataBlocks / ENTRIES_PER_BITMAP)
    // A node of the index holds 84 entries at least, and the way to it is copied.
    return more + Math.ceil(more / 84) + 8
  }

  /** Makes allocation take metadata blocks below `end` first: the host has room for them. */
  preferMetadata(end: number): void {
    this.#metadataMap.prefer(end)
  }

  /** @throws BAD_ARGUMENT when that is fewer than there are, or too many */
  growData(nrBlocks: number): void {
    this.#dataMap.grow(nrBlocks)
    this.#superblockChanged = true
  }

  /**
   * Allocates no data block from `end` on; the number of data blocks takes that back. Callers lower
   * it piece by piece, because it looks at each bitmap in between.
   */
  allocateDataBelow(end: number): void {
    this.#dataMap.allocateBelow(end)
  }

  /** How many data blocks of [begin, end) have owners: costs a look at each bitmap. */
  countOwnedData(begin: number, end: number): number {
    return this.#dataMap.countOwned(begin, end)
  }

  /**
   * Takes the data blocks from `dataEnd` on away. None of them has an owner, or waits for release.
   */
  shrinkData(dataEnd: number): void {
    this.#dataMap.shrink(dataEnd)
    this.#superblockChanged = true
  }

  /**
   * @param nrBlocks that the store has already
   * @throws BAD_ARGUMENT when that is fewer than there are, or too many
   */
  growMetadata(nrBlocks: number): void {
    if (nrBlocks * METADATA_BLOCK_SIZE > this.#store.size) {
      throw new ThinfsError('BAD_ARGUMENT', `${this.#store.path} has no ${nrBlocks} blocks`)
    }
    this.#metadataMap.grow(nrBlocks)
    this.#superblockChanged = true
  }

  /**
   * Holds the metadata as it is now, readable by others after the next commit.
   * @throws SNAPSHOT_HELD
   */
  reserveMetadataSnap(): void {
    this.#superblock.heldRoot = this.#snapshot.reserve(this.#superblock)
  }

  /**
   * Releases the metadata snapshot, or a part of it. Callers repeat it until nothing is left.
   * @param leaves of mapping trees to visit at most; default: all
   * @returns whether nothing is left
   * @throws SNAPSHOT_NOT_HELD
   */
  releaseMetadataSnap(leaves = POSITIVE_INFINITY): boolean {
    this.#superblock.heldRoot = this.#snapshot.release(this.heldRoot, leaves)
    return this.heldRoot === 0
  }

  // --- devices ---

  /** @throws DEVICE_EXISTS */
  createThin(devId: DevId): void {
    this.#assertNew(devId)
    const { transactionId, time } = this.#superblock
    this.#devices.add(devId, BTree.create(this.#info), {
      mappedBlocks: 0,
      transactionId,
      creationTime: time,
      snapshottedTime: time,
    })
  }

  /**
   * Makes a device with the mappings that `originId` has now. The two share their trees.
   * @throws DEVICE_EXISTS, DEVICE_MISSING, METADATA_LIMIT
   */
  createSnap(devId: DevId, originId: DevId): void {
    this.createSnaps([[devId, originId]])
  }

  /** As `createSnap`, of several: all of them are made, or none where this throws one of those. */
  createSnaps(snapshots: readonly (readonly [devId: DevId, originId: DevId])[]): void {
    for (const [devId, originId] of snapshots) {
      this.#assertNew(devId)
      this.#devices.get(originId)
    }
    this.#mustTick(snapshots.length)
    for (const [devId, originId] of snapshots) this.#createSnap(devId, originId)
  }

  #createSnap(devId: DevId, originId: DevId): void {
    const origin = this.#devices.get(originId)
    const time = this.#tick()
    const { root } = origin.tree
    this.#metadataMap.inc(root)
    this.#devices.add(devId, new BTree(this.#info, root), {
      mappedBlocks: origin.mappedBlocks,
      transactionId: this.#superblock.transactionId,
      creationTime: time,
      snapshottedTime: time,
    })
    origin.snapshottedTime = time
    this.#devices.noteChange(origin)
  }

  /**
   * Deletes a device at once; `sliceBegin` tells whether that takes long.
   * @throws DEVICE_MISSING
   */
  deleteDevice(devId: DevId): void {
    this.#devices.get(devId)
    this.#devices.remove(devId)
  }

  hasDevice(devId: DevId): boolean {
    return this.#devices.has(devId)
  }

  /** The record is live: it changes with the device. @throws DEVICE_MISSING */
  details(devId: DevId): Readonly<DeviceDetails> {
    return this.#devices.get(devId)
  }

  /** Ascending. Devices may come and go meanwhile. */
  deviceIds(): Generator<DevId> {
    return this.#devices.ids()
  }

  /**
   * Lets all mappings of the devices look shared to dm-thin, as a snapshot of them would: for
   * blocks that come to be shared one by one.
   * @throws DEVICE_MISSING, METADATA_LIMIT
   */
  markShared(devIds: readonly DevId[]): void {
    const devices = devIds.map(devId => this.#devices.get(devId))
    const time = this.#tick()
    for (const device of devices) {
      device.snapshottedTime = time
      this.#devices.noteChange(device)
    }
  }

  // --- data blocks ---

  /** Takes a data block and sets its count to 1. @returns -1 when none can be taken now */
  allocateData(): DataBlock | -1 {
    return this.#dataMap.allocate() as DataBlock | -1
  }

  /** Takes a certain data block, which is free. */
  allocateDataAt(dataBlock: DataBlock): void {
    this.#mustHaveCount(dataBlock, 0, 0)
    this.#dataMap.allocateAt(dataBlock)
  }

  /** Gives back a data block that was allocated and never mapped: it can be taken at once. */
  releaseUnused(dataBlock: DataBlock): void {
    this.#mustHaveCount(dataBlock, 1, 1)
    this.#dataMap.releaseUnused(dataBlock)
  }

  dataCount(dataBlock: DataBlock): number {
    return this.#dataMap.count(dataBlock)
  }

  /** Whether a data block has no owner now and had none as of the last durable transaction. */
  isDataFree(dataBlock: DataBlock): boolean {
    return this.#dataMap.isFree(dataBlock)
  }

  /**
   * Lets data blocks be allocated that durable transactions freed. The caller has seen to it that
   * nobody reads them and that they were passed down. Blocks that a rollback has freed may be
   * named.
   */
  releaseData(dataBlocks: ArrayLike<number>): void {
    this.#dataMap.release(dataBlocks)
  }

  /** One more owner of a data block that has some. */
  incData(dataBlock: DataBlock): void {
    this.#mustHaveCount(dataBlock, 1, MAX_SAFE_INTEGER)
    this.#dataMap.inc(dataBlock)
  }

  decData(dataBlock: DataBlock): void {
    this.#dataMap.dec(dataBlock)
  }

  /**
   * Takes owners from blocks that are counted more often than they have some, as a check of the
   * store has found; nothing has changed since the last commit.
   * @param used blocks of each map that are counted, which the superblock may have otherwise
   */
  mendLeaks(
    leaks: readonly { map: 'data' | 'metadata'; block: number; excess: number }[],
    used: { data: number; metadata: number },
  ): void {
    assert(!this.changed, 'leaks are mended right after a commit')
    this.#dataMap.nrAllocated = used.data
    this.#metadataMap.nrAllocated = used.metadata
    this.#superblockChanged = true
    for (const { map, block, excess } of leaks) {
      const counts = map === 'data' ? this.#dataMap : this.#metadataMap
      for (let i = 0; i < excess; i++) counts.dec(block)
    }
  }

  /** Visits runs [begin, end) of data blocks that have no owner, ascending. */
  forEachFreeRun(
    visit: (begin: DataBlock, end: DataBlock) => void,
    from?: number,
    to?: number,
  ): void {
    const free = (begin: number, end: number): void => visit(begin as DataBlock, end as DataBlock)
    this.#dataMap.forEachFreeRun(free, from, to)
  }

  // --- transactions ---

  /**
   * Ends the running transaction and begins the next. At most one sealed transaction may be on its
   * way: its `end` comes before the next seal.
   * @returns null when nothing changed
   * @throws NO_METADATA_SPACE
   */
  seal(): SealedTransaction | null {
    assert(this.#sealed === null || this.#sealed.over, 'one sealed transaction at a time')
    if (!this.changed) return null
    // Each of these steps changes what the next one writes; the order is the kernel's.
    this.#devices.flush()
    this.#dataMap.flushIndex()
    this.#metadataMap.flushIndex()
    this.#superblock.mappingRoot = this.#devices.top.root
    this.#superblock.detailsRoot = this.#devices.details.root
    this.#superblock.dataSpaceMap = this.#dataMap.root
    this.#superblock.metadataSpaceMap = this.#metadataMap.root
    this.#superblockChanged = false
    this.#devices.seal()
    this.#metadataMap.seal()
    this.#sealed = new SealedTransaction(
      {
        store: this.#store,
        cache: this.#cache,
        data: this.#dataMap,
        metadata: this.#metadataMap,
      },
      this.#cache.seal(),
      superblockImage(this.#superblock),
      this.#dataMap.seal(),
    )
    return this.#sealed
  }

  /**
   * Whether all that was changed about a device is durable, and so a flush of it needs no commit:
   * the kernel's dm_thin_changed_this_transaction.
   */
  isDurable(devId: DevId): boolean {
    const isSealedDurable = this.#sealed === null || this.#sealed.durable
    return this.#devices.isDurable(devId, isSealedDurable)
  }

  /**
   * Keeps all metadata blocks that the superblock in the store leads to now as they are, for a
   * reader that reads the store in steps. Blocks that are freed meanwhile can be taken only after
   * `release`. One at a time.
   */
  holdBlocks(): { release(): void } {
    this.#metadataMap.hold()
    return { release: () => this.#metadataMap.letGo() }
  }

  /**
   * Drops everything that is not in the store, a sealed transaction whose write failed included. A
   * write that is under way must have ended before; the `end` of that transaction must not follow.
   */
  rollback(): void {
    assert(!this.#sealed?.writing, 'no rollback while a transaction is being written')
    this.#sealed = null
    this.#superblock = readSuperblock(this.#store)
    this.#cache.clear()
    this.#adopt()
  }

  // --- inside ---

  #adopt(): void {
    this.#metadataMap.reset(this.#superblock.metadataSpaceMap)
    this.#dataMap.reset(this.#superblock.dataSpaceMap)
    this.#devices.reset(this.#superblock.mappingRoot, this.#superblock.detailsRoot)
    this.#superblockChanged = false
  }

  /** A damaged space map may have any count for a block, so a wrong one is not the caller's bug. */
  #mustHaveCount(dataBlock: DataBlock, min: number, max: number): void {
    const count = this.#dataMap.count(dataBlock)
    if (count >= min && count <= max) return
    const wanted = min === max ? min : `at least ${min}`
    throw new ThinfsError(
      'METADATA_CORRUPT',
      `data block ${dataBlock} has ${count} owners, wanted ${wanted}`,
    )
  }

  #assertNew(devId: DevId): void {
    assert(devId >= 0 && devId <= MAX_DEV_ID, `${devId} is no dev id`)
    if (!this.hasDevice(devId)) return
    throw new ThinfsError('DEVICE_EXISTS', `thin device ${devId} exists`)
  }

  /** @throws METADATA_LIMIT when the snapshot clock cannot be moved on so many times */
  #mustTick(times: number): void {
    if (this.#superblock.time + times <= MAX_TIME) return
    throw new ThinfsError('METADATA_LIMIT', `the pool has seen ${MAX_TIME} snapshots, the last`)
  }

  /** Moves the snapshot clock on. */
  #tick(): number {
    this.#mustTick(1)
    this.#superblock.time++
    this.#superblockChanged = true
    return this.#superblock.time
  }
}
