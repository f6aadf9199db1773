/**
 * Open thin pools, each once, whichever tables name it.
 *
 * A pool is opened with the size in its superblock. Its stores become as long as the table says
 * when that takes effect. Whatever they gain is punched first: it may hold somebody else's bytes,
 * and a free block has to be a hole.
 */
import { mkdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import {
  bytes,
  type DevId,
  errnoOf,
  isZero,
  MAX_METADATA_BLOCKS,
  METADATA_BLOCK_SIZE,
  refused,
  SECTOR_SIZE,
  SYSTEM_CLOCK,
  ThinfsError,
} from '../base/index.js'
import { SUPERBLOCK, ThinMetadata } from '../metadata/index.js'
import { Journal, type PoolEvents, type PoolOptions, ThinPool } from '../pool/index.js'
import {
  ExtentStore,
  JournalFile,
  type SharedFiles,
  type Store,
  type StorePart,
} from '../storage/index.js'
import { Gate } from './gate.js'
import { type OpenExtents, openExtents, placeOf, trimmed } from './source.js'
import { StoreDevice } from './store-device.js'
import type { Range, Target } from './table-engine.js'

export type PoolTable = Extract<Target, { type: 'thin-pool' }>

export interface LivePoolsOptions {
  /** Journals of pools go to `pools/` below it. */
  folder: string
  files: SharedFiles
  /** Whether devices were open in a process that has died, and are in use. */
  takesOver(): boolean
  /** The event counter of a pool's device goes up. */
  onEvent(minor: number): void
  /** Receives the events of a device's pool. */
  events(minor: number): PoolEvents
}

export class LivePools {
  readonly #options: LivePoolsOptions
  readonly #byId = new Map<string, Promise<LivePool>>()

  constructor(options: LivePoolsOptions) {
    this.#options = options
  }

  /**
   * The pool of a table, opened when it is not. Callers give it back with `release`. One that is
   * open keeps its block size whatever the table says, as in the kernel.
   * @param minor of the device that the table is loaded to
   * @throws BAD_ARGUMENT with EINVAL, EBUSY when it is another device's, EPERM for a fresh one that
   *   is only to be read; METADATA_CORRUPT with EILSEQ or ENOTBLK; POOL_IN_USE, POOL_MISMATCH,
   *   IO_ERROR
   */
  async take(minor: number, table: PoolTable): Promise<LivePool> {
    const id = placeOf(table.metadata)
    const there = this.#byId.get(id)
    if (there !== undefined) {
      const pool = await there
      // It may be closed, or have been.
      if (this.#byId.get(id) !== there || pool.users === 0) return this.take(minor, table)
      if (pool.minor !== minor) throw refused('EBUSY', 'the metadata device is in use by a pool')
      pool.users++
      return pool
    }
    const opening = LivePool.open(minor, id, table, this.#options)
    this.#byId.set(id, opening)
    try {
      return await opening
    } catch (err) {
      this.#byId.delete(id)
      throw err
    }
  }

  /** Closes the pool when nobody has it any more. */
  async release(pool: LivePool): Promise<void> {
    if (--pool.users > 0) return
    const closing = pool.close()
    // The next one to open the pool waits until its files are closed.
    const gone = closing.then(
      () => pool,
      () => pool,
    )
    this.#byId.set(pool.id, gone)
    try {
      await closing
    } finally {
      if (this.#byId.get(pool.id) === gone) this.#byId.delete(pool.id)
    }
  }

  /** Makes everything that was acknowledged durable. */
  async commit(): Promise<void> {
    const pools = await Promise.allSettled(this.#byId.values())
    await Promise.allSettled(
      pools.map(opened => (opened.status === 'fulfilled' ? opened.value.pool.commit() : null)),
    )
  }
}

/** A pool that is open, and the parts of its table that cannot change meanwhile. */
interface Opened {
  pool: ThinPool
  metadata: OpenExtents
  data: OpenExtents
  device: StoreDevice
  journal: JournalFile
}

export class LivePool {
  readonly id: string
  readonly minor: number
  /** The gate that requests of its thin devices pass. */
  readonly gate = new Gate()
  /** The pool's own table that has shut the gate last. No other opens it. */
  shutBy: object | null = null
  /** Tables that have it: its own, and those of its thin devices. */
  users = 1
  /** Counts up whenever `pool` is another object. */
  generation = 0
  readonly #options: LivePoolsOptions
  readonly #opens = new Map<DevId, number>()
  #opened: Opened
  #table: PoolTable
  /** Messages are carried out one after the other. */
  #last: Promise<unknown> = Promise.resolve()
  /** Extents of tables that have taken effect since the opening, and brought other files. */
  readonly #later: OpenExtents[] = []
  /** The device that is being deleted; null when none is. */
  deleting: DevId | null = null

  private constructor(
    id: string,
    minor: number,
    table: PoolTable,
    opened: Opened,
    options: LivePoolsOptions,
  ) {
    this.id = id
    this.minor = minor
    this.#table = table
    this.#opened = opened
    this.#options = options
  }

  static async open(
    minor: number,
    id: string,
    table: PoolTable,
    options: LivePoolsOptions,
  ): Promise<LivePool> {
    return new LivePool(id, minor, table, await openStores(minor, id, table, options), options)
  }

  get pool(): ThinPool {
    return this.#opened.pool
  }

  /** The data device, which the pool's own device shows as it is. */
  get data(): StoreDevice {
    return this.#opened.device
  }

  /**
   * A table of the pool takes effect.
   * @param size bytes of the table
   * @throws BAD_ARGUMENT when it is shorter than the pool; EBUSY
   */
  async resume(table: PoolTable, size: number): Promise<void> {
    const { readOnly, ignoreDiscard, noDiscardPassdown } = this.#table
    const isOther =
      table.readOnly !== readOnly ||
      table.ignoreDiscard !== ignoreDiscard ||
      table.noDiscardPassdown !== noDiscardPassdown
    if (isOther) await this.#reopen(table)
    const { files } = this.#options
    const metadata = openOf(table, table.metadata, files)
    let data: OpenExtents | null = null
    try {
      data = openOf(table, table.data, files)
      mustDiffer(metadata, data)
      await this.#growTo(metadata, data, size)
    } catch (err) {
      metadata.close()
      data?.close()
      throw err
    }
    for (const extents of [metadata, data]) this.#keep(extents)
    this.#table = table
    const { pool } = this
    await pool.space.reconfigure({ lowWaterMark: table.lowWater, onFull: onFullOf(table) })
  }

  /** Keeps the files of a list open until the pool is closed. */
  #keep(extents: OpenExtents): void {
    const { metadata, data } = this.#opened
    const all = [metadata, data, ...this.#later]
    const kept = new Set(all.flatMap(({ ranges }) => ranges.map(fileOf)))
    if (extents.ranges.every(range => kept.has(fileOf(range)))) extents.close()
    else this.#later.push(extents)
  }

  /** Makes the stores as long as a table says. */
  async #growTo(metadata: OpenExtents, data: OpenExtents, size: number): Promise<void> {
    const { pool } = this
    const { nrDataBlocks, nrMetadataBlocks } = pool.metadata
    const dataParts = trimmed(data.parts, size)
    const next = new ExtentStore(data.store.path, dataParts)
    const blocks = Math.floor(next.size / pool.blockSize)
    if (blocks < nrDataBlocks) {
      throw refused('EINVAL', `pool target (${blocks} blocks) too small: expected ${nrDataBlocks}`)
    }
    const metadataBlocks = Math.floor(metadata.store.size / METADATA_BLOCK_SIZE)
    if (metadataBlocks < nrMetadataBlocks) {
      throw refused(
        'EINVAL',
        `metadata device (${metadataBlocks} blocks) too small: expected ${nrMetadataBlocks}`,
      )
    }
    // A pool that cannot be written does not grow.
    if (!pool.writable) return
    const old = nrDataBlocks * pool.blockSize
    const gained = blocks * pool.blockSize - old
    if (pool.blocks.freeMeansHole && gained > 0) await next.punchLater(bytes(old), bytes(gained))
    this.#opened.data.store.replace(dataParts)
    this.#opened.metadata.store.replace(metadata.parts)
  }

  /** Closes the pool and opens it as another table says. Its devices are suspended. */
  async #reopen(table: PoolTable): Promise<void> {
    if (this.pool.space.writesWaiting > 0) {
      throw refused('EBUSY', 'writes wait for space: discards and read_only cannot be changed')
    }
    const before = this.#table
    await this.#closeOpened()
    try {
      this.#opened = await openStores(this.minor, this.id, table, this.#options)
    } catch (err) {
      this.#opened = await openStores(this.minor, this.id, before, this.#options)
      throw err
    } finally {
      this.generation++
    }
  }

  /** Counts a table that has a thin device open. @throws DEVICE_MISSING */
  openThin(devId: DevId): void {
    if (devId === this.deleting || !this.pool.metadata.hasDevice(devId)) {
      throw new ThinfsError('DEVICE_MISSING', `device ${devId}`)
    }
    this.#opens.set(devId, (this.#opens.get(devId) ?? 0) + 1)
    this.users++
  }

  /** Undoes `openThin`; the pool is then to be released. */
  closeThin(devId: DevId): void {
    const left = this.#opens.get(devId)! - 1
    if (left === 0) this.#opens.delete(devId)
    else this.#opens.set(devId, left)
  }

  isThinOpen(devId: DevId): boolean {
    return this.#opens.has(devId)
  }

  /** Runs `work` after all that came before. */
  exclusive<T>(work: () => Promise<T>): Promise<T> {
    const next = this.#last.then(work)
    this.#last = next.catch(() => {})
    return next
  }

  async close(): Promise<void> {
    await this.#last
    await this.#closeOpened()
  }

  async #closeOpened(): Promise<void> {
    try {
      await this.pool.close()
    } finally {
      this.#opened.journal.close()
      for (const extents of this.#later.splice(0)) extents.close()
      this.#opened.metadata.close()
      this.#opened.data.close()
    }
  }
}

async function openStores(
  minor: number,
  id: string,
  table: PoolTable,
  options: LivePoolsOptions,
): Promise<Opened> {
  const { readOnly } = table
  const folder = join(options.folder, 'pools')
  const path = join(folder, id)
  const closers: (() => void)[] = []
  try {
    const metadata = openOf(table, table.metadata, options.files)
    closers.push(metadata.close)
    const data = openOf(table, table.data, options.files)
    closers.push(data.close)
    mustDiffer(metadata, data)
    mkdirSync(folder, { recursive: true, mode: 0o700 })
    if (isFresh(metadata.store)) {
      if (readOnly) throw refused('EPERM', 'the metadata is not formatted, and read_only')
      ThinMetadata.format(metadata.store, { dataBlockSectors: table.blockSize })
      await metadata.store.sync()
      // A journal that is left of another pool says nothing of this one.
      rmSync(path, { force: true })
    }
    const found = openMetadata(metadata.store)
    if (found.dataBlockSectors !== table.blockSize) {
      throw refused(
        'EINVAL',
        `blocks of ${table.blockSize} sectors: the pool has ${found.dataBlockSectors}`,
      )
    }
    const journal = readOnly ? JournalFile.read(path) : JournalFile.open(path)
    closers.push(() => journal.close())
    const { changes } = new Journal(journal).read(Buffer.from(superblockOf(metadata.store)))
    // The process that died may have grown the pool without a commit: then all of the table counts.
    const isLonger = changes.length > 0
    const { nrDataBlocks, nrMetadataBlocks } = found
    const dataSize = Math.max(nrDataBlocks * table.blockSize, isLonger ? table.length : 0)
    const metadataBlocks = isLonger ? MAX_METADATA_BLOCKS : nrMetadataBlocks
    metadata.store.replace(trimmed(metadata.parts, metadataBlocks * METADATA_BLOCK_SIZE))
    data.store.replace(trimmed(data.parts, dataSize * SECTOR_SIZE))
    const pool = await ThinPool.open({
      metadata: metadata.store,
      data: data.store,
      journal,
      readOnly,
      takesOver: options.takesOver(),
      discards: discardsOf(table),
      onFull: onFullOf(table),
      lowWaterMark: table.lowWater,
      clock: SYSTEM_CLOCK,
      events: eventsOf(minor, options),
    })
    return { pool, metadata, data, device: new StoreDevice(data.store), journal }
  } catch (err) {
    for (const close of closers.reverse()) close()
    if (!(err instanceof ThinfsError) || err.code !== 'POOL_MISMATCH') throw err
    // There is no mount that could be told to accept it.
    const detail = `${err.message}. For thinfs dm, to accept it is to remove ${path}`
    throw new ThinfsError(err.code, detail, { cause: err })
  }
}

/**
 * A read_only pool, too, writes to blocks that one device alone has, where what is below can be
 * written.
 */
function openOf({ readOnly }: PoolTable, extents: Range[], files: SharedFiles): OpenExtents {
  try {
    return openExtents(extents, files, false)
  } catch (err) {
    if (readOnly && ['EROFS', 'EACCES'].includes(errnoOf(err))) {
      return openExtents(extents, files, true)
    }
    throw err
  }
}

/** Events of a pool. Some of them count up its device's event number. */
function eventsOf(minor: number, options: LivePoolsOptions): PoolEvents {
  const events = options.events(minor)
  return {
    ...events,
    mode(mode, reason) {
      events.mode(mode, reason)
      options.onEvent(minor)
    },
    lowWater(free) {
      events.lowWater(free)
      options.onEvent(minor)
    },
    lowWaterMetadata(free) {
      events.lowWaterMetadata(free)
      options.onEvent(minor)
    },
  }
}

const fileOf = (part: StorePart): Store => part.store

const onFullOf = (table: PoolTable): PoolOptions['onFull'] =>
  table.errorIfNoSpace ? 'error' : 'queue'

function discardsOf({ ignoreDiscard, noDiscardPassdown }: PoolTable): PoolOptions['discards'] {
  if (ignoreDiscard) return 'ignore'
  return noDiscardPassdown ? 'nopassdown' : 'passdown'
}

/** The kernel's rule: metadata whose first block is zeros is to be formatted. */
function isFresh(metadata: ExtentStore): boolean {
  return isZero(superblockOf(metadata))
}

/** @throws METADATA_CORRUPT with the kernel's errno */
function openMetadata(store: ExtentStore): ThinMetadata {
  try {
    return ThinMetadata.open(store)
  } catch (err) {
    if (!(err instanceof ThinfsError) || err.code !== 'METADATA_CORRUPT') throw err
    const { blockNr } = SUPERBLOCK.read(new DataView(superblockOf(store).buffer), 0)
    const errno = blockNr === 0 ? 'EILSEQ' : 'ENOTBLK'
    throw new ThinfsError(err.code, err.message, { cause: err, errno })
  }
}

function superblockOf(metadata: ExtentStore): Uint8Array {
  if (metadata.size < METADATA_BLOCK_SIZE)
    throw refused('EINVAL', 'the metadata device is too small')
  const superblock = new Uint8Array(METADATA_BLOCK_SIZE)
  metadata.read(superblock, 0, METADATA_BLOCK_SIZE, bytes(0))
  return superblock
}

/** @throws BAD_ARGUMENT when bytes are both data and metadata */
function mustDiffer(metadata: OpenExtents, data: OpenExtents): void {
  for (const one of metadata.ranges) {
    for (const other of data.ranges) {
      const apart =
        one.store !== other.store ||
        one.offset + one.length <= other.offset ||
        other.offset + other.length <= one.offset
      if (!apart) throw refused('EINVAL', `${one.store.path}: data and metadata are the same`)
    }
  }
}
