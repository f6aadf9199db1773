/** A pool for the life of a callback, in a folder of its own. */
import { realpathSync } from 'node:fs'
import { join } from 'node:path'
import { KIB, ThinfsError, TIB } from '../base/index.js'
import { parseSize } from '../config/index.js'
import { adminOf, callAdmin, connectDaemon } from '../control/index.js'
import type { PoolAdmin } from '../volumes/index.js'
import { Keeper } from './keeper.js'
import { Layout, newBase } from './layout.js'
import { choosePlace, type Place } from './place.js'
import { TestVolume } from './test-volume.js'

/** Bytes, or a number with K, M, G or T (powers of 1024), as in `'1.5G'`. */
export type Size = number | string

export interface PoolOptions {
  /** Volumes that the pool has at the beginning, by name. */
  volumes?: Readonly<Record<string, Size>>
  /**
   * Size of the data, for all volumes together. Default: 1T; the memory or disk below holds less.
   */
  dataSize?: Size
  /** Unit of provisioning, sharing and discard. Default: 64K. */
  blockSize?: Size
  /**
   * An existing folder, in which the pool makes one of its own. Default: one that is in memory, or,
   * where there is none with room, the system's folder for temporary files; see `TestPool.reason`.
   */
  folder?: string
}

/**
 * Calls `act` with a new pool that is mounted, and takes the pool away afterwards, with everything
 * on it: filesystems, loop devices, processes that serve it. The pool also goes when the callback
 * throws, and when this process ends, by whatever signal; then a few moments later.
 * @returns what `act` returns
 * @throws what `act` throws; why there is no pool: MOUNT_FAILED without the right to mount,
 *   NOT_SUPPORTED, BAD_ARGUMENT; MOUNT_BUSY when `act` leaves something open that only this process
 *   can close
 */
export function withPool<T>(act: (pool: TestPool) => T | PromiseLike<T>): Promise<T>
export function withPool<T>(
  options: PoolOptions,
  act: (pool: TestPool) => T | PromiseLike<T>,
): Promise<T>
export async function withPool<T>(
  ...args:
    | [act: (pool: TestPool) => T | PromiseLike<T>]
    | [options: PoolOptions, act: (pool: TestPool) => T | PromiseLike<T>]
): Promise<T> {
  const [options, act] = args.length === 1 ? [{}, args[0]] : args
  const volumes = Object.entries(options.volumes ?? {}).map(([name, size]) => ({
    ...{ name, size: bytesOf(size) },
  }))
  const place = placeFor(
    options.folder,
    volumes.reduce((sum, { size }) => sum + size, 0),
  )
  const layout = new Layout(join(place.folder, newBase()))
  const keeper = await Keeper.start({
    base: layout.base,
    dataSize: bytesOf(options.dataSize ?? DATA_SIZE),
    dataBlockSize: bytesOf(options.blockSize ?? BLOCK_SIZE),
  })
  let result: T
  try {
    const pool = new TestPool(layout, place.reason)
    for (const { name, size } of volumes) await pool.create(name, size)
    result = await act(pool)
  } catch (err) {
    // The error of `act` comes first.
    await keeper.end().catch(() => {})
    throw err
  }
  await keeper.end()
  return result
}

const DATA_SIZE = TIB
const BLOCK_SIZE = 64 * KIB

const bytesOf = (size: Size): number => (typeof size === 'number' ? size : parseSize(size))

const placeFor = (folder: string | undefined, size: number): Place =>
  folder === undefined
    ? choosePlace(size)
    : { folder: realpathSync(folder), reason: `${folder} was asked for` }

const hasEnded = ({ mountPoint }: Layout): ThinfsError =>
  new ThinfsError('NOT_MOUNTED', `${mountPoint}: the pool was there for the callback of withPool`)

/** A pool that is mounted for the time of a test. */
export class TestPool {
  /** The folder in which every volume is a file; thinfs's commands take it for POOL. */
  readonly mountPoint: string
  /** The folder with pool.yaml, data, metadata and thinfs.log. */
  readonly folder: string
  /** Why the pool is where it is, for people. */
  readonly reason: string
  /** Everything that can be done to a pool, as `thinfs` does it. */
  readonly admin: PoolAdmin
  readonly #layout: Layout
  readonly #volumes = new Map<string, TestVolume>()

  /** `withPool` makes it. */
  constructor(layout: Layout, reason: string) {
    this.mountPoint = layout.mountPoint
    this.folder = layout.pool
    this.reason = reason
    this.#layout = layout
    // A connection that stays open would keep this process alive.
    this.admin = adminOf(async (method, request, signal) => {
      const daemon = await connectDaemon(layout.place)
      if (daemon === null) throw hasEnded(layout)
      try {
        return await callAdmin(daemon, method, request, signal)
      } finally {
        daemon.close()
      }
    })
  }

  /**
   * Makes a volume: thin, it takes no space until it is written to.
   * @throws VOLUME_EXISTS, BAD_NAME, BAD_ARGUMENT for a size that is no multiple of 512 bytes
   */
  async create(name: string, size: Size): Promise<TestVolume> {
    await this.admin.create({ name, size: bytesOf(size) })
    return this.volume(name)
  }

  /** A volume by its name. Nothing is asked: what is done with one that is not there fails. */
  volume(name: string): TestVolume {
    let volume = this.#volumes.get(name)
    if (volume === undefined) {
      volume = new TestVolume(this, this.#layout, name)
      this.#volumes.set(name, volume)
    }
    return volume
  }
}
