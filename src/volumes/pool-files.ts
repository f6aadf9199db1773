/**
 * Data and metadata of a pool, open and locked; and its folder, which is held so that what is
 * replaced in it, volumes.json and the journal, stays in it wherever it is moved to.
 *
 * One process at a time has a pool: the write lock on both of its files, and block devices claimed
 * as mount and device-mapper claim them. All reads and writes go through the very descriptors that
 * hold the locks: where a lock is lost, as on a network file system, so is the way to the file.
 */
import { constants, existsSync, fstatSync, openSync, type Stats, statSync } from 'node:fs'
import { heldPath, ThinfsError } from '../base/index.js'
import type { Extent, PoolConfig } from '../config/index.js'
import {
  type DataStore,
  FileExtents,
  FileStore,
  HeldFolder,
  removedFile,
} from '../storage/index.js'
import { RemoteData, type RemoteDataOptions } from './remote-data.js'

/** The descriptors behind a pool's files, as a child process inherits them. */
export interface PoolDescriptors {
  metadata: number
  data: number
  folder: number
}

/** A file of a pool, or the parts of one that are the pool's. */
export type PoolStore = FileStore | FileExtents

export class PoolFiles {
  readonly metadata: PoolStore
  readonly #data: PoolStore | RemoteData
  readonly folder: HeldFolder
  /** Whether they were opened to be read; they then share their locks with other readers. */
  readonly readOnly: boolean
  /** Whether they are parts of one file, whose lock the metadata's descriptor has. */
  readonly #areOne: boolean

  private constructor(
    {
      metadata,
      data,
      folder,
    }: { metadata: PoolStore; data: PoolStore | RemoteData; folder: HeldFolder },
    readOnly: boolean,
  ) {
    this.metadata = metadata
    this.#data = data
    this.folder = folder
    this.readOnly = readOnly
    const [one, other] = [fstatSync(metadata.fd), fstatSync(data.fd)]
    this.#areOne = isSameFile(one, other)
  }

  /**
   * Opens and locks them.
   * @throws NOT_A_POOL when one is missing; POOL_IN_USE when another process has one, with its path
   *   as the cause's message; BAD_CONFIG when both are the same; NOT_TRUSTED, IO_ERROR
   */
  static open(config: PoolConfig, readOnly = false): PoolFiles {
    mustBeLocal(config)
    mustDiffer(config)
    const { path } = config.data
    const as = { readOnly, ofUser: config.ofUser }
    const metadata = partsOf(openStore(config.metadata.path, path, as), config.metadata)
    let data: PoolStore | RemoteData | null = null
    try {
      const isOne = isSame(path, config.metadata.path)
      if (config.data.remote) data = RemoteData.make(config)
      else {
        const file = isOne ? again(metadata, as) : openStore(path, config.metadata.path, as)
        data = partsOf(file, config.data)
      }
      lock(metadata, readOnly)
      // The lock of another descriptor of the same file would be in the way. A server sees to its
      // exports.
      if (!isOne && !(data instanceof RemoteData)) lock(data, readOnly)
      const folder = HeldFolder.open(config.folder)
      return new PoolFiles({ metadata, data, folder }, readOnly)
    } catch (err) {
      data?.close()
      metadata.close()
      throw err
    }
  }

  /** Those that this process has opened and locked, which are its to close. @throws IO_ERROR */
  static of(metadata: FileStore, data: FileStore | RemoteData, config: PoolConfig): PoolFiles {
    return new PoolFiles({ metadata, data, folder: HeldFolder.open(config.folder) }, false)
  }

  /** Those that another process has opened and locked, by their inherited descriptors. */
  static inherit(config: PoolConfig, fds: PoolDescriptors, readOnly: boolean): PoolFiles {
    const metadata = partsOf(
      FileStore.of(fds.metadata, config.metadata.path, { readOnly }),
      config.metadata,
    )
    try {
      const data = config.data.remote
        ? RemoteData.of(fds.data, config)
        : partsOf(FileStore.of(fds.data, config.data.path, { readOnly }), config.data)
      const folder = HeldFolder.of(fds.folder, config.folder)
      return new PoolFiles({ metadata, data, folder }, readOnly)
    } catch (err) {
      metadata.close()
      throw err
    }
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

  /**
   * Identifies the cache before data on another machine, which ends with its mount. Null where the
   * page cache has the writes that nobody has flushed.
   */
  get cacheId(): string | null {
    return this.#data instanceof RemoteData ? this.#data.cacheId : null
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
    for (const { path, fd, isRemoved } of [this.metadata, this.#data]) {
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
    const stores = this.#areOne ? [this.metadata] : [this.metadata, this.#data]
    for (const store of stores) {
      if (store instanceof RemoteData) continue
      let cause: unknown
      try {
        if (store.holdsLock()) continue
      } catch (err) {
        cause = err
      }
      const why = cause === undefined ? 'another process has it' : (cause as Error).message
      throw new ThinfsError('LOCK_LOST', `${store.path}: the lock is lost: ${why}`, { cause })
    }
  }

  get descriptors(): PoolDescriptors {
    return { metadata: this.metadata.fd, data: this.#data.fd, folder: this.folder.fd }
  }

  /** Gives the locks up, where no other process has inherited them. */
  close(): void {
    this.folder.close()
    this.#data.close()
    this.metadata.close()
  }
}

/** @throws NOT_SUPPORTED */
export function mustBeLocal({ metadata }: PoolConfig): void {
  if (metadata.remote === undefined) return
  const detail = `${metadata.path}: metadata on another machine is not supported yet`
  throw new ThinfsError('NOT_SUPPORTED', detail)
}

/** Two names may be links to one file, or nodes of one device. @throws BAD_CONFIG */
export function mustDiffer({ file, data, metadata }: PoolConfig): void {
  if (!isSame(data.path, metadata.path)) return
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
