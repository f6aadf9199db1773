/**
 * Data and metadata of a pool, open and locked; and its folder, which is held so that what is
 * replaced in it, volumes.json and the journal, stays in it wherever it is moved to. Where another
 * machine has the metadata, it has the names as well, and the journal is memory.
 *
 * One process at a time has a pool: the write lock on both of its files, and block devices claimed
 * as mount and device-mapper claim them. All reads and writes go through the very descriptors that
 * hold the locks: where a lock is lost, as on a network file system, so is the way to the file.
 */
import {
  closeSync,
  constants,
  existsSync,
  fstatSync,
  openSync,
  type Stats,
  statSync,
} from 'node:fs'
import { addressId, assert, heldPath, type RemoteAddress, ThinfsError } from '../base/index.js'
import type { Extent, PoolConfig } from '../config/index.js'
import {
  lockDisk,
  lockPathOf,
  type OnLoad,
  type RemoteDisk,
  type ResidentStore,
  StateDisk,
} from '../remote/index.js'
import {
  AtomicFile,
  type DataStore,
  FileExtents,
  type FileOwner,
  FileStore,
  HeldFolder,
  JournalFile,
  MemoryJournal,
  ReservedDisk,
  removedFile,
} from '../storage/index.js'
import type { RecordTenancy } from '../tenancy/index.js'
import { DiskClients } from './disk-clients.js'
import { RemoteData, type RemoteDataOptions } from './remote-data.js'
import { RemoteMetadata } from './remote-metadata.js'
import type { TableFile } from './volume-table.js'

export type { OnLoad } from '../remote/index.js'

/** Files of a pool beside data and metadata, in the folder of pool.yaml. */
export const VOLUMES_FILE = 'volumes.json'
export const JOURNAL_FILE = 'journal'

/** The descriptors behind a pool's files, as a child process inherits them. */
export interface PoolDescriptors {
  metadata: number
  data: number
  folder: number
  /**
   * Of a pool with stores on other machines: the journal, where the metadata is on one, and the
   * locks on their disks.
   */
  more: readonly number[]
}

/** How many there are in `PoolDescriptors.more`. */
export const nrMoreDescriptors = (config: PoolConfig): number =>
  addressesOf(config).length + (config.metadata.remote === undefined ? 0 : 1)

/**
 * What pool.yaml says now, with the disks of other machines that were connected to when the pool
 * was mounted: what is in memory is theirs.
 */
export function asMounted(now: PoolConfig, before: PoolConfig): PoolConfig {
  if (addressesOf(now).length === 0 && addressesOf(before).length === 0) return now
  const { state: _, cache: __, ceph: ___, ...others } = now
  const { data, metadata, state, cache, ceph } = before
  const rest = { ...(state && { state }), ...(cache && { cache }), ...(ceph && { ceph }) }
  return { ...others, data, metadata, ...rest }
}

/** Whether pool.yaml names other disks of other machines than it did. */
export const isElsewhere = (now: PoolConfig, before: PoolConfig): boolean =>
  addressesOf(now).map(addressId).join() !== addressesOf(before).map(addressId).join()

/** The files of this machine that whoever has the pool has locked. */
export const lockedPathsOf = ({ data, metadata, state }: PoolConfig): string[] =>
  [metadata, data, state].flatMap(store =>
    store === undefined ? [] : store.remote ? lockPathOf(store.remote) : store.path,
  )

/** The disks of other machines that a pool is on. */
export const addressesOf = ({ data, metadata, state }: PoolConfig): RemoteAddress[] =>
  [data, metadata, state].flatMap(store => store?.remote ?? [])

/** A file of a pool, or the parts of one that are the pool's. */
export type PoolStore = FileStore | FileExtents

/** Where names and sizes are kept. */
export interface TablePlace extends TableFile {
  /** Sets room aside, while there is some, that `replace` uses when there is none. */
  reserve(): Promise<void>
}

/** What a process calls while it connects. */
export interface ConnectOptions {
  /** A connection ended, or there is one again: a sentence. */
  onConnection?: (what: string) => void
  /** How much of metadata on another machine has been read. */
  onLoad?: OnLoad
}

export class PoolFiles {
  readonly #metadata: PoolStore | RemoteMetadata
  readonly #data: PoolStore | RemoteData
  readonly folder: HeldFolder
  /** Whether they were opened to be read; they then share their locks with other readers. */
  readonly readOnly: boolean
  readonly #config: PoolConfig
  /** PoolDescriptors.more. */
  readonly #more: readonly number[]
  /** By which it has the disks of other machines. */
  readonly clients: DiskClients
  #stateDisk: RemoteDisk | null = null
  #state: StateDisk | null = null
  /** Whether they are parts of one file, whose lock the metadata's descriptor has. */
  readonly #areOne: boolean

  private constructor(
    config: PoolConfig,
    {
      metadata,
      data,
      folder,
      more,
      clients,
    }: {
      metadata: PoolStore | RemoteMetadata
      data: PoolStore | RemoteData
      folder: HeldFolder
      more: readonly number[]
      clients: DiskClients
    },
    readOnly: boolean,
  ) {
    this.#config = config
    this.#metadata = metadata
    this.#data = data
    this.folder = folder
    this.#more = more
    this.clients = clients
    this.readOnly = readOnly
    const [one, other] = [fstatSync(metadata.fd), fstatSync(data.fd)]
    this.#areOne = isSameFile(one, other)
  }

  /**
   * Opens and locks them. Nobody is connected to yet.
   * @throws NOT_A_POOL when one is missing; POOL_IN_USE when another process has one, with its path
   *   as the cause's message; BAD_CONFIG when both are the same; NOT_TRUSTED, IO_ERROR
   */
  static open(config: PoolConfig, readOnly = false): PoolFiles {
    mustDiffer(config)
    const { path } = config.data
    const as = { readOnly, ofUser: config.ofUser }
    const toClose: { close(): void }[] = []
    const opened = <T extends { close(): void }>(store: T): T => {
      toClose.push(store)
      return store
    }
    const openedFd = (fd: number): number => {
      opened({ close: () => closeSync(fd) })
      return fd
    }
    try {
      const locks = addressesOf(config).map(address => openedFd(lockDisk(address, readOnly)))
      const clients = new DiskClients(readOnly ? null : (locks[0] ?? null))
      const { remote } = config.metadata
      if (remote !== undefined) {
        const metadata = opened(RemoteMetadata.make(remote, clients))
        const data = opened(RemoteData.make(config, clients))
        const more = [openedFd(MemoryJournal.create()), ...locks]
        const folder = HeldFolder.open(config.folder)
        return new PoolFiles(config, { metadata, data, folder, more, clients }, readOnly)
      }
      const file = openStore(config.metadata.path, path, as)
      const metadata = opened(partsOf(file, config.metadata))
      const isOne = isSame(path, config.metadata.path)
      let data: PoolStore | RemoteData
      if (config.data.remote) data = RemoteData.make(config, clients)
      else {
        const file = isOne ? again(metadata, as) : openStore(path, config.metadata.path, as)
        data = partsOf(file, config.data)
      }
      opened(data)
      lock(metadata, readOnly)
      // The lock of another descriptor of the same file would be in the way.
      if (!isOne && !(data instanceof RemoteData)) lock(data, readOnly)
      const folder = HeldFolder.open(config.folder)
      return new PoolFiles(config, { metadata, data, folder, more: locks, clients }, readOnly)
    } catch (err) {
      for (const store of toClose.reverse()) store.close()
      throw err
    }
  }

  /**
   * Those that this process has opened and locked, which are its to close.
   * @param locks on the disks of other machines, which `clients` have
   * @throws IO_ERROR
   */
  static of(
    metadata: FileStore,
    data: FileStore | RemoteData,
    {
      config,
      locks,
      clients,
    }: { config: PoolConfig; locks: readonly number[]; clients: DiskClients },
  ): PoolFiles {
    const folder = HeldFolder.open(config.folder)
    return new PoolFiles(config, { metadata, data, folder, more: locks, clients }, false)
  }

  /**
   * Those that another process has opened and locked, by their inherited descriptors.
   * @throws LOCK_LOST where the file system knows one of them no more
   */
  static inherit(config: PoolConfig, fds: PoolDescriptors, readOnly: boolean): PoolFiles {
    const { path, remote } = config.metadata
    const { more } = fds
    const clients = new DiskClients(readOnly ? null : (more[remote ? 1 : 0] ?? null))
    const metadata = remote
      ? RemoteMetadata.of(fds.metadata, remote, clients)
      : partsOf(inheritStore(fds.metadata, path, readOnly), config.metadata)
    try {
      const data = config.data.remote
        ? RemoteData.of(fds.data, config, clients)
        : partsOf(inheritStore(fds.data, config.data.path, readOnly), config.data)
      const folder = HeldFolder.of(fds.folder, config.folder)
      return new PoolFiles(config, { metadata, data, folder, more, clients }, readOnly)
    } catch (err) {
      metadata.close()
      throw err
    }
  }

  /** The metadata; of another machine once `connect` has ended. */
  get metadata(): PoolStore | ResidentStore {
    if (!(this.#metadata instanceof RemoteMetadata)) return this.#metadata
    const { store } = this.#metadata
    assert(store !== null, 'metadata of another machine is read once it is connected to')
    return store
  }

  /**
   * The data in a file.
   * @throws NOT_SUPPORTED where another machine has it
   */
  get data(): PoolStore {
    if (!(this.#data instanceof RemoteData)) return this.#data
    const detail = `${this.#data.path}: the data is no file here, which this needs`
    throw new ThinfsError('NOT_SUPPORTED', detail)
  }

  /** volumes.json, wherever it is; of another machine once `connect` has ended. */
  get table(): TablePlace {
    return this.tableOf(null)
  }

  /**
   * As `table`, of a mount or a command that has the pool for as long as no other host takes it.
   */
  tableOf(owner: FileOwner | null): TablePlace {
    if (this.#config.state === undefined) return this.#volumesFile(owner)
    assert(this.#state !== null, 'names on another machine are read once it is connected to')
    return this.#state
  }

  /** Removes the names that a host which had the pool before may not have finished writing. */
  async ownTable(owner: FileOwner): Promise<void> {
    if (this.#config.state === undefined) await this.#volumesFile(owner).dropOtherSpares()
  }

  #volumesFile(owner: FileOwner | null): AtomicFile {
    return new AtomicFile(...this.folder.file(VOLUMES_FILE), owner)
  }

  /** Whether there is a volumes.json. */
  get hasTable(): boolean {
    if (this.#config.state === undefined) return existsSync(this.folder.file(VOLUMES_FILE)[1])
    return this.#state !== null && !this.#state.isEmpty
  }

  /**
   * What the journal on another machine says counts no more: other metadata is there now.
   * @throws IO_ERROR
   */
  async forgetJournal(): Promise<void> {
    await this.#state?.keepJournal(null)
  }

  /** The journal, which the caller closes. @throws POOL_MISMATCH, IO_ERROR */
  openJournal(readOnly = this.readOnly): JournalFile | MemoryJournal {
    if (this.#metadata instanceof RemoteMetadata) {
      return new MemoryJournal(this.#more[0]!, this.#state)
    }
    const [path, held] = this.folder.file(JOURNAL_FILE)
    const cacheId = this.#data instanceof RemoteData ? this.#data.cacheId : null
    return readOnly ? JournalFile.read(path, held, cacheId) : JournalFile.open(path, held, cacheId)
  }

  /**
   * Connects to the disk that has names, sizes, and who has the pool: once. Nothing is read of it.
   * @returns null for a pool in files
   * @throws IO_ERROR, POOL_IN_USE, NOT_SUPPORTED
   */
  async connectState({ onConnection }: ConnectOptions = {}): Promise<RemoteDisk | null> {
    const { state } = this.#config
    if (state === undefined) return null
    this.#stateDisk ??= await this.clients.connect(state.remote, {
      readOnly: this.readOnly,
      hasRecord: true,
      ...(onConnection && { onConnection }),
    })
    return this.#stateDisk
  }

  /**
   * Connects to the other disks, of which nothing is read yet: a pool is taken over by whoever can
   * have all of it.
   * @throws as `connectState`
   */
  async connectOthers({ onConnection }: ConnectOptions = {}): Promise<void> {
    const { metadata, data } = this.#config
    const options = { readOnly: this.readOnly, ...(onConnection && { onConnection }) }
    for (const { remote } of [metadata, data]) {
      if (remote) await this.clients.prepare(remote, options)
    }
  }

  /**
   * Whether other hosts can reach one of the pool's disks too, while this one has connected to all
   * of them.
   */
  async isShared(): Promise<boolean> {
    return this.#config.state !== undefined && (await this.clients.isShared())
  }

  /** From now on disks that are connected to again are used only while the tenancy is held. */
  heldBy(tenancy: RecordTenancy): void {
    this.clients.heldBy(tenancy)
  }

  /**
   * Connects to the disks that metadata and names are on, and reads these: once. Nothing is
   * written.
   * @throws IO_ERROR, POOL_IN_USE, POOL_MISMATCH, NOT_SUPPORTED
   */
  async connect(options: ConnectOptions = {}): Promise<void> {
    const disk = await this.connectState(options)
    if (disk !== null) this.#state ??= await StateDisk.open(disk)
    await this.connectMetadata(options)
  }

  /**
   * Called once the pool is this process's, before it writes: what `connect` has read may be of
   * before that.
   * @throws POOL_IN_USE where somebody has committed since; IO_ERROR
   */
  async mustBeCurrent(): Promise<void> {
    if (!(this.#metadata instanceof RemoteMetadata)) return
    const { store } = this.#metadata
    if (store === null || (await store.isCurrent())) return
    const detail = `${store.path}: another host has written to it meanwhile; try again`
    throw new ThinfsError('POOL_IN_USE', detail)
  }

  /** As `connect`, without the names. */
  async connectMetadata(options: ConnectOptions = {}): Promise<void> {
    if (!(this.#metadata instanceof RemoteMetadata)) return
    await this.#metadata.open({ ...options, readOnly: this.readOnly })
  }

  /** The data, wherever it is: connects where another machine has it. @throws IO_ERROR */
  async openData(options: Omit<RemoteDataOptions, 'readOnly'>): Promise<DataStore> {
    if (!(this.#data instanceof RemoteData)) return this.#data
    return this.#data.open({ ...options, readOnly: this.readOnly })
  }

  /**
   * Called before the files are given up in order.
   * @throws FILE_REMOVED when one of them has no name any more, saying how to save it
   */
  mustHaveNames(): void {
    for (const { path, fd, isRemoved } of [this.#metadata, this.#data]) {
      if (!isRemoved) continue
      const from = `/proc/${process.pid}/fd/${fd}`
      const how = `save it with cp --sparse=always ${from} ELSEWHERE, once nobody writes; --force unmounts all the same`
      throw new ThinfsError('FILE_REMOVED', `${removedFile(path)}: ${how}`)
    }
  }

  /**
   * Takes the locks again, which changes nothing as long as they are held. Where one is lost, the
   * file system may have let another host have the pool.
   * @throws LOCK_LOST
   */
  mustHoldLocks(): void {
    for (const store of this.#stores) {
      let cause: unknown
      try {
        if (store.holdsLock()) continue
      } catch (err) {
        cause = err
      }
      throw lockLost(store.path, cause)
    }
  }

  /** The disks that the pool is on, each once, to be reserved. */
  get disks(): ReservedDisk[] {
    return this.#stores.map(({ path, fd }) => new ReservedDisk(path, fd))
  }

  /** What has a lock. Other machines see to their disks. */
  get #stores(): PoolStore[] {
    const stores = this.#areOne ? [this.#metadata] : [this.#metadata, this.#data]
    return stores.filter(
      store => !(store instanceof RemoteData || store instanceof RemoteMetadata),
    ) as PoolStore[]
  }

  get descriptors(): PoolDescriptors {
    const more = this.#more
    return { metadata: this.#metadata.fd, data: this.#data.fd, folder: this.folder.fd, more }
  }

  /**
   * Called before the process ends: gives up, in order, what other machines keep for it. Throws
   * nothing.
   */
  disconnect(): Promise<void> {
    return this.clients.end()
  }

  /** Gives the locks up, where no other process has inherited them. */
  close(): void {
    this.folder.close()
    this.#data.close()
    this.#metadata.close()
    this.#stateDisk?.close()
    void this.clients.end()
    for (const fd of this.#more) closeSync(fd)
  }
}

/** Two names may be links to one file, or nodes of one device. @throws BAD_CONFIG */
export function mustDiffer({ file, data, metadata }: PoolConfig): void {
  if (data.remote || metadata.remote || !isSame(data.path, metadata.path)) return
  // Their parts do not overlap: pool.yaml would be refused.
  if (data.path === metadata.path && data.extents && metadata.extents) return
  const detail = `${file}: data (${data.path}) and metadata (${metadata.path}) are the same`
  throw new ThinfsError('BAD_CONFIG', detail)
}

/** Whether two paths are of one file, or nodes of one device. */
function isSame(...paths: [string, string]): boolean {
  const [one, two] = paths.map(path => statSync(path, { throwIfNoEntry: false }))
  if (one === undefined || two === undefined) return false
  return isSameFile(one, two)
}

function isSameFile(one: Stats, two: Stats): boolean {
  const areDevices = one.isBlockDevice() && two.isBlockDevice()
  return areDevices ? one.rdev === two.rdev : one.dev === two.dev && one.ino === two.ino
}

const partsOf = (file: FileStore, { extents }: { extents?: Extent[] }): PoolStore =>
  extents === undefined ? file : new FileExtents(file, extents)

/** @param other the pool's other file */
function openStore(path: string, other: string, { readOnly, ofUser }: OpenAs): FileStore {
  if (existsSync(path)) {
    return FileStore.open(path, { readOnly, ...(ofUser !== undefined && { ofUser }) })
  }
  const cure = existsSync(other)
    ? `, though ${other} is there: put it back, from where it was moved or from a copy`
    : '; thinfs init makes it'
  throw new ThinfsError('NOT_A_POOL', `${path}: no such file${cure}`, { errno: 'ENOENT' })
}

/** @throws LOCK_LOST where the file system knows the descriptor no more, as GlusterFS */
function inheritStore(fd: number, path: string, readOnly: boolean): FileStore {
  try {
    return FileStore.of(fd, path, { readOnly })
  } catch (err) {
    throw lockLost(path, err)
  }
}

/** @param cause undefined: another process has it */
function lockLost(path: string, cause?: unknown): ThinfsError {
  const why = cause === undefined ? 'another process has it' : (cause as Error).message
  return new ThinfsError('LOCK_LOST', `${path}: the lock is lost: ${why}`, { cause })
}

/** The same file by another descriptor: a device is claimed once. */
function again({ fd, path }: PoolStore, { readOnly, ofUser }: OpenAs): FileStore {
  const other = openSync(heldPath(fd), readOnly ? constants.O_RDONLY : constants.O_RDWR)
  return FileStore.of(other, path, { readOnly, ...(ofUser !== undefined && { ofUser }) })
}

interface OpenAs {
  readOnly: boolean
  ofUser: number | undefined
}

function lock(store: PoolStore, readOnly: boolean): void {
  try {
    if (store.lock()) return
  } catch (err) {
    // A reader does without a lock where the file system has none.
    if (readOnly) return
    throw err
  }
  throw new ThinfsError('POOL_IN_USE', `${store.path}: another process has it`)
}
