/**
 * The thin pool: one space of data blocks, shared by thin devices.
 *
 * It decides what a request means (provision, break sharing, unmap), keeps the modes of dm-thin,
 * and lets writes wait for space. Everything runs on one thread: between two awaits the pool is
 * consistent, and a snapshot is a plain call. Source of the rules: drivers/md/dm-thin.c and
 * dm-thin-metadata.c.
 *
 * Two things go beyond the kernel. Free means hole: where the data store can punch, every free data
 * block is a hole of it, so that new blocks read as zeros without being zeroed. And a commit is
 * pipelined: requests go on into the next transaction while it is flushed and written
 * (commit-pipeline.ts).
 */
import {
  allEnded,
  assert,
  type Bytes,
  bytes,
  type DataBlock,
  type DevId,
  type Later,
  METADATA_BLOCK_SIZE,
  SECTOR_SIZE,
  Slice,
  ThinfsError,
  type VirtualBlock,
} from '../base/index.js'
import { DataBlocks, type Provisioner } from '../device/index.js'
import { ThinMetadata } from '../metadata/index.js'
import { removedFile } from '../storage/index.js'
import { CommitPipeline } from './commit-pipeline.js'
import { Journal } from './journal.js'
import { OpenHandles } from './open-handles.js'
import { bringUp } from './opening.js'
import type { PoolMode, PoolOptions, PoolWork } from './options.js'
import { PoolState } from './pool-state.js'
import { mustHold } from './recovery.js'
import { Shrink } from './shrink.js'
import { shrinkingError } from './shrinking-error.js'
import { Space } from './space.js'
import { DELETE_LEAVES, ThinDevices } from './thin-devices.js'

/** Milliseconds between looks at the files, which somebody may have cut off. */
const WATCH_PERIOD = 1000
/**
 * At most so many data blocks, and runs of neighbours among them, are unmapped before a commit:
 * committing and punching them takes time and memory.
 */
const FREED_BLOCKS = 65_536
const FREED_RUNS = 8192
/** Unmapping goes on while at most so many blocks wait to be punched. */
const UNRELEASED_BLOCKS = FREED_BLOCKS

export class ThinPool implements Provisioner {
  readonly metadata: ThinMetadata
  readonly blocks: DataBlocks
  /** Size of a data block in bytes. */
  readonly blockSize: number
  readonly #options: PoolOptions
  readonly #state: PoolState
  readonly #journal: Journal
  readonly #commits: CommitPipeline
  #nrRemoved = 0
  /** The bytes of the superblock when it is looked at. */
  readonly #superblock = Buffer.alloc(METADATA_BLOCK_SIZE)
  /** Free space, the callers that wait for it, and growth. */
  readonly space: Space
  readonly devices: ThinDevices
  /** Makes the data smaller. */
  readonly shrink: Shrink
  /** Facts about devices that the journal alone keeps. */
  readonly #noted = { extended: new Map<DevId, Bytes>(), handles: new OpenHandles() }
  #cancelWatch: (() => void) | null = null

  private constructor(options: PoolOptions, metadata: ThinMetadata, superblock: Buffer) {
    this.#options = options
    this.metadata = metadata
    this.blockSize = metadata.dataBlockSectors * SECTOR_SIZE
    this.blocks = new DataBlocks(
      options.data,
      {
        blockSize: this.blockSize,
        freeMeansHole: options.data.punches && options.discards === 'passdown',
        clock: options.clock,
      },
      {
        released: blocks => {
          this.metadata.releaseData(blocks)
          this.space.released()
        },
        refused: err => {
          this.#options.events.ioError('punch', err)
          this.#commits.commitSoon()
        },
      },
    )
    this.#state = new PoolState(options.events)
    this.#journal = new Journal(options.journal)
    const { clock, events } = options
    this.#commits = new CommitPipeline(
      {
        metadata,
        blocks: this.blocks,
        journal: this.#journal,
        state: this.#state,
        ...this.#noted,
        superblock,
        mustBeOurs: () => this.#mustBeOurs(),
        mayWrite: options.mayWrite ?? (() => {}),
        clock,
        events,
      },
      {
        committed: () => this.space.committed(),
        failed: err => this.space.end(err),
        rolledBack: () => this.devices.rolledBack(),
      },
    )
    const commits = this.#commits
    const parts = { metadata, store: options.metadata, blocks: this.blocks, commits }
    this.space = new Space({ ...parts, state: this.#state }, options)
    const own = { pool: this, space: this.space, journal: this.#journal }
    this.devices = new ThinDevices({ ...own, metadata, commits, ...this.#noted })
    this.shrink = new Shrink({
      ...{ metadata, blocks: this.blocks, journal: this.#journal, commits, state: this.#state },
      ...{ space: this.space, devices: this.devices, clock },
    })
  }

  /**
   * Opens a pool: replays what a dead process of this boot left in the journal, grows the pool to
   * its files' sizes, and makes every free data block a hole unless the last shutdown was orderly.
   * If needs_check is set, or another program wrote the metadata, all of it is checked before.
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

  get discards(): PoolOptions['discards'] {
    return this.#options.discards
  }

  /**
   * Does a piece of a long unmapping, after those of others: lets other requests run when the slice
   * is over, and commits when much was freed or room is short.
   * @param unmap called in the turn in which there is room: after an await others could have used
   *   it
   * @throws NO_METADATA_SPACE, or when no metadata may change any more
   */
  async unmapInSlices<T>(slice: Slice, unmap: () => T): Promise<T> {
    const { metadata } = this
    if (metadata.nrFreedDataBlocks >= FREED_BLOCKS || metadata.nrFreedDataRuns >= FREED_RUNS) {
      await this.commit()
      // Back-pressure: a caller that frees faster than the disk punches waits, and nobody else.
      while (metadata.nrUnreleasedDataBlocks > UNRELEASED_BLOCKS && this.blocks.freed.punching) {
        await this.blocks.freed.punched
      }
    }
    if (slice.isOver) await slice.yield()
    if (!this.space.metadata.hasRoomToUnmap) {
      do await this.space.metadata.makeRoomToUnmap()
      while (!this.space.metadata.canUnmap)
    }
    this.mustBeWritable()
    return unmap()
  }

  /** @throws TRANSACTION_MISMATCH when the id is not `current` */
  setTransactionId(current: number, next: number): void {
    this.mustBeWritable()
    this.#commits.change(() => this.metadata.setTransactionId(current, next))
  }

  async reserveMetadataSnap(): Promise<void> {
    this.mustBeWritable()
    await this.commit()
    if (this.shrink.progress !== null) throw shrinkingError()
    const { reserves } = this.space
    this.space.data.mustKeep(reserves.costOfSharing(reserves.devices()))
    this.#commits.change(() => this.metadata.reserveMetadataSnap())
    for (const devId of reserves.devices()) reserves.shared(devId)
    this.devices.clearTables()
    await this.commitOrUndo()
  }

  /** In slices, which are committed one by one: what dies meanwhile leaves a part of it held. */
  async releaseMetadataSnap(): Promise<void> {
    const slice = new Slice(this.clock)
    const release = (): boolean =>
      this.#commits.change(() => this.metadata.releaseMetadataSnap(DELETE_LEAVES))
    while (!(await this.unmapInSlices(slice, release)));
    this.space.reserves.recount()
    await this.commitOrUndo()
  }

  // --- changes of mappings; for ThinDevice ---

  /** Maps a block; the caller's reference on `dataBlock` goes into the mapping. */
  map(devId: DevId, vblock: VirtualBlock, dataBlock: DataBlock, time: number): void {
    const { reserves } = this.space
    const gains = reserves.has(devId) && reserves.gains(devId, vblock)
    this.#commits.change(() => this.metadata.mappings.insert(devId, vblock, dataBlock, time))
    if (gains) reserves.gained(devId, vblock)
    this.#journal.pending.map(devId, vblock, dataBlock, time)
  }

  /** Maps a block that another mapping has already. */
  mapShared(devId: DevId, vblock: VirtualBlock, dataBlock: DataBlock, time: number): void {
    this.#commits.change(() => {
      this.metadata.details(devId) // nothing is counted for a device that is not there
      this.metadata.incData(dataBlock)
      this.metadata.mappings.insert(devId, vblock, dataBlock, time)
    })
    this.#journal.pending.map(devId, vblock, dataBlock, time)
  }

  /** Unmaps [begin, end). @returns how many blocks were mapped */
  unmap(devId: DevId, begin: number, end: number): number {
    if (this.space.reserves.has(devId)) this.space.reserves.unmapping(devId, begin, end)
    const removed = this.#commits.change(() =>
      this.metadata.mappings.removeRange(devId, begin as VirtualBlock, end as VirtualBlock),
    )
    if (removed > 0) this.#journal.pending.unmap(devId, begin, end)
    this.devices.table(devId)?.unmap(begin, end)
    return removed
  }

  /** Makes all that the two devices map look shared to dm-thin. */
  markShared(one: DevId, other: DevId): void {
    this.#commits.change(() => this.metadata.markShared(one === other ? [one] : [one, other]))
    this.#journal.pending.markShared(one, other)
    this.devices.table(one)?.clear()
    this.devices.table(other)?.clear()
  }

  extended(devId: DevId, size: Bytes): void {
    this.devices.extended(devId, size)
  }

  // --- data blocks; for ThinDevice ---

  allocate(out: Float64Array, count: number): void {
    this.#commits.change(() => {
      for (let i = 0; i < count; i++) {
        const block = this.metadata.allocateData()
        assert(block >= 0, 'data blocks ran out below the allocatable count')
        out[i] = block
      }
    })
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

  /**
   * The next owner of the block would read what is in it: it is passed down with the next commit.
   */
  #notCleared(block: DataBlock, err: unknown): void {
    this.#options.events.ioError('punch', err)
    if (this.writable) this.#commits.giveBack(() => this.metadata.decData(block))
  }

  awaitMapping(mapped: Promise<unknown>): void {
    this.#commits.unmapped.add(mapped)
  }

  /**
   * A request that makes many changes calls it when a slice is over: settles pending changes, which
   * would be many at the end, and lets other requests run.
   */
  async pause(slice: Slice): Promise<void> {
    if (this.#state.lost === null) this.#commits.trySettle()
    await slice.yield()
  }

  /** @throws when the metadata cannot be relied on */
  mustBeReadable(): void {
    this.#state.mustBeReadable()
  }

  /**
   * Called before something is written beside the pool.
   * @throws LOCK_LOST, FENCED when somebody else may have it, as the pool has failed by then
   */
  async mayWrite(): Promise<void> {
    try {
      await this.#options.mayWrite?.()
    } catch (err) {
      void this.#commits.cutOff(err)
      throw err
    }
  }

  /**
   * Somebody has found that the pool may be another's by now: it fails, and writes nothing more.
   */
  lose(why: ThinfsError): void {
    void this.#commits.cutOff(why)
  }

  /** @throws when no metadata may change */
  mustBeWritable(): void {
    this.#state.mustBeWritable()
  }

  /** Tells whoever listens that a write was refused for the limit of its device. */
  limitReached(devId: DevId): void {
    this.#options.events.limitReached(devId)
  }

  /** Tells whoever listens of a failed read or write. @returns the error, to be thrown */
  ioError(operation: string, error: unknown, devId: DevId, block: number): unknown {
    this.#options.events.ioError(operation, error, { devId, block })
    return error
  }

  /** The work of the pool since it was opened. */
  get work(): PoolWork {
    const { commits, ms: commitMs } = this.#commits.counts
    return { commits, commitMs, ...this.blocks.freed.counts, spaceWaits: this.space.nrWaits }
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
   * Settles all changes: they survive the death of this process.
   * @param commit makes everything durable, sizes too where somebody keeps those
   * @throws once after a rollback, and when neither the journal nor a commit can be written: those
   *   who wait for this have lost theirs
   */
  settle(commit: () => Promise<void> = () => this.commit()): void | Promise<void> {
    if (this.#state.lost) {
      this.#journal.drop()
      throw this.#state.lost
    }
    try {
      this.#journal.settle()
    } catch (err) {
      // No room for the journal: commit the changes instead.
      if (!this.#journal.vital) {
        this.#journal.drop()
        return
      }
      this.#options.events.ioError('journal', err)
      return this.#settleByCommit(commit, err)
    }
  }

  async #settleByCommit(commit: () => Promise<void>, cause: unknown): Promise<void> {
    const { unsavedSizes } = this.devices
    const sizes = [...unsavedSizes]
    try {
      await commit()
      const unsaved = sizes.some(([devId, size]) => unsavedSizes.get(devId) === size)
      // The commit may have mended the journal, which has the sizes then.
      if (unsaved && !this.#journal.sound) throw cause
    } catch (err) {
      // The callers that waited get the error; later ones must not wait for these changes.
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
   * As `commit`, for one device. If all changes of the device are durable, the data alone is
   * flushed: changes of others need no commit (the kernel's bio_triggers_commit).
   */
  flush(devId: DevId): Promise<void> {
    this.blocks.pace.flushCame()
    if (!this.metadata.hasDevice(devId) || !this.metadata.isDurable(devId)) return this.commit()
    return this.#commits.flushData()
  }

  /**
   * As `commit`, for a change whose caller hears of a failure at once: where the commit would be
   * tried again, the pool goes back to the last one instead.
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
    this.#state.close()
    this.space.end(new ThinfsError('POOL_FAILED', 'the pool is being closed'))
    return this.#commits.close()
  }

  // --- inside ---

  async #start(superblock: Buffer): Promise<void> {
    const { metadata, blocks, space } = this
    const parts = { metadata, blocks, space, journal: this.#journal, state: this.#state }
    const changes = await bringUp(
      { ...parts, commits: this.#commits, ...this.#noted },
      this.#options,
      superblock,
    )
    if (changes) this.#watchFiles()
  }

  /** @throws POOL_MISMATCH when somebody has cut off a store, or written over the metadata */
  #mustBeOurs(): void {
    const { metadata } = this.#options
    const { blocks } = this
    blocks.measure()
    metadata.measure()
    mustHold(this.metadata, { metadata, data: blocks })
    try {
      metadata.read(this.#superblock, 0, METADATA_BLOCK_SIZE, bytes(0))
    } catch {
      return // An unreadable superblock proves nothing.
    }
    if (this.#commits.isOurs(this.#superblock)) return
    const what = `${metadata.path}: another program has written to it`
    throw new ThinfsError('POOL_MISMATCH', `${what}: unmount, and put the right metadata back`)
  }

  /** Files that somebody removed, or put another one in the place of: a sentence each. */
  get removed(): string[] {
    const stores = [this.blocks, this.#options.metadata]
    return stores.filter(({ isRemoved }) => isRemoved).map(({ path }) => removedFile(path))
  }

  #noteRemoved(): void {
    const { removed } = this
    for (const what of removed.slice(this.#nrRemoved)) this.#options.events.warning(what)
    this.#nrRemoved = removed.length
  }

  /**
   * Looks every second whether the pool is still ours, and whether somebody has cut off the stores,
   * or written over the metadata.
   */
  #watchFiles(): void {
    this.#cancelWatch = this.#options.clock.after(WATCH_PERIOD, () => void this.#lookAtFiles())
  }

  async #lookAtFiles(): Promise<void> {
    if (!this.writable) return
    try {
      const asked = this.#options.mayWrite?.()
      if (asked !== undefined) await asked
      if (!this.writable || !this.#state.isOpen) return
      if (!this.#commits.running) this.#mustBeOurs()
      this.#noteRemoved()
    } catch (err) {
      void this.#commits.cutOff(err)
      return
    }
    this.#watchFiles()
  }
}
