/**
 * The thin pool: one space of data blocks, shared by thin devices.
 *
 * It decides what a request means (provision, break sharing, unmap), keeps the modes of dm-thin, and
 * has writes wait for space. Everything runs on one thread: between two awaits the pool is
 * consistent, and a snapshot is a plain call. Source of the rules: drivers/md/dm-thin.c and
 * dm-thin-metadata.c.
 *
 * Two things go beyond the kernel. Free means hole: where the data store can punch, every free data
 * block is a hole of it, so that new blocks read as zeros without being zeroed. And a commit is
 * pipelined: requests go on into the next transaction while it is flushed and written
 * (commit-pipeline.ts).
 */
import {
  assert,
  type Bytes,
  bytes,
  type DataBlock,
  type DevId,
  errnoOf,
  type Later,
  MIB,
  SECTOR_SIZE,
  Slice,
  ThinfsError,
  type VirtualBlock,
} from '../base/index.js'
import {
  allEnded,
  DataBlocks,
  goneError,
  PageCache,
  type Provisioner,
  type SpaceOwner,
  ThinDevice,
  WritePlan,
} from '../device/index.js'
import {
  checkMetadata,
  MAX_METADATA_BLOCKS,
  METADATA_BLOCK_SIZE,
  ThinMetadata,
} from '../metadata/index.js'
import { CommitPipeline } from './commit-pipeline.js'
import { HostSpace } from './host-space.js'
import { Journal } from './journal.js'
import { OpenHandles } from './open-handles.js'
import type { PoolMode, PoolOptions } from './options.js'
import { PoolState } from './pool-state.js'
import { mustBeSound, mustHaveHoles, mustHold, olderError, replayChanges } from './recovery.js'
import { SpaceQueue } from './space-queue.js'

/** While writes wait for space, the files' sizes are looked at so often, in milliseconds. */
const WATCH_PERIOD = 1000
/** What the lookup tables of all devices take together: 64 KiB for each GiB of 64 KiB blocks. */
const LOOKUP_SIZE = 64 * MIB
/** The kernel's reserve: this part of the metadata, at most 4096 blocks, is kept for commits. */
const RESERVE_PART = 10
const RESERVE_MAX = 4096
/** The least that is kept back: a change and its commit shadow so many blocks. */
const RESERVE_MIN = 32
/**
 * This part of the data blocks, at most 1024, is kept back for the edges of discards: a full pool is
 * emptied by discards, and whoever sends them stops at the first that fails. ZFS keeps as much back, for
 * the same reason (spa_slop_shift). A pool that is too small for it to matter keeps nothing back.
 */
const DISCARD_PART = 32
const DISCARD_MAX = 1024
const DISCARD_FROM = 2048
/** So long a write waits for freed blocks that are read or punched still, in milliseconds. */
const RELEASE_TIMEOUT = 60_000
const NO_DATA_BLOCKS = 'no free data blocks'
/** Metadata blocks that have their space on the host before mappings change; 1 MiB. */
const SECURED_MIN = 256
/** The same before something is unmapped, which the host's full disk must not prevent. */
const SECURED_TO_UNMAP = 64
/** Metadata blocks that mapping what a request has taken may still take. */
const MAPPING_COST = 16
/** Leaves of a mapping tree that are emptied between two looks at the clock. */
const DELETE_LEAVES = 4
/**
 * Data blocks that are unmapped before what was is committed, and runs of neighbours among them: to
 * commit and to punch them is work and memory.
 */
const FREED_BLOCKS = 65_536
const FREED_RUNS = 8192
/** So many may wait to be punched before more are unmapped. */
const UNRELEASED_BLOCKS = 2 * FREED_BLOCKS

export class ThinPool implements Provisioner {
  readonly metadata: ThinMetadata
  readonly blocks: DataBlocks
  /** Size of a data block in bytes. */
  readonly blockSize: number
  #options: PoolOptions
  readonly #state: PoolState
  readonly #journal: Journal
  readonly #commits: CommitPipeline
  readonly #devices = new Map<number, ThinDevice>()
  readonly #pages = new PageCache(LOOKUP_SIZE)
  readonly #plan: WritePlan
  readonly #queue: SpaceQueue
  readonly #host: HostSpace
  #lowWaterSeen = false
  /** Whether the host was told to have less than the low water mark. */
  #hostLowSeen = false
  /** Why the pool is smaller than its data file; null when it is not. */
  #notGrown: string | null = null
  /** Sizes of devices that writes have extended, until `sizeSaved`. */
  readonly #extended = new Map<DevId, Bytes>()
  /** The handles that have each device open, where there are any. */
  readonly #handles = new OpenHandles()
  #cancelWatch: (() => void) | null = null
  #cancelSizes: (() => void) | null = null
  /** Those who wait for freed blocks to be released. */
  readonly #releaseWaits = new Set<() => void>()

  private constructor(options: PoolOptions, metadata: ThinMetadata, superblock: Buffer) {
    this.#options = options
    this.metadata = metadata
    this.blockSize = metadata.dataBlockSectors * SECTOR_SIZE
    this.blocks = new DataBlocks(
      options.data,
      {
        blockSize: this.blockSize,
        freeMeansHole: options.data.punches && options.discards === 'passdown',
      },
      {
        released: blocks => {
          this.metadata.releaseData(blocks)
          this.#spaceCame()
          this.#endReleaseWaits()
        },
        refused: err => {
          this.#options.events.ioError('punch', err)
          this.#commits.commitSoon()
        },
      },
    )
    this.#plan = new WritePlan(this)
    this.#state = new PoolState(options.events)
    this.#journal = new Journal(options.journal)
    this.#queue = new SpaceQueue(options.clock)
    this.#host = new HostSpace(this.blocks, options.metadata, metadata)
    const { clock, events } = options
    this.#commits = new CommitPipeline(
      {
        metadata,
        blocks: this.blocks,
        journal: this.#journal,
        state: this.#state,
        extended: this.#extended,
        handles: this.#handles,
        superblock,
        mustBeWhole: () => this.#mustBeWhole(),
        clock,
        events,
      },
      {
        committed: () => {
          if (this.mode === 'out_of_metadata_space') this.#spaceCame()
          this.#noteHostLow()
        },
        failed: err => {
          this.#queue.reject(err)
          this.#endReleaseWaits()
        },
        rolledBack: () => {
          for (const device of this.#devices.values()) {
            device.table.clear()
            if (!this.metadata.hasDevice(device.devId)) this.#forget(device)
          }
        },
      },
    )
  }

  /**
   * Opens a pool: replays what a dead process of this boot left in the journal, grows the pool to
   * its files' sizes, and makes every free data block a hole unless the last shutdown was orderly.
   * Where needs_check is set, or another program wrote the metadata, all of it is checked before.
   * @throws METADATA_CORRUPT, METADATA_UNSUPPORTED, POOL_MISMATCH
   */
  static async open(options: PoolOptions): Promise<ThinPool> {
    const metadata = ThinMetadata.open(options.metadata)
    const superblock = Buffer.alloc(METADATA_BLOCK_SIZE)
    options.metadata.read(superblock, 0, superblock.length, bytes(0))
    const pool = new ThinPool(options, metadata, superblock)
    try {
      await pool.#start(superblock)
    } catch (err) {
      // The caller closes the files: nothing may be written any more.
      await pool.#commits.failing
      throw err
    }
    return pool
  }

  get mode(): PoolMode {
    return this.#state.mode
  }

  /** Why the mode is not `write`; null when it is. */
  get reason(): string | null {
    return this.#state.reason
  }

  /** Whether metadata may change. */
  get writable(): boolean {
    return this.#state.writable
  }

  get nrFreeDataBlocks(): number {
    return this.metadata.nrDataBlocks - this.metadata.nrAllocatedDataBlocks
  }

  get belowLowWater(): boolean {
    return this.nrFreeDataBlocks <= this.#options.lowWaterMark
  }

  /** How many writes wait for space. */
  get writesWaiting(): number {
    return this.#queue.length
  }

  /** How many of them are a device's. */
  writesWaitingOf(device: ThinDevice): number {
    return this.#queue.lengthOf(device)
  }

  /** Bytes that the host can still give to free data blocks; null where that is no question. */
  get hostRoomForData(): number | null {
    return this.#host.availableForData(this.metadata.nrAllocatedDataBlocks * this.blockSize)
  }

  /** The same for metadata. */
  get hostRoomForMetadata(): number | null {
    return this.#host.availableForMetadata
  }

  /** What whoever runs the pool should know, a sentence each. */
  get warnings(): string[] {
    return [this.#notGrown, this.#hostLow].filter(what => what !== null)
  }

  get discards(): PoolOptions['discards'] {
    return this.#options.discards
  }

  /** What a full pool does now: `queue` turns into `error` when the wait was in vain. */
  get onFull(): PoolOptions['onFull'] {
    return this.#queue.expired ? 'error' : this.#options.onFull
  }

  get lowWaterMark(): number {
    return this.#options.lowWaterMark
  }

  /** Data blocks kept back for the edges of discards. */
  get discardReserve(): number {
    const { nrDataBlocks } = this.metadata
    if (nrDataBlocks < DISCARD_FROM) return 0
    return Math.min(DISCARD_MAX, Math.floor(nrDataBlocks / DISCARD_PART))
  }

  /** Free data blocks that writes can have. */
  get nrWritableDataBlocks(): number {
    return Math.max(0, this.nrFreeDataBlocks - this.discardReserve)
  }

  /** Metadata blocks kept back so that a commit always has room. */
  get metadataReserve(): number {
    return Math.min(RESERVE_MAX, Math.floor(this.metadata.nrMetadataBlocks / RESERVE_PART))
  }

  /**
   * A new table says what a full pool does, and when that is told, and its stores may have become
   * longer. As in the kernel all is told anew, and those who wait for space try again, or fail now.
   */
  async reconfigure(changes: Pick<PoolOptions, 'onFull' | 'lowWaterMark'>): Promise<void> {
    this.#options = { ...this.#options, ...changes }
    this.#lowWaterSeen = false
    const grew = this.#growToStores()
    if (changes.onFull === 'queue') this.#queue.wake()
    else
      this.#queue.reject(new ThinfsError('NO_DATA_SPACE', `${this.blocks.path}: ${NO_DATA_BLOCKS}`))
    if (grew) await this.commit()
  }

  // --- devices ---

  /** The device for I/O. Its size is the caller's to know: dm-thin does not store it. */
  device(devId: DevId, size: Bytes): ThinDevice {
    let device = this.#devices.get(devId)
    if (!device) {
      if (!this.metadata.hasDevice(devId)) {
        throw new ThinfsError('DEVICE_MISSING', `device ${devId}`)
      }
      device = new ThinDevice(this, devId, size, this.#pages, this.#plan)
      this.#devices.set(devId, device)
    }
    return device
  }

  /** Makes an empty thin device. Durable with the next commit. @throws NO_METADATA_SPACE */
  createThin(devId: DevId): void {
    this.mustBeWritable()
    this.#mustHaveRoom(this.hasMetadataRoom)
    this.#commits.change(() => this.metadata.createThin(devId))
  }

  /**
   * Makes a snapshot of a device as it is now. Durable with the next commit.
   * @throws NO_METADATA_SPACE
   */
  createSnap(devId: DevId, origin: DevId): void {
    this.mustBeWritable()
    this.#mustHaveRoom(this.hasMetadataRoom)
    this.#commits.change(() => this.metadata.createSnap(devId, origin))
    this.#devices.get(origin)?.table.clear()
  }

  /**
   * Unmaps all of a device but what a last step can drop at once, in slices between which requests
   * go on. Slices may be committed one by one: the caller has noted that the device is going.
   * @param stop asked between slices; true ends it early
   * @returns whether it came to the end
   */
  async emptyDevice(device: ThinDevice, stop: () => boolean): Promise<boolean> {
    const { devId } = device
    // Nobody looks anything up any more: pages of it would be work for every slice.
    device.table.clear()
    for (const slice = new Slice(this.clock); ; ) {
      await this.betweenSlices(slice)
      if (stop()) return false
      if (device.gone) throw goneError(devId)
      const begin = this.metadata.sliceBegin(devId, DELETE_LEAVES)
      if (begin <= 0) return true
      if (this.unmap(devId, begin, Number.MAX_SAFE_INTEGER) === 0) {
        const what = `device ${devId}: nothing is mapped from block ${begin} on, where leaves are`
        throw new ThinfsError('METADATA_CORRUPT', what)
      }
    }
  }

  /**
   * For who unmaps much, between two pieces of it: lets others have their turn when it is time, and
   * commits when much was freed or room is short.
   * @throws NO_METADATA_SPACE, or when no metadata may change any more
   */
  async betweenSlices(slice: Slice): Promise<void> {
    const { metadata } = this
    if (metadata.nrFreedDataBlocks >= FREED_BLOCKS || metadata.nrFreedDataRuns >= FREED_RUNS) {
      await this.commit()
      // Who is told to punch faster than the disk can has to wait, and nobody else.
      if (metadata.nrUnreleasedDataBlocks > UNRELEASED_BLOCKS) await this.blocks.punched
    }
    if (slice.isOver) await slice.yield()
    if (!this.hasRoomToUnmap) await this.makeRoomToUnmap()
    this.mustBeWritable()
  }

  /** Deletes a device. At once: a large one is emptied first. Durable with the next commit. */
  deleteDevice(devId: DevId): void {
    this.mustBeWritable()
    this.#commits.change(() => this.metadata.deleteDevice(devId))
    const device = this.#devices.get(devId)
    if (device) this.#forget(device)
    this.#extended.delete(devId)
    this.#handles.forget(devId)
  }

  /** Ends what waits on behalf of a device that the metadata has no more: its id is free. */
  #forget(device: ThinDevice): void {
    device.gone = true
    device.table.clear()
    this.#devices.delete(device.devId)
    this.#queue.cancel(device, goneError(device.devId))
  }

  /** @throws TRANSACTION_MISMATCH when the id is not `current` */
  setTransactionId(current: number, next: number): void {
    this.mustBeWritable()
    this.#commits.change(() => this.metadata.setTransactionId(current, next))
  }

  async reserveMetadataSnap(): Promise<void> {
    this.mustBeWritable()
    await this.commit()
    this.#commits.change(() => this.metadata.reserveMetadataSnap())
    for (const device of this.#devices.values()) device.table.clear()
    await this.commitOrUndo()
  }

  /** In slices, which are committed one by one: what dies meanwhile leaves a part of it held. */
  async releaseMetadataSnap(): Promise<void> {
    const slice = new Slice(this.clock)
    do await this.betweenSlices(slice)
    while (!this.#commits.change(() => this.metadata.releaseMetadataSnap(DELETE_LEAVES)))
    await this.commitOrUndo()
  }

  // --- changes of mappings; for ThinDevice ---

  /** Maps a block; the caller's reference on `dataBlock` goes into the mapping. */
  map(devId: DevId, vblock: VirtualBlock, dataBlock: DataBlock, time: number): void {
    this.#commits.change(() => this.metadata.insert(devId, vblock, dataBlock, time))
    this.#journal.map(devId, vblock, dataBlock, time)
  }

  /** Maps a block that another mapping has already. */
  mapShared(devId: DevId, vblock: VirtualBlock, dataBlock: DataBlock, time: number): void {
    this.#commits.change(() => {
      this.metadata.details(devId) // nothing is counted for a device that is not there
      this.metadata.incData(dataBlock)
      this.metadata.insert(devId, vblock, dataBlock, time)
    })
    this.#journal.map(devId, vblock, dataBlock, time)
  }

  /** Unmaps [begin, end). @returns how many blocks were mapped */
  unmap(devId: DevId, begin: number, end: number): number {
    const removed = this.#commits.change(() =>
      this.metadata.removeRange(devId, begin as VirtualBlock, end as VirtualBlock),
    )
    if (removed > 0) this.#journal.unmap(devId, begin, end)
    this.#devices.get(devId)?.table.unmap(begin, end)
    return removed
  }

  /** Makes all that the two devices map look shared to dm-thin. */
  markShared(one: DevId, other: DevId): void {
    this.#commits.change(() => this.metadata.markShared(one === other ? [one] : [one, other]))
    this.#journal.markShared(one, other)
    this.#devices.get(one)?.table.clear()
    this.#devices.get(other)?.table.clear()
  }

  /** Notes that a write made a device longer: the journal has it until whoever keeps sizes does. */
  extended(devId: DevId, size: Bytes): void {
    this.#extended.set(devId, size)
    this.#journal.extend(devId, size)
  }

  /** Sizes that a dead process of this boot, or writes since, gave devices and nobody saved yet. */
  get unsavedSizes(): ReadonlyMap<DevId, Bytes> {
    return this.#extended
  }

  /** The size of a device is kept elsewhere now, durable with the next commit. */
  sizeSaved(devId: DevId): void {
    this.#extended.delete(devId)
  }

  /**
   * Notes that `handle` has a device open: whoever takes over from this process has to know. To do
   * it again, when the request is sent to the next process too, changes nothing.
   */
  opened(devId: DevId, handle: number): void {
    this.#handles.add(devId, handle)
    if (!this.writable) return
    this.#journal.open(devId, handle)
    this.#boundJournal()
  }

  /** Undoes `opened`. To do it again changes nothing. */
  closed(devId: DevId, handle: number): void {
    this.#handles.drop(devId, handle)
    if (!this.writable) return
    this.#journal.close(devId, handle)
    this.#boundJournal()
  }

  /** How many handles have a device open, those of the process whose place this one takes included. */
  openCount(devId: DevId): number {
    return this.#handles.count(devId)
  }

  /** What only opens and closes does not commit: the journal would grow without end. */
  #boundJournal(): void {
    const { transactionId } = this.metadata
    if (this.#journal.large) this.setTransactionId(transactionId, transactionId)
  }

  canAllocate(count: number, discards: boolean): boolean {
    this.mustBeWritable()
    this.#noteLowWater(count)
    const { nrAllocatableDataBlocks } = this.metadata
    const available = discards ? nrAllocatableDataBlocks : this.#nrAvailable
    return available >= count && this.hasMetadataRoom && this.#commits.draining === null
  }

  allocate(out: Float64Array, count: number): void {
    this.#commits.change(() => {
      for (let i = 0; i < count; i++) {
        const block = this.metadata.allocateData()
        assert(block >= 0, 'data blocks ran out below the allocatable count')
        out[i] = block
      }
    })
  }

  /** The kernel's rule: told when a block is wanted while no more than the mark are free. */
  #noteLowWater(wanted: number): void {
    const free = this.nrFreeDataBlocks
    if (this.#lowWaterSeen || free - (wanted - 1) > this.#options.lowWaterMark) return
    this.#lowWaterSeen = true
    this.#options.events.lowWater(free)
  }

  /** The same for the space that the host has: the log has to say so before it is used up. */
  #noteHostLow(): void {
    const low = this.#hostLow
    if (low !== null && !this.#hostLowSeen) this.#options.events.warning(low)
    this.#hostLowSeen = low !== null
  }

  /** That the host can give less than the low water mark, and less than is free; null otherwise. */
  get #hostLow(): string | null {
    const room = this.hostRoomForData
    if (room === null) return null
    const blocks = Math.floor(room / this.blockSize)
    if (blocks > this.#options.lowWaterMark || blocks >= this.nrFreeDataBlocks) return null
    const free = this.nrFreeDataBlocks * this.blockSize
    return `the host's disk has ${room} bytes left, the pool has ${free} bytes free`
  }

  /** Gives back blocks that nothing points to yet, after a failed write may have touched them. */
  giveBack(blocks: Float64Array, count: number): Later<void> {
    // A rollback has given them back already.
    if (!this.writable) return
    const begun: Promise<void>[] = []
    for (let i = 0; i < count; i++) {
      const given = this.#clearAndGiveBack(blocks[i] as DataBlock)
      if (given !== undefined) begun.push(given)
    }
    if (begun.length > 0) return allEnded(begun)
  }

  #clearAndGiveBack(block: DataBlock): Later<void> {
    const { blocks, blockSize } = this
    if (!blocks.freeMeansHole) return this.#giveBack(block)
    try {
      const clearing = blocks.clear(block * blockSize, blockSize)
      if (clearing === undefined) return this.#giveBack(block)
      return clearing.then(
        () => this.#giveBack(block),
        err => this.#notCleared(block, err),
      )
    } catch (err) {
      this.#notCleared(block, err)
    }
  }

  #giveBack(block: DataBlock): void {
    if (this.writable) this.#commits.giveBack(() => this.metadata.releaseUnused(block))
  }

  /** Whoever got such a block would read what is in it: it is passed down with the next commit. */
  #notCleared(block: DataBlock, err: unknown): void {
    this.#options.events.ioError('punch', err)
    if (this.writable) this.#commits.giveBack(() => this.metadata.decData(block))
  }

  awaitMapping(mapped: Promise<unknown>): void {
    this.#commits.awaitMapping(mapped)
  }

  /**
   * Tries again until there is space: after a commit that frees blocks, when the files have grown,
   * and, with `on_full: queue`, whenever blocks become free, or the host has room, within 60 s.
   * @param device on whose behalf; the wait ends when it is deleted
   * @param held bytes that waiting keeps in memory
   * @param attempt returns null when there is no room
   * @throws NO_DATA_SPACE, NO_METADATA_SPACE, DEVICE_MISSING
   */
  withSpace<T>(device: SpaceOwner, held: number, attempt: () => Later<T | null>): Promise<T> {
    return this.#withSpace(device, held, attempt, this.#options.onFull === 'queue')
  }

  /** As `withSpace`, but only with what is free already or becomes so with a commit. */
  withSpaceNow<T>(device: SpaceOwner, attempt: () => Later<T | null>): Promise<T> {
    return this.#withSpace(device, 0, attempt, false)
  }

  async #withSpace<T>(
    device: SpaceOwner,
    held: number,
    attempt: () => Later<T | null>,
    queues: boolean,
  ): Promise<T> {
    let retries = true
    let waitsForRelease = true
    for (;;) {
      this.mustBeWritable()
      this.#growToStores()
      if (this.#frozen > 0) await this.#commitForSpace()
      this.mustBeWritable()
      if (device.gone) throw goneError(device.devId)
      const { draining } = this.#commits
      if (draining !== null) {
        await draining
        continue
      }
      const wasFull = this.#host.dataFull !== null
      this.#host.dataCame()
      const tried = attempt()
      const result = tried instanceof Promise ? await tried : tried
      if (result !== null) {
        if (wasFull) this.#spaceCame()
        return result
      }
      const isData = this.hasMetadataRoom
      // What was freed comes by itself, when reads or punches that are under way end.
      const { releasing, punching } = this.blocks
      const comes = releasing || (punching && retries)
      if (isData && this.#host.dataFull === null && comes && waitsForRelease) {
        retries = false
        waitsForRelease = await this.#nextRelease()
        continue
      }
      const why = this.#noteFull(isData)
      if (!queues || this.#queue.expired || (!isData && this.#metadataFull === null)) {
        const path = isData ? this.blocks.path : this.#options.metadata.path
        throw new ThinfsError(isData ? 'NO_DATA_SPACE' : 'NO_METADATA_SPACE', `${path}: ${why}`)
      }
      this.#watchStores()
      await this.#queue.wait(device, held)
    }
  }

  /** Resolves when what was freed and committed can be given out again, or that takes too long. */
  async released(): Promise<void> {
    while (this.blocks.releasing) if (!(await this.#nextRelease())) return
  }

  /** Resolves when some freed blocks were released: to false when that took too long. */
  #nextRelease(): Promise<boolean> {
    return new Promise(resolve => {
      const cancel = this.clock.after(RELEASE_TIMEOUT, () => {
        this.#releaseWaits.delete(ended)
        resolve(false)
      })
      const ended = (): void => {
        cancel()
        resolve(true)
      }
      this.#releaseWaits.add(ended)
    })
  }

  #endReleaseWaits(): void {
    for (const ended of this.#releaseWaits) ended()
    this.#releaseWaits.clear()
  }

  /** Commits, for what that frees. When the host has no room for it, that is what is waited for. */
  async #commitForSpace(): Promise<void> {
    try {
      await this.commit()
    } catch (err) {
      if (!this.stalled) throw err
    }
  }

  /** Changes the mode. @returns why there is no room */
  #noteFull(isData: boolean): string {
    const why = isData
      ? (this.#host.dataFull ?? NO_DATA_BLOCKS)
      : (this.#metadataFull ?? 'no free metadata blocks')
    this.#state.set(isData ? 'out_of_data_space' : 'out_of_metadata_space', why)
    return why
  }

  /** Why the host has no room for metadata; null when it has. */
  get #metadataFull(): string | null {
    return this.stalled ? this.reason : this.#host.metadataFull
  }

  /** Notes that the host had no room for a write to the data. The pool is as good as full then. */
  hostRefused(err: unknown): void {
    this.#host.refused(err)
    this.#watchStores()
  }

  /** Notes that new blocks were written: when the host had no room before, it has now. */
  provisioned(): void {
    if (this.#host.dataFull !== null) this.#spaceCame()
  }

  /**
   * For who makes many changes within one request, when a slice is over: settles what is pending,
   * which would be much at the end, and lets others have their turn.
   */
  async pause(slice: Slice): Promise<void> {
    if (this.#state.lost === null) this.#commits.trySettle()
    await slice.yield()
  }

  /** @throws when the metadata cannot be relied on */
  mustBeReadable(): void {
    this.#state.mustBeReadable()
  }

  /** @throws when no metadata may change */
  mustBeWritable(): void {
    this.#state.mustBeWritable()
  }

  /** Tells whoever listens of a failed read or write. @returns the error, to be thrown */
  ioError(operation: string, error: unknown, devId: DevId, block: number): unknown {
    this.#options.events.ioError(operation, error, { devId, block })
    return error
  }

  get clock(): PoolOptions['clock'] {
    return this.#options.clock
  }

  // --- durability ---

  /** True while changes were made that the death of this process would lose. */
  get unsettled(): boolean {
    return this.#journal.unsettled
  }

  /**
   * Makes changes survive the death of this process.
   * @param commit makes everything durable, sizes too where somebody keeps those
   * @throws once after a rollback, and when neither the journal nor a commit can be written: those who
   *   wait for this have lost theirs
   */
  settle(commit: () => Promise<void> = () => this.commit()): void | Promise<void> {
    if (this.#state.lost) {
      this.#journal.drop()
      throw this.#state.lost
    }
    try {
      this.#journal.settle()
    } catch (err) {
      // No room for the journal: what it would have saved is committed instead.
      if (!this.#journal.vital) {
        this.#journal.drop()
        return
      }
      this.#options.events.ioError('journal', err)
      return this.#settleByCommit(commit, err)
    }
  }

  async #settleByCommit(commit: () => Promise<void>, cause: unknown): Promise<void> {
    const sizes = [...this.#extended]
    try {
      await commit()
      const unsaved = sizes.some(([devId, size]) => this.#extended.get(devId) === size)
      // The commit may have mended the journal, which has the sizes then.
      if (unsaved && !this.#journal.sound) throw cause
    } catch (err) {
      // Whoever waited is told, and nobody else shall wait for it.
      this.#journal.drop()
      throw err
    }
  }

  /**
   * Makes everything that was acknowledged before the call durable. Calls that come while a commit
   * is under way share the next one; when nothing changed only the data is flushed, or nothing.
   * @throws after a rollback, for good: what was acknowledged before it may be gone
   */
  commit(): Promise<void> {
    return this.#commits.commit()
  }

  /**
   * As `commit`, for one device: where nothing was changed about it that is not durable, what others
   * changed need not be committed, and the data alone is flushed (the kernel's bio_triggers_commit).
   */
  flush(devId: DevId): Promise<void> {
    if (!this.metadata.hasDevice(devId) || !this.metadata.isDurable(devId)) return this.commit()
    return this.#commits.flushData()
  }

  /**
   * As `commit`, for a change that is told to have failed when it cannot be committed now: where the
   * commit would be tried again, the pool goes back to the last one instead.
   */
  commitOrUndo(): Promise<void> {
    return this.#commits.commitOrUndo()
  }

  /** Whether changes wait for room on the host's disk. */
  get stalled(): boolean {
    return this.#commits.stalled
  }

  /** Commits and leaves the files as an orderly shutdown does. No request may follow. */
  close(): Promise<void> {
    this.#cancelWatch?.()
    this.#cancelSizes?.()
    this.#state.close()
    this.#queue.reject(new ThinfsError('POOL_FAILED', 'the pool is being closed'))
    this.#endReleaseWaits()
    return this.#commits.close()
  }

  // --- inside ---

  /** Blocks that are free but wait for a commit, of the kind that is short. */
  get #frozen(): number {
    const { metadata } = this
    if (this.hasMetadataRoom) {
      const frozen = this.nrFreeDataBlocks - metadata.nrAllocatableDataBlocks
      return frozen - this.blocks.nrReleasing
    }
    const free = metadata.nrMetadataBlocks - metadata.nrAllocatedMetadataBlocks
    return free - metadata.nrAllocatableMetadataBlocks
  }

  /** Data blocks that a write can be given now. */
  get #nrAvailable(): number {
    return this.metadata.nrAllocatableDataBlocks - this.discardReserve
  }

  /** Whether a request may change mappings, and a commit still has room afterwards. */
  get hasMetadataRoom(): boolean {
    return this.#hasMetadata(1) && this.#host.secures(SECURED_MIN)
  }

  /** The same for unmapping, which takes blocks before it gives more back: half the reserve is its. */
  get hasRoomToUnmap(): boolean {
    return this.#hasMetadata(1 / 2) && this.#host.secures(SECURED_TO_UNMAP)
  }

  /** @param share of the reserve that has to be left */
  #hasMetadata(share: number): boolean {
    const reserve = Math.max(this.metadataReserve, RESERVE_MIN)
    const free = this.metadata.nrAllocatableMetadataBlocks
    return !this.stalled && free > reserve * share + this.#commits.nrUnmapped * MAPPING_COST
  }

  /** Commits, for the metadata blocks that this frees. @throws NO_METADATA_SPACE when that is not enough */
  async makeRoom(): Promise<void> {
    await this.commit()
    this.#mustHaveRoom(this.hasMetadataRoom)
  }

  /**
   * The same, until `hasRoomToUnmap`. Where the host sets no space aside it is tried all the same:
   * what comes of it may be all the room that there is to be had.
   */
  async makeRoomToUnmap(): Promise<void> {
    await this.commit()
    this.#mustHaveRoom(this.#hasMetadata(1 / 2))
  }

  #mustHaveRoom(has: boolean): void {
    if (has) return
    const why = this.#metadataFull
    const { path } = this.#options.metadata
    throw new ThinfsError('NO_METADATA_SPACE', why === null ? path : `${path}: ${why}`)
  }

  async #start(superblock: Buffer): Promise<void> {
    const { metadata, events } = this.#options
    // What set needs_check may have kept the journal from being written.
    const { needsCheck } = this.metadata
    const { clean, known, saysClean, doubtful, older, changes } = this.#journal.read(superblock)
    mustHold(this.metadata, { metadata, data: this.blocks })
    const inDoubt = this.#mayDoubt && (this.#options.doubtful || (doubtful && !needsCheck))
    if (older && !this.#isSure) throw olderError(metadata.path)
    if (this.#options.readOnly) this.#state.set('read_only', 'opened read-only')
    else if (needsCheck) this.#checkAll()
    else if (!known) mustBeSound(metadata)
    if (inDoubt) mustHaveHoles(this.metadata, this.blocks, metadata.path)
    // What was acknowledged may be in blocks that the pool had grown to, and not committed yet.
    const grewBefore = changes.length > 0 && this.mode === 'write' && this.#growToStores()
    if (changes.length > 0) {
      replayChanges(changes, this.metadata, {
        extended: this.#extended,
        handles: this.#options.takesOver ? this.#handles : null,
      })
    }
    if (this.mode !== 'write') return
    const { dataSize } = this.#options
    if (dataSize !== undefined && dataSize > this.blocks.size) this.blocks.grow(dataSize)
    const grew = this.#growToStores() || grewBefore
    if (!clean || grew) {
      // What a dead process wrote may be in the page cache alone, the superblock too. A flush that
      // comes to this process has to cover it, and nothing may be punched that the disk still maps.
      // The new length of the data, too, has to last before the metadata that counts on it.
      await this.blocks.flushAll()
      await metadata.sync()
    }
    try {
      await this.#commits.start(clean, saysClean)
      this.#watchSizes()
    } catch (err) {
      events.ioError('open', err)
      if (err instanceof ThinfsError) throw err
      throw new ThinfsError('IO_ERROR', `${metadata.path}: the journal cannot be written`, {
        cause: err,
        errno: errnoOf(err),
      })
    }
    this.#noteHostLow()
  }

  /**
   * Whether metadata that may be an older copy, or another pool's, would cost data. Who takes over has
   * had the file since.
   */
  get #mayDoubt(): boolean {
    return this.blocks.freeMeansHole && !this.#isSure
  }

  get #isSure(): boolean {
    const { readOnly, takesOver, acceptMetadata } = this.#options
    return readOnly || takesOver === true || acceptMetadata === true
  }

  /**
   * Clears needs_check when there is nothing wrong, as LVM does when it activates a pool
   * (`thin_check --clear-needs-check-flag`); else the pool stays read-only. So it does for who takes
   * over: those who use the mount have lost changes, and no flush of theirs may go well.
   */
  #checkAll(): void {
    if (this.#options.takesOver) {
      const reason = 'needs_check was set while the pool was in use: unmount it'
      this.#state.set('read_only', reason)
      this.#state.lost = new ThinfsError('POOL_READ_ONLY', reason, { errno: 'EIO' })
      return
    }
    const { problems } = checkMetadata(this.#options.metadata)
    if (problems.length > 0) {
      this.#state.set('read_only', `needs_check is set: ${problems[0]!.message}`)
      return
    }
    this.metadata.clearNeedsCheck()
    this.#options.events.needsCheckCleared()
  }

  /** Makes the pool as large as its files have become. @returns whether it grew */
  #growToStores(): boolean {
    if (!this.writable) return false
    const { metadata } = this.#options
    const { blocks } = this
    blocks.measure()
    metadata.measure()
    const dataBlocks = Math.floor(blocks.size / this.blockSize)
    const metadataBlocks = Math.floor(metadata.size / METADATA_BLOCK_SIZE)
    const metadataWanted = Math.min(metadataBlocks, MAX_METADATA_BLOCKS)
    const growsMetadata = metadataWanted > this.metadata.nrMetadataBlocks
    if (growsMetadata) {
      this.#commits.change(() => this.metadata.growMetadata(metadataWanted))
    }
    const growsData = dataBlocks > this.metadata.nrDataBlocks && this.#canGrowData(dataBlocks)
    if (growsData) {
      blocks.hasGrown()
      this.#commits.change(() => this.metadata.growData(dataBlocks))
    }
    if (growsMetadata || growsData) this.#spaceCame()
    return growsMetadata || growsData
  }

  /**
   * Whether the metadata has room for the bitmaps of so many data blocks. Where it has not, the pool
   * stays as large as it is, and says so. A new pool has to have it.
   */
  #canGrowData(dataBlocks: number): boolean {
    if (this.stalled) return false
    const cost = this.metadata.growDataCost(dataBlocks)
    const { nrAllocatableMetadataBlocks: free, nrDataBlocks } = this.metadata
    const reserve = Math.max(this.metadataReserve, RESERVE_MIN)
    const before = this.#notGrown
    if (nrDataBlocks === 0 || free - cost >= reserve) {
      this.#notGrown = null
      return true
    }
    this.#notGrown =
      `${this.blocks.path}: has ${dataBlocks} blocks, the pool stays at ${nrDataBlocks}: ` +
      `that takes ${cost} metadata blocks, ${Math.max(0, free - reserve)} are free`
    if (before === null) this.#options.events.warning(this.#notGrown)
    return false
  }

  /**
   * While writes wait for space, looks every second whether somebody has made the files larger or the
   * host has room again.
   */
  #watchStores(): void {
    this.#cancelWatch ??= this.#options.clock.after(WATCH_PERIOD, () => {
      this.#cancelWatch = null
      if (this.#queue.isEmpty && this.#host.dataFull === null) return
      try {
        this.#growToStores()
      } catch {
        return // change() has failed the pool, and with it those who wait
      }
      if (this.#host.dataFull !== null && this.#host.hasMore) this.#spaceCame()
      else if (this.#host.dataFull !== null) this.#queue.retry()
      else if (this.mode === 'out_of_metadata_space') this.#spaceCame()
      this.#watchStores()
    })
  }

  /** @throws POOL_MISMATCH when somebody has cut off a store */
  #mustBeWhole(): void {
    const { metadata } = this.#options
    const { blocks } = this
    blocks.measure()
    metadata.measure()
    mustHold(this.metadata, { metadata, data: blocks })
  }

  /** Looks every second whether somebody has cut off the stores. */
  #watchSizes(): void {
    this.#cancelSizes = this.#options.clock.after(WATCH_PERIOD, () => {
      if (!this.writable) return
      try {
        this.#mustBeWhole()
      } catch (err) {
        void this.#commits.cutOff(err)
        return
      }
      this.#watchSizes()
    })
  }

  /** There may be space: the mode says so, and those who wait try again. */
  #spaceCame(): void {
    if (this.mode === 'out_of_metadata_space' && !this.hasMetadataRoom) return
    this.#host.dataCame()
    if (this.mode === 'out_of_data_space' || this.mode === 'out_of_metadata_space') {
      if (this.#nrAvailable <= 0) {
        if (!this.blocks.releasing) this.#state.set('out_of_data_space', NO_DATA_BLOCKS)
        return
      }
      this.#state.set('write', null)
    }
    this.#queue.wake()
  }
}
