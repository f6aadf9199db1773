/**
 * The space of a pool: free blocks, reserves, waiting callers, and growth.
 *
 * A request takes all of its data blocks or none. A request that finds too few waits here until an
 * event may bring some: a release of freed blocks, a commit, growth of the files, room on the
 * host's disk. The modes `out_of_data_space` and `out_of_metadata_space` begin and end here. Source
 * of the rules: drivers/md/dm-thin.c.
 */
import { type Clock, type DevId, type Later, ThinfsError, unlessAborted } from '../base/index.js'
import {
  type DataBlocks,
  goneError,
  type ProvisionerSpace,
  type SpaceOwner,
} from '../device/index.js'
import type { ThinMetadata } from '../metadata/index.js'
import type { Store } from '../storage/index.js'
import type { CommitPipeline } from './commit-pipeline.js'
import { type Extension, Growth, type GrowthParts } from './growth.js'
import { HostSpace } from './host-space.js'
import { LowWater } from './low-water.js'
import type { OnFull, PoolEvents, PoolOptions } from './options.js'
import type { PoolState } from './pool-state.js'
import { Reserves } from './reserves.js'
import { SpaceQueue } from './space-queue.js'

/** The kernel's reserve: this part of the metadata, at most 4096 blocks, is kept for commits. */
const RESERVE_PART = 10
const RESERVE_MAX = 4096
/** The least that is kept back: a change and its commit shadow so many blocks. */
const RESERVE_MIN = 32
/**
 * This part of the data blocks, at most 1024, is kept back for the edges of discards: a full pool
 * is emptied by discards, and whoever sends them stops at the first that fails. ZFS keeps as much
 * back, for the same reason (spa_slop_shift). A pool that is too small for it to matter keeps
 * nothing back.
 */
const DISCARD_PART = 32
const DISCARD_MAX = 1024
const DISCARD_FROM = 2048
/** Milliseconds for which a write waits for freed blocks that are still being read or punched. */
const RELEASE_TIMEOUT = 60_000
/** The kernel's no_space_timeout, in seconds. */
const NO_SPACE_TIMEOUT = 60
const NO_DATA_BLOCKS = 'no free data blocks'
const RESERVED_BLOCKS = 'what is free is reserved for volumes: thinfs list says for which'
/** Metadata blocks that have their space on the host before mappings change; 1 MiB. */
const SECURED_MIN = 256
/** The same before something is unmapped, which the host's full disk must not prevent. */
const SECURED_TO_UNMAP = 64
/** Metadata blocks that mapping what a request has taken may still take. */
const MAPPING_COST = 16
/** While writes wait for space, the files' sizes are looked at so often, in milliseconds. */
const WATCH_PERIOD = 1000

export type SpaceParts = Pick<GrowthParts, 'metadata' | 'store' | 'blocks' | 'commits' | 'state'>

const FULL_METADATA =
  'what is free is kept for removals and discards; remove volumes or snapshots, or thinfs extend --metadata'

export class Space implements ProvisionerSpace {
  readonly #metadata: ThinMetadata
  readonly #store: Store
  readonly #blocks: DataBlocks
  readonly #commits: CommitPipeline
  readonly #state: PoolState
  readonly #clock: Clock
  readonly #events: PoolEvents
  readonly #queue: SpaceQueue
  readonly #host: HostSpace
  readonly #growth: Growth
  /** Blocks that are kept for devices. */
  readonly reserves: Reserves
  #onFull: OnFull
  #lowWaterMarkOf: PoolOptions['lowWaterMark']
  readonly #lowData: LowWater
  readonly #lowMetadata: LowWater
  /** Whether the host was told to have less than the low water mark. */
  #hostLowSeen = false
  #cancelWatch: (() => void) | null = null
  /** Callers that wait for freed blocks to be released. */
  readonly #releaseWaits = new Set<() => void>()
  /** Whether the data may become larger: not while somebody makes it smaller. */
  mayGrowData = true

  constructor(
    parts: SpaceParts,
    options: Pick<
      PoolOptions,
      'onFull' | 'queueTimeout' | 'lowWaterMark' | 'autoextend' | 'clock' | 'events'
    >,
  ) {
    const { metadata, store, blocks, commits, state } = parts
    const { clock, events, autoextend = {} } = options
    this.#metadata = metadata
    this.#store = store
    this.#blocks = blocks
    this.#commits = commits
    this.#state = state
    this.#clock = clock
    this.#events = events
    this.#onFull = options.onFull
    this.#lowWaterMarkOf = options.lowWaterMark
    this.#lowData = new LowWater(free => events.lowWater(free))
    this.#lowMetadata = new LowWater(free => events.lowWaterMetadata(free))
    this.#queue = new SpaceQueue(clock, 1000 * (options.queueTimeout ?? NO_SPACE_TIMEOUT))
    this.#host = new HostSpace(blocks, store, metadata)
    this.reserves = new Reserves(metadata, clock, () => this.#spaceCame())
    this.#growth = new Growth({
      ...{ ...parts, clock, events, autoextend },
      reserve: () => Math.max(this.metadataReserve, RESERVE_MIN),
      hostRoom: () => ({ data: this.hostRoomForData, metadata: this.hostRoomForMetadata }),
      mayGrowData: () => this.mayGrowData,
      grown: () => this.#spaceCame(),
    })
  }

  // --- what there is ---

  get nrFreeDataBlocks(): number {
    return this.#metadata.nrFreeDataBlocks
  }

  get belowLowWater(): boolean {
    return this.nrFreeDataBlocks <= this.lowWaterMark
  }

  get #nrFreeMetadataBlocks(): number {
    return this.#metadata.nrMetadataBlocks - this.#metadata.nrAllocatedMetadataBlocks
  }

  get belowMetadataLowWater(): boolean {
    return this.#nrFreeMetadataBlocks <= this.metadataLowWaterMark
  }

  /** How many writes wait for space. */
  get writesWaiting(): number {
    return this.#queue.length
  }

  /** How often a write has waited for space, up to now. */
  get nrWaits(): number {
    return this.#queue.nrWaits
  }

  /** How many of them are a device's. */
  writesWaitingOf(device: SpaceOwner): number {
    return this.#queue.lengthOf(device)
  }

  /** Bytes that the host can still give to free data blocks; null where that is no question. */
  get hostRoomForData(): number | null {
    return this.#host.availableForData(
      this.#metadata.nrAllocatedDataBlocks * this.#blocks.blockSize,
    )
  }

  /** The same for metadata. */
  get hostRoomForMetadata(): number | null {
    return this.#host.availableForMetadata
  }

  /** Warnings for whoever runs the pool, a sentence each. */
  get warnings(): string[] {
    const low = this.#hostLow
    return [...this.#growth.warnings, ...(low === null ? [] : [low])]
  }

  /**
   * Whether a full pool queues writes now: `queue` turns into `error` when the wait was in vain.
   */
  get onFull(): PoolOptions['onFull'] {
    return this.#queue.expired ? 'error' : this.#onFull
  }

  /** In data blocks. */
  get lowWaterMark(): number {
    const mark = this.#lowWaterMarkOf
    return typeof mark === 'number' ? mark : mark(this.#metadata.nrDataBlocks)
  }

  /** The kernel's, in metadata blocks. */
  get metadataLowWaterMark(): number {
    return Math.min(1024, Math.floor(this.#metadata.nrMetadataBlocks / 4))
  }

  /** Data blocks kept back for the edges of discards. */
  get discardReserve(): number {
    const { nrDataBlocks } = this.#metadata
    if (nrDataBlocks < DISCARD_FROM) return 0
    return Math.min(DISCARD_MAX, Math.floor(nrDataBlocks / DISCARD_PART))
  }

  /** Free data blocks that writes can have, whichever device they are for. */
  get nrWritableDataBlocks(): number {
    return Math.max(0, this.nrFreeDataBlocks - this.discardReserve - this.reserves.kept)
  }

  /** Those that writes to one device can have. */
  nrWritableFor(devId: DevId): number {
    const kept = this.reserves.keptFor(devId)
    if (kept === 0) return this.nrWritableDataBlocks
    const free = this.nrFreeDataBlocks - (this.reserves.kept - kept)
    return Math.max(0, Math.min(free, kept), free - this.discardReserve)
  }

  /** Whether data blocks are kept for a device. */
  hasReserve(devId: DevId): boolean {
    return this.reserves.has(devId)
  }

  /**
   * Keeps data blocks for a device, as many as it lacks of so many of its own. Called again, it
   * sets another number.
   * @param blocks 0: none
   * @throws NO_DATA_SPACE when the pool has fewer that nobody has or is promised
   */
  async reserve(devId: DevId, blocks: number): Promise<void> {
    const { reserves } = this
    const before = reserves.blocksOf(devId)
    if (blocks <= before) {
      reserves.set(devId, blocks)
      return
    }
    try {
      // Blocks that the device has already are not kept for it.
      const own = await reserves.ownOf(devId)
      this.#state.mustBeWritable()
      this.mustKeep(Math.max(0, blocks - own) - reserves.keptFor(devId))
      reserves.set(devId, blocks)
    } finally {
      if (reserves.blocksOf(devId) === 0) reserves.forget(devId)
    }
  }

  /** Percent of the data, and of the metadata, that has to be free for a new volume. */
  minFree = 0

  /** @throws MIN_FREE_SPACE when less than `minFree` is free */
  mustHaveMinFree(): void {
    const { nrDataBlocks, nrMetadataBlocks } = this.#metadata
    this.#mustHaveMinFree('data', this.nrFreeDataBlocks, nrDataBlocks)
    this.#mustHaveMinFree('metadata', this.#nrFreeMetadataBlocks, nrMetadataBlocks)
  }

  #mustHaveMinFree(part: 'data' | 'metadata', free: number, blocks: number): void {
    if (this.minFree === 0 || 100 * free >= this.minFree * blocks) return
    const percent = ((100 * free) / blocks).toFixed(2)
    const what = `${percent}% of the pool's ${part} is free, min_free_space is ${this.minFree}%`
    const cure = `remove volumes, thinfs extend --${part}, or thinfs set POOL min_free_space=0%`
    throw new ThinfsError('MIN_FREE_SPACE', `${what}: ${cure}`)
  }

  /** @throws NO_DATA_SPACE when so many more data blocks cannot be kept */
  mustKeep(blocks: number): void {
    if (blocks <= this.nrWritableDataBlocks) return
    const { blockSize, path } = this.#blocks
    const wanted = blocks * blockSize
    const has = this.nrWritableDataBlocks * blockSize
    const what = `${path}: ${wanted} bytes more would have to be reserved, ${has} are free`
    const cure = 'thinfs extend --data makes the pool larger'
    throw new ThinfsError('NO_DATA_SPACE', `${what}: ${cure}`)
  }

  /** Metadata blocks kept back so that a commit always has room. */
  get metadataReserve(): number {
    return Math.min(RESERVE_MAX, Math.floor(this.#metadata.nrMetadataBlocks / RESERVE_PART))
  }

  /**
   * A new table says what a full pool does, and when that is told, and its stores may have become
   * longer. As in the kernel, events are raised anew; callers that wait for space try again, or
   * fail.
   */
  async reconfigure(changes: Pick<PoolOptions, 'onFull' | 'lowWaterMark'>): Promise<void> {
    this.#lowWaterMarkOf = changes.lowWaterMark
    this.#lowData.reset()
    const grew = this.growToStores()
    this.setOnFull(changes.onFull)
    if (grew) await this.#commits.commit()
  }

  /**
   * What a full pool does from now on. Callers that wait for space try again, with all of their
   * time before them, or fail.
   */
  setOnFull(onFull: OnFull): void {
    this.#onFull = onFull
    this.#startOver(onFull)
  }

  /** The same for one device; null: as the pool. */
  setOnFullOf(device: { onFull: OnFull | null }, onFull: OnFull | null): void {
    if (device.onFull === onFull) return
    device.onFull = onFull
    this.#startOver(onFull ?? this.#onFull)
  }

  #startOver(onFull: OnFull): void {
    if (onFull === 'queue') this.#queue.wake()
    else this.#queue.retry()
  }

  /** Seconds that callers wait for space at most; 0: for ever. */
  get queueTimeout(): number {
    return this.#queue.timeout / 1000
  }

  set queueTimeout(seconds: number) {
    this.#queue.timeout = 1000 * seconds
  }

  canAllocate(devId: DevId, count: number, discards: boolean): boolean {
    this.#state.mustBeWritable()
    // Space that is kept for others is as good as in use.
    const kept = this.reserves.keptFor(devId)
    this.#growth.taking(Math.max(0, count - kept) + this.reserves.kept)
    // The kernel's rule: told when a block is wanted while no more than the mark are free.
    this.#lowData.note(this.nrFreeDataBlocks - (count - 1), this.lowWaterMark)
    if (!this.mayGrowData && this.#availableFor(devId, count, discards) < count) this.#giveWay()
    const available = this.#availableFor(devId, count, discards)
    return available >= count && this.hasMetadataRoom && this.#commits.draining === null
  }

  /** A write needs the blocks that a smaller pool would not have: they are given out again. */
  #giveWay(): void {
    this.#metadata.allocateDataBelow(this.#metadata.nrDataBlocks)
  }

  /** Notes the space that the host has: the log has to say so before it is used up. */
  noteHostLow(): void {
    const low = this.#hostLow
    if (low !== null && !this.#hostLowSeen) this.#events.warning(low, 'host_low')
    this.#hostLowSeen = low !== null
  }

  /** That the host can give less than the low water mark, and less than is free; null otherwise. */
  get #hostLow(): string | null {
    const room = this.hostRoomForData
    if (room === null) return null
    const blocks = Math.floor(room / this.#blocks.blockSize)
    if (blocks > this.lowWaterMark || blocks >= this.nrFreeDataBlocks) return null
    const free = this.nrFreeDataBlocks * this.#blocks.blockSize
    return `the host's disk has ${room} bytes left, the pool has ${free} bytes free`
  }

  // --- what happens elsewhere ---

  /** Freed blocks were released: they can be given out again. */
  released(): void {
    this.#spaceCame()
    this.#endReleaseWaits()
  }

  /** A commit is durable: it may have given metadata blocks back. */
  committed(): void {
    this.#growth.rearm()
    this.#growth.taking(this.reserves.kept)
    this.#lowMetadata.note(this.#nrFreeMetadataBlocks, this.metadataLowWaterMark)
    if (this.#state.mode === 'out_of_metadata_space') this.#spaceCame()
    this.noteHostLow()
  }

  /** The pool has failed, or closes: every waiting caller gets the error. */
  end(err: ThinfsError): void {
    this.#cancelWatch?.()
    this.reserves.end()
    this.#queue.reject(err)
    this.#endReleaseWaits()
  }

  /** Ends what waits on behalf of a device that was deleted. */
  forget(device: SpaceOwner): void {
    this.#queue.cancel(device, goneError(device.devId))
  }

  /**
   * Tries again until there is space: after a commit that frees blocks, when the files have grown,
   * and, with `on_full: queue`, whenever blocks become free, or the host has room, within
   * `queueTimeout`.
   * @param device on whose behalf; the wait ends when it is deleted
   * @param held bytes that waiting keeps in memory
   * @param attempt returns null when there is no room
   * @param signal ends the wait with its reason: no attempt follows
   * @throws NO_DATA_SPACE, NO_METADATA_SPACE, DEVICE_MISSING
   */
  withSpace<T>(
    device: SpaceOwner,
    held: number,
    attempt: () => Later<T | null>,
    signal?: AbortSignal,
  ): Promise<T> {
    return this.#withSpace(device, held, attempt, true, signal)
  }

  /** As `withSpace`, but only with what is free already or becomes so with a commit. */
  withSpaceNow<T>(device: SpaceOwner, attempt: () => Later<T | null>): Promise<T> {
    return this.#withSpace(device, 0, attempt, false)
  }

  async #withSpace<T>(
    device: SpaceOwner,
    held: number,
    attempt: () => Later<T | null>,
    mayQueue: boolean,
    signal?: AbortSignal,
  ): Promise<T> {
    let retries = true
    let waitsForRelease = true
    for (;;) {
      signal?.throwIfAborted()
      this.#state.mustBeWritable()
      this.#growth.toStores(false)
      this.#growth.rearm()
      if (this.#frozen > 0) await this.#commitForSpace()
      this.#state.mustBeWritable()
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
      const { counting } = this.reserves
      if (isData && counting !== null) {
        // Until all is counted, too much is kept.
        await unlessAborted(counting, signal)
        continue
      }
      // Freed blocks are released by themselves when reads or punches under way end.
      const { releasing, punching } = this.#blocks.freed
      const comes = releasing || (punching && retries)
      if (isData && this.#host.dataFull === null && comes && waitsForRelease) {
        retries = false
        waitsForRelease = await unlessAborted(this.#nextRelease(), signal)
        continue
      }
      const why = this.#noteFull(isData)
      // It may have been set while this one tried.
      const queues = mayQueue && (device.onFull ?? this.#onFull) === 'queue'
      if (!queues || this.#queue.expired || (!isData && this.#metadataFull === null)) {
        const path = isData ? this.#blocks.path : this.#store.path
        throw new ThinfsError(isData ? 'NO_DATA_SPACE' : 'NO_METADATA_SPACE', `${path}: ${why}`)
      }
      this.#watchStores()
      await this.#queue.wait(device, held, signal)
    }
  }

  /** Resolves when what was freed and committed can be given out again, or that takes too long. */
  async allReleased(): Promise<void> {
    while (this.#blocks.freed.releasing) if (!(await this.#nextRelease())) return
  }

  /** Resolves when some freed blocks were released: to false when that took too long. */
  #nextRelease(): Promise<boolean> {
    return new Promise(resolve => {
      const cancel = this.#clock.after(RELEASE_TIMEOUT, () => {
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
      await this.#commits.commit()
    } catch (err) {
      if (!this.#commits.stalled) throw err
    }
  }

  /** Changes the mode. @returns why there is no room */
  #noteFull(isData: boolean): string {
    const why = isData
      ? (this.#host.dataFull ?? this.#whyFull)
      : (this.#metadataFull ?? 'no free metadata blocks')
    this.#state.set(isData ? 'out_of_data_space' : 'out_of_metadata_space', why)
    return why
  }

  /** Why the host has no room for metadata; null when it has. */
  get #metadataFull(): string | null {
    return this.#commits.stalled ? this.#state.reason : this.#host.metadataFull
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

  // --- growth ---

  /** Makes the pool as large as its files have become. @returns whether it grew */
  growToStores(): boolean {
    return this.#growth.toStores(true)
  }

  /** Makes the pool larger, and its files; see `Growth`. Who waits for space goes on at once. */
  extend(wanted: Extension): Promise<void> {
    return this.#growth.extend(wanted)
  }

  /**
   * While writes wait for space, looks every second whether somebody has made the files larger or
   * the host has room again.
   */
  #watchStores(): void {
    this.#cancelWatch ??= this.#clock.after(WATCH_PERIOD, () => {
      this.#cancelWatch = null
      if (this.#queue.isEmpty && this.#host.dataFull === null) return
      try {
        this.#growth.toStores(false)
        this.#growth.rearm()
        this.#growth.taking(this.#queue.isEmpty ? 0 : 1)
      } catch {
        return // change() has failed the pool, and with it those who wait
      }
      if (this.#host.dataFull !== null && this.#host.hasMore) this.#spaceCame()
      else if (this.#host.dataFull !== null) this.#queue.retry()
      else if (this.#state.mode === 'out_of_metadata_space') this.#spaceCame()
      this.#watchStores()
    })
  }

  // --- inside ---

  /** Blocks that are free but wait for a commit, of the kind that is short. */
  get #frozen(): number {
    const metadata = this.#metadata
    if (this.hasMetadataRoom) {
      const frozen = this.nrFreeDataBlocks - metadata.nrAllocatableDataBlocks
      return frozen - this.#blocks.freed.nrReleasing
    }
    const free = metadata.nrMetadataBlocks - metadata.nrAllocatedMetadataBlocks
    return free - metadata.nrAllocatableMetadataBlocks
  }

  /** Data blocks that a write can be given now, whichever device it is for. */
  get #nrAvailable(): number {
    return this.#metadata.nrAllocatableDataBlocks - this.discardReserve - this.reserves.kept
  }

  /** The same, for a write of so many to one device: what is kept for others is not its. */
  #availableFor(devId: DevId, count: number, discards: boolean): number {
    const { nrAllocatableDataBlocks } = this.#metadata
    const kept = this.reserves.keptFor(devId)
    const available = nrAllocatableDataBlocks - (this.reserves.kept - kept)
    return discards || count <= kept ? available : available - this.discardReserve
  }

  get #whyFull(): string {
    const { kept } = this.reserves
    const hasFree = kept > 0 && this.nrFreeDataBlocks > this.discardReserve
    return hasFree ? RESERVED_BLOCKS : NO_DATA_BLOCKS
  }

  /** Whether a request may change mappings, and a commit still has room afterwards. */
  get hasMetadataRoom(): boolean {
    return this.#hasMetadata(1) && this.#host.secures(SECURED_MIN)
  }

  /**
   * The same for unmapping, which takes blocks before it gives more back: half the reserve is its.
   */
  get hasRoomToUnmap(): boolean {
    return this.#hasMetadata(1 / 2) && this.#host.secures(SECURED_TO_UNMAP)
  }

  /**
   * The same for what takes blocks and is followed by an unmapping that gives more back: that has its
   * half of the reserve afterwards.
   */
  get hasRoomToReplace(): boolean {
    return this.#hasMetadata(7 / 8) && this.#host.secures(SECURED_TO_UNMAP)
  }

  /** @param share of the reserve that has to be left */
  #hasMetadata(share: number): boolean {
    const reserve = Math.max(this.metadataReserve, RESERVE_MIN)
    const free = this.#metadata.nrAllocatableMetadataBlocks
    return (
      !this.#commits.stalled && free > reserve * share + this.#commits.nrUnmapped * MAPPING_COST
    )
  }

  /**
   * Commits, for the metadata blocks that this frees.
   * @throws NO_METADATA_SPACE when that is not enough
   */
  async makeRoom(): Promise<void> {
    await this.#commits.commit()
    this.mustHaveRoom(this.hasMetadataRoom)
  }

  /**
   * Whether there is room for one unmapping, though the host may have none in reserve. Others may
   * unmap between two turns: whoever goes on after a wait asks again.
   */
  get canUnmap(): boolean {
    return this.#hasMetadata(1 / 2)
  }

  /**
   * The same, until `canUnmap`. It commits even where the host reserves no space: that may free all
   * the room that can be had.
   */
  async makeRoomToUnmap(): Promise<void> {
    // What others have unmapped since the commit takes another one.
    do await this.#commits.commit()
    while (!this.canUnmap && this.#metadata.changed && !this.#commits.stalled)
    this.mustHaveRoom(this.canUnmap)
  }

  /** @throws NO_METADATA_SPACE saying why, unless `has` */
  mustHaveRoom(has: boolean): void {
    if (has) return
    const why = this.#metadataFull ?? FULL_METADATA
    throw new ThinfsError('NO_METADATA_SPACE', `${this.#store.path}: ${why}`)
  }

  /** There may be space: sets the mode, and lets waiting callers try again. */
  #spaceCame(): void {
    if (this.#state.mode === 'out_of_metadata_space' && !this.hasMetadataRoom) return
    this.#host.dataCame()
    if (this.#state.mode === 'out_of_data_space' || this.#state.mode === 'out_of_metadata_space') {
      if (this.#nrAvailable <= 0) {
        if (!this.#blocks.freed.releasing) this.#state.set('out_of_data_space', this.#whyFull)
        return
      }
      this.#state.set('write', null)
    }
    this.#queue.wake()
  }
}
