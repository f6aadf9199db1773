import {
  bytes,
  type Later,
  METADATA_BLOCK_SIZE,
  SECTOR_SIZE,
  SYSTEM_CLOCK,
  ThinfsError,
} from '../base/index.js'
import {
  autoMetadataSize,
  formatSizes,
  lowWaterMarkBlocks,
  type PoolConfig,
} from '../config/index.js'
import { checkRoots, ThinMetadata } from '../metadata/index.js'
import {
  type AutoextendOptions,
  isBehind,
  Journal,
  type JournalState,
  mayBeNewer,
  mustBeLabelled,
  mustHaveHoles,
  NO_EVENTS,
  olderError,
  type PoolEvents,
  ThinPool,
} from '../pool/index.js'
import type { OnLoad } from '../remote/index.js'
import { type DataStore, JournalFile, type Label, MemoryJournal } from '../storage/index.js'
import type { Tenancy } from '../tenancy/index.js'
import type { CheckProblem, CheckProgress, CheckReport } from './admin.js'
import { checkFiles, isDamaged, problemOf, withData } from './check-files.js'
import { IdMap } from './id-map.js'
import { PoolFiles } from './pool-files.js'
import { type MountTenancy, tenancyOf } from './pool-tenancy.js'
import { mustBeOf, readTable, type TableFile } from './volume-table.js'
import { Volumes } from './volumes.js'

export interface OpenOptions {
  readOnly?: boolean
  /** The mount of a process that died goes on: what was open there is open still. */
  takesOver?: boolean
  /** How the mount has the pool to itself; default: a command does, until it closes the pool. */
  tenancy?: MountTenancy
  /** Make the volumes that pool.yaml names and the pool lacks. */
  makeVolumes?: boolean
  /** Take metadata that may be an older copy, or not that of volumes.json, as it is. */
  acceptMetadata?: boolean
  /** See `PoolOptions`. */
  mendsLeaks?: boolean
  /** Its mount point, which hides what is below. */
  mountPoint?: string
  /** Files that are open and locked, and stay the caller's to close; default: opened here. */
  files?: PoolFiles
  /** How much of metadata on another machine has been read. */
  onLoad?: OnLoad
  /** How much of metadata that has to be checked has been. */
  onCheck?: (done: number, all: number) => void
  /** Called with what is odd, but no reason to refuse the pool. */
  onWarning?: (message: string) => void
  /** Default: nobody listens; what fails is thrown to the caller as well. */
  events?: PoolEvents
  onChange?: (what: string, volume: string, devId: number) => void
  onResized?: (devId: number, size: number) => Promise<void>
}

/** An open pool. */
export interface OpenPool {
  volumes: Volumes
  /** Null for a pool that no other host reaches, or one that is opened to be read. */
  tenancy: Tenancy | null
  /** Commits and closes the files. */
  close(): Promise<void>
}

/**
 * Opens a pool. Files that do not belong together are refused before anything is changed.
 * @throws NOT_A_POOL, POOL_IN_USE, POOL_MISMATCH, METADATA_CORRUPT, METADATA_UNSUPPORTED
 */
export async function openPool(config: PoolConfig, options: OpenOptions = {}): Promise<OpenPool> {
  const readOnly = options.readOnly ?? false
  const files = options.files ?? PoolFiles.open(config, readOnly)
  let tenancy: Tenancy | null = null
  let journal: JournalFile | MemoryJournal | null = null
  let opened: ThinPool | Volumes | null = null
  const warnings: string[] = []
  const warn = (message: string): void => {
    warnings.push(message)
    options.onWarning?.(message)
  }
  const closeFiles = (): void => {
    journal?.close()
    if (options.files === undefined) files.close()
  }
  try {
    const onConnection = (what: string): void => (options.events ?? NO_EVENTS).warning(what)
    const connecting = { onConnection, ...(options.onLoad && { onLoad: options.onLoad }) }
    tenancy = await tenancyOf(config, files, {
      mount: options.tenancy ?? null,
      takesOver: options.takesOver ?? false,
      clock: SYSTEM_CLOCK,
      warn: (options.events ?? NO_EVENTS).warning,
      onConnection,
      async mustBeThere() {
        await files.connectMetadata(connecting)
        mustBeMade(files)
      },
    })
    const mayWrite = (): Later<void> => {
      if (tenancy === null) return files.mustHoldLocks()
      return tenancy.confirm().then(() => files.mustHoldLocks())
    }
    const owner = tenancy && { name: tenancy.tenant.mountId, mayReplace: () => pool.mayWrite() }
    if (owner !== null && !options.takesOver) await files.ownTable(owner)
    // Between two engines nobody looked after them.
    if (!readOnly) files.mustHoldLocks()
    await files.connect(connecting)
    if (!files.hasTable) mustBeMade(files)
    if (!readOnly && !options.takesOver) await files.mustBeCurrent()
    const { metadata } = files
    const data = await files.openData({ dataBlockSize: config.dataBlockSize, onConnection })
    const doubtful = mustBelong(config, files, { ...options, onWarning: warn })
    const odd = readOnly ? [...rootProblems(files), ...checkJournal(files, data)] : []
    for (const { severity, message } of odd) if (severity === 'warning') warn(message)
    journal = files.openJournal(readOnly)
    // A host that had the pool before may have the file open, and append to it once more.
    const isFile = journal instanceof JournalFile && !journal.isMissing
    if (tenancy !== null && !options.takesOver && isFile) journal.replace(journal.readAll())
    const dataSize = readOnly ? data.size : Math.max(data.size, config.data.size ?? 0)
    const pool = await ThinPool.open({
      metadata,
      data,
      journal,
      readOnly,
      takesOver: options.takesOver ?? false,
      acceptMetadata: options.acceptMetadata ?? false,
      mendsLeaks: options.mendsLeaks ?? false,
      doubtful: doubtful || (journal.isMissing && isOurs(files, data)),
      dataSize: bytes(dataSize),
      discards: config.discards,
      onFull: config.onFull,
      queueTimeout: config.queueTimeout,
      lowWaterMark: nrDataBlocks => lowWaterMarkBlocks(config, nrDataBlocks),
      autoextend: autoextendOf(config),
      ...(!readOnly && { mayWrite }),
      ...(options.onCheck && { onCheck: options.onCheck }),
      clock: SYSTEM_CLOCK,
      events: options.events ?? NO_EVENTS,
    })
    opened = pool
    const inMemory = journal instanceof MemoryJournal ? journal : null
    if (!readOnly && inMemory?.isMissing) await inMemory.sync()
    void tenancy?.lost.then(why => pool.lose(why))
    // Every disk is connected to: whoever is let in now is one client too many.
    if (options.tenancy) {
      void files.isShared().then(isShared => {
        if (!isShared) return
        tenancy?.becomeAdvisory?.()
        options.onWarning?.(ADVISORY)
      })
    }
    const names = files.tableOf(owner)
    const table = guarded(names, () => pool.mayWrite())
    const lost = lostNames(pool.metadata, files)
    if (lost !== null) warn(lost)
    const larger = largerThanSaid(config, pool)
    if (larger !== null) warn(larger)
    if (!readOnly) await names.reserve()
    const volumes = Volumes.open({
      name: config.pool,
      pool,
      metadata,
      table,
      tenancy,
      place: {
        ...{ path: files.folder.path, held: files.folder.held, ofUser: config.ofUser },
        mountPoint: options.mountPoint,
      },
      warnings,
      refusal: odd.find(({ severity }) => severity === 'error')?.message ?? null,
      uid: IdMap.own('uid').outside(process.getuid!()),
      gid: IdMap.own('gid').outside(process.getgid!()),
      now: () => Date.now() / 1000,
      onChange: options.onChange ?? (() => {}),
      onResized: options.onResized ?? (async () => {}),
    })
    opened = volumes
    await volumes.takeIdOver()
    await volumes.adopt(config.volumes)
    if (options.makeVolumes && lost === null && pool.mode === 'write') {
      await volumes.makeMissing(config.volumes)
    }
    pool.space.minFree = config.minFreeSpace ?? 0
    return {
      volumes,
      tenancy,
      async close() {
        try {
          await volumes.close()
          if (inMemory !== null && pool.writable) {
            // The next mount, on whichever host, need not check what was closed in order.
            await mayWrite()
            await inMemory.sync()
          }
          await tenancy?.release()
        } finally {
          closeFiles()
        }
      },
    }
  } catch (err) {
    // A commit that comes later must not find other files in the place of these.
    await opened?.close().catch(() => {})
    if (options.takesOver !== true) await tenancy?.release().catch(() => {})
    closeFiles()
    throw err
  }
}

const ADVISORY =
  'an NBD server of the pool lets in other hosts as well: nothing but the record keeps them away'

function autoextendOf({ data, metadata, dataBlockSize }: PoolConfig): AutoextendOptions {
  return {
    ...(data.autoextend && { data: data.autoextend }),
    ...(metadata.autoextend && { metadata: metadata.autoextend }),
    // A disk of another machine does not grow with the data.
    ...(metadata.size === 'auto' &&
      !metadata.remote && {
        metadataOf: blocks =>
          autoMetadataSize(blocks * dataBlockSize, dataBlockSize) / METADATA_BLOCK_SIZE,
      }),
  }
}

/** @throws NOT_A_POOL for metadata that is all zeros */
function mustBeMade({ metadata }: PoolFiles): void {
  if (metadata.nextData(bytes(0)) < metadata.size) return
  const detail = `${metadata.path}: it is empty, there is no pool on it yet; thinfs init makes it`
  throw new ThinfsError('NOT_A_POOL', detail)
}

/** Whether thinfs had the pool before, which then has a journal: no power cut takes its name. */
const isOurs = ({ metadata }: PoolFiles, data: DataStore): boolean =>
  labelOf(data) !== null || ThinMetadata.open(metadata).uuid !== null

/**
 * @returns whether the metadata may be of another pool all the same
 * @throws POOL_MISMATCH before anything is changed
 */
function mustBelong(config: PoolConfig, files: PoolFiles, options: OpenOptions): boolean {
  const { metadata: store } = files
  const metadata = ThinMetadata.open(store)
  const found = metadata.dataBlockSectors * SECTOR_SIZE
  if (found !== config.dataBlockSize) {
    throw new ThinfsError(
      'POOL_MISMATCH',
      `${store.path}: data blocks of ${found} bytes, ${config.file} says ${config.dataBlockSize}`,
    )
  }
  if (options.acceptMetadata) return false
  const { transactionId, uuid } = metadata
  const warn = options.onWarning ?? (() => {})
  return mustBeOf(files.table, { name: config.pool, transactionId, uuid }, warn)
}

/**
 * Verifies a pool that is not open, however damaged. It only reads.
 * @param options.deep reads all data too
 * @param options.files as for `openPool`
 * @throws NOT_A_POOL, POOL_IN_USE
 */
export async function checkPool(
  config: PoolConfig,
  options: {
    deep?: boolean
    files?: PoolFiles
    onProgress?: (progress: CheckProgress) => void
  } = {},
): Promise<CheckReport> {
  const { onProgress } = options
  const files = options.files ?? PoolFiles.open(config, true)
  try {
    await files.connect()
    if (!files.hasTable) mustBeMade(files)
    const { metadata } = files
    const data = await files.openData({ dataBlockSize: config.dataBlockSize })
    const steps = checkFiles(
      { name: config.pool, metadata, data, table: files.table },
      onProgress ? (done, all) => onProgress({ part: 'metadata', done, all }) : null,
    )
    let step = steps.next()
    while (!step.done) step = steps.next()
    const report = step.value
    // Whatever else is wrong comes first: it may be the superblock.
    if (!isDamaged(report)) {
      const message = lostNames(ThinMetadata.open(metadata), files)
      if (message !== null) report.problems.push({ severity: 'warning', message })
      report.problems.push(...checkJournal(files, data), ...(await checkFree(files, data)))
    }
    if (!options.deep || isDamaged(report)) return report
    const all = Math.max(report.usedDataBlocks, 1) * config.dataBlockSize
    const onRead = onProgress ? (done: number) => onProgress({ part: 'data', done, all }) : null
    return await checkDeep(files, data, report, onRead)
  } finally {
    if (options.files === undefined) files.close()
  }
}

/** A warning where a pool that thinfs made has volumes and no file that names them; else null. */
function lostNames(metadata: ThinMetadata, files: PoolFiles): string | null {
  const has = metadata.uuid === null || metadata.deviceIds().next().done || files.hasTable
  if (has) return null
  const { path } = files.table
  const named = 'no such file, though the pool has volumes: they are named thin-ID'
  const cure = 'Put the file back, or rename them; those of pool.yaml are not made anew'
  return `${path}: ${named}. ${cure}`
}

/** A warning where pool.yaml asks for less data than a pool has that does not grow; else null. */
function largerThanSaid(
  { file, data }: PoolConfig,
  { metadata, blockSize }: ThinPool,
): string | null {
  const size = metadata.nrDataBlocks * blockSize
  if (data.size === null || data.size >= size || data.autoextend) return null
  const [wanted, has] = formatSizes(data.size, size)
  const said = `${file}: data.size is ${wanted}, the pool has ${has}`
  return `${said}: thinfs shrink makes it smaller, data.size counts only where it is larger`
}

function checkDeep(
  files: PoolFiles,
  data: DataStore,
  report: CheckReport,
  onProgress: ((readBytes: number) => void) | null,
): Promise<CheckReport> {
  const { metadata } = files
  const names = new Map<number, string>()
  for (const { dev_id, name } of readTable(files.table)?.volumes ?? []) names.set(dev_id, name)
  return withData(report, {
    metadata: ThinMetadata.open(metadata),
    data,
    // Closed in order, and as it was then: every free block is a hole.
    freeMeansHole: stateOf(files).clean,
    nameOf: devId => names.get(devId) ?? `device ${devId}`,
    pause: async () => {},
    onProgress,
  })
}

/** A file that is written to only while the pool is ours. */
const guarded = (file: TableFile, mayWrite: () => Promise<void>): TableFile => ({
  path: file.path,
  read: most => file.read(most),
  async replace(content) {
    await mayWrite()
    await file.replace(content)
  },
})

function checkJournal(files: PoolFiles, data: DataStore): CheckProblem[] {
  const { metadata } = files
  try {
    const state = stateOf(files)
    const label = labelOf(data)
    if (state.older) throw olderError(metadata.path)
    mustBeLabelled(label, { state, uuid: ThinMetadata.open(metadata).uuid }, data.path)
    if (label === null || !isBehind(state, label)) return []
    const both = `as of commit ${label.generation}, the journal knows ${state.generation}`
    const message = `${data.path}: ${both}: metadata and journal may be older copies`
    return [{ severity: 'warning', message }]
  } catch (err) {
    if (!(err instanceof ThinfsError)) throw err
    return [problemOf(err)]
  }
}

/**
 * The damage for which a pool is not opened to be written to, as far as a quick look finds it.
 * Where needs_check is set the pool comes up read-only instead.
 */
function rootProblems({ metadata }: PoolFiles): CheckProblem[] {
  if (ThinMetadata.open(metadata).needsCheck) return []
  const how = 'thinfs check finds all of it, thinfs repair saves what can be read'
  return checkRoots(metadata)
    .filter(({ severity }) => severity === 'error')
    .map(({ severity, message }) => ({ severity, message: `${metadata.path}: ${message}; ${how}` }))
}

/** Problems of files that show in free blocks that hold data. */
async function checkFree(files: PoolFiles, data: DataStore): Promise<CheckProblem[]> {
  const { metadata } = files
  try {
    if (!mayBeNewer(stateOf(files), labelOf(data))) return []
    const of = { path: metadata.path, doubt: 'unlabelled' } as const
    await mustHaveHoles(ThinMetadata.open(metadata), data, of)
    return []
  } catch (err) {
    if (!(err instanceof ThinfsError)) throw err
    return [problemOf(err)]
  }
}

const labelOf = (data: DataStore): Label | null => data.readLabel?.() ?? null

/** The journal's verdict about the present metadata. */
function stateOf(files: PoolFiles): JournalState {
  const { metadata } = files
  const superblock = Buffer.alloc(METADATA_BLOCK_SIZE)
  metadata.read(superblock, 0, superblock.length, bytes(0))
  const journal = files.openJournal(true)
  try {
    return new Journal(journal).read(superblock)
  } finally {
    journal.close()
  }
}
