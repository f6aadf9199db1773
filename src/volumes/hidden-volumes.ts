import { randomUUID } from 'node:crypto'
import { type DevId, MAX_DEVICE_SIZE, ThinfsError, volumeMissing } from '../base/index.js'
import type {
  Held,
  HeldVolume,
  NewVolume,
  PartialVolume,
  PoolAdmin,
  VolumeContent,
} from './admin.js'
import type { NameParts } from './namespace.js'
import type { Sizes } from './sizes.js'
import { hasToGo, type Volume } from './volume.js'
import type { VolumeEntry } from './volume-table.js'

/** Milliseconds in which a command has to open a file that it was given. */
const OPEN_PERIOD = 60_000

/** The name of the file for a device that is awaited. No volume can have it. */
const FILE = /^\.thinfs-(\d+)$/
const fileOf = (devId: number): string => `.thinfs-${devId}`

export type BeginRequest = Parameters<PoolAdmin['beginVolume']>[0]
export type KeepRequest = Parameters<PoolAdmin['keepVolume']>[0]

/**
 * Volumes that a command has for itself: what it reads at one moment, and what it fills before that
 * gets its name.
 *
 * Such a volume counts as removed from the start, so that it ends by the same way as one whose name
 * was taken away while somebody had it open: with the last descriptor, whoever is killed, and else
 * with the next opening of the pool. The command opens it by a name that no list shows.
 */
export class HiddenVolumes {
  readonly #parts: NameParts
  readonly #sizes: Sizes
  /** Those that a command may read by the pool's own files: as long as they are open or awaited. */
  readonly #held = new Set<number>()
  /** Calls of `hold` that are under way. */
  #nrHolding = 0

  constructor(parts: NameParts, sizes: Sizes) {
    this.#parts = parts
    this.#sizes = sizes
  }

  /** The volume behind a name that a command was given, as long as it has not opened it. */
  find(file: string): Volume | undefined {
    const [, devId] = FILE.exec(file) ?? []
    const volume = devId === undefined ? undefined : this.#parts.volumes.byDevId(Number(devId))
    return volume?.awaited ? volume : undefined
  }

  /**
   * Takes over what the commands of another process's time have open: which of them read the pool's
   * files is not known.
   */
  takeOver(): void {
    for (const volume of this.#parts.volumes.all()) {
      if (volume.entry.removed && volume.opens > 0) this.#held.add(volume.devId)
    }
  }

  /** Whether a command may be reading the pool's own files: no data block may be moved. */
  get areRead(): boolean {
    for (const devId of this.#held) {
      const volume = this.#parts.volumes.byDevId(devId)
      if (volume?.entry.removed && (volume.awaited || volume.opens > 0)) return true
      this.#held.delete(devId)
    }
    return this.#nrHolding > 0
  }

  /** See `PoolAdmin.hold`. */
  async hold(request: { names: string[]; identify?: string }): Promise<Held> {
    this.#nrHolding++
    try {
      return await this.#hold(request)
    } finally {
      this.#nrHolding--
    }
  }

  #hold(request: { names: string[]; identify?: string }): Promise<Held> {
    return this.#parts.names.exclusive(async () => {
      const { pool, volumes } = this.#parts
      const { metadata } = pool
      const origins = request.names.map(name => volumes.mustBe(name))
      const held = pool.writable
        ? await this.#snapshots(origins, request)
        : this.#asTheyAre(origins)
      return {
        time: metadata.time,
        transactionId: metadata.transactionId,
        dataBlockSize: pool.blockSize,
        dataBlocks: metadata.nrDataBlocks,
        volumes: held,
      }
    })
  }

  /** Of a pool that cannot change. @throws POOL_READ_ONLY where the store lacks what it knows */
  #asTheyAre(origins: Volume[]): HeldVolume[] {
    const { pool } = this.#parts
    pool.mustBeReadable()
    if (pool.metadata.changed) {
      const what = 'the journal has changes that no commit has ended'
      throw new ThinfsError('POOL_READ_ONLY', `${what}: mount the pool to be written to, once`)
    }
    return origins.map(origin => this.#heldAs(origin, origin.devId as DevId, null))
  }

  async #snapshots(origins: Volume[], { identify }: { identify?: string }): Promise<HeldVolume[]> {
    const { pool, names, volumes } = this.#parts
    // They go again, and take less than removing them gives back.
    const { metadata } = pool.space
    if (!metadata.hasRoomToReplace) await metadata.makeRoomToUnmap()
    // Nodes that are in the trees then get no other place with the next commit.
    await pool.commit()
    const ids = volumes.newDevIds(origins.length)
    const changes = new Map<number, VolumeEntry>()
    origins.forEach((origin, i) => {
      const devId = ids[i]!
      const entry = volumes.snapshotEntry(origin.name, devId, origin)
      const { mode, uid, gid } = volumes.newEntry(origin.name, devId, entry.size)
      changes.set(devId, { ...entry, mode, uid, gid, removed: true })
      if (identify !== undefined && volumes.mustBe(identify) === origin) {
        const state = pool.metadata.mappings.fingerprint(origin.devId as DevId)
        const content = this.#contentOf(origin) ?? { id: randomUUID(), state }
        if (content !== origin.entry.content)
          changes.set(origin.devId, { ...origin.entry, content })
      }
    })
    const held: HeldVolume[] = []
    await names.commit(changes, () => {
      pool.devices.createSnapsInPlace(origins.map(({ devId }, i) => [ids[i]!, devId as DevId]))
      origins.forEach((origin, i) => {
        held.push(this.#heldAs(origin, ids[i]!, changes.get(origin.devId)?.content ?? null))
      })
    })
    for (const devId of ids) {
      this.#await(volumes.add(devId))
      this.#held.add(devId)
    }
    return held
  }

  /**
   * @param devId of the device that keeps it
   * @param given a content that it has by the change under way
   */
  #heldAs(origin: Volume, devId: DevId, given: VolumeContent | null): HeldVolume {
    const { metadata, blockSize } = this.#parts.pool
    const content = given ?? origin.entry.content ?? null
    const isSo = content?.state === metadata.mappings.fingerprint(origin.devId as DevId)
    return {
      name: origin.name,
      devId: origin.devId,
      size: origin.device.size,
      mapped: metadata.details(devId).mappedBlocks * blockSize,
      root: metadata.mappings.rootOf(devId),
      file: devId === origin.devId ? null : fileOf(devId),
      content: content !== null && isSo ? content.id : null,
      externalOrigin: origin.entry.external_origin?.path ?? null,
    }
  }

  /**
   * The name of a volume's content in streams; null when it has changed since, or never had one.
   */
  #contentOf({ devId, entry }: Volume): VolumeContent | null {
    const { content } = entry
    if (content === undefined) return null
    return content.state === this.#parts.pool.metadata.mappings.fingerprint(devId as DevId)
      ? content
      : null
  }

  /** See `PoolAdmin.beginVolume`. */
  begin({ name, size, base, content, resume }: BeginRequest): Promise<NewVolume> {
    return this.#parts.names.exclusive(async () => {
      const { pool, names, volumes } = this.#parts
      const kept = this.#kept(name)
      if (resume !== undefined) return this.#resume(name, kept, { content, base, offset: resume })
      if (kept !== undefined) {
        const how = `thinfs receive POOL ${name} --token lets it go on, --abort gives it up`
        throw new ThinfsError('VOLUME_EXISTS', `${name}: a part of a stream is kept; ${how}`)
      }
      if (size < 0 || size > MAX_DEVICE_SIZE) {
        throw new ThinfsError('BAD_ARGUMENT', `size ${size}: up to ${MAX_DEVICE_SIZE} is allowed`)
      }
      volumes.mustBeNew(name)
      pool.mustBeWritable()
      pool.space.mustHaveMinFree()
      const origin = base === undefined ? null : this.#baseOf(base)
      if (!pool.space.metadata.hasRoom) await pool.space.metadata.makeRoom()
      const devId = volumes.newDevId(undefined)
      const entry = volumes.newEntry(name, devId, size)
      const { mode, uid, gid } = entry
      const from = origin === null ? entry : volumes.snapshotEntry(name, devId, origin)
      const hidden = { ...from, mode, uid, gid, removed: true }
      await names.commit(new Map([[devId, hidden]]), () => {
        if (origin === null) pool.devices.createThin(devId)
        else pool.devices.createSnap(devId, origin.devId as DevId)
      })
      this.#await(volumes.add(devId))
      return { devId, file: fileOf(devId), base: origin?.name ?? null }
    })
  }

  /** @throws NO_BASE for a stream that does not go on where the last one was cut short */
  #resume(
    name: string,
    volume: Volume | undefined,
    at: { content: string | undefined; base: string | undefined; offset: number },
  ): NewVolume {
    const { pool, volumes } = this.#parts
    pool.mustBeWritable()
    const partial = volume?.entry.partial
    const fits =
      partial?.content === at.content &&
      partial?.base === (at.base ?? null) &&
      partial?.offset === at.offset
    if (volume === undefined || !fits) {
      const found =
        partial === undefined ? 'none is kept' : `what is kept ends at ${partial.offset}`
      const how = 'send it with the token of thinfs receive --token'
      const what = `${name}: the stream goes on at byte ${at.offset} of one that was cut short`
      throw new ThinfsError('NO_BASE', `${what}, and ${found}, or is of another; ${how}`)
    }
    if (volume.opens > 0 || volume.awaited) {
      throw new ThinfsError('VOLUME_BUSY', `${name}: it is being received`)
    }
    this.#await(volume)
    const origin = volume.entry.origin === null ? undefined : volumes.byDevId(volume.entry.origin)
    return { devId: volume.devId, file: fileOf(volume.devId), base: origin?.name ?? null }
  }

  /** One that is kept for a stream to go on. */
  #kept(name: string): Volume | undefined {
    return [...this.#parts.volumes.all()].find(
      ({ entry }) => entry.partial !== undefined && entry.name === name,
    )
  }

  /** See `PoolAdmin.partials`. */
  partials(): PartialVolume[] {
    const { pool, volumes } = this.#parts
    const kept = [...volumes.all()].filter(({ entry }) => entry.partial !== undefined)
    return kept.map(({ entry, devId, device }) => ({
      name: entry.name,
      size: device.size,
      mapped: pool.metadata.details(devId as DevId).mappedBlocks * pool.blockSize,
      ...entry.partial!,
    }))
  }

  /** See `PoolAdmin.keepVolume`. */
  async keep({ devId, name, content, base, offset }: KeepRequest): Promise<void> {
    await this.#sizes.commit()
    await this.#parts.names.exclusive(async () => {
      const volume = this.#mustBeHidden(devId, name)
      const partial = { content, base: base ?? null, offset }
      const entry = { ...volume.entry, size: volume.device.size, partial }
      await this.#parts.names.commit(new Map([[devId, entry]]))
    })
  }

  /** See `PoolAdmin.dropPartial`. */
  async dropPartial({ name }: { name: string }): Promise<void> {
    const volume = await this.#parts.names.exclusive(async () => {
      const volume = this.#kept(name)
      if (volume === undefined) {
        throw new ThinfsError('VOLUME_MISSING', `${name}: no part of a stream is kept for it`)
      }
      if (volume.opens > 0 || volume.awaited) {
        throw new ThinfsError('VOLUME_BUSY', `${name}: it is being received`)
      }
      const { partial: _, ...entry } = volume.entry
      await this.#parts.names.commit(new Map([[volume.devId, entry]]))
      return volume
    })
    await this.#parts.reaper.reap(volume)
  }

  /** @throws VOLUME_MISSING for a device that is no volume without the name */
  #mustBeHidden(devId: number, name: string): Volume {
    const volume = this.#parts.volumes.byDevId(devId)
    if (!volume?.entry.removed || volume.entry.name !== name) throw volumeMissing(name)
    return volume
  }

  /** @throws NO_BASE */
  #baseOf(id: string): Volume {
    const named = [...this.#parts.volumes.named()].filter(({ entry }) => entry.content?.id === id)
    const base = named.find(volume => this.#contentOf(volume) !== null)
    if (base !== undefined) return base
    const what =
      named.length === 0
        ? 'no volume of this pool has the content that the stream goes on from'
        : `${named[0]!.name} was changed since it had the content that the stream goes on from`
    throw new ThinfsError('NO_BASE', `${what}; receive a full stream, or the one that it follows`)
  }

  /** See `PoolAdmin.nameVolume`. */
  async name({
    devId,
    name,
    content,
  }: {
    devId: number
    name: string
    content?: string
  }): Promise<void> {
    // Its size, and all that is in it.
    await this.#sizes.commit()
    await this.#parts.names.exclusive(async () => {
      const { pool, names, volumes, onChange } = this.#parts
      const volume = this.#mustBeHidden(devId, name)
      volumes.mustBeNew(name)
      const state = pool.metadata.mappings.fingerprint(devId as DevId)
      const { partial: _, ...received } = volume.entry
      const entry = { ...received, size: volume.device.size, removed: false }
      const named = content === undefined ? entry : { ...entry, content: { id: content, state } }
      await names.commit(new Map([[devId, named]]), () => {
        // From here on a write, in place as well, changes the fingerprint.
        pool.markShared(devId as DevId, devId as DevId)
      })
      volumes.renamed(volume, name)
      onChange('received', name, devId)
    })
  }

  /** Ends a volume that its command gives up, where no descriptor does. */
  async drop(devId: number): Promise<void> {
    const volume = this.#parts.volumes.byDevId(devId)
    if (!volume?.entry.removed || volume.opens > 0) return
    volume.awaited = false
    if (hasToGo(volume)) await this.#parts.reaper.reap(volume)
  }

  #await(volume: Volume): void {
    volume.awaited = true
    this.#parts.pool.clock.after(OPEN_PERIOD, () => {
      if (volume.awaited) void this.drop(volume.devId)
    })
  }
}
