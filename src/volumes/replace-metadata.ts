/**
 * New metadata in the place of a pool's: made beside it, checked, and then put there at once. The
 * metadata that the pool had is kept, whatever it is.
 */
import {
  chmodSync,
  chownSync,
  existsSync,
  linkSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs'
import { join } from 'node:path'
import { bytes, ioError, isZero, METADATA_BLOCK_SIZE, MIB, ThinfsError } from '../base/index.js'
import { autoMetadataSize, type PoolConfig } from '../config/index.js'
import { checkMetadata, ThinMetadata, UUID_SIZE } from '../metadata/index.js'
import { FileStore, type Store, syncFolder } from '../storage/index.js'
import { JOURNAL_FILE, type PoolFiles } from './pool-files.js'
import { BRIEFLY, tenancyOf } from './pool-tenancy.js'
import { readTable } from './volume-table.js'

/**
 * Replaces the metadata of a pool that is not open.
 * @param files locked to be written to; to be closed then, for they are the old ones
 * @param build makes the new metadata in an empty store
 * @returns what `build` does, and the path of the file that has the metadata that was there
 * @throws what `build` throws, METADATA_CORRUPT, IO_ERROR; then nothing has changed, unless it
 *   happens while a device is written to, which the message says
 */
export async function replaceMetadata<T>(
  config: PoolConfig,
  files: PoolFiles,
  build: (target: Store) => Promise<T>,
): Promise<{ result: T; kept: string }> {
  const { metadata: old, folder } = files
  const data = await files.openData(config)
  const { path: given, extents, remote } = config.metadata
  const path = remote ? given : realpathSync(given)
  const isFile = !remote && statSync(path).isFile() && extents === undefined
  const base = isFile ? path : join(config.folder, 'metadata')
  const next = `${base}.new`
  // The traces of a run that was killed.
  rmSync(next, { force: true })
  const size = isFile ? Math.max(old.size, wantedSize(config, data.size)) : old.size
  const store = FileStore.open(next, { create: true, size: bytes(size) })
  try {
    if (!store.lock()) throw new ThinfsError('POOL_IN_USE', `${next}: another process has it`)
    const result = await build(store)
    mustBeSound(store)
    const tenancy = await tenancyOf(config, files, BRIEFLY)
    try {
      await files.mustBeCurrent()
      const kept = isFile ? await exchange(store, path) : await overwrite(store, old, base)
      await setJournalAside(folder.file(JOURNAL_FILE))
      await files.forgetJournal()
      return { result, kept }
    } finally {
      await tenancy?.release()
    }
  } finally {
    store.close()
    rmSync(next, { force: true })
  }
}

function wantedSize({ metadata, dataBlockSize }: PoolConfig, dataSize: number): number {
  return metadata.size === 'auto' ? autoMetadataSize(dataSize, dataBlockSize) : (metadata.size ?? 0)
}

function mustBeSound(store: Store): void {
  const [problem] = checkMetadata(store).problems
  if (problem === undefined) return
  throw new ThinfsError('METADATA_CORRUPT', `what was made is not sound: ${problem.message}`)
}

/**
 * Puts a new file in the place of the old one, which gets another name. At no time is there none.
 */
async function exchange(store: FileStore, path: string): Promise<string> {
  const kept = freeName(path)
  try {
    const { mode, uid, gid } = statSync(path)
    chownSync(store.path, uid, gid)
    chmodSync(store.path, mode & 0o7777)
    linkSync(path, kept)
    renameSync(store.path, path)
    await syncFolder(path)
  } catch (err) {
    throw ioError(path, err)
  }
  return kept
}

/** Copies what a disk, or a part of one, has to a file, and then the new content to there. */
async function overwrite(store: FileStore, device: Store, base: string): Promise<string> {
  const kept = freeName(base)
  const copy = FileStore.open(kept, { create: true, size: device.size })
  try {
    copyBlocks(device, copy, 0)
    await copy.sync()
    await syncFolder(kept)
  } finally {
    copy.close()
  }
  try {
    // The superblock last: in between there is none, and so no metadata that could be taken for
    // some.
    const superblock = Buffer.alloc(METADATA_BLOCK_SIZE)
    device.write(superblock, 0, superblock.length, bytes(0))
    await device.sync()
    copyBlocks(store, device, METADATA_BLOCK_SIZE)
    await device.sync()
    store.read(superblock, 0, superblock.length, bytes(0))
    device.write(superblock, 0, superblock.length, bytes(0))
    await device.sync()
  } catch (err) {
    const what = `${(err as Error).message}: it was written to in part; what it was is in ${kept}`
    throw new ThinfsError('IO_ERROR', what, { cause: err })
  }
  return kept
}

/**
 * Gives the journal, which is that of the old metadata, another name. Without one the next opening
 * looks whether blocks hold data that the new metadata calls free.
 */
async function setJournalAside([path, held]: [path: string, held: string]): Promise<void> {
  try {
    if (!existsSync(held)) return
    renameSync(held, freeName(held))
    await syncFolder(held)
  } catch (err) {
    throw ioError(path, err)
  }
}

/** Copies what a store holds from `begin` on, but for its holes; the target is as large. */
function copyBlocks(source: Store, target: Store, begin: number): void {
  const buffer = Buffer.allocUnsafe(MIB)
  for (let at: number = source.nextData(bytes(begin)); at < source.size; ) {
    const length = Math.min(source.nextHole(bytes(at)), source.size, at + buffer.length) - at
    source.read(buffer, 0, length, bytes(at))
    target.write(buffer, 0, length, bytes(at))
    at = source.nextData(bytes(at + length))
  }
}

function freeName(path: string): string {
  for (let n = 0; ; n++) {
    const name = n === 0 ? `${path}.old` : `${path}.old.${n}`
    if (!existsSync(name)) return name
  }
}

/**
 * How many devices metadata has: 0 where its superblock is all zeros, as of a new file; null for
 * what is damaged.
 */
export function devicesIn(store: Store): number | null {
  const superblock = Buffer.alloc(METADATA_BLOCK_SIZE)
  const length = Math.min(store.size, superblock.length)
  store.read(superblock, 0, length, bytes(0))
  if (isZero(superblock)) return 0
  try {
    return [...ThinMetadata.open(store).deviceIds()].length
  } catch (err) {
    if (err instanceof ThinfsError) return null
    throw err
  }
}

/** The facts that a pool's other files tell where its metadata tells nothing. */
export interface PoolTraces {
  /** 16 bytes; null where no file has it. */
  uuid: Buffer | null
  /** Of volumes.json, null without one. */
  transactionId: number | null
  /** Names of devices, null without volumes.json. */
  names: Map<number, string> | null
}

/** Looks at the superblock, volumes.json and the label of the data. Nothing need be there. */
export function tracesOf(files: PoolFiles): PoolTraces {
  const { metadata, table: file } = files
  const attempt = <T>(look: () => T): T | null => {
    try {
      return look()
    } catch (err) {
      if (err instanceof ThinfsError) return null
      throw err
    }
  }
  const table = attempt(() => readTable(file))
  const uuid =
    attempt(() => ThinMetadata.open(metadata).uuid) ??
    attempt(() => files.data.readLabel()?.pool ?? null) ??
    table?.uuid ??
    null
  const names = table && new Map(table.volumes.map(({ dev_id, name }) => [dev_id, name]))
  const bytes = uuid === null ? null : Buffer.from(uuid.replaceAll('-', ''), 'hex')
  return {
    uuid: bytes?.length === UUID_SIZE ? bytes : null,
    transactionId: table?.transaction_id ?? null,
    names: names ?? null,
  }
}
