/** Making the files of a new pool. Files that hold something are refused, as mkfs refuses them. */
import { randomBytes } from 'node:crypto'
import { existsSync, rmSync, type Stats, statSync } from 'node:fs'
import { dirname, join } from 'node:path'
import {
  bytes,
  errnoOf,
  isZero,
  METADATA_BLOCK_SIZE,
  MIB,
  SECTOR_SIZE,
  TENANT_FILE,
  ThinfsError,
} from '../base/index.js'
import { autoMetadataSize, type PoolConfig } from '../config/index.js'
import { ThinMetadata, UUID_SIZE } from '../metadata/index.js'
import { FileStore } from '../storage/index.js'
import { JOURNAL_FILE, openPool, VOLUMES_FILE } from './open-pool.js'
import { mustBeLocal, mustDiffer, PoolFiles } from './pool-files.js'
import { RemoteData } from './remote-data.js'
import { signatureOf } from './signatures.js'

/**
 * Makes the files of a new pool and its first volumes. On failure nothing of what it made is left,
 * and what was there is still there.
 * @param options.force overwrites what files and devices hold; not what is in use
 * @throws BAD_ARGUMENT for a file or device that holds something already, or a size that no file
 *   can have; BAD_CONFIG for a new file without a size; NOT_A_POOL for a device that is not there;
 *   POOL_IN_USE for one that is mounted or part of another; TOOL_FAILED, NOT_TRUSTED, IO_ERROR
 */
export async function initPool(
  config: PoolConfig,
  { force = false }: { force?: boolean } = {},
): Promise<void> {
  const { data, metadata, folder } = config
  const volumesFile = join(folder, VOLUMES_FILE)
  mustBeLocal(config)
  mustDiffer(config)
  const made: string[] = []
  const stores: FileStore[] = []
  let remote: RemoteData | null = null
  let files: PoolFiles | null = null
  const openNew = (path: string): FileStore => {
    const { store, isNew } = openEmpty(path, force)
    stores.push(store)
    if (isNew) made.push(path)
    return store
  }
  try {
    const dataStore = data.remote ? RemoteData.make(config) : openNew(data.path)
    if (dataStore instanceof RemoteData) remote = dataStore
    const metadataStore = openNew(metadata.path)
    if (existsSync(volumesFile)) throw isThere(volumesFile, 'it is there already')
    // From here on the locks keep everybody else from making a pool of these files.
    const others = [JOURNAL_FILE, TENANT_FILE].map(name => join(folder, name))
    made.push(volumesFile, ...others.filter(path => !existsSync(path)))
    if (!(dataStore instanceof RemoteData)) growTo(dataStore, data.size, 'data.size')
    const dataSize =
      dataStore instanceof RemoteData
        ? await sizeOfEmpty(dataStore, config, { force, readOnly: false })
        : dataStore.size
    const auto = autoMetadataSize(dataSize, config.dataBlockSize)
    growTo(metadataStore, metadata.size === 'auto' ? auto : metadata.size, 'metadata.size')
    await format(metadataStore, config, force)
    files = PoolFiles.of(metadataStore, dataStore, config)
    // A journal that is left of another pool says nothing of this one.
    const pool = await openPool(config, { files, makeVolumes: true, acceptMetadata: true })
    await pool.close()
  } catch (err) {
    // Before the locks are given up: what another process makes then is his.
    for (const path of made) rmSync(path, { force: true })
    throw err
  } finally {
    if (files !== null) files.close()
    else {
      for (const store of stores) store.close()
      remote?.close()
    }
  }
}

/** A file or device that `initPool` would make or take. */
export interface PlannedFile {
  path: string
  /** Bytes; null for one that has none yet. */
  size: number | null
  isNew: boolean
  /** The content that is there and would be overwritten, for people; null for none. */
  holds: string | null
}

/**
 * The files that `initPool` would make and overwrite. Changes nothing.
 * @throws as `initPool`, as far as that can be known
 */
export async function planPool(
  config: PoolConfig,
  { force = false }: { force?: boolean } = {},
): Promise<PlannedFile[]> {
  const { data, metadata, folder, dataBlockSize } = config
  mustBeLocal(config)
  mustDiffer(config)
  const dataFile = data.remote
    ? await planRemote(config, force)
    : planFile(data.path, { size: data.size, key: 'data.size', force })
  const auto = autoMetadataSize(dataFile.size!, dataBlockSize)
  const size = metadata.size === 'auto' ? auto : metadata.size
  const metadataFile = planFile(metadata.path, { size, key: 'metadata.size', force })
  const volumesFile = join(folder, VOLUMES_FILE)
  if (existsSync(volumesFile)) throw isThere(volumesFile, 'it is there already')
  const journal = join(folder, JOURNAL_FILE)
  return [
    dataFile,
    metadataFile,
    // One is written with the first volume.
    ...(Object.keys(config.volumes).length === 0
      ? []
      : [{ path: volumesFile, size: null, isNew: true, holds: null }]),
    { path: journal, size: null, isNew: !existsSync(journal), holds: null },
  ]
}

function planFile(
  path: string,
  { size, key, force }: { size: number | null; key: string; force: boolean },
): PlannedFile {
  const stat = statSync(path, { throwIfNoEntry: false })
  if (stat === undefined) {
    mustBeNoDevice(path)
    mustHaveSize(path, 0, size, key)
    return { path, size: size!, isNew: true, holds: null }
  }
  const store = FileStore.open(path, { readOnly: true })
  try {
    if (!store.lock()) throw new ThinfsError('POOL_IN_USE', `${path}: another process has it`)
    const holds = contentOf(store, stat)
    if (!force && holds !== null) throw isNotEmpty(path, holds)
    mustHaveSize(path, store.size, size, key)
    if (!force && key === 'metadata.size' && store.size > 0) mustBeUnformatted(store)
    const grown = stat.isBlockDevice() ? store.size : Math.max(size ?? 0, store.size)
    return { path, size: grown, isNew: false, holds }
  } finally {
    store.close()
  }
}

async function planRemote(config: PoolConfig, force: boolean): Promise<PlannedFile> {
  const remote = RemoteData.make(config)
  try {
    const size = await sizeOfEmpty(remote, config, { force, readOnly: true })
    return { path: remote.path, size, isNew: false, holds: null }
  } finally {
    remote.close()
  }
}

/**
 * A store that is new, empty, or to be overwritten; and that nobody else has.
 * @returns also whether this process made the file
 */
function openEmpty(path: string, force: boolean): { store: FileStore; isNew: boolean } {
  const stat = statSync(path, { throwIfNoEntry: false })
  if (stat === undefined) {
    mustBeNoDevice(path)
    return { store: lockedNew(path), isNew: true }
  }
  const store = FileStore.open(path)
  try {
    if (!store.lock()) throw new ThinfsError('POOL_IN_USE', `${path}: another process has it`)
    const holds = force ? null : contentOf(store, stat)
    if (holds !== null) throw isNotEmpty(path, holds)
    return { store, isNew: false }
  } catch (err) {
    store.close()
    throw err
  }
}

/** The content of a file or device, for people; null if it may be taken. */
function contentOf(store: FileStore, stat: Stats): string | null {
  if (stat.isFile() && store.nextData(bytes(0)) === store.size) return null
  const found = signatureOf(store.path)
  if (found === null && stat.isBlockDevice()) return null
  return found ?? 'data'
}

function isNotEmpty(path: string, holds: string): ThinfsError {
  const cure = holds === 'data' ? "where that is a pool's, write its pool.yaml and mount it; " : ''
  return isThere(path, `it is not empty: it has ${holds}; ${cure}--force overwrites it`)
}

/**
 * The size of an export that has nothing, or is to be overwritten.
 * @throws BAD_ARGUMENT for one that holds something; IO_ERROR
 */
async function sizeOfEmpty(
  remote: RemoteData,
  { dataBlockSize }: PoolConfig,
  { force, readOnly }: { force: boolean; readOnly: boolean },
): Promise<number> {
  const store = await remote.open({ dataBlockSize, readOnly })
  if (store.size < dataBlockSize) {
    const detail = `${remote.path}: ${store.size} bytes, no data block has room there`
    throw new ThinfsError('BAD_ARGUMENT', detail)
  }
  if (force || store.nextData(bytes(0)) === store.size) return store.size
  // Of a server that cannot tell of holes: where a file system or a pool begins there is something.
  const begin = new Uint8Array(Math.min(MIB, store.size))
  await store.readLater(begin, 0, begin.length, bytes(0))
  if (store.nextHole(bytes(0)) < store.size || !isZero(begin)) {
    throw isThere(remote.path, 'it is not empty; --force overwrites it')
  }
  return store.size
}

/** @throws POOL_IN_USE when another process makes it at the same time */
function lockedNew(path: string): FileStore {
  let store: FileStore | null = null
  try {
    store = FileStore.open(path, { create: true })
    if (store.lock()) return store
  } catch (err) {
    store?.close()
    if (errnoOf(err) !== 'EEXIST') throw err
    store = null
  }
  // The other one has it: it is not this process's to remove.
  store?.close()
  throw new ThinfsError('POOL_IN_USE', `${path}: another process is making it`)
}

/** @throws NOT_A_POOL for a device that is not there */
function mustBeNoDevice(path: string): void {
  if (!isAmongDevices(path)) return
  throw new ThinfsError('NOT_A_POOL', `${path}: no such device`, { errno: 'ENOENT' })
}

/** Whether a file made at `path` would be one where the system has its devices. */
function isAmongDevices(path: string): boolean {
  if (!path.startsWith('/dev/')) return false
  const folder = statSync(dirname(path), { throwIfNoEntry: false })
  return folder === undefined || folder.dev === statSync('/dev').dev
}

/** @param size what pool.yaml says; null says nothing */
function growTo(store: FileStore, size: number | null, key: string): void {
  mustHaveSize(store.path, store.size, size, key)
  const isDevice = statSync(store.path).isBlockDevice()
  if (size === null || size <= store.size || isDevice) return
  store.grow(bytes(size))
}

function mustHaveSize(path: string, has: number, size: number | null, key: string): void {
  if (size !== null || has > 0) return
  throw new ThinfsError('BAD_CONFIG', `${path}: a new file needs a size (${key})`)
}

async function format(store: FileStore, config: PoolConfig, force: boolean): Promise<void> {
  const superblock = Buffer.alloc(METADATA_BLOCK_SIZE)
  if (force) store.write(superblock, 0, superblock.length, bytes(0))
  mustBeUnformatted(store)
  ThinMetadata.format(store, {
    dataBlockSectors: config.dataBlockSize / SECTOR_SIZE,
    uuid: randomBytes(UUID_SIZE),
  })
  await store.sync()
}

/** The kernel's rule: only a block of zeros is unformatted. @throws BAD_ARGUMENT */
function mustBeUnformatted(store: FileStore): void {
  const superblock = Buffer.alloc(METADATA_BLOCK_SIZE)
  store.read(superblock, 0, superblock.length, bytes(0))
  if (isZero(superblock)) return
  throw isThere(store.path, 'its first 4 KiB are not zeros; --force overwrites them')
}

const isThere = (path: string, what: string): ThinfsError =>
  new ThinfsError('BAD_ARGUMENT', `${path}: ${what}`, { errno: 'EEXIST' })
