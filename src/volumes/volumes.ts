/**
 * The volumes of an open pool: thin devices by name.
 *
 * Every change of a name goes through one transaction: volumes.json first, then the pool's metadata
 * with the next transaction id, committed together. Changes wait for each other; I/O does not wait
 * for them.
 */
import { type DevId, Slice, ThinfsError } from '../base/index.js'
import type { PoolConfig } from '../config/index.js'
import type { ThinPool } from '../pool/index.js'
import type { Store } from '../storage/index.js'
import type { Tenancy } from '../tenancy/index.js'
import type {
  BlockMap,
  CheckReport,
  Held,
  NewVolume,
  PartialVolume,
  PoolAdmin,
  PoolSettings,
  PoolStatistics,
  PoolStatus,
  PrunedSnapshot,
  PruneRequest,
  VolumeInfo,
  VolumeRules,
} from './admin.js'
import { blockMapOf } from './block-map.js'
import { ExternalOrigins, type OriginPlace } from './external-origin.js'
import { type BeginRequest, HiddenVolumes, type KeepRequest } from './hidden-volumes.js'
import { Messages } from './messages.js'
import { NameTransactions } from './name-transactions.js'
import { type NameParts, Namespace } from './namespace.js'
import { type CreateRequest, NewVolumes, type Ownership } from './new-volumes.js'
import { PoolCheck } from './pool-check.js'
import { statusOf } from './pool-status.js'
import { Reaper } from './reaper.js'
import { checkSize, Sizes } from './sizes.js'
import { type SnapshotRequest, Snapshots } from './snapshots.js'
import { SpaceCommands } from './space-commands.js'
import { Statistics, type StatisticsBefore } from './statistics.js'
import { Usage } from './usage.js'
import { followEntry, hasToGo, reserveOf, type Volume } from './volume.js'
import { VolumeInfos } from './volume-infos.js'
import { withRules } from './volume-rules.js'
import { gone, VolumeSet, whatIsTrueOf } from './volume-set.js'
import { type TableFile, VolumeTable } from './volume-table.js'
import { WantedVolumes } from './wanted-volumes.js'

export interface VolumesOptions {
  /** Name of the pool. */
  name: string
  pool: ThinPool
  metadata: Store
  /** volumes.json. */
  table: TableFile
  /** Owner of new volumes. */
  uid: number
  gid: number
  /** Seconds since 1970. */
  now: () => number
  /** Tells of a volume that was made, removed, renamed or resized. */
  onChange: (what: string, volume: string, devId: number) => void
  /** The folder that the paths of external origins count from. */
  place: OriginPlace
  /** Warnings from opening the pool, a sentence each. */
  warnings?: readonly string[]
  /** By which this process may write to the pool; null where nothing but locks says so. */
  tenancy?: Tenancy | null
  /** Why the pool, which is opened to be read, would not be opened to be written to. */
  refusal?: string | null
  /** A command has set a size. Caches of content have to know before the command is answered. */
  onResized: (devId: number, size: number) => Promise<void>
}

export class Volumes implements PoolAdmin {
  readonly pool: ThinPool
  readonly sizes: Sizes
  readonly #statistics: Statistics
  readonly infos: VolumeInfos
  /** The exclusive space of volumes. */
  readonly usage: Usage
  /** How volumes come to be without an origin. */
  readonly newVolumes: NewVolumes
  readonly namespace: Namespace
  readonly #options: VolumesOptions
  readonly #table: VolumeTable
  readonly #set: VolumeSet
  readonly #check: PoolCheck
  readonly #names: NameTransactions
  readonly #reaper: Reaper
  readonly #messages: Messages
  readonly #snapshots: Snapshots
  readonly #wanted: WantedVolumes
  readonly #space: SpaceCommands
  readonly #origins: ExternalOrigins
  readonly #warned: string[] = []
  /** Volumes that a command has for itself. */
  readonly hidden: HiddenVolumes
  #closing = false

  private constructor(options: VolumesOptions, table: VolumeTable) {
    const { pool, onChange } = options
    const origins = new ExternalOrigins(options.place)
    const set = new VolumeSet(pool, table, options, origins)
    const find = (devId: number): Volume | undefined => set.byDevId(devId)
    const names = new NameTransactions(pool, table, find)
    const mustNotBeClosing = (): void => this.#mustNotBeClosing()
    this.#options = options
    this.pool = pool
    const { tenancy = null } = options
    this.#statistics = new Statistics(options.name, pool, set, options.now(), tenancy)
    this.#table = table
    this.#set = set
    this.#origins = origins
    this.#names = names
    this.sizes = new Sizes({
      ...{ pool, table, names, clock: pool.clock, find, onChange },
      mustBeThere: volume => set.mustBeThere(volume),
    })
    this.#reaper = new Reaper({
      ...{ pool, names },
      isClosing: () => this.#closing,
      mayGo: volume => !this.#closing && find(volume.devId) === volume,
      gone: volume => set.drop(volume),
      failed: ({ name, devId }, err) =>
        onChange(`not yet reclaimed: ${(err as Error).message}`, name, devId),
    })
    this.infos = new VolumeInfos(pool, set)
    const parts: NameParts = {
      ...{ pool, table, names, volumes: set, reaper: this.#reaper, infos: this.infos, onChange },
    }
    this.newVolumes = new NewVolumes(parts, origins)
    this.namespace = new Namespace(parts)
    this.#snapshots = new Snapshots(parts)
    this.#wanted = new WantedVolumes(parts, origins)
    this.#messages = new Messages(parts)
    this.hidden = new HiddenVolumes(parts, this.sizes)
    this.#space = new SpaceCommands(pool, () => this.hidden.areRead, mustNotBeClosing)
    this.usage = new Usage(pool, mustNotBeClosing)
    const nameOf = (devId: number): string => find(devId)?.name ?? `device ${devId}`
    this.#check = new PoolCheck({ ...options, names, nameOf, mustNotBeClosing })
  }

  /** Opens what volumes.json and the pool hold together; goes on with removals cut short. */
  static open(options: VolumesOptions): Volumes {
    const { metadata } = options.pool
    const { name } = options
    const { transactionId, uuid } = metadata
    const table = VolumeTable.load(options.table, { name, transactionId, uuid })
    const volumes = new Volumes(options, table)
    table.adapt(entry => whatIsTrueOf(entry, options.pool, table.doubt))
    for (const devId of metadata.deviceIds()) volumes.#set.add(devId)
    for (const volume of volumes.#set.all()) {
      if (hasToGo(volume) && options.pool.writable) {
        void volumes.#reaper.reap(volume)
      }
    }
    volumes.hidden.takeOver()
    if (options.pool.devices.unsavedSizes.size > 0) volumes.sizes.saveSoon()
    return volumes
  }

  // --- for the file system ---

  /** Volumes that have a name, in no particular order. */
  all(): IterableIterator<Volume> {
    return this.#set.named()
  }

  get count(): number {
    return this.#set.count
  }

  find(name: string): Volume | undefined {
    return this.#set.find(name)
  }

  /** Also finds volumes whose name is gone while somebody has them open. */
  byDevId(devId: number): Volume | undefined {
    return this.#set.byDevId(devId)
  }

  /**
   * @param handle tells this open from all others of the mount
   * @throws VOLUME_MISSING for one whose name is gone and whose space follows it; VOLUME_BUSY while
   *   a command makes it smaller; ORIGIN_CHANGED
   */
  opened(volume: Volume, handle: number): void {
    const goes = volume.entry.removed || volume.claim === 'removal'
    if (goes && volume.opens === 0 && !volume.awaited) throw gone(volume)
    if (volume.claim === 'shrink') {
      throw new ThinfsError('VOLUME_BUSY', `${volume.name}: it is being made smaller`)
    }
    if (volume.entry.external_origin !== undefined) this.#origins.fileOf(volume.entry)
    this.pool.devices.opened(volume.device.devId, handle)
    volume.opens = this.pool.devices.openCount(volume.device.devId)
    volume.awaited = false
  }

  released(volume: Volume, handle: number): void {
    if (volume.opens === 0) return // sent again: the process that is dead has done it
    this.pool.devices.closed(volume.device.devId, handle)
    volume.opens = this.pool.devices.openCount(volume.device.devId)
    if (hasToGo(volume)) void this.#reaper.reap(volume)
  }

  /** Sets who may open a volume. */
  async setOwnership(volume: Volume, to: Ownership): Promise<void> {
    await this.#names.exclusive(async () => {
      this.#set.mustBeThere(volume)
      await this.#names.commit(new Map([[volume.devId, { ...volume.entry, ...to }]]))
    })
  }

  /** Makes a volume durable, and everything that this depends on. */
  flush({ device, disk, io }: Volume): Promise<void> {
    return io === disk ? this.flushDevice(device.devId) : io.flush()
  }

  /** As `flush`, whatever stands before the device. */
  flushDevice(devId: DevId): Promise<void> {
    return this.pool.devices.unsavedSizes.has(devId) ? this.commit() : this.pool.flush(devId)
  }

  /** Makes everything durable, sizes too. */
  commit(): Promise<void> {
    return this.sizes.commit()
  }

  /**
   * Puts the id of the metadata into volumes.json where that has another one: the metadata was
   * accepted, or there was nothing to lose by it. If that is not possible now, the next change does
   * it.
   */
  async takeIdOver(): Promise<void> {
    if (!this.#table.hasOtherId || this.pool.mode !== 'write') return
    await this.#names.exclusive(() => this.#names.commit(new Map())).catch(() => {})
  }

  /** Gives devices that another program made what pool.yaml has for their ids. */
  adopt(wanted: PoolConfig['volumes']): Promise<void> {
    return this.#wanted.adopt(wanted)
  }

  /** Makes the volumes that pool.yaml names and the pool lacks. */
  makeMissing(wanted: PoolConfig['volumes']): Promise<void> {
    return this.#wanted.makeMissing(wanted, this)
  }

  // --- PoolAdmin ---

  create(request: CreateRequest): Promise<VolumeInfo> {
    return this.newVolumes.create(request)
  }

  snapshot(request: SnapshotRequest): Promise<VolumeInfo> {
    return this.snapshotAnd(request, () => {})
  }

  /** As `snapshot`, and calls `taken` between the last request that is in it and the next. */
  snapshotAnd(request: SnapshotRequest, taken: () => void): Promise<VolumeInfo> {
    return this.#snapshots.take(request, taken)
  }

  snapshotAll(request: { origins: string[]; suffix: string }): Promise<VolumeInfo[]> {
    return this.#snapshots.takeAll(request)
  }

  rollback(request: { name: string; snapshot: string; keep?: string }): Promise<VolumeInfo> {
    return this.#snapshots.rollback(request)
  }

  hold(request: { names: string[]; identify?: string }): Promise<Held> {
    return this.hidden.hold(request)
  }

  beginVolume(request: BeginRequest): Promise<NewVolume> {
    return this.hidden.begin(request)
  }

  keepVolume(request: KeepRequest): Promise<void> {
    return this.hidden.keep(request)
  }

  async partials(): Promise<PartialVolume[]> {
    return this.hidden.partials()
  }

  dropPartial(request: { name: string }): Promise<void> {
    return this.hidden.dropPartial(request)
  }

  nameVolume(request: { devId: number; name: string; content?: string }): Promise<void> {
    return this.hidden.name(request)
  }

  remove(request: { names: string[] }): Promise<void> {
    return this.namespace.remove(request)
  }

  prune(request: PruneRequest): Promise<PrunedSnapshot[]> {
    return this.namespace.prune(request)
  }

  rename(request: { from: string; to: string }): Promise<VolumeInfo> {
    return this.namespace.rename(request)
  }

  async resize(
    { name, size, shrink = false }: { name: string; size: number; shrink?: boolean },
    signal?: AbortSignal,
  ): Promise<VolumeInfo> {
    checkSize(size)
    const volume = this.#set.must(name)
    await this.sizes.resize(volume, size, shrink, signal)
    await this.#options.onResized(volume.devId, size)
    return this.infos.of(volume)
  }

  async mappedPast({ name, size }: { name: string; size: number }): Promise<{ bytes: number }> {
    checkSize(size)
    return { bytes: await this.#set.must(name).device.mappedFrom(size) }
  }

  setVolume({ name, ...rules }: { name: string } & VolumeRules): Promise<VolumeInfo> {
    return this.#names.exclusive(async () => {
      const volume = this.#set.must(name)
      const entry = withRules(volume.entry, rules)
      try {
        await this.pool.space.data.reserve(volume.devId as DevId, reserveOf(this.pool, entry))
        await this.#names.commit(new Map([[volume.devId, entry]]))
      } catch (err) {
        if (this.#set.byDevId(volume.devId) === volume) followEntry(this.pool, volume)
        throw err
      }
      return this.infos.of(volume)
    })
  }

  extend(request: {
    data?: number
    metadata?: number
  }): Promise<{ data: number; metadata: number }> {
    return this.#space.extend(request)
  }

  shrink(
    request: { data: number; dryRun?: boolean },
    signal?: AbortSignal,
  ): Promise<{ data: number; moved: number }> {
    return this.#space.shrink(request, signal)
  }

  async set(request: PoolSettings): Promise<void> {
    this.#space.set(request)
  }

  async list({
    exclusive = false,
    names,
  }: {
    exclusive?: boolean
    names?: string[]
  } = {}): Promise<VolumeInfo[]> {
    const wanted = names && new Set(names)
    const volumes = [...this.#set.named()]
      .filter(({ name }) => wanted?.has(name) ?? true)
      .sort((a, b) => (a.name < b.name ? -1 : 1))
    const infos: VolumeInfo[] = []
    const slice = new Slice(this.pool.clock)
    for (const volume of volumes) {
      if (slice.isOver) await slice.yield()
      // Some may be removed, or renamed, between two slices.
      if (this.#set.find(volume.name) !== volume) continue
      const info = this.infos.of(volume)
      if (exclusive) {
        try {
          info.exclusive = await this.usage.exclusiveBytes(volume)
        } catch (err) {
          if (this.#set.find(volume.name) === volume) throw err
          continue
        }
      }
      infos.push(info)
    }
    return infos
  }

  async exclusive({ names }: { names: string[] }): Promise<{ bytes: number }> {
    const volumes = [...new Set(names)].map(name => this.#set.must(name))
    return { bytes: await this.usage.exclusiveTogether(volumes) }
  }

  /** Has `status` warn of something, for as long as the pool is open. */
  warn(message: string): void {
    this.#warned.push(message)
  }

  async status(): Promise<PoolStatus> {
    const status = await statusOf(this.#options, [...this.#set.named()])
    const unreadable = this.#origins.whatIsOdd(this.#set.named())
    const partial = this.hidden.partials().map(({ name, mapped }) => {
      const how = `thinfs receive POOL ${name} --token lets it go on, --abort gives them back`
      return `${name}: ${mapped} bytes of a stream that was cut short are kept; ${how}`
    })
    const warnings = [...status.warnings, ...this.#warned, ...unreadable, ...partial]
    const { cache } = this.#statistics
    return { ...status, check: this.#check.progress, cache, warnings }
  }

  async statistics(): Promise<PoolStatistics> {
    return this.#statistics.now
  }

  blockMap({ cells }: { cells: number }): Promise<BlockMap> {
    const volumes = [...this.#set.named()]
    return blockMapOf(this.pool, volumes, cells, () => this.#mustNotBeClosing())
  }

  /** Goes on with the counters of the engine before. */
  resumeStatistics(before: StatisticsBefore): void {
    this.#statistics.resume(before)
  }

  message({ message }: { message: string }): Promise<void> {
    return this.#messages.handle(message)
  }

  check({ deep = false }: { deep?: boolean } = {}): Promise<CheckReport> {
    return this.#check.run(deep)
  }

  /** Waits for changes under way, leaves removals to the next opening, and closes the pool. */
  async close(): Promise<void> {
    this.#closing = true
    this.sizes.stop()
    await this.#space.close()
    await this.#check.ended
    await this.#names.exclusive(async () => {})
    await this.#reaper.ended()
    try {
      if (this.pool.writable) await this.commit()
    } finally {
      this.#origins.close()
      await this.pool.close()
    }
  }

  // --- inside ---

  #mustNotBeClosing(): void {
    if (this.#closing) throw new ThinfsError('NOT_MOUNTED', 'the pool is being closed')
  }
}
