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
  MAX_DEV_ID,
  MAX_DEVICE_SIZE,
  Slice,
  ThinfsError,
} from '../base/index.js'
import { checkVolumeName, type PoolConfig } from '../config/index.js'
import { parseMessage, type ThinPool } from '../pool/index.js'
import type { Store } from '../storage/index.js'
import type { CheckReport, PoolAdmin, PoolStatus, VolumeInfo } from './admin.js'
import { NameTransactions } from './name-transactions.js'
import { PoolCheck } from './pool-check.js'
import { statusOf } from './pool-status.js'
import { Reaper } from './reaper.js'
import { checkSize, Sizes } from './sizes.js'
import { Usage } from './usage.js'
import { mustBeUnused, mustNotBeHeld, Volume } from './volume.js'
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
  /** What was odd when the pool was opened, a sentence each. */
  warnings?: readonly string[]
  /** A command has set a size: whoever caches content has to know before it is answered. */
  onResized: (devId: number, size: number) => Promise<void>
}

/** Who may own a volume and how: what chmod and chown change. */
export interface Ownership {
  mode?: number
  uid?: number
  gid?: number
}

export class Volumes implements PoolAdmin {
  readonly pool: ThinPool
  readonly sizes: Sizes
  readonly #options: VolumesOptions
  readonly #table: VolumeTable
  readonly #byName = new Map<string, Volume>()
  readonly #byDevId = new Map<number, Volume>()
  readonly #usage: Usage
  readonly #check: PoolCheck
  readonly #names: NameTransactions
  readonly #reaper: Reaper
  #closing = false

  private constructor(options: VolumesOptions, table: VolumeTable) {
    this.#options = options
    this.pool = options.pool
    this.#table = table
    this.#names = new NameTransactions(options.pool, table, devId => this.#byDevId.get(devId))
    this.sizes = new Sizes({
      ...{ pool: options.pool, table, names: this.#names, clock: options.pool.clock },
      find: devId => this.#byDevId.get(devId),
      mustBeThere: volume => this.#mustBeThere(volume),
      onChange: options.onChange,
    })
    this.#reaper = new Reaper({
      pool: options.pool,
      names: this.#names,
      isClosing: () => this.#closing,
      mayGo: volume => !this.#closing && this.#byDevId.get(volume.devId) === volume,
      gone: volume => this.#byDevId.delete(volume.devId),
      failed: ({ name, devId }, err) =>
        options.onChange(`not yet reclaimed: ${(err as Error).message}`, name, devId),
    })
    const mustNotBeClosing = (): void => this.#mustNotBeClosing()
    this.#usage = new Usage(options.pool, mustNotBeClosing)
    const nameOf = (devId: number): string => this.#byDevId.get(devId)?.name ?? `device ${devId}`
    this.#check = new PoolCheck({ ...options, names: this.#names, nameOf, mustNotBeClosing })
  }

  /** Opens what volumes.json and the pool hold together; goes on with removals cut short. */
  static open(options: VolumesOptions): Volumes {
    const { metadata } = options.pool
    const { name } = options
    const { transactionId, uuid } = metadata
    const table = VolumeTable.load(options.table, { name, transactionId, uuid })
    const volumes = new Volumes(options, table)
    table.forget(devId => !metadata.hasDevice(devId as DevId))
    for (const devId of metadata.deviceIds()) volumes.#add(devId)
    for (const volume of volumes.#byDevId.values()) {
      if (volume.entry.removed && volume.opens === 0 && options.pool.writable) {
        void volumes.#reaper.reap(volume)
      }
    }
    if (options.pool.unsavedSizes.size > 0) volumes.sizes.saveSoon()
    return volumes
  }

  // --- for the file system ---

  /** Volumes that have a name, in no particular order. */
  all(): IterableIterator<Volume> {
    return this.#byName.values()
  }

  get count(): number {
    return this.#byName.size
  }

  find(name: string): Volume | undefined {
    return this.#byName.get(name)
  }

  /** Also finds volumes whose name is gone while somebody has them open. */
  byDevId(devId: number): Volume | undefined {
    return this.#byDevId.get(devId)
  }

  /**
   * @param handle tells this open from all others of the mount
   * @throws VOLUME_MISSING for one whose name is gone and whose space follows it; VOLUME_BUSY while
   *   a command makes it smaller
   */
  opened(volume: Volume, handle: number): void {
    const goes = volume.entry.removed || volume.claim === 'removal'
    if (goes && volume.opens === 0) throw gone(volume)
    if (volume.claim === 'shrink') {
      throw new ThinfsError('VOLUME_BUSY', `${volume.name}: it is being made smaller`)
    }
    this.pool.opened(volume.device.devId, handle)
    volume.opens = this.pool.openCount(volume.device.devId)
  }

  released(volume: Volume, handle: number): void {
    if (volume.opens === 0) return // sent again: the process that is dead has done it
    this.pool.closed(volume.device.devId, handle)
    volume.opens = this.pool.openCount(volume.device.devId)
    if (volume.opens === 0 && volume.entry.removed) void this.#reaper.reap(volume)
  }

  /** Takes the name away at once; the space follows when nobody has the volume open. */
  async unlink(name: string): Promise<void> {
    await this.#names.exclusive(async () => {
      const volume = this.#must(name)
      mustNotBeHeld(volume)
      await this.#unname([volume])
      if (volume.opens === 0) void this.#reaper.reap(volume)
    })
  }

  /** Sets who may open a volume. */
  async setOwnership(volume: Volume, to: Ownership): Promise<void> {
    await this.#names.exclusive(async () => {
      this.#mustBeThere(volume)
      await this.#names.commit(new Map([[volume.devId, { ...volume.entry, ...to }]]))
    })
  }

  /** Makes a volume durable, and everything that this depends on. */
  flush({ device, io }: Volume): Promise<void> {
    return io === device ? this.flushDevice(device.devId) : io.flush()
  }

  /** As `flush`, whatever stands before the device. */
  flushDevice(devId: DevId): Promise<void> {
    return this.pool.unsavedSizes.has(devId) ? this.commit() : this.pool.flush(devId)
  }

  /** Makes everything durable, sizes too. */
  commit(): Promise<void> {
    return this.sizes.commit()
  }

  /**
   * Puts the id of the metadata into volumes.json where that has another one: the metadata was accepted,
   * or there was nothing to lose by it. Where that is not possible now, the next change does it.
   */
  async takeIdOver(): Promise<void> {
    if (!this.#table.hasOtherId || this.pool.mode !== 'write') return
    await this.#names.exclusive(() => this.#names.commit(new Map())).catch(() => {})
  }

  /** Gives devices that another program made the names and sizes that pool.yaml has for their ids. */
  async adopt(wanted: PoolConfig['volumes']): Promise<void> {
    for (const [name, { id, size }] of Object.entries(wanted)) {
      const volume = id === undefined ? undefined : this.#byDevId.get(id)
      if (volume?.name !== unnamed(id!) || volume.entry.removed || this.#byName.has(name)) continue
      if (this.pool.writable) await this.#adopt(volume, name, size)
      else this.#name(volume, volume.name, { ...volume.entry, name, size })
    }
  }

  /** Makes the volumes that pool.yaml names and the pool lacks, origins before their snapshots. */
  async makeMissing(wanted: PoolConfig['volumes']): Promise<void> {
    const missing = Object.entries(wanted).filter(([name]) => !this.#byName.has(name))
    // An id of one of them may belong to a volume that is on its way out.
    if (missing.length > 0) await this.#reaper.ended()
    while (missing.length > 0) {
      const ready = missing.findIndex(
        ([, { snapshotOf }]) => snapshotOf === undefined || this.#byName.has(snapshotOf),
      )
      const [[name, volume]] = missing.splice(Math.max(ready, 0), 1) as [(typeof missing)[number]]
      const request = { name, ...(volume.id === undefined ? {} : { devId: volume.id }) }
      if (volume.snapshotOf === undefined) await this.create({ ...request, size: volume.size })
      else {
        await this.snapshot({ ...request, origin: volume.snapshotOf })
        await this.resize({ name, size: volume.size, shrink: true })
      }
    }
  }

  // --- PoolAdmin ---

  async create(request: { name: string; size: number; devId?: number }): Promise<VolumeInfo> {
    const volume = await this.make(request.name, request.size, request.devId)
    return this.#info(volume)
  }

  /** As `create`, with the permission bits and owner of the file. */
  make(name: string, size: number, wanted?: number, ownership: Ownership = {}): Promise<Volume> {
    return this.#names.exclusive(async () => {
      checkSize(size)
      this.#checkNewName(name)
      const devId = this.#newDevId(wanted)
      const entry = { ...this.#entry(name, devId, size, null), ...ownership }
      if (!this.pool.space.hasMetadataRoom) await this.pool.space.makeRoom()
      await this.#names.commit(new Map([[devId, entry]]), () => this.pool.createThin(devId))
      this.#options.onChange('created', name, devId)
      return this.#add(devId)
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
      const origin = this.#must(request.origin)
      this.#checkNewName(request.name)
      const devId = this.#newDevId(request.devId)
      const from = origin.devId as DevId
      if (!this.pool.space.hasMetadataRoom) await this.pool.space.makeRoom()
      const entry = this.#snapshotEntry(request.name, devId, origin)
      await this.#names.commit(new Map([[devId, entry]]), () => {
        this.pool.createSnap(devId, from)
        taken()
      })
      this.#options.onChange(`created as snapshot of ${origin.name}`, request.name, devId)
      return this.#info(this.#add(devId))
    })
  }

  async remove(request: { names: string[] }): Promise<void> {
    const volumes = await this.#names.exclusive(async () => {
      const found = [...new Set(request.names)].map(name => this.#must(name))
      for (const volume of found) mustBeUnused(volume)
      await this.#unname(found)
      return found
    })
    await Promise.all(volumes.map(volume => this.#reaper.reap(volume)))
  }

  rename(request: { from: string; to: string }): Promise<VolumeInfo> {
    return this.#names.exclusive(async () => {
      const volume = this.#must(request.from)
      this.#checkNewName(request.to)
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
      const volume = this.#must(from)
      const other = this.#byName.get(to)
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
      this.#byName.delete(from)
      this.#byName.set(to, volume)
      if (exchange !== null) this.#byName.set(from, other)
      else if (other.opens === 0) void this.#reaper.reap(other)
    })
  }

  async resize(
    { name, size, shrink = false }: { name: string; size: number; shrink?: boolean },
    signal?: AbortSignal,
  ): Promise<VolumeInfo> {
    checkSize(size)
    const volume = this.#must(name)
    await this.sizes.resize(volume, size, shrink, signal)
    await this.#options.onResized(volume.devId, size)
    return this.#info(volume)
  }

  async list({ exclusive = false }: { exclusive?: boolean } = {}): Promise<VolumeInfo[]> {
    const volumes = [...this.#byName.values()].sort((a, b) => (a.name < b.name ? -1 : 1))
    const infos: VolumeInfo[] = []
    const slice = new Slice(this.pool.clock)
    for (const volume of volumes) {
      if (slice.isOver) await slice.yield()
      // Some may be removed, or renamed, between two slices.
      if (this.#byName.get(volume.name) !== volume) continue
      const info = this.#info(volume)
      if (exclusive) {
        try {
          info.exclusive = await this.exclusiveBytes(volume)
        } catch (err) {
          if (this.#byName.get(volume.name) === volume) throw err
          continue
        }
      }
      infos.push(info)
    }
    return infos
  }

  async status(): Promise<PoolStatus> {
    return statusOf(this.#options, [...this.#byName.values()])
  }

  async message(request: { message: string }): Promise<void> {
    const { pool } = this
    if (pool.mode !== 'write' && pool.mode !== 'out_of_data_space') {
      throw new ThinfsError('NOT_SUPPORTED', `the pool is ${pool.mode}: ${pool.reason}`)
    }
    const message = parseMessage(request.message)
    if (message.kind === 'delete') return this.#delete(message.devId)
    return this.#names.exclusive(async () => {
      switch (message.kind) {
        case 'create_thin':
          return this.#makeUnnamed(message.devId, () => pool.createThin(message.devId))
        case 'create_snap':
          return this.#snapshotUnnamed(message.devId, message.origin)
        case 'set_transaction_id':
          if (pool.metadata.transactionId !== message.current) {
            const found = pool.metadata.transactionId
            throw new ThinfsError(
              'TRANSACTION_MISMATCH',
              `${message.current}, the pool is at ${found}`,
            )
          }
          return this.#names.jump(message.current, message.next)
        case 'reserve_metadata_snap':
          return pool.reserveMetadataSnap()
        case 'release_metadata_snap':
          return pool.releaseMetadataSnap()
      }
    })
  }

  check({ deep = false }: { deep?: boolean } = {}): Promise<CheckReport> {
    return this.#check.run(deep)
  }

  /** Waits for changes under way, leaves removals to the next opening, and closes the pool. */
  async close(): Promise<void> {
    this.#closing = true
    this.sizes.stop()
    await this.#check.ended
    await this.#names.exclusive(async () => {})
    await this.#reaper.ended()
    try {
      if (this.pool.writable) await this.commit()
    } finally {
      await this.pool.close()
    }
  }

  // --- inside ---

  #mustNotBeClosing(): void {
    if (this.#closing) throw new ThinfsError('NOT_MOUNTED', 'the pool is being closed')
  }

  /**
   * Makes a snapshot by a message: as large as its origin, which the pool does not know but we do.
   * The entry follows the commit. A crash between the two leaves a device without an entry, as any
   * that another program made.
   */
  async #snapshotUnnamed(devId: DevId, from: DevId): Promise<void> {
    const { pool } = this
    const origin = this.#byDevId.get(from)
    await this.#makeUnnamed(devId, () => pool.createSnap(devId, from))
    if (!origin) return
    const volume = this.#byDevId.get(devId)!
    const entry = this.#snapshotEntry(unnamed(devId), devId, origin)
    await this.#table.change(new Map([[devId, entry]]), pool.metadata.transactionId)
    volume.entry = entry
    volume.device.size = bytes(entry.size)
  }

  /** Makes a device by a message. The transaction id is not ours to change then. */
  async #makeUnnamed(devId: DevId, create: () => void): Promise<void> {
    const { pool } = this
    if (!pool.space.hasMetadataRoom) await pool.space.makeRoom()
    if (!pool.metadata.hasDevice(devId)) {
      // The file may have a name for an earlier device, which another program deleted.
      await this.#table.change(new Map([[devId, null]]), pool.metadata.transactionId)
    }
    create()
    await pool.commitOrUndo()
    this.#add(devId)
  }

  /** Gives a device that another program made a name and a size. */
  #adopt(volume: Volume, name: string, size: number): Promise<void> {
    return this.#names.exclusive(async () => {
      const before = volume.name
      const entry = { ...volume.entry, name, size }
      await this.#names.commit(new Map([[volume.devId, entry]]))
      this.#name(volume, before, entry)
      this.#options.onChange(`named, ${size} bytes`, name, volume.devId)
    })
  }

  #name(volume: Volume, before: string, entry: VolumeEntry): void {
    volume.entry = entry
    volume.device.size = bytes(entry.size)
    this.#byName.delete(before)
    this.#byName.set(entry.name, volume)
  }

  async #rename(volume: Volume, to: string): Promise<void> {
    const from = volume.name
    await this.#names.commit(new Map([[volume.devId, { ...volume.entry, name: to }]]))
    this.#byName.delete(from)
    this.#byName.set(to, volume)
    this.#options.onChange(`renamed to ${to}`, from, volume.devId)
  }

  /** Takes names away; what was there stays until it is reaped. */
  async #unname(volumes: Volume[]): Promise<void> {
    const gone = volumes.map(volume => [volume.devId, { ...volume.entry, removed: true }] as const)
    await this.#claimed(volumes, () => this.#names.commit(new Map(gone)))
    for (const volume of volumes) this.#options.onChange('removed', volume.name, volume.devId)
  }

  /**
   * Takes the names of volumes away for good if `act` succeeds. From the first moment on no request can
   * find or open them, so `act` may rely on their being unused if the caller saw that.
   */
  async #claimed(volumes: readonly Volume[], act: () => Promise<void>): Promise<void> {
    for (const volume of volumes) {
      volume.claim = 'removal'
      this.#byName.delete(volume.name)
    }
    try {
      await act()
    } catch (err) {
      for (const volume of volumes) this.#byName.set(volume.name, volume)
      throw err
    } finally {
      for (const volume of volumes) volume.claim = null
    }
  }

  /** The message `delete`: by device id. The transaction id is not ours to change then. */
  async #delete(devId: DevId): Promise<void> {
    const { pool } = this
    const change = (entry: VolumeEntry | null) =>
      this.#table.change(new Map([[devId, entry]]), pool.metadata.transactionId)
    const volume = await this.#names.exclusive(async () => {
      const volume = this.#byDevId.get(devId)
      // One whose name is gone is deleted by whoever took the name away.
      if (!volume || volume.entry.removed) {
        throw new ThinfsError('DEVICE_MISSING', `device ${devId}`)
      }
      mustBeUnused(volume, 'DEVICE_BUSY')
      const entry = { ...volume.entry, removed: true }
      await this.#claimed([volume], async () => void (await change(entry)))
      volume.entry = entry
      this.#options.onChange('removed', volume.name, devId)
      return volume
    })
    await this.#reaper.reapBy(volume, async () => {
      pool.deleteDevice(devId)
      await pool.commitOrUndo()
      await change(null)
    })
  }

  /** Takes a device of the pool in. */
  #add(devId: DevId): Volume {
    const { metadata } = this.pool
    const details = metadata.details(devId)
    const entry = this.#table.get(devId) ?? this.#unnamedEntry(devId)
    const device = this.pool.device(devId, this.pool.unsavedSizes.get(devId) ?? bytes(entry.size))
    const volume = new Volume(entry, device, details.transactionId + 1)
    volume.opens = this.pool.openCount(devId)
    this.#byDevId.set(devId, volume)
    if (!entry.removed) this.#byName.set(entry.name, volume)
    return volume
  }

  /** For a device that another program made: as large as what it maps, within what can be. */
  #unnamedEntry(devId: DevId): VolumeEntry {
    const mapped = (this.pool.metadata.highestMapped(devId) + 1) * this.pool.blockSize
    const size = Math.min(mapped, MAX_DEVICE_SIZE)
    return { ...this.#entry(unnamed(devId), devId, size, null), created: null }
  }

  #entry(name: string, devId: number, size: number, origin: number | null): VolumeEntry {
    return {
      name,
      dev_id: devId,
      size,
      origin,
      created: this.#options.now(),
      mode: 0o600,
      uid: this.#options.uid,
      gid: this.#options.gid,
      removed: false,
    }
  }

  /** The size is the origin's now: a write that makes the origin longer meanwhile is not in it. */
  #snapshotEntry(name: string, devId: number, origin: Volume): VolumeEntry {
    const { mode, uid, gid } = origin.entry
    return { ...this.#entry(name, devId, origin.device.size, origin.devId), mode, uid, gid }
  }

  #must(name: string): Volume {
    const volume = this.#byName.get(name)
    if (!volume) throw new ThinfsError('VOLUME_MISSING', `${name}: no volume has the name`)
    return volume
  }

  /** To be called after a wait: the volume may have gone meanwhile. */
  #mustBeThere(volume: Volume): void {
    if (this.#byDevId.get(volume.devId) !== volume) throw gone(volume)
  }

  #checkNewName(name: string): void {
    checkVolumeName(name)
    if (this.#byName.has(name)) {
      throw new ThinfsError('VOLUME_EXISTS', `${name}: a volume has the name`)
    }
  }

  /** The id asked for, or the first above all that are there. */
  #newDevId(wanted: number | undefined): DevId {
    if (wanted !== undefined) {
      if (!Number.isInteger(wanted) || wanted < 0 || wanted > MAX_DEV_ID) {
        throw new ThinfsError('BAD_ARGUMENT', `device id ${wanted}: 0 to ${MAX_DEV_ID} is allowed`)
      }
      if (this.#byDevId.has(wanted)) {
        throw new ThinfsError('DEVICE_EXISTS', `device id ${wanted} is in use`)
      }
      return wanted as DevId
    }
    let next = 0
    for (const devId of this.#byDevId.keys()) next = Math.max(next, devId + 1)
    if (next > MAX_DEV_ID) {
      next = 0
      while (this.#byDevId.has(next)) next++
    }
    return next as DevId
  }

  #info(volume: Volume): VolumeInfo {
    const { entry } = volume
    return {
      name: entry.name,
      devId: volume.devId,
      size: volume.device.size,
      mapped: this.mappedBytes(volume),
      exclusive: null,
      origin: this.originOf(volume),
      created: entry.created,
      open: volume.opens > 0,
    }
  }

  /** Name of the volume that a volume is a snapshot of; null for none or when that is gone. */
  originOf({ entry, generation }: Volume): string | null {
    const origin = entry.origin === null ? undefined : this.#byDevId.get(entry.origin)
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

/** The kernel looks the name up again when it is told that a file is stale. */
const gone = (volume: Volume): ThinfsError =>
  new ThinfsError('VOLUME_MISSING', `${volume.name}: it was removed`, { errno: 'ESTALE' })
