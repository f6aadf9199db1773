import { ThinfsError } from '../base/index.js'
import { checkVolumeName } from '../config/index.js'
import type { ThinPool } from '../pool/index.js'
import type { PrunedSnapshot, PruneRequest, VolumeInfo } from './admin.js'
import type { NameTransactions } from './name-transactions.js'
import { judge } from './prune.js'
import type { Reaper } from './reaper.js'
import { mustBeUnused, mustNotBeHeld, type Volume, whyUsed } from './volume.js'
import type { VolumeInfos } from './volume-infos.js'
import type { VolumeSet } from './volume-set.js'
import type { VolumeTable } from './volume-table.js'

/** The parts of an open pool that changes of names work on. */
export interface NameParts {
  pool: ThinPool
  table: VolumeTable
  names: NameTransactions
  volumes: VolumeSet
  reaper: Reaper
  infos: VolumeInfos
  /** Tells of a volume that was made, removed, renamed or resized. */
  onChange(what: string, volume: string, devId: number): void
}

/** The names of the volumes: how one gets another, and how it loses it. */
export class Namespace {
  readonly #parts: NameParts

  constructor(parts: NameParts) {
    this.#parts = parts
  }

  /** See `PoolAdmin.rename`. */
  rename({ from, to }: { from: string; to: string }): Promise<VolumeInfo> {
    const { names, volumes, infos } = this.#parts
    return names.exclusive(async () => {
      const volume = volumes.must(from)
      volumes.mustBeNew(to)
      await this.#rename(volume, to)
      return infos.of(volume)
    })
  }

  /**
   * rename(2): the name may be taken; the volume that had it is unlinked, or gets the other name.
   * @param exchange identifies the request for the latter, which is done once; null for the former
   */
  renameOver(from: string, to: string, exchange: string | null): Promise<void> {
    const { names, volumes, table, reaper, onChange } = this.#parts
    return names.exclusive(async () => {
      if (exchange !== null && exchange === table.exchange) return
      const volume = volumes.must(from)
      const other = volumes.find(to)
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
      await names.commit(changes, undefined, undefined, exchange)
      onChange(`renamed to ${to}`, from, volume.devId)
      volumes.renamed(volume, from)
      if (exchange !== null) volumes.renamed(other, to)
      else if (other.opens === 0) void reaper.reap(other)
    })
  }

  async #rename(volume: Volume, to: string): Promise<void> {
    const { names, volumes, onChange } = this.#parts
    const from = volume.name
    await names.commit(new Map([[volume.devId, { ...volume.entry, name: to }]]))
    volumes.renamed(volume, from)
    onChange(`renamed to ${to}`, from, volume.devId)
  }

  /** Takes the name away at once; the space follows when nobody has the volume open. */
  async unlink(name: string): Promise<void> {
    const { names, volumes, reaper } = this.#parts
    await names.exclusive(async () => {
      const volume = volumes.must(name)
      mustNotBeHeld(volume)
      await this.#unname([volume])
      if (volume.opens === 0) void reaper.reap(volume)
    })
  }

  /** See `PoolAdmin.remove`. */
  async remove({ names: wanted }: { names: string[] }): Promise<void> {
    const { names, volumes } = this.#parts
    const gone = await names.exclusive(async () => {
      const found = [...new Set(wanted)].map(name => volumes.must(name))
      for (const volume of found) mustBeUnused(volume)
      await this.#unname(found)
      return found
    })
    await this.#reap(gone)
  }

  /** See `PoolAdmin.prune`. */
  async prune(request: PruneRequest): Promise<PrunedSnapshot[]> {
    const { names, volumes, infos } = this.#parts
    const { snapshots, gone } = await names.exclusive(async () => {
      const all = Array.from(volumes.named(), volume => infos.of(volume))
      const snapshots = judge(all, request)
      const gone: Volume[] = []
      for (const snapshot of snapshots) {
        if (snapshot.kept.length > 0) continue
        const volume = volumes.must(snapshot.name)
        snapshot.busy = whyUsed(volume)
        if (snapshot.busy === null) gone.push(volume)
      }
      if (request.dryRun === true || gone.length === 0) return { snapshots, gone: [] }
      await this.#unname(gone)
      return { snapshots, gone }
    })
    await this.#reap(gone)
    return snapshots
  }

  /** Takes names away; what was there stays until it is reaped. */
  async #unname(gone: Volume[]): Promise<void> {
    const { names, volumes, onChange } = this.#parts
    const entries = gone.map(({ devId, entry }) => [devId, { ...entry, removed: true }] as const)
    await volumes.claimed(gone, () => names.commit(new Map(entries)))
    for (const { name, devId } of gone) onChange('removed', name, devId)
  }

  async #reap(gone: readonly Volume[]): Promise<void> {
    await Promise.all(gone.map(volume => this.#parts.reaper.reap(volume)))
  }
}
