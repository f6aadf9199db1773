import { type DevId, ThinfsError } from '../base/index.js'
import type { PoolAdmin, VolumeInfo } from './admin.js'
import type { NameParts } from './namespace.js'
import { mustBeUnused } from './volume.js'
import { AS_POOL, NO_RULES, withRules } from './volume-rules.js'
import type { VolumeEntry } from './volume-table.js'

const REMOVED = { removed: true }

export type SnapshotRequest = Parameters<PoolAdmin['snapshot']>[0]

/** Snapshots with names: taking them, and going back to one. */
export class Snapshots {
  readonly #parts: NameParts

  constructor(parts: NameParts) {
    this.#parts = parts
  }

  /**
   * See `PoolAdmin.snapshot`.
   * @param taken called between the last request that is in it and the next
   */
  take(request: SnapshotRequest, taken: () => void): Promise<VolumeInfo> {
    const { pool, names, volumes, infos, onChange } = this.#parts
    return names.exclusive(async () => {
      const origin = volumes.must(request.origin)
      volumes.mustBeNew(request.name)
      const devId = volumes.newDevId(request.devId)
      const from = origin.devId as DevId
      pool.space.mustHaveMinFree()
      if (!pool.space.metadata.hasRoom) await pool.space.metadata.makeRoom()
      const entry = volumes.snapshotEntry(request.name, devId, origin)
      await names.commit(new Map([[devId, entry]]), () => {
        pool.devices.createSnap(devId, from)
        taken()
      })
      onChange(`created as snapshot of ${origin.name}`, request.name, devId)
      return infos.of(volumes.add(devId))
    })
  }

  /** See `PoolAdmin.snapshotAll`. */
  takeAll(request: { origins: string[]; suffix: string }): Promise<VolumeInfo[]> {
    const { pool, names, volumes, infos, onChange } = this.#parts
    return names.exclusive(async () => {
      const origins = [...new Set(request.origins)].map(name => volumes.must(name))
      const ids = volumes.newDevIds(origins.length)
      const changes = new Map<number, VolumeEntry>()
      origins.forEach((origin, i) => {
        const name = `${origin.name}${request.suffix}`
        volumes.mustBeNew(name)
        changes.set(ids[i]!, volumes.snapshotEntry(name, ids[i]!, origin))
      })
      pool.space.mustHaveMinFree()
      if (!pool.space.metadata.hasRoom) await pool.space.metadata.makeRoom()
      const snapshots = origins.map(({ devId }, i) => [ids[i]!, devId as DevId] as const)
      await names.commit(changes, () => pool.devices.createSnaps(snapshots))
      return origins.map((origin, i) => {
        const volume = volumes.add(ids[i]!)
        onChange(`created as snapshot of ${origin.name}`, volume.name, volume.devId)
        return infos.of(volume)
      })
    })
  }

  /** See `PoolAdmin.rollback`. */
  async rollback(request: { name: string; snapshot: string; keep?: string }): Promise<VolumeInfo> {
    const { pool, names, volumes, reaper, infos, onChange } = this.#parts
    const { name, snapshot, keep } = request
    const [before, volume] = await names.exclusive(async () => {
      const before = volumes.must(name)
      const to = volumes.must(snapshot)
      if (to === before) throw new ThinfsError('BAD_ARGUMENT', `${name}: it is that volume itself`)
      if (keep !== undefined) volumes.mustBeNew(keep)
      const { space, devices } = pool
      if (keep === undefined) {
        if (!space.metadata.hasRoomToReplace) await space.metadata.makeRoomToUnmap()
      } else if (!space.metadata.hasRoom) await space.metadata.makeRoom()
      mustBeUnused(before)
      const devId = volumes.newDevId(undefined)
      const { mode, uid, gid, limit = 0, reserve = 0, on_full: onFull = 'pool' } = before.entry
      const { queue_timeout: queueTimeout = AS_POOL } = before.entry
      const kept = keep === undefined ? REMOVED : { name: keep }
      const entry = volumes.snapshotEntry(name, devId, to)
      const changes = new Map([
        [before.devId, { ...withRules(before.entry, NO_RULES), ...kept }],
        [devId, withRules({ ...entry, mode, uid, gid }, { limit, reserve, onFull, queueTimeout })],
      ])
      const replace = (): void => {
        const had = space.reserves.keptFor(before.devId as DevId)
        const wanted = space.reserves.blocksOf(before.devId as DevId)
        // Without `keep` it is given what the old state had, once that is reclaimed.
        if (keep !== undefined) space.data.mustKeep(wanted - had)
        if (keep === undefined) devices.createSnapsInPlace([[devId, to.devId as DevId]])
        else devices.createSnap(devId, to.devId as DevId)
      }
      await volumes.claimed([before], () => names.commit(changes, replace))
      if (keep !== undefined) volumes.renamed(before, name)
      onChange(`rolled back to ${snapshot}`, name, devId)
      return [before, volumes.add(devId)]
    })
    if (keep === undefined) await reaper.reap(before)
    return infos.of(volume)
  }
}
