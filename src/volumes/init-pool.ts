/** Making the files of a new pool. Files that hold something are refused, as mkfs refuses them. */
import { randomBytes } from 'node:crypto'
import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  rmSync,
  type Stats,
  statSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
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
import { lockDisk, type RemoteDisk, STATE_SIZE_MIN } from '../remote/index.js'
import { type DataStore, FileStore, type Store } from '../storage/index.js'
import { DiskClients } from './disk-clients.js'
import { openPool } from './open-pool.js'
import { addressesOf, JOURNAL_FILE, mustDiffer, PoolFiles, VOLUMES_FILE } from './pool-files.js'
import { BRIEFLY, tenancyOf } from './pool-tenancy.js'
import { RemoteData } from './remote-data.js'
import { signatureOf } from './signatures.js'

/** Bytes at either end of a disk that have its signatures. */
const ENDS = 2 * MIB

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
  if (metadata.remote) return initRemote(config, force)
  const volumesFile = join(folder, VOLUMES_FILE)
  mustDiffer(config)
  const made: string[] = []
  const stores: FileStore[] = []
  const locks: number[] = []
  let clients: DiskClients | null = null
  let remote: RemoteData | null = null
  let files: PoolFiles | null = null
  const openNew = (path: string): FileStore => {
    const { store, isNew } = openEmpty(path, force)
    stores.push(store)
    if (isNew) made.push(path)
    return store
  }
  try {
    for (const address of addressesOf(config)) locks.push(lockDisk(address, false))
    clients = new DiskClients(locks[0] ?? null)
    const dataStore = data.remote ? RemoteData.make(config, clients) : openNew(data.path)
    if (dataStore instanceof RemoteData) remote = dataStore
    const metadataStore = openNew(metadata.path)
    if (existsSync(volumesFile)) throw isThere(volumesFile, 'it is there already')
    // From here on the locks keep everybody else from making a pool of these files.
    const others = [JOURNAL_FILE, TENANT_FILE].map(name => join(folder, name))
    made.push(volumesFile, ...others.filter(path => !existsSync(path)))
    if (!(dataStore instanceof RemoteData)) growTo(dataStore, data.size, 'data.size')
    const dataSize =
      dataStore instanceof RemoteData
        ? await sizeOfEmpty(await dataStore.open({ ...config, readOnly: false }), config, force)
        : dataStore.size
    const auto = autoMetadataSize(dataSize, config.dataBlockSize)
    growTo(metadataStore, metadata.size === 'auto' ? auto : metadata.size, 'metadata.size')
    await format(metadataStore, config, force)
    files = PoolFiles.of(metadataStore, dataStore, { config, locks, clients })
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
      void clients?.end()
      for (const fd of locks) closeSync(fd)
    }
  }
}

/** As `initPool`, where another machine has all of the pool. */
async function initRemote(config: PoolConfig, force: boolean): Promise<void> {
  const files = PoolFiles.open(config)
  try {
    await mustBeFree(files, config, force)
    const { metadata } = files
    await format(metadata, config, force)
    const pool = await openPool(config, { files, makeVolumes: true, acceptMetadata: true })
    await pool.close()
  } finally {
    files.close()
  }
}

/**
 * The disks of a pool on another machine, with what is on them; none holds anything, or with
 * `force` it may be overwritten. Then the names that are there are gone already, unless the files
 * are only read.
 * @throws BAD_ARGUMENT, POOL_IN_USE, NOT_SUPPORTED, IO_ERROR
 */
async function mustBeFree(
  files: PoolFiles,
  config: PoolConfig,
  force: boolean,
): Promise<PlannedFile[]> {
  const state = (await files.connectState())!
  const ofState = await contentOfDisk(state, STATE_SIZE_MIN)
  if (ofState !== null && !force) throw isNotEmpty(state.path, ofState)
  if (ofState !== null && !files.readOnly) {
    await mustBeNobodys(config, files)
    await state.zero(0, STATE_SIZE_MIN)
    await state.flush()
  }
  if (ofState === null || !files.readOnly) await files.connect()
  else await files.connectMetadata()
  const { metadata } = files
  const isEmpty = metadata.nextData(bytes(0)) >= metadata.size
  const ofMetadata = isEmpty ? null : ((await signatureOn(metadata)) ?? 'data')
  if (ofMetadata !== null && !force) throw isNotEmpty(metadata.path, ofMetadata)
  const size = await sizeOfEmpty(await files.openData(config), config, force)
  const isNew = false
  return [
    { path: config.data.path, size, isNew, holds: null },
    { path: metadata.path, size: metadata.size, isNew, holds: ofMetadata },
    { path: state.path, size: state.size, isNew, holds: ofState },
  ]
}

/** @throws POOL_IN_USE where the disks are a pool's that some host has; IO_ERROR */
async function mustBeNobodys(config: PoolConfig, files: PoolFiles): Promise<void> {
  try {
    await (await tenancyOf(config, files, BRIEFLY))?.release()
  } catch (err) {
    // What is no record says that nobody has a pool there.
    if (!(err instanceof ThinfsError && err.code === 'POOL_MISMATCH')) throw err
  }
}

/** The content of the first bytes of a disk, for people; null if they are zeros. */
async function contentOfDisk(disk: RemoteDisk, length: number): Promise<string | null> {
  const size = Math.min(length, disk.size)
  const content = new Uint8Array(MIB)
  for (const extent of (await disk.extents(0, size)) ?? [{ offset: 0, length: size }]) {
    const end = Math.min(extent.offset + extent.length, size)
    for (let at = extent.offset; at < end; at += content.length) {
      const part = content.subarray(0, Math.min(content.length, end - at))
      await disk.read(part, at)
      if (!isZero(part)) return 'data'
    }
  }
  return null
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
  if (metadata.remote) {
    const files = PoolFiles.open(config, true)
    try {
      return await mustBeFree(files, config, force)
    } finally {
      files.close()
    }
  }
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
  const lock = lockDisk(config.data.remote!, true)
  const clients = new DiskClients(null)
  const remote = RemoteData.make(config, clients)
  try {
    const store = await remote.open({ ...config, readOnly: true })
    const size = await sizeOfEmpty(store, config, force)
    return { path: remote.path, size, isNew: false, holds: null }
  } finally {
    remote.close()
    void clients.end()
    closeSync(lock)
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
 * The size of a disk that has nothing, or is to be overwritten.
 * @throws BAD_ARGUMENT for one that holds something; IO_ERROR
 */
async function sizeOfEmpty(
  store: DataStore,
  { dataBlockSize }: PoolConfig,
  force: boolean,
): Promise<number> {
  const { path, size } = store
  if (size < dataBlockSize) {
    throw new ThinfsError('BAD_ARGUMENT', `${path}: ${size} bytes, no data block has room there`)
  }
  if (force || store.nextData(bytes(0)) === size) return size
  // Of a server that cannot tell of holes: where a file system or a pool begins there is something.
  const signature = await signatureOn(store)
  const begin = new Uint8Array(Math.min(MIB, size))
  await store.readLater(begin, 0, begin.length, bytes(0))
  if (signature !== null || store.nextHole(bytes(0)) < size || !isZero(begin)) {
    throw isNotEmpty(path, signature ?? 'data')
  }
  return size
}

/**
 * The signatures of what a disk of another machine holds, for people; null where there are none.
 */
async function signatureOn(store: DataStore): Promise<string | null> {
  const folder = mkdtempSync(join(tmpdir(), 'thinfs-init-'))
  try {
    const path = join(folder, 'ends')
    const fd = openSync(path, 'wx+', 0o600)
    try {
      // Programs look at both ends.
      const part = new Uint8Array(Math.min(ENDS, store.size))
      for (const at of [0, store.size - part.length]) {
        await store.readLater(part, 0, part.length, bytes(at))
        writeSync(fd, part, 0, part.length, at)
      }
    } finally {
      closeSync(fd)
    }
    return signatureOf(path)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
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

async function format(store: Store, config: PoolConfig, force: boolean): Promise<void> {
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
function mustBeUnformatted(store: Store): void {
  const superblock = Buffer.alloc(METADATA_BLOCK_SIZE)
  store.read(superblock, 0, superblock.length, bytes(0))
  if (isZero(superblock)) return
  throw isThere(store.path, 'its first 4 KiB are not zeros; --force overwrites them')
}

const isThere = (path: string, what: string): ThinfsError =>
  new ThinfsError('BAD_ARGUMENT', `${path}: ${what}`, { errno: 'EEXIST' })
