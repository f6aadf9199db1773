/**
 * The volumes of an open pool: thin devices by name.
 *
 * Every change of a name goes through one transaction: volumes.json first, then the pool's metadata
 * with the next transaction id, committed together. Changes wait for each other; I/O does not wait
 * for them.
 */
import {
  bytes,
  type DevId,
  MAX_DEVICE_SIZE,
  METADATA_BLOCK_SIZE,
  Slice,
  ThinfsError,
} from '../base/index.js'
import { checkVolumeName, type PoolConfig } from '../config/index.js'
import { mustBeFillable, type ThinPool } from '../pool/index.js'
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
import { ExternalOrigins, type OriginPlace, sizeOn } from './external-origin.js'
import { type BeginRequest, HiddenVolumes, type KeepRequest } from './hidden-volumes.js'
import { Messages } from './messages.js'
import { NameTransactions } from './name-transactions.js'
import { PoolCheck } from './pool-check.js'
import { statusOf } from './pool-status.js'
import { judge } from './prune.js'
import { Reaper } from './reaper.js'
import { checkSize, Sizes } from './sizes.js'
import { Statistics, type StatisticsBefore } from './statistics.js'
import { Usage } from './usage.js'
import {
  followEntry,
  hasToGo,
  mustBeUnused,
  mustNotBeHeld,
  reserveOf,
  type Volume,
  whyUsed,
} from './volume.js'
import { gone, VolumeSet, whatIsTrueOf } from './volume-set.js'
import { type TableFile, unnamed, type VolumeEntry, VolumeTable } from './volume-table.js'

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

/** Owner and mode of a volume: chmod and chown change these. */
export interface Ownership {
  mode?: number
  uid?: number
  gid?: number
}

const REMOVED = { removed: true }
const NO_RULES: VolumeRules = { limit: 0, reserve: 0, onFull: 'pool' }
type RulesOfEntry = Pick<VolumeEntry, 'limit' | 'reserve' | 'on_full'>

/**
 * An entry with other rules: 0 and `pool` take one away, those left out stay.
 * @throws BAD_ARGUMENT
 */
function withRules<E extends RulesOfEntry>(
  { limit: oldLimit = 0, reserve: oldReserve = 0, on_full: oldOnFull, ...rest }: E,
  { limit = oldLimit, reserve = oldReserve, onFull = oldOnFull ?? 'pool' }: VolumeRules,
): Omit<E, keyof RulesOfEntry> & RulesOfEntry {
  for (const [what, value] of Object.entries({ limit, reserve })) {
    if (Number.isInteger(value) && value >= 0 && value <= MAX_DEVICE_SIZE) continue
    throw new ThinfsError('BAD_ARGUMENT', `${what} ${value}: up to ${MAX_DEVICE_SIZE} is allowed`)
  }
  if (limit > 0 && reserve > limit) {
    const what = `a reserve of ${reserve} bytes is more than the limit of ${limit}`
    throw new ThinfsError('BAD_ARGUMENT', `${what} lets the volume have`)
  }
  if (onFull !== 'pool' && onFull !== 'queue' && onFull !== 'error') {
    throw new ThinfsError('BAD_ARGUMENT', `on_full ${onFull}: queue, error and none are allowed`)
  }
  return {
    ...rest,
    ...(limit > 0 && { limit }),
    ...(reserve > 0 && { reserve }),
    ...(onFull !== 'pool' && { on_full: onFull }),
  }
}

export class Volumes implements PoolAdmin {
  readonly pool: ThinPool
  readonly sizes: Sizes
  /** Counters of the work that was done. */
  readonly tally: Statistics
  readonly #options: VolumesOptions
  readonly #table: VolumeTable
  readonly #set: VolumeSet
  readonly #usage: Usage
  readonly #check: PoolCheck
  readonly #names: NameTransactions
  readonly #reaper: Reaper
  readonly #messages: Messages
  readonly #origins: ExternalOrigins
  /** Volumes that a command has for itself. */
  readonly hidden: HiddenVolumes
  #closing = false
  /** Ends what makes the pool smaller. */
  readonly #closed = new AbortController()
  #shrinking: Promise<unknown> = Promise.resolve()

  private constructor(options: VolumesOptions, table: VolumeTable) {
    const { pool, onChange } = options
    const origins = new ExternalOrigins(options.place)
    const set = new VolumeSet(pool, table, options, origins)
    const find = (devId: number): Volume | undefined => set.byDevId(devId)
    const names = new NameTransactions(pool, table, find)
    const mustNotBeClosing = (): void => this.#mustNotBeClosing()
    this.#options = options
    this.pool = pool
    this.tally = new Statistics(options.name, pool, options.now(), options.tenancy ?? null)
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
    this.#messages = new Messages({
      ...{ pool, table, names, volumes: set, reaper: this.#reaper, onChange },
    })
    this.hidden = new HiddenVolumes({
      ...{ pool, names, volumes: set, sizes: this.sizes, reaper: this.#reaper, onChange },
    })
    this.#usage = new Usage(pool, mustNotBeClosing)
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

  /** Takes the name away at once; the space follows when nobody has the volume open. */
  async unlink(name: string): Promise<void> {
    await this.#names.exclusive(async () => {
      const volume = this.#set.must(name)
      mustNotBeHeld(volume)
      await this.#unname([volume])
      if (volume.opens === 0) void this.#reaper.reap(volume)
    })
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
   * accepted, or there was nothing to lose by it. Where that is not possible now, the next change
   * does it.
   */
  async takeIdOver(): Promise<void> {
    if (!this.#table.hasOtherId || this.pool.mode !== 'write') return
    await this.#names.exclusive(() => this.#names.commit(new Map())).catch(() => {})
  }

  /**
   * Gives devices that another program made the names, sizes and origins that pool.yaml has for
   * their ids.
   */
  async adopt(wanted: PoolConfig['volumes']): Promise<void> {
    for (const [name, { id, size: given, snapshotOf, externalOrigin }] of Object.entries(wanted)) {
      const volume = id === undefined ? undefined : this.#set.byDevId(id)
      if (volume?.name !== unnamed(id!) || volume.entry.removed || this.#set.find(name)) continue
      const origin = snapshotOf === undefined ? null : (wanted[snapshotOf]?.id ?? null)
      const file = externalOrigin && this.#origins.describe(externalOrigin)
      const size = given ?? (file ? sizeOn(file) : volume.entry.size)
      const shows = file && { external_origin: { ...file, shown: Math.min(file.size, size) } }
      const entry = { ...volume.entry, name, size, origin, ...shows }
      if (this.pool.writable) await this.#adopt(volume, entry)
      else this.#name(volume, volume.name, entry)
    }
  }

  /** Makes the volumes that pool.yaml names and the pool lacks, origins before their snapshots. */
  async makeMissing(wanted: PoolConfig['volumes']): Promise<void> {
    const missing = Object.entries(wanted).filter(([name]) => !this.#set.find(name))
    // An id of one of them may belong to a volume that is on its way out.
    if (missing.length > 0) await this.#reaper.ended()
    while (missing.length > 0) {
      const ready = missing.findIndex(
        ([, { snapshotOf }]) => snapshotOf === undefined || this.#set.find(snapshotOf),
      )
      const [[name, volume]] = missing.splice(Math.max(ready, 0), 1) as [(typeof missing)[number]]
      const request = { name, ...(volume.id === undefined ? {} : { devId: volume.id }) }
      const { limit = 0, reserve = 0 } = volume
      if (volume.snapshotOf === undefined) {
        const { size, externalOrigin } = volume
        await this.create({
          ...request,
          ...(size !== null && { size }),
          ...(externalOrigin !== undefined && { externalOrigin }),
          ...{ limit, reserve },
        })
      } else {
        await this.snapshot({ ...request, origin: volume.snapshotOf })
        if (volume.size !== null) await this.resize({ name, size: volume.size, shrink: true })
        if (limit > 0 || reserve > 0) await this.setVolume({ name, limit, reserve })
      }
    }
  }

  // --- PoolAdmin ---

  async create({
    name,
    size,
    devId,
    externalOrigin,
    ...rules
  }: {
    name: string
    size?: number
    devId?: number
    externalOrigin?: string
  } & VolumeRules): Promise<VolumeInfo> {
    const more = withRules({}, rules)
    if (externalOrigin === undefined) {
      if (size === undefined)
        throw new ThinfsError('BAD_ARGUMENT', `${name}: a volume needs a size`)
      return this.#info(await this.make(name, size, devId, more))
    }
    mustBeFillable(this.pool.blockSize)
    const origin = this.#origins.describe(externalOrigin)
    const shown = Math.min(origin.size, size ?? origin.size)
    const all = { ...more, external_origin: { ...origin, shown } }
    return this.#info(await this.make(name, size ?? sizeOn(origin), devId, all))
  }

  /** As `create`. @param more of the entry: permission bits and owner of the file, rules */
  make(
    name: string,
    size: number,
    wanted?: number,
    more: Ownership & RulesOfEntry & Pick<VolumeEntry, 'external_origin'> = {},
  ): Promise<Volume> {
    return this.#names.exclusive(async () => {
      checkSize(size)
      this.#set.mustBeNew(name)
      const devId = this.#set.newDevId(wanted)
      const entry = { ...this.#set.newEntry(name, devId, size), ...more }
      const { space, devices } = this.pool
      space.mustHaveMinFree()
      if (!space.hasMetadataRoom) await space.makeRoom()
      await this.#names.commit(new Map([[devId, entry]]), () => {
        const kept = reserveOf(this.pool, entry)
        space.mustKeep(kept)
        devices.createThin(devId)
        space.reserves.set(devId, kept)
      })
      this.#options.onChange('created', name, devId)
      return this.#set.add(devId)
    })
  }

  snapshot(request: { origin: string; name: string; devId?: number }): Promise<VolumeInfo> {
    return this.snapshotAnd(request, () => {})
  }

  /** As `snapshot`, and calls `taken` between the last request that is in it and the next. */
  snapshotAnd(
    request: { origin: string; name: string; devId?: number },
    taken: () => void,
  ): Promise<VolumeInfo> {
    return this.#names.exclusive(async () => {
      const origin = this.#set.must(request.origin)
      this.#set.mustBeNew(request.name)
      const devId = this.#set.newDevId(request.devId)
      const from = origin.devId as DevId
      this.pool.space.mustHaveMinFree()
      if (!this.pool.space.hasMetadataRoom) await this.pool.space.makeRoom()
      const entry = this.#set.snapshotEntry(request.name, devId, origin)
      await this.#names.commit(new Map([[devId, entry]]), () => {
        this.pool.devices.createSnap(devId, from)
        taken()
      })
      this.#options.onChange(`created as snapshot of ${origin.name}`, request.name, devId)
      return this.#info(this.#set.add(devId))
    })
  }

  snapshotAll(request: { origins: string[]; suffix: string }): Promise<VolumeInfo[]> {
    return this.#names.exclusive(async () => {
      const origins = [...new Set(request.origins)].map(name => this.#set.must(name))
      const ids = this.#set.newDevIds(origins.length)
      const changes = new Map<number, VolumeEntry>()
      origins.forEach((origin, i) => {
        const name = `${origin.name}${request.suffix}`
        this.#set.mustBeNew(name)
        changes.set(ids[i]!, this.#set.snapshotEntry(name, ids[i]!, origin))
      })
      this.pool.space.mustHaveMinFree()
      if (!this.pool.space.hasMetadataRoom) await this.pool.space.makeRoom()
      const snapshots = origins.map(({ devId }, i) => [ids[i]!, devId as DevId] as const)
      await this.#names.commit(changes, () => this.pool.devices.createSnaps(snapshots))
      return origins.map((origin, i) => {
        const volume = this.#set.add(ids[i]!)
        this.#options.onChange(`created as snapshot of ${origin.name}`, volume.name, volume.devId)
        return this.#info(volume)
      })
    })
  }

  async rollback(request: { name: string; snapshot: string; keep?: string }): Promise<VolumeInfo> {
    const { name, snapshot, keep } = request
    const [before, volume] = await this.#names.exclusive(async () => {
      const before = this.#set.must(name)
      const to = this.#set.must(snapshot)
      if (to === before) throw new ThinfsError('BAD_ARGUMENT', `${name}: it is that volume itself`)
      if (keep !== undefined) this.#set.mustBeNew(keep)
      const { space, devices } = this.pool
      if (keep === undefined) {
        if (!space.hasRoomToReplace) await space.makeRoomToUnmap()
      } else if (!space.hasMetadataRoom) await space.makeRoom()
      mustBeUnused(before)
      const devId = this.#set.newDevId(undefined)
      const { mode, uid, gid, limit = 0, reserve = 0, on_full: onFull = 'pool' } = before.entry
      const kept = keep === undefined ? REMOVED : { name: keep }
      const entry = this.#set.snapshotEntry(name, devId, to)
      const changes = new Map([
        [before.devId, { ...withRules(before.entry, NO_RULES), ...kept }],
        [devId, withRules({ ...entry, mode, uid, gid }, { limit, reserve, onFull })],
      ])
      const replace = (): void => {
        const had = space.reserves.keptFor(before.devId as DevId)
        const wanted = space.reserves.blocksOf(before.devId as DevId)
        // Without `keep` it is given what the old state had, once that is reclaimed.
        if (keep !== undefined) space.mustKeep(wanted - had)
        if (keep === undefined) devices.createSnapInPlace(devId, to.devId as DevId)
        else devices.createSnap(devId, to.devId as DevId)
      }
      await this.#set.claimed([before], () => this.#names.commit(changes, replace))
      if (keep !== undefined) this.#set.renamed(before, name)
      this.#options.onChange(`rolled back to ${snapshot}`, name, devId)
      return [before, this.#set.add(devId)]
    })
    if (keep === undefined) await this.#reaper.reap(before)
    return this.#info(volume)
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

  async remove(request: { names: string[] }): Promise<void> {
    const volumes = await this.#names.exclusive(async () => {
      const found = [...new Set(request.names)].map(name => this.#set.must(name))
      for (const volume of found) mustBeUnused(volume)
      await this.#unname(found)
      return found
    })
    await Promise.all(volumes.map(volume => this.#reaper.reap(volume)))
  }

  async prune(request: PruneRequest): Promise<PrunedSnapshot[]> {
    const { snapshots, gone } = await this.#names.exclusive(async () => {
      const infos = Array.from(this.#set.named(), volume => this.#info(volume))
      const snapshots = judge(infos, request)
      const gone: Volume[] = []
      for (const snapshot of snapshots) {
        if (snapshot.kept.length > 0) continue
        const volume = this.#set.must(snapshot.name)
        snapshot.busy = whyUsed(volume)
        if (snapshot.busy === null) gone.push(volume)
      }
      if (request.dryRun === true || gone.length === 0) return { snapshots, gone: [] }
      await this.#unname(gone)
      return { snapshots, gone }
    })
    await Promise.all(gone.map(volume => this.#reaper.reap(volume)))
    return snapshots
  }

  rename(request: { from: string; to: string }): Promise<VolumeInfo> {
    return this.#names.exclusive(async () => {
      const volume = this.#set.must(request.from)
      this.#set.mustBeNew(request.to)
      await this.#rename(volume, request.to)
      return this.#info(volume)
    })
  }

  /**
   * rename(2): the name may be taken; the volume that had it is unlinked, or gets the other name.
   * @param exchange identifies the request for the latter, which is done once; null for the former
   */
  renameOver(from: string, to: string, exchange: string | null): Promise<void> {
    return this.#names.exclusive(async () => {
      if (exchange !== null && exchange === this.#table.exchange) return
      const volume = this.#set.must(from)
      const other = this.#set.find(to)
      if (volume === other) return
      if (!other) {
        if (exchange !== null) throw new ThinfsError('VOLUME_MISSING', to)
        checkVolumeName(to)
        await this.#rename(volume, to)
        return
      }
      if (exchange === null) mustNotBeHeld(other)
      const entry = { ...volume.entry, name: to }
      const before =
        exchange !== null ? { ...other.entry, name: from } : { ...other.entry, removed: true }
      const changes = new Map([
        [volume.devId, entry],
        [other.devId, before],
      ])
      await this.#names.commit(changes, undefined, undefined, exchange)
      this.#options.onChange(`renamed to ${to}`, from, volume.devId)
      this.#set.renamed(volume, from)
      if (exchange !== null) this.#set.renamed(other, to)
      else if (other.opens === 0) void this.#reaper.reap(other)
    })
  }

  async resize(
    { name, size, shrink = false }: { name: string; size: number; shrink?: boolean },
    signal?: AbortSignal,
  ): Promise<VolumeInfo> {
    checkSize(size)
    const volume = this.#set.must(name)
    await this.sizes.resize(volume, size, shrink, signal)
    await this.#options.onResized(volume.devId, size)
    return this.#info(volume)
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
        await this.pool.space.reserve(volume.devId as DevId, reserveOf(this.pool, entry))
        await this.#names.commit(new Map([[volume.devId, entry]]))
      } catch (err) {
        if (this.#set.byDevId(volume.devId) === volume) followEntry(this.pool, volume)
        throw err
      }
      return this.#info(volume)
    })
  }

  async extend(request: { data?: number; metadata?: number }) {
    const { metadata, blockSize, space } = this.pool
    this.#mustNotBeClosing()
    await space.extend(request)
    return {
      data: metadata.nrDataBlocks * blockSize,
      metadata: metadata.nrMetadataBlocks * METADATA_BLOCK_SIZE,
    }
  }

  async shrink(
    { data, dryRun = false }: { data: number; dryRun?: boolean },
    signal?: AbortSignal,
  ): Promise<{ data: number; moved: number }> {
    const { metadata, blockSize, shrink } = this.pool
    this.#mustNotBeClosing()
    if (dryRun) {
      const { blocks, moves } = await shrink.plan(data)
      return { data: blocks * blockSize, moved: moves * blockSize }
    }
    const ends = [this.#closed.signal, ...(signal === undefined ? [] : [signal])]
    const moving = shrink.run(data, {
      signal: AbortSignal.any(ends),
      mayMove: () => !this.hidden.areRead,
    })
    this.#shrinking = Promise.allSettled([this.#shrinking, moving])
    const moves = await moving
    return { data: metadata.nrDataBlocks * blockSize, moved: moves * blockSize }
  }

  async set({ onFull, queueTimeout, minFreeSpace }: PoolSettings): Promise<void> {
    const { space } = this.pool
    this.#mustNotBeClosing()
    if (onFull !== undefined && onFull !== 'queue' && onFull !== 'error') {
      throw new ThinfsError('BAD_ARGUMENT', `on_full ${onFull}: queue and error are allowed`)
    }
    if (queueTimeout !== undefined && !(queueTimeout >= 0)) {
      throw new ThinfsError('BAD_ARGUMENT', `queue_timeout ${queueTimeout}: 0 or more is allowed`)
    }
    if (minFreeSpace !== undefined && !(minFreeSpace >= 0 && minFreeSpace < 100)) {
      const allowed = 'percent from 0 to 99 are allowed'
      throw new ThinfsError('BAD_ARGUMENT', `min_free_space ${minFreeSpace}: ${allowed}`)
    }
    if (minFreeSpace !== undefined) space.minFree = minFreeSpace
    if (queueTimeout !== undefined) space.queueTimeout = queueTimeout
    if (onFull !== undefined) space.setOnFull(onFull)
  }

  async list({ exclusive = false }: { exclusive?: boolean } = {}): Promise<VolumeInfo[]> {
    const volumes = [...this.#set.named()].sort((a, b) => (a.name < b.name ? -1 : 1))
    const infos: VolumeInfo[] = []
    const slice = new Slice(this.pool.clock)
    for (const volume of volumes) {
      if (slice.isOver) await slice.yield()
      // Some may be removed, or renamed, between two slices.
      if (this.#set.find(volume.name) !== volume) continue
      const info = this.#info(volume)
      if (exclusive) {
        try {
          info.exclusive = await this.exclusiveBytes(volume)
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
    return { bytes: await this.#usage.exclusiveTogether(volumes) }
  }

  async status(): Promise<PoolStatus> {
    const status = await statusOf(this.#options, [...this.#set.named()])
    const unreadable = this.#origins.whatIsOdd(this.#set.named())
    const partial = this.hidden.partials().map(({ name, mapped }) => {
      const how = `thinfs receive POOL ${name} --token lets it go on, --abort gives them back`
      return `${name}: ${mapped} bytes of a stream that was cut short are kept; ${how}`
    })
    const warnings = [...status.warnings, ...unreadable, ...partial]
    return { ...status, check: this.#check.progress, warnings }
  }

  async statistics(): Promise<PoolStatistics> {
    return this.tally.of(this.#set.named())
  }

  blockMap({ cells }: { cells: number }): Promise<BlockMap> {
    const volumes = [...this.#set.named()]
    return blockMapOf(this.pool, volumes, cells, () => this.#mustNotBeClosing())
  }

  /** Goes on with the counters of the engine before. */
  resumeStatistics(before: StatisticsBefore): void {
    this.tally.resume(before, devId => this.byDevId(devId))
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
    this.#closed.abort(new ThinfsError('NOT_MOUNTED', 'the pool is being closed'))
    await this.#shrinking
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

  /** Gives a device that another program made the entry that it lacks. */
  #adopt(volume: Volume, entry: VolumeEntry): Promise<void> {
    return this.#names.exclusive(async () => {
      const before = volume.name
      await this.#names.commit(new Map([[volume.devId, entry]]))
      this.#name(volume, before, entry)
      this.#options.onChange(`named, ${entry.size} bytes`, entry.name, volume.devId)
    })
  }

  #name(volume: Volume, before: string, entry: VolumeEntry): void {
    volume.entry = entry
    volume.device.size = bytes(entry.size)
    this.#set.showOrigin(volume)
    this.#set.renamed(volume, before)
  }

  async #rename(volume: Volume, to: string): Promise<void> {
    const from = volume.name
    await this.#names.commit(new Map([[volume.devId, { ...volume.entry, name: to }]]))
    this.#set.renamed(volume, from)
    this.#options.onChange(`renamed to ${to}`, from, volume.devId)
  }

  /** Takes names away; what was there stays until it is reaped. */
  async #unname(volumes: Volume[]): Promise<void> {
    const gone = volumes.map(volume => [volume.devId, { ...volume.entry, removed: true }] as const)
    await this.#set.claimed(volumes, () => this.#names.commit(new Map(gone)))
    for (const volume of volumes) this.#options.onChange('removed', volume.name, volume.devId)
  }

  #info(volume: Volume): VolumeInfo {
    const { entry } = volume
    return {
      name: entry.name,
      devId: volume.devId,
      size: volume.device.size,
      mapped: this.mappedBytes(volume),
      exclusive: null,
      limit: entry.limit ?? null,
      reserve: entry.reserve ?? null,
      onFull: entry.on_full ?? null,
      origin: this.originOf(volume),
      externalOrigin: entry.external_origin?.path ?? null,
      created: entry.created,
      open: volume.opens > 0,
    }
  }

  /** Name of the volume that a volume is a snapshot of; null for none or when that is gone. */
  originOf({ entry, generation }: Volume): string | null {
    const origin = entry.origin === null ? undefined : this.#set.byDevId(entry.origin)
    // A device that is younger than its snapshot has the id only.
    return origin && !origin.entry.removed && origin.generation <= generation ? origin.name : null
  }

  /** Bytes of the data blocks that a volume maps. */
  mappedBytes(volume: Volume): number {
    return this.pool.metadata.details(volume.devId as DevId).mappedBlocks * this.pool.blockSize
  }

  /** Bytes of those that nothing else maps; see `Usage`. */
  exclusiveBytes(volume: Volume): Promise<number> {
    return this.#usage.exclusiveBytes(volume)
  }
}
