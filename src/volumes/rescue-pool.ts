/** A pool to be read whose metadata may be damaged: others that are made of it, beside the data. */
import { writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import {
  bytes,
  MAX_METADATA_BLOCKS,
  METADATA_BLOCK_SIZE,
  MIB,
  SECTOR_SIZE,
  ThinfsError,
} from '../base/index.js'
import { DEFAULTS, newConfig, type PoolConfig } from '../config/index.js'
import { type OnRepairProgress, type RescueReport, rescueMetadata } from '../metadata/index.js'
import { FileStore } from '../storage/index.js'
import { PoolFiles, VOLUMES_FILE } from './pool-files.js'
import { tracesOf } from './replace-metadata.js'
import { readTable, unnamed, type VolumeEntry } from './volume-table.js'

/** Room for what is lost, and the maps; nothing of it that is not used takes space. */
const ROOM = 512 * MIB

export interface RescuedPool {
  /** For a pool.yaml in the folder. */
  config: PoolConfig
  report: RescueReport
  /** By device id. */
  names: Map<number, string>
}

/**
 * Makes metadata and volumes.json of a pool in a folder of their own. Nothing of the pool is
 * changed.
 * @param config says where the pool's files are; its volumes are names for devices, where there is
 *   no volumes.json
 * @param dataBlockSize null where nobody knows it but the metadata
 * @throws NOT_A_POOL, POOL_IN_USE, METADATA_CORRUPT when nothing can be found, METADATA_UNSUPPORTED
 */
export async function rescuePool(
  config: PoolConfig,
  folder: string,
  dataBlockSize: number | null,
  onProgress: OnRepairProgress,
): Promise<RescuedPool> {
  const files = PoolFiles.open(config, true)
  try {
    await files.connect()
    const entries = entriesOf(config, files)
    const { uuid, transactionId } = tracesOf(files)
    const size = Math.min(files.metadata.size + ROOM, MAX_METADATA_BLOCKS * METADATA_BLOCK_SIZE)
    const { size: dataSize } = await files.openData({
      dataBlockSize: dataBlockSize ?? DEFAULTS.dataBlockSize,
    })
    const path = join(folder, 'metadata')
    const target = FileStore.open(path, { create: true, size: bytes(size) })
    let report: RescueReport
    try {
      const facts = {
        dataBlockSectors: dataBlockSize === null ? null : dataBlockSize / SECTOR_SIZE,
        dataSize,
        ...{ uuid, transactionId },
        devIds: entries.size > 0 ? new Set(entries.keys()) : null,
        sizeOf: (devId: number) => entries.get(devId)?.size ?? null,
      }
      report = await rescueMetadata(files.metadata, target, facts, onProgress)
    } finally {
      target.close()
    }
    const volumes = [...report.ends].map(([devId, end]): VolumeEntry => {
      const size = end * report.dataBlockSize
      const entry = entries.get(devId) ?? entryOf(devId, unnamed(devId), size)
      return { ...entry, ...originOf(entry, files.folder.path) }
    })
    writeTable(folder, config.pool, report.transactionId, volumes)
    const names = new Map(volumes.map(({ dev_id, name }) => [dev_id, name]))
    return { config: configOf(config, folder, report.dataBlockSize), report, names }
  } finally {
    files.close()
  }
}

/** The volumes that have names, by device id: those of volumes.json, else of the configuration. */
function entriesOf({ volumes }: PoolConfig, files: PoolFiles): Map<number, VolumeEntry> {
  try {
    const table = readTable(files.table)
    const named = table?.volumes.filter(({ removed }) => !removed) ?? []
    if (named.length > 0) return new Map(named.map(entry => [entry.dev_id, entry]))
  } catch (err) {
    if (!(err instanceof ThinfsError)) throw err
  }
  const entries = new Map<number, VolumeEntry>()
  for (const [name, { id, size }] of Object.entries(volumes)) {
    if (id !== undefined && size !== null && !entries.has(id))
      entries.set(id, entryOf(id, name, size))
  }
  return entries
}

const entryOf = (devId: number, name: string, size: number): VolumeEntry => ({
  ...{ name, dev_id: devId, size, origin: null, created: null },
  ...{ mode: 0o600, uid: process.geteuid!(), gid: process.getegid!(), removed: false },
})

/** The place of the external origin, whatever folder its path counts from. */
const originOf = ({ external_origin: origin }: VolumeEntry, folder: string) =>
  origin && { external_origin: { ...origin, path: resolve(folder, origin.path) } }

function writeTable(
  folder: string,
  pool: string,
  transactionId: number,
  volumes: VolumeEntry[],
): void {
  const table = { version: 1, pool, transaction_id: transactionId, volumes, undo: [] }
  writeFileSync(join(folder, VOLUMES_FILE), JSON.stringify(table), { flag: 'wx', mode: 0o600 })
}

function configOf(source: PoolConfig, folder: string, dataBlockSize: number): PoolConfig {
  const file = join(folder, 'pool.yaml')
  const config = newConfig(file, { pool: source.pool, dataSize: null, dataBlockSize, volumes: {} })
  const { path, extents, remote } = source.data
  const data = { path, size: null, ...(extents && { extents }), ...(remote && { remote }) }
  const { cache, ceph } = source
  return { ...config, data, ...(cache && { cache }), ...(ceph && { ceph }) }
}
