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
import { DataRoom } from './data-room.js'
import { type Extension, Growth, type GrowthParts } from './growth.js'
import { HostSpace } from './host-space.js'
import { MetadataRoom } from './metadata-room.js'
import type { OnFull, PoolOptions } from './options.js'
import type { PoolState } from './pool-state.js'
import { Reserves } from './reserves.js'
import { SpaceQueue } from './space-queue.js'

/** Milliseconds for which a write waits for freed blocks that are still being read or punched. */
const RELEASE_TIMEOUT = 60_000
/** The kernel's no_space_timeout, in seconds. */
const NO_SPACE_TIMEOUT = 60
/** While writes wait for space, the files' sizes are looked at so often, in milliseconds. */
const WATCH_PERIOD = 1000

export type SpaceParts = Pick<GrowthParts, 'metadata' | 'store' | 'blocks' | 'commits' | 'state'>

export class Space implements ProvisionerSpace {
  readonly #metadata: ThinMetadata
  readonly #store: Store
  readonly #blocks: DataBlocks
  readonly #commits: CommitPipeline
  readonly #state: PoolState
  readonly #clock: Clock
  readonly #queue: SpaceQueue
  readonly #host: HostSpace
  readonly #growth: Growth
  /** Blocks that are kept for devices. */
  readonly reserves: Reserves
  /** Free data blocks, and whose they are. */
  readonly data: DataRoom
  /** The room in the metadata. */
  readonly metadata: MetadataRoom
  #onFull: OnFull
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
    this.#onFull = options.onFull
    this.#queue = new SpaceQueue(clock, 1000 * (options.queueTimeout ?? NO_SPACE_TIMEOUT))
    this.#host = new HostSpace(blocks, store, metadata)
    this.reserves = new Reserves(metadata, clock, () => this.#spaceCame())
    const own = { metadata, state, host: this.#host, events }
    this.data = new DataRoom({ ...own, blocks, reserves: this.reserves }, options.lowWaterMark)
    this.metadata = new MetadataRoom({ ...own, commits, path: store.path })
    this.#growth = new Growth({
      ...{ ...parts, clock, events, autoextend },
      reserve: () => this.metadata.reserveOfRequests,
      hostRoom: () => ({ data: this.data.hostRoom, metadata: this.metadata.hostRoom }),
      mayGrowData: () => this.mayGrowData,
      grown: () => this.#spaceCame(),
    })
  }

  // --- what there is ---

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

  /** Warnings for whoever runs the pool, a sentence each. */
  get warnings(): string[] {
    const low = this.data.hostLow
    return [...this.#growth.warnings, ...(low === null ? [] : [low])]
  }

  /**
   * Whether a full pool queues writes now: `queue` turns into `error` when the wait was in vain.
   */
  get onFull(): PoolOptions['onFull'] {
    return this.#queue.expired ? 'error' : this.#onFull
  }

  /** Percent of the data, and of the metadata, that has to be free for a new volume. */
  minFree = 0

  /** @throws MIN_FREE_SPACE when less than `minFree` is free */
  mustHaveMinFree(): void {
    const { nrDataBlocks, nrMetadataBlocks } = this.#metadata
    this.#mustHaveMinFree('data', this.data.nrFree, nrDataBlocks)
    this.#mustHaveMinFree('metadata', this.metadata.nrFree, nrMetadataBlocks)
  }

  #mustHaveMinFree(part: 'data' | 'metadata', free: number, blocks: number): void {
    if (this.minFree === 0 || 100 * free >= this.minFree * blocks) return
    const percent = ((100 * free) / blocks).toFixed(2)
    const what = `${percent}% of the pool's ${part} is free, min_free_space is ${this.minFree}%`
    const cure = `remove volumes, thinfs extend --${part}, or thinfs set POOL min_free_space=0%`
    throw new ThinfsError('MIN_FREE_SPACE', `${what}: ${cure}`)
  }

  /**
   * A new table says what a full pool does, and when that is told, and its stores may have become
   * longer. As in the kernel, events are raised anew; callers that wait for space try again, or
   * fail.
   */
  async reconfigure(changes: Pick<PoolOptions, 'onFull' | 'lowWaterMark'>): Promise<void> {
    this.data.setLowWaterMark(changes.lowWaterMark)
    const grew = this.growToStores()
    this.setOnFull(changes.onFull)
    if (grew) await this.#commits.commit()
  }

  /**
   * Sets the answer of a full pool to writes from now on. Callers that wait for space try again,
   * with all of their time before them, or fail.
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

  /** Sets how long the writes of one device wait, in seconds, 0: for ever; null: as the pool's. */
  setQueueTimeoutOf(device: SpaceOwner, seconds: number | null): void {
    this.#queue.setTimeoutOf(device, seconds === null ? null : 1000 * seconds)
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
    this.data.noteWanted(count)
    if (!this.mayGrowData && this.data.availableFor(devId, count, discards) < count) this.#giveWay()
    const available = this.data.availableFor(devId, count, discards)
    return available >= count && this.metadata.hasRoom && this.#commits.unmapped.draining === null
  }

  /** A write needs the blocks that a smaller pool would not have: they are given out again. */
  #giveWay(): void {
    this.#metadata.allocateDataBelow(this.#metadata.nrDataBlocks)
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
    this.metadata.noteLow()
    if (this.#state.mode === 'out_of_metadata_space') this.#spaceCame()
    this.data.noteHostLow()
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
    this.#queue.setTimeoutOf(device, null)
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
      const { draining } = this.#commits.unmapped
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
      const isData = this.metadata.hasRoom
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
        this.#blocks.freed.hurry()
        waitsForRelease = await unlessAborted(this.#nextRelease(), signal)
        continue
      }
      const why = this.#noteFull(isData)
      // It may have been set while this one tried.
      const queues = mayQueue && (device.onFull ?? this.#onFull) === 'queue'
      if (
        !queues ||
        this.#queue.hasExpiredFor(device) ||
        (!isData && this.metadata.hostFull === null)
      ) {
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
      ? (this.#host.dataFull ?? this.data.whyFull)
      : (this.metadata.hostFull ?? 'no free metadata blocks')
    this.#state.set(isData ? 'out_of_data_space' : 'out_of_metadata_space', why)
    return why
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

  /**
   * Makes the pool larger, and its files; see `Growth`. Callers that wait for space go on at once.
   */
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
    return this.metadata.hasRoom ? this.data.nrFrozen : this.metadata.nrFrozen
  }

  /** There may be space: sets the mode, and lets waiting callers try again. */
  #spaceCame(): void {
    if (this.#state.mode === 'out_of_metadata_space' && !this.metadata.hasRoom) return
    this.#host.dataCame()
    if (this.#state.mode === 'out_of_data_space' || this.#state.mode === 'out_of_metadata_space') {
      if (this.data.nrAvailable <= 0) {
        if (!this.#blocks.freed.releasing) this.#state.set('out_of_data_space', this.data.whyFull)
        return
      }
      this.#state.set('write', null)
    }
    this.#queue.wake()
  }
}
