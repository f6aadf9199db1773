import { existsSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { type Bytes, bytes, MIB, SECTOR_SIZE, ThinfsError } from '../base/index.js'
import { lowWaterMarkBlocks, type PoolConfig } from '../config/index.js'
import { MAX_METADATA_BLOCKS, METADATA_BLOCK_SIZE, ThinMetadata } from '../metadata/index.js'
import { Journal, type PoolEvents, SYSTEM_CLOCK, ThinPool } from '../pool/index.js'
import { AtomicFile, FileStore, JournalFile } from '../storage/index.js'
import type { CheckReport } from './admin.js'
import { checkFiles, isDamaged, withData } from './check-files.js'
import { readTable } from './volume-table.js'
import { Volumes } from './volumes.js'

/** Files of a pool beside data and metadata, in the folder of pool.yaml. */
const VOLUMES_FILE = 'volumes.json'
const JOURNAL_FILE = 'journal'

export interface OpenOptions {
  readOnly?: boolean
  /** The mount of a process that died goes on: what was open there is open still. */
  takesOver?: boolean
  /** Make the volumes that pool.yaml names and the pool lacks. */
  makeVolumes?: boolean
  /** Default: nobody listens; what fails is thrown to the caller as well. */
  events?: PoolEvents
  onChange?: (what: string, volume: string, devId: number) => void
  onResized?: (devId: number, size: number) => Promise<void>
}

/** An open pool. Only one may be open at a time: the caller holds the pool's lock. */
export interface OpenPool {
  volumes: Volumes
  /** Commits and closes the files. */
  close(): Promise<void>
}

const NO_EVENTS: PoolEvents = {
  mode() {},
  lowWater() {},
  warning() {},
  needsCheckCleared() {},
  slowCommit() {},
  ioError() {},
}

/**
 * Opens the files of a pool.
 * @throws NOT_A_POOL, POOL_MISMATCH, METADATA_CORRUPT, METADATA_UNSUPPORTED
 */
export async function openPool(config: PoolConfig, options: OpenOptions = {}): Promise<OpenPool> {
  const readOnly = options.readOnly ?? false
  const metadata = openStore(config.metadata.path, readOnly, null)
  let data: FileStore | null = null
  let journal: JournalFile | null = null
  let opened: ThinPool | Volumes | null = null
  const closeFiles = (): void => {
    journal?.close()
    data?.close()
    metadata.close()
  }
  try {
    checkBlockSize(metadata, config)
    data = openStore(config.data.path, readOnly, config.data.size)
    journal = JournalFile.open(join(config.folder, JOURNAL_FILE))
    const pool = await ThinPool.open({
      metadata,
      data,
      journal,
      readOnly,
      takesOver: options.takesOver ?? false,
      discards: config.discards,
      onFull: config.onFull,
      lowWaterMark: lowWaterMarkBlocks(config, Math.floor(data.size / config.dataBlockSize)),
      clock: SYSTEM_CLOCK,
      events: options.events ?? NO_EVENTS,
    })
    opened = pool
    const table = tableOf(config)
    if (!readOnly) await table.reserve()
    const volumes = Volumes.open({
      name: config.pool,
      pool,
      metadata,
      table,
      uid: process.getuid?.() ?? 0,
      gid: process.getgid?.() ?? 0,
      now: () => Date.now() / 1000,
      onChange: options.onChange ?? (() => {}),
      onResized: options.onResized ?? (async () => {}),
    })
    opened = volumes
    if (pool.mode === 'write') {
      await volumes.adopt(config.volumes)
      if (options.makeVolumes) await volumes.makeMissing(config.volumes)
    }
    return {
      volumes,
      async close() {
        try {
          await volumes.close()
        } finally {
          closeFiles()
        }
      },
    }
  } catch (err) {
    // A commit that comes later must not find other files in the place of these.
    await opened?.close().catch(() => {})
    closeFiles()
    throw err
  }
}

/** @throws POOL_MISMATCH before anything is changed */
function checkBlockSize(metadata: FileStore, config: PoolConfig): void {
  const found = ThinMetadata.open(metadata).dataBlockSectors * SECTOR_SIZE
  if (found === config.dataBlockSize) return
  throw new ThinfsError(
    'POOL_MISMATCH',
    `${metadata.path}: data blocks of ${found} bytes, ${config.file} says ${config.dataBlockSize}`,
  )
}

/**
 * Makes the files of a new pool and its first volumes.
 * @throws POOL_IN_USE for files that hold something already
 */
export async function initPool(config: PoolConfig): Promise<void> {
  for (const { path } of [config.data, config.metadata]) {
    if (isTaken(path)) {
      throw new ThinfsError('BAD_ARGUMENT', `${path}: it is there already and not empty`, {
        errno: 'EEXIST',
      })
    }
  }
  const volumesFile = join(config.folder, VOLUMES_FILE)
  if (existsSync(volumesFile)) {
    throw new ThinfsError('BAD_ARGUMENT', `${volumesFile}: it is there already`, {
      errno: 'EEXIST',
    })
  }
  const data = makeStore(config.data.path, config.data.size)
  const size =
    config.metadata.size === 'auto' ? metadataSize(config, data.size) : config.metadata.size
  const metadata = makeStore(config.metadata.path, size)
  const superblock = Buffer.alloc(METADATA_BLOCK_SIZE)
  metadata.read(superblock, 0, superblock.length, bytes(0))
  if (superblock.some(byte => byte !== 0)) {
    // The kernel's rule: only a block of zeros is unformatted.
    throw new ThinfsError(
      'BAD_ARGUMENT',
      `${config.metadata.path}: its first 4 KiB are not zeros`,
      {
        errno: 'EEXIST',
      },
    )
  }
  ThinMetadata.format(metadata, { dataBlockSectors: config.dataBlockSize / SECTOR_SIZE })
  await metadata.sync()
  metadata.close()
  data.close()
  const pool = await openPool(config, { makeVolumes: true })
  await pool.close()
}

/**
 * Verifies a pool that is not open, however damaged: what is there is read, nothing is changed.
 * @param options.deep reads all data too
 * @throws NOT_A_POOL
 */
export async function checkPool(
  config: PoolConfig,
  { deep = false }: { deep?: boolean } = {},
): Promise<CheckReport> {
  const metadata = openStore(config.metadata.path, true, null)
  try {
    const steps = checkFiles(metadata, tableOf(config))
    let step = steps.next()
    while (!step.done) step = steps.next()
    return deep && !isDamaged(step.value)
      ? await checkDeep(config, metadata, step.value)
      : step.value
  } finally {
    metadata.close()
  }
}

async function checkDeep(
  config: PoolConfig,
  metadata: FileStore,
  report: CheckReport,
): Promise<CheckReport> {
  const data = openStore(config.data.path, true, null)
  try {
    const names = new Map<number, string>()
    for (const { dev_id, name } of readTable(tableOf(config))?.volumes ?? []) {
      names.set(dev_id, name)
    }
    return await withData(report, {
      metadata: ThinMetadata.open(metadata),
      data,
      freeMeansHole: endedOrderly(config, metadata),
      nameOf: devId => names.get(devId) ?? `device ${devId}`,
      pause: async () => {},
    })
  } finally {
    data.close()
  }
}

const tableOf = (config: PoolConfig): AtomicFile =>
  new AtomicFile(join(config.folder, VOLUMES_FILE))

/** Whether the pool was closed in order, and is as it was then: every free block is a hole. */
function endedOrderly(config: PoolConfig, metadata: FileStore): boolean {
  const path = join(config.folder, JOURNAL_FILE)
  if (!existsSync(path)) return false
  const superblock = Buffer.alloc(METADATA_BLOCK_SIZE)
  metadata.read(superblock, 0, superblock.length, bytes(0))
  const journal = JournalFile.open(path)
  try {
    return new Journal(journal).read(superblock).clean
  } finally {
    journal.close()
  }
}

/**
 * Room for every data block to be mapped, and as much again three times for snapshots to differ.
 * A mapping takes 16 to 32 bytes. The file is sparse: what is not needed takes no space.
 */
function metadataSize(config: PoolConfig, dataSize: Bytes): number {
  const wanted = (dataSize / config.dataBlockSize) * 32 * 4
  const size = Math.min(Math.max(wanted, 16 * MIB), MAX_METADATA_BLOCKS * METADATA_BLOCK_SIZE)
  return Math.ceil(size / METADATA_BLOCK_SIZE) * METADATA_BLOCK_SIZE
}

function isTaken(path: string): boolean {
  const stat = statSync(path, { throwIfNoEntry: false })
  return stat?.isFile() === true && stat.size > 0
}

function makeStore(path: string, size: number | null): FileStore {
  const isDevice = statSync(path, { throwIfNoEntry: false })?.isBlockDevice() ?? false
  if (isDevice) return FileStore.open(path)
  if (size === null) throw new ThinfsError('BAD_CONFIG', `${path}: a new file needs a size`)
  return FileStore.open(path, { create: true, size: bytes(size) })
}

function openStore(path: string, readOnly: boolean, size: number | null): FileStore {
  if (!existsSync(path)) {
    throw new ThinfsError('NOT_A_POOL', `${path}: no such file; thinfs init makes it`, {
      errno: 'ENOENT',
    })
  }
  const store = FileStore.open(path, { readOnly })
  if (size !== null && !readOnly && size > store.size) store.grow(bytes(size))
  return store
}
