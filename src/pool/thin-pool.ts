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
  MIB,
  ThinfsError,
  type VirtualBlock,
} from '../base/index.js'
import {
  checkMetadata,
  MAX_METADATA_BLOCKS,
  METADATA_BLOCK_SIZE,
  ThinMetadata,
} from '../metadata/index.js'
import type { Store } from '../storage/index.js'
import { CommitPipeline } from './commit-pipeline.js'
import { Journal } from './journal.js'
import { OpenHandles } from './open-handles.js'
import type { PoolMode, PoolOptions } from './options.js'
import { PageCache } from './page-cache.js'
import { PoolState } from './pool-state.js'
import { mustBeSound, mustHold, replayChanges } from './recovery.js'
import { Slice } from './slice.js'
import { SpaceQueue } from './space-queue.js'
import { ThinDevice } from './thin-device.js'

/** While writes wait for space, the files' sizes are looked at so often, in milliseconds. */
const WATCH_PERIOD = 1000
/** What the lookup tables of all devices take together: 64 KiB for each GiB of 64 KiB blocks. */
const LOOKUP_SIZE = 64 * MIB
/** The kernel's reserve: this part of the metadata, at most 4096 blocks, is kept for commits. */
const RESERVE_PART = 10
const RESERVE_MAX = 4096
/** The least that is kept back: a change and its commit shadow so many blocks. */
const RESERVE_MIN = 32
/** Leaves of a mapping tree that are emptied between two looks at the clock. */
const DELETE_LEAVES = 4
/**
 * Runs of data blocks that are unmapped before what was is committed: to write, flush and punch them
 * is what whoever flushes meanwhile has to wait for.
 */
const FREED_RUNS = 4096

export class ThinPool {
  readonly metadata: ThinMetadata
  readonly data: Store
  /** Size of a data block in bytes. */
  readonly blockSize: number
  /** Where free data blocks are holes, a new block needs no zeroing. */
  readonly freeMeansHole: boolean
  readonly #options: PoolOptions
  readonly #state: PoolState
  readonly #journal: Journal
  readonly #commits: CommitPipeline
  readonly #devices = new Map<number, ThinDevice>()
  readonly #pages = new PageCache(LOOKUP_SIZE)
  readonly #queue: SpaceQueue
  #lowWaterSeen = false
  /** Sizes of devices that writes have extended, until `sizeSaved`. */
  readonly #extended = new Map<DevId, Bytes>()
  /** The handles that have each device open, where there are any. */
  readonly #handles = new OpenHandles()
  #cancelWatch: (() => void) | null = null

  private constructor(options: PoolOptions, metadata: ThinMetadata, superblock: Buffer) {
    this.#options = options
    this.metadata = metadata
    this.data = options.data
    this.blockSize = metadata.dataBlockSectors * 512
    this.freeMeansHole = options.data.punches && options.discards === 'passdown'
    this.#state = new PoolState(options.events)
    this.#journal = new Journal(options.journal)
    this.#queue = new SpaceQueue(options.clock)
    const { clock, events } = options
    this.#commits = new CommitPipeline(
      {
        metadata,
        data: this.data,
        journal: this.#journal,
        state: this.#state,
        extended: this.#extended,
        handles: this.#handles,
        superblock,
        blockSize: this.blockSize,
        freeMeansHole: this.freeMeansHole,
        clock,
        events,
      },
      {
        committed: nrFreed => {
          if (nrFreed > 0 || this.mode === 'out_of_metadata_space') this.#spaceCame()
        },
        failed: err => this.#queue.reject(err),
        rolledBack: () => {
          for (const device of this.#devices.values()) device.table.clear()
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

  /** Metadata blocks kept back so that a commit always has room. */
  get metadataReserve(): number {
    return Math.min(RESERVE_MAX, Math.floor(this.metadata.nrMetadataBlocks / RESERVE_PART))
  }

  // --- devices ---

  /** The device for I/O. Its size is the caller's to know: dm-thin does not store it. */
  device(devId: DevId, size: Bytes): ThinDevice {
    let device = this.#devices.get(devId)
    if (!device) {
      if (!this.metadata.hasDevice(devId)) {
        throw new ThinfsError('DEVICE_MISSING', `device ${devId}`)
      }
      device = new ThinDevice(this, devId, size, this.#pages)
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
  async emptyDevice(devId: DevId, stop: () => boolean): Promise<boolean> {
    // Nobody looks anything up any more: pages of it would be work for every slice.
    this.#devices.get(devId)?.table.clear()
    for (const slice = new Slice(this.clock); ; ) {
      await this.betweenSlices(slice)
      if (stop()) return false
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
    if (this.metadata.nrFreedDataRuns >= FREED_RUNS) await this.commit()
    if (slice.isOver) await slice.yield()
    this.mustBeWritable()
    if (!this.hasRoomToUnmap) await this.makeRoomToUnmap()
  }

  /** Deletes a device. At once: a large one is emptied first. Durable with the next commit. */
  deleteDevice(devId: DevId): void {
    this.mustBeWritable()
    this.#commits.change(() => this.metadata.deleteDevice(devId))
    this.#devices.get(devId)?.table.clear()
    this.#devices.delete(devId)
    this.#extended.delete(devId)
    this.#handles.forget(devId)
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

  /**
   * Takes `count` data blocks into `out`, or none.
   * @returns false when there is no room; `withSpace` is the way to wait for it
   */
  allocate(out: Float64Array, count: number): boolean {
    this.mustBeWritable()
    this.#noteLowWater(count)
    if (!this.#hasRoom(count)) return false
    this.#commits.change(() => {
      for (let i = 0; i < count; i++) {
        const block = this.metadata.allocateData()
        assert(block >= 0, 'data blocks ran out below the allocatable count')
        out[i] = block
      }
    })
    return true
  }

  /** The kernel's rule: told when a block is wanted while no more than the mark are free. */
  #noteLowWater(wanted: number): void {
    const free = this.nrFreeDataBlocks
    if (this.#lowWaterSeen || free - (wanted - 1) > this.#options.lowWaterMark) return
    this.#lowWaterSeen = true
    this.#options.events.lowWater(free)
  }

  /** Gives back blocks that nothing points to yet, after a failed write may have touched them. */
  giveBack(blocks: Float64Array, count: number): void {
    for (let i = 0; i < count; i++) {
      const block = blocks[i]!
      try {
        if (this.freeMeansHole) {
          this.data.punch(bytes(block * this.blockSize), bytes(this.blockSize))
        }
      } catch (err) {
        // Whoever got it would read what is in it: it is passed down with the next commit.
        this.#options.events.ioError('punch', err)
        this.#commits.change(() => this.metadata.decData(block as DataBlock))
        continue
      }
      this.#commits.change(() => this.metadata.releaseUnused(block as DataBlock))
    }
  }

  /**
   * Tries again until there is space: after a commit that frees blocks, when the files have grown,
   * and, with `on_full: queue`, whenever blocks become free within 60 s.
   * @param held bytes that waiting keeps in memory
   * @param attempt returns null when there is no room
   * @throws NO_DATA_SPACE, NO_METADATA_SPACE
   */
  async withSpace<T>(held: number, attempt: () => T | null): Promise<T> {
    for (;;) {
      this.#growToStores()
      if (this.#frozen > 0) await this.commit()
      this.mustBeWritable()
      const result = attempt()
      if (result !== null) return result
      if (!this.hasMetadataRoom) {
        this.#state.set('out_of_metadata_space', 'no free metadata blocks')
        throw new ThinfsError('NO_METADATA_SPACE', this.#options.metadata.path)
      }
      this.#state.set('out_of_data_space', 'no free data blocks')
      if (this.onFull === 'error') throw new ThinfsError('NO_DATA_SPACE', this.data.path)
      this.#watchStores()
      await this.#queue.wait(held)
    }
  }

  /** Has the blocks that `read` reads stay what they are until it ends, whoever unmaps them. */
  reading(read: Promise<void>): void {
    this.#commits.reading(read)
  }

  /**
   * For who makes many changes within one request, when a slice is over: settles what is pending,
   * which would be much at the end, and lets others have their turn.
   */
  async pause(slice: Slice): Promise<void> {
    if (this.#state.lost === null) this.#commits.trySettle()
    await slice.yield()
  }

  /** Notes that the data store was written to. */
  wrote(): void {
    this.#commits.wrote()
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
   * @throws once after a rollback: those who wait for this have lost theirs
   */
  settle(): void | Promise<void> {
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
      return this.commit().catch(err => {
        // Whoever waited is told, and nobody else shall wait for it.
        this.#journal.drop()
        throw err
      })
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
    this.#queue.reject(new ThinfsError('POOL_FAILED', 'the pool is being closed'))
    return this.#commits.close()
  }

  // --- inside ---

  /** Blocks that are free but wait for a commit, of the kind that is short. */
  get #frozen(): number {
    const { metadata } = this
    if (this.hasMetadataRoom) return this.nrFreeDataBlocks - metadata.nrAllocatableDataBlocks
    const free = metadata.nrMetadataBlocks - metadata.nrAllocatedMetadataBlocks
    return free - metadata.nrAllocatableMetadataBlocks
  }

  #hasRoom(count: number): boolean {
    return this.metadata.nrAllocatableDataBlocks >= count && this.hasMetadataRoom
  }

  /** Whether a request may change mappings, and a commit still has room afterwards. */
  get hasMetadataRoom(): boolean {
    const reserve = Math.max(this.metadataReserve, RESERVE_MIN)
    return !this.stalled && this.metadata.nrAllocatableMetadataBlocks > reserve
  }

  /** The same for unmapping, which takes blocks before it gives more back: half the reserve is its. */
  get hasRoomToUnmap(): boolean {
    const reserve = Math.max(this.metadataReserve, RESERVE_MIN)
    return !this.stalled && this.metadata.nrAllocatableMetadataBlocks > reserve / 2
  }

  /** Commits, for the metadata blocks that this frees. @throws NO_METADATA_SPACE when that is not enough */
  async makeRoom(): Promise<void> {
    await this.commit()
    this.#mustHaveRoom(this.hasMetadataRoom)
  }

  /** The same, until `hasRoomToUnmap`. */
  async makeRoomToUnmap(): Promise<void> {
    await this.commit()
    this.#mustHaveRoom(this.hasRoomToUnmap)
  }

  #mustHaveRoom(has: boolean): void {
    if (!has) throw new ThinfsError('NO_METADATA_SPACE', this.#options.metadata.path)
  }

  async #start(superblock: Buffer): Promise<void> {
    const { metadata, events } = this.#options
    const { clean, known, changes } = this.#journal.read(superblock)
    if (this.#options.readOnly) this.#state.set('read_only', 'opened read-only')
    else if (this.metadata.needsCheck) this.#checkAll()
    else if (!known) mustBeSound(metadata)
    mustHold(this.metadata, { metadata, data: this.data })
    if (changes.length > 0) {
      replayChanges(changes, this.metadata, {
        extended: this.#extended,
        handles: this.#options.takesOver ? this.#handles : null,
      })
    }
    if (this.mode !== 'write') return
    const grew = this.#growToStores()
    if (!clean || grew) {
      // What a dead process wrote may be in the page cache alone, the superblock too. A flush that
      // comes to this process has to cover it, and nothing may be punched that the disk still maps.
      // The new length of the data, too, has to last before the metadata that counts on it.
      await this.data.sync()
      await metadata.sync()
    }
    try {
      await this.#commits.start(clean)
    } catch (err) {
      events.ioError('open', err)
      if (err instanceof ThinfsError) throw err
      throw new ThinfsError('IO_ERROR', `${metadata.path}: the journal cannot be written`, {
        cause: err,
        errno: errnoOf(err),
      })
    }
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
    const { metadata, data } = this.#options
    data.measure()
    metadata.measure()
    const dataBlocks = Math.floor(data.size / this.blockSize)
    const metadataBlocks = Math.floor(metadata.size / METADATA_BLOCK_SIZE)
    const metadataWanted = Math.min(metadataBlocks, MAX_METADATA_BLOCKS)
    const growsMetadata = metadataWanted > this.metadata.nrMetadataBlocks
    const growsData = dataBlocks > this.metadata.nrDataBlocks
    if (growsMetadata) {
      this.#commits.change(() => this.metadata.growMetadata(metadataWanted))
    }
    if (growsData) {
      this.wrote() // its length
      this.#commits.change(() => this.metadata.growData(dataBlocks))
    }
    return growsMetadata || growsData
  }

  /** While writes wait for space, looks every second whether somebody has made the files larger. */
  #watchStores(): void {
    this.#cancelWatch ??= this.#options.clock.after(WATCH_PERIOD, () => {
      this.#cancelWatch = null
      if (this.#queue.isEmpty) return
      try {
        if (this.#growToStores()) this.#spaceCame()
      } catch {
        return // change() has failed the pool, and with it those who wait
      }
      this.#watchStores()
    })
  }

  #spaceCame(): void {
    if (this.mode === 'out_of_metadata_space' && !this.hasMetadataRoom) return
    if (this.mode === 'out_of_data_space' || this.mode === 'out_of_metadata_space') {
      if (this.metadata.nrAllocatableDataBlocks === 0) return
      this.#state.set('write', null)
    }
    this.#queue.wake()
  }
}
