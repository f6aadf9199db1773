/**
 * The metadata of a pool: its thin devices, their mappings, and what is free.
 *
 * Everything here acts on the running transaction, in memory and at once. `seal` ends it; the
 * sealed one is written while the next is running already. An error in the middle of a change
 * leaves the running transaction unusable: only `rollback` helps then.
 * Source of the rules: drivers/md/dm-thin-metadata.c; docs/FORMAT.md.
 */
import { createHash } from 'node:crypto'
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
import { walkTogether } from './btree/together.js'
import { readNode, type TreeInfo } from './btree/tree.js'
import { isPathShared, lastSliceBegin, runEnd, walk, walkExclusive } from './btree/walk.js'
import type { DeviceDetails } from './device.js'
import { DeviceTable } from './device-table.js'
import { ENTRIES_PER_BITMAP, FLAG_NEEDS_CHECK, MAX_TIME, NODE, uuidText } from './format.js'
import { type FormatOptions, writeFreshMetadata } from './fresh-metadata.js'
import {
  type Mapping,
  MappingRefs,
  mappedBlock,
  mappedTime,
  readMapping,
  writeMapping,
} from './mapping.js'
import { MetadataSnapshot } from './metadata-snapshot.js'
import { Relocation, type Survey } from './relocation.js'
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
  readonly #mappings: TreeInfo
  readonly #devices: DeviceTable
  readonly #snapshot: MetadataSnapshot
  readonly #relocation: Relocation
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
    this.#mappings = { transaction, kind: nodeKind('mapping', 8), refs }
    const devices = new DeviceTable(this.#mappings)
    this.#devices = devices
    this.#snapshot = new MetadataSnapshot(transaction, this.#metadataMap, this.#mappings, devices)
    this.#relocation = new Relocation(this.#mappings, devices, this.#dataMap)
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

  /** Takes the data blocks from `dataEnd` on away. None of them has an owner, or waits for release. */
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
   * Releases the metadata snapshot, or a part of it. To be called until nothing is left.
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
    this.#devices.add(devId, BTree.create(this.#mappings), {
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
    this.#devices.add(devId, new BTree(this.#mappings, root), {
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

  /** Metadata block of the root of a device's mapping tree. @throws DEVICE_MISSING */
  rootOf(devId: DevId): number {
    return this.#root(devId).nr
  }

  /**
   * A text that is another one after any change of the mappings of a device that a commit has ended.
   * Writes in place change no mapping: `markShared`, or a snapshot, sees to it that the first one
   * does.
   * @throws DEVICE_MISSING
   */
  fingerprint(devId: DevId): string {
    const { transactionId, creationTime } = this.#devices.get(devId)
    const root = this.#root(devId)
    const hash = createHash('sha256')
    hash.update(`${devId} ${transactionId} ${creationTime} ${root.nr} `)
    // Location and checksum come with the commit.
    hash.update(root.bytes.subarray(NODE.at.nrEntries))
    return hash.digest('hex').slice(0, 32)
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

  // --- mappings; DEVICE_MISSING where there is no such device ---

  /** @returns whether the virtual block is mapped; only then `out` is filled */
  find(devId: DevId, vblock: number, out: Mapping): boolean {
    const { tree } = this.#devices.get(devId)
    if (!tree.search(vblock)) return false
    readMapping(tree.view, tree.at, out)
    return true
  }

  /**
   * How far a device maps block after block. Costs a look at each leaf in between: `end` bounds it.
   * @returns the first virtual block at or after `begin` that is not mapped, or `end`
   */
  mappedUntil(devId: DevId, begin: number, end: number): number {
    return runEnd(this.#mappings, this.#root(devId), begin, end)
  }

  /** The first mapping at or after `vblock`. @returns its virtual block, or -1 */
  next(devId: DevId, vblock: number, out: Mapping): number {
    const { tree } = this.#devices.get(devId)
    if (!tree.seek(vblock)) return -1
    readMapping(tree.view, tree.at, out)
    return tree.key
  }

  /** The largest virtual block that is mapped, or -1. */
  highestMapped(devId: DevId): number {
    const { tree } = this.#devices.get(devId)
    return tree.last() ? tree.key : -1
  }

  /**
   * Visits the mappings of [begin, end), ascending. The visitor must not change the metadata, nor
   * visit mappings.
   */
  forEachMapping(
    devId: DevId,
    begin: number,
    end: number,
    visit: (vblock: number, dataBlock: DataBlock, time: number) => void,
  ): void {
    walk(this.#mappings, this.#root(devId), begin, end, (vblock, { view }, at) =>
      visit(vblock, mappedBlock(view, at), mappedTime(view, at)),
    )
  }

  /**
   * Visits mappings from `begin` on, ascending, that are in leaves which no other tree can reach.
   * The visitor must not change the metadata, nor visit mappings.
   * @param leaves how many to visit at most
   * @param visit gets the data block's count too: when it is 1, the block is the device's alone
   * @returns the virtual block to go on from; Infinity at the end
   */
  forEachExclusive(
    devId: DevId,
    begin: number,
    leaves: number,
    visit: (vblock: number, dataBlock: DataBlock, count: number) => void,
  ): number {
    const root = this.#root(devId)
    if (this.#devices.isPathShared(devId)) return POSITIVE_INFINITY
    return walkExclusive(this.#mappings, root, begin, { leaves }, (vblock, { view }, at) => {
      const dataBlock = mappedBlock(view, at)
      visit(vblock, dataBlock, this.#dataMap.count(dataBlock))
    })
  }

  /**
   * As `forEachExclusive`, of some devices together: mappings of one of them, in a leaf that nothing
   * but these devices can reach. Of a leaf that several of them share, those of the first.
   * @param nr of that device among them
   */
  forEachExclusiveTogether(
    devIds: readonly DevId[],
    nr: number,
    begin: number,
    visit: (vblock: number, dataBlock: DataBlock, count: number) => void,
  ): number {
    const { tree } = this.#devices.get(devIds[nr]!)
    // Nothing is a device's alone that the metadata snapshot leads to.
    const isOwn = (devId: DevId): boolean => !this.#devices.isPathShared(devId)
    if (!isOwn(devIds[nr]!) || !tree.seek(begin)) return POSITIVE_INFINITY
    const key = tree.key
    const own = devIds.filter(isOwn)
    const roots = own.map(devId => this.#devices.get(devId).tree.root)
    const at = own.indexOf(devIds[nr]!)
    return walkTogether(this.#mappings, roots, at, key, (vblock, { view }, place) => {
      const dataBlock = mappedBlock(view, place)
      visit(vblock, dataBlock, this.#dataMap.count(dataBlock))
    })
  }

  /**
   * Whether something else can reach the data block that a virtual block is mapped to: another
   * device or the metadata snapshot. The time of the mapping, by which dm-thin judges, may say so
   * wrongly.
   *
   * A power cut brings the last durable transaction back, and with it an owner that has given the
   * block up since. So while a transaction that took owners away is not durable, everything with
   * an old time counts as shared.
   */
  isReallyShared(devId: DevId, vblock: number): boolean {
    const { tree } = this.#devices.get(devId)
    if (this.#dataMap.hasDisowned || this.#metadataMap.hasDisowned) return true
    return (
      tree.search(vblock) &&
      (this.#dataMap.count(mappedBlock(tree.view, tree.at)) > 1 ||
        isPathShared(this.#mappings, tree.root, vblock) ||
        this.#devices.isPathShared(devId))
    )
  }

  /** Whether a virtual block is mapped to a data block that nothing else leads to now. */
  isExclusive(devId: DevId, vblock: number): boolean {
    const { tree } = this.#devices.get(devId)
    return (
      tree.search(vblock) &&
      this.#dataMap.count(mappedBlock(tree.view, tree.at)) === 1 &&
      !isPathShared(this.#mappings, tree.root, vblock) &&
      !this.#devices.isPathShared(devId)
    )
  }

  /**
   * Maps a virtual block, over what it was mapped to. Takes over the caller's reference on the data
   * block, unless the virtual block is mapped to that already.
   */
  insert(devId: DevId, vblock: number, dataBlock: DataBlock, time = this.#superblock.time): void {
    assert(time <= MAX_TIME, 'a mapping has 24 bits of time')
    const device = this.#devices.writable(devId)
    const { tree } = device
    const found = tree.insert(vblock)
    const old = found ? mappedBlock(tree.view, tree.at) : dataBlock
    writeMapping(tree.view, tree.at, dataBlock, time)
    if (old !== dataBlock) this.#dataMap.dec(old)
    if (found) return
    device.mappedBlocks++
    device.changed = true
  }

  /**
   * Unmaps [begin, end). Shared leaves are dropped without being read.
   * @param end may be Infinity
   * @returns how many virtual blocks were mapped
   */
  removeRange(devId: DevId, begin: number, end: number): number {
    const { tree } = this.#devices.get(devId)
    if (!tree.seek(begin) || tree.key >= end) return 0
    const device = this.#devices.writable(devId)
    const removed = tree.removeRange(begin, end < MAX_SAFE_INTEGER ? end : POSITIVE_INFINITY)
    device.mappedBlocks -= removed
    device.changed = true
    return removed
  }

  /**
   * Where the last slice of a device begins: `removeRange(devId, begin, Infinity)` touches at most
   * `leaves` leaves. 0 when `deleteDevice` would do no more work than that: shared parts of the
   * tree cost it nothing.
   */
  sliceBegin(devId: DevId, leaves: number): number {
    const root = this.#root(devId)
    if (this.#devices.isPathShared(devId)) return 0
    return lastSliceBegin(this.#mappings, root, leaves)
  }

  // --- moving data blocks ---

  /**
   * Keeps a free data block from being allocated until it is moved to, or `unreserveData`. The next
   * process does not know of it. @returns -1 when there is none
   */
  reserveData(): DataBlock | -1 {
    return this.#dataMap.reserve() as DataBlock | -1
  }

  unreserveData(dataBlock: DataBlock): void {
    this.#dataMap.unreserve(dataBlock)
  }

  /** From now on `findHigh` goes through all mappings again. */
  startOverFindingHigh(): void {
    this.#relocation.startOver()
  }

  /**
   * Visits mappings of a device to data blocks from `dataEnd` on. Parts that devices share are
   * visited once. The visitor must not change the metadata.
   * @param begin the first virtual block
   * @param leaves how many to look at
   * @returns the virtual block to go on from; Infinity at the end
   */
  findHigh(
    devId: DevId,
    begin: number,
    leaves: number,
    visit: (vblock: number, dataBlock: DataBlock) => void,
  ): number {
    return this.#relocation.find(devId, begin, { end: this.dataEnd, leaves }, visit)
  }

  /**
   * What all devices map virtual blocks to, of the data blocks from `dataEnd` on. Good until the
   * metadata changes.
   * @param vblocks ascending
   */
  survey(vblocks: readonly number[]): Survey {
    return this.#relocation.survey(vblocks, this.dataEnd)
  }

  /** Whether a survey has found all mappings of a data block, so that it can be moved. */
  isWhole(survey: Survey, dataBlock: DataBlock): boolean {
    return this.#relocation.isWhole(survey, dataBlock)
  }

  /** Metadata blocks that moving all data blocks of a survey takes at most. */
  moveCost(survey: Survey): number {
    return this.#relocation.cost(survey)
  }

  /**
   * Makes everything that maps the data blocks map others instead: of all devices, with their times,
   * and with nothing shared that was not, or not shared that was.
   * @param moves data blocks that are whole, to ones that `reserveData` returned
   */
  moveData(survey: Survey, moves: ReadonlyMap<DataBlock, DataBlock>): void {
    this.#relocation.move(survey, moves)
  }

  /**
   * Makes a move of the journal again, as far as there are such mappings.
   * @param from what they map, when they are of one virtual block
   */
  moveDataAgain(vblock: number, from: DataBlock, to: DataBlock): void {
    const survey = this.#relocation.survey([vblock], from)
    if (survey.found.has(from)) this.#relocation.move(survey, new Map([[from, to]]))
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

  #root(devId: DevId) {
    return readNode(this.#mappings, this.#devices.get(devId).tree.root)
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
