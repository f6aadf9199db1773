import {
  bytes,
  type DevId,
  IoCounters,
  MAX_DEV_ID,
  MAX_DEVICE_SIZE,
  ThinfsError,
  volumeMissing,
} from '../base/index.js'
import { checkVolumeName } from '../config/index.js'
import type { ThinPool } from '../pool/index.js'
import type { ExternalOrigins } from './external-origin.js'
import { followEntry, Volume } from './volume.js'
import { type TableDoubt, unnamed, type VolumeEntry, type VolumeTable } from './volume-table.js'

const NONE: ReadonlySet<DevId> = new Set()

/** The maker of volumes: owner and time of new entries. */
export interface Maker {
  uid: number
  gid: number
  /** Seconds since 1970. */
  now: () => number
}

/** The volumes that there are, by name and by device id. In memory: nothing here is durable. */
export class VolumeSet {
  readonly #pool: ThinPool
  readonly #table: VolumeTable
  readonly #maker: Maker
  readonly #origins: ExternalOrigins
  /** Requests for volumes that are gone. */
  readonly counted = new IoCounters()
  readonly #byName = new Map<string, Volume>()
  readonly #byDevId = new Map<number, Volume>()

  constructor(pool: ThinPool, table: VolumeTable, maker: Maker, origins: ExternalOrigins) {
    this.#pool = pool
    this.#table = table
    this.#maker = maker
    this.#origins = origins
  }

  /** Those that have a name, in no particular order. */
  named(): IterableIterator<Volume> {
    return this.#byName.values()
  }

  /** Those whose name is gone, too. */
  all(): IterableIterator<Volume> {
    return this.#byDevId.values()
  }

  /** How many have a name. */
  get count(): number {
    return this.#byName.size
  }

  find(name: string): Volume | undefined {
    return this.#byName.get(name)
  }

  byDevId(devId: number): Volume | undefined {
    return this.#byDevId.get(devId)
  }

  /** @throws VOLUME_MISSING */
  must(name: string): Volume {
    const volume = this.#byName.get(name)
    if (!volume) throw volumeMissing(name)
    return volume
  }

  /** Callers ask after a wait: the volume may have gone meanwhile. @throws VOLUME_MISSING */
  mustBeThere(volume: Volume): void {
    if (this.#byDevId.get(volume.devId) !== volume) throw gone(volume)
  }

  /** @throws BAD_NAME, VOLUME_EXISTS */
  mustBeNew(name: string): void {
    checkVolumeName(name)
    if (this.#byName.has(name)) {
      throw new ThinfsError('VOLUME_EXISTS', `${name}: a volume has the name`)
    }
  }

  /** By name, or by the number of the device where no volume has that for a name. */
  mustBe(nameOrId: string): Volume {
    const volume = this.#byName.get(nameOrId)
    if (volume !== undefined || !/^\d{1,8}$/.test(nameOrId)) return volume ?? this.must(nameOrId)
    const numbered = this.#byDevId.get(Number(nameOrId))
    return numbered === undefined || numbered.entry.removed ? this.must(nameOrId) : numbered
  }

  /** So many new ids, as `newDevId` gives one. */
  newDevIds(count: number): DevId[] {
    const ids = new Set<DevId>()
    while (ids.size < count) ids.add(this.newDevId(undefined, ids))
    return [...ids]
  }

  /**
   * The id asked for, or the first above all that are there.
   * @param given ids that are as good as in use
   * @throws BAD_ARGUMENT, DEVICE_EXISTS
   */
  newDevId(wanted: number | undefined, given: ReadonlySet<DevId> = NONE): DevId {
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
    for (const devId of given) next = Math.max(next, devId + 1)
    if (next > MAX_DEV_ID) {
      next = 0
      while (this.#byDevId.has(next) || given.has(next as DevId)) next++
    }
    return next as DevId
  }

  // --- how it changes ---

  /** Takes a device of the pool in. */
  add(devId: DevId): Volume {
    const { metadata, devices } = this.#pool
    const details = metadata.details(devId)
    const entry = this.#table.get(devId) ?? this.#unnamedEntry(devId)
    const device = devices.get(devId, devices.unsavedSizes.get(devId) ?? bytes(entry.size))
    const volume = new Volume(entry, device, details.transactionId + 1)
    this.showOrigin(volume)
    volume.opens = devices.openCount(devId)
    followEntry(this.#pool, volume)
    this.#byDevId.set(devId, volume)
    if (!entry.removed) this.#byName.set(entry.name, volume)
    return volume
  }

  /** Puts a volume before its external origin where its entry has got one. */
  showOrigin(volume: Volume): void {
    if (volume.entry.external_origin === undefined) return
    volume.disk = this.#origins.deviceOf(volume)
    volume.io = volume.disk
  }

  /** The device was deleted. */
  drop(volume: Volume): void {
    this.#byDevId.delete(volume.devId)
    this.counted.addAll(volume.counters)
  }

  /** The name that a volume has now takes the place of the one `before`. */
  renamed(volume: Volume, before: string): void {
    if (this.#byName.get(before) === volume) this.#byName.delete(before)
    this.#byName.set(volume.name, volume)
  }

  /**
   * Takes the names of volumes away for good if `act` succeeds. From the first moment on no request
   * can find or open them, so `act` may rely on their being unused if the caller saw that.
   */
  async claimed(volumes: readonly Volume[], act: () => Promise<void>): Promise<void> {
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

  // --- entries of volumes.json ---

  newEntry(name: string, devId: number, size: number): VolumeEntry {
    const { uid, gid, now } = this.#maker
    return {
      ...{ name, dev_id: devId, size, origin: null, created: now() },
      ...{ mode: 0o600, uid, gid, removed: false },
    }
  }

  /** The size is the origin's now: a write that makes the origin longer meanwhile is not in it. */
  snapshotEntry(name: string, devId: number, origin: Volume): VolumeEntry {
    const { mode, uid, gid, external_origin } = origin.entry
    const entry = this.newEntry(name, devId, origin.device.size)
    const shows = external_origin && { external_origin }
    return { ...entry, origin: origin.devId, mode, uid, gid, ...shows }
  }

  /** For a device that another program made: as large as what it maps, within what can be. */
  #unnamedEntry(devId: DevId): VolumeEntry {
    return { ...this.newEntry(unnamed(devId), devId, mappedEnd(this.#pool, devId)), created: null }
  }
}

/** Bytes up to the end of the last block that a device maps. */
function mappedEnd({ metadata, blockSize }: ThinPool, devId: DevId): number {
  return Math.min((metadata.mappings.highestMapped(devId) + 1) * blockSize, MAX_DEVICE_SIZE)
}

/**
 * The part of an entry of volumes.json that is still true of the device with its id. In doubt
 * nothing may be lost by what is done next: a device that may be another one than the entry's is
 * not reclaimed for it, nor does a size hide data that a growth would discard.
 * @returns the entry, or one with a larger size; null when the device is gone or may be another
 */
export function whatIsTrueOf(
  entry: VolumeEntry,
  pool: ThinPool,
  doubt: TableDoubt | null,
): VolumeEntry | null {
  const devId = entry.dev_id as DevId
  if (!pool.metadata.hasDevice(devId)) return null
  if (doubt === null) return entry
  if (entry.removed || isYounger(entry, pool, doubt)) return null
  const end = mappedEnd(pool, devId)
  // The last block of a volume may be mapped as a whole.
  const isPast = end >= entry.size + pool.blockSize
  return isPast ? { ...entry, size: end } : entry
}

/**
 * Whether the device was made after the entry was written. A named one was made before the
 * transaction that gave it the name; dm-thin's messages make devices within one.
 */
function isYounger(entry: VolumeEntry, { metadata }: ThinPool, { behindAt }: TableDoubt): boolean {
  if (behindAt === null) return false
  const made = metadata.details(entry.dev_id as DevId).transactionId
  const isNamed = entry.name !== unnamed(entry.dev_id)
  return made > behindAt || (made === behindAt && isNamed)
}

/** The kernel looks the name up again when it is told that a file is stale. */
export const gone = (volume: Volume): ThinfsError =>
  new ThinfsError('VOLUME_MISSING', `${volume.name}: it was removed`, { errno: 'ESTALE' })
