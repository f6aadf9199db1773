/** The pool that a command names: by way of its daemon, or by its files when it is not mounted. */
import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { errnoOf, ThinfsError, volumeMissing } from '../base/index.js'
import { type PoolConfig, type PoolPlace, placeOf } from '../config/index.js'
import { connectDaemon, type DaemonClient } from '../control/index.js'
import {
  findPool,
  lockPool,
  PoolHeld,
  type Server,
  serverOf,
  whoIsStopped,
} from '../daemon/index.js'
import { findFileHolders, type Mount, nameOf, thinfsMountAt } from '../host/index.js'
import type { PoolAdmin, PoolFiles } from '../volumes/index.js'
import { suggestingName } from './did-you-mean.js'

/**
 * Calls `use` with the pool open.
 * @param reference a pool.yaml, its folder, or the mount point
 * @param access how files are opened; a daemon's pool is as it was mounted
 * @throws NOT_A_POOL, BAD_CONFIG, POOL_IN_USE, and what opening and `use` throw
 */
export async function withPool<T>(
  reference: string,
  access: 'read' | 'write',
  use: (admin: PoolAdmin, place: PoolPlace) => Promise<T>,
): Promise<T> {
  const useAdmin = (admin: PoolAdmin, place: PoolPlace): Promise<T> =>
    suggestingName(admin, () => use(admin, place))
  return withDaemonOr(reference, access, useAdmin, async (config, files) => {
    const { openPool } = await import('../volumes/index.js')
    const pool = await openPool(config, { readOnly: access === 'read', files })
    try {
      return await useAdmin(pool.volumes, config)
    } finally {
      await pool.close()
    }
  })
}

/** Milliseconds between two tries to lock a pool: so many, and up to as many more. */
const LOCK_PERIOD = 50

/** Milliseconds that this command waits for others at most. */
let waitMs = 10_000

/** @param seconds how long the command waits at most for another one that has the pool */
export function setWait(seconds: number): void {
  waitMs = 1000 * seconds
}

/**
 * Calls `use` when a daemon serves the pool, else `useFiles` with the pool locked. If another
 * command has it, this one waits for its turn (`setWait`); a mount may have the pool by then.
 * @throws NOT_A_POOL, BAD_CONFIG, POOL_IN_USE, and what the two throw
 */
export async function withDaemonOr<T>(
  reference: string,
  access: 'read' | 'write',
  use: (admin: PoolAdmin, place: PoolPlace) => Promise<T>,
  useFiles: (config: PoolConfig, files: PoolFiles) => Promise<T>,
): Promise<T> {
  const reads = access === 'read'
  const began = performance.now()
  /** The process that is in the way, and since when. */
  let holder = { message: '', since: began }
  let told = false
  for (;;) {
    const place = placeOf(findPool(reference), { reads, served: true })
    // A copy of another user's pool is read from its files, even if a daemon listens beside it.
    const daemon = place.ofUser === undefined ? await connectDaemon(place) : null
    if (daemon) {
      try {
        return await tellingWhoIsStopped(place, () => use(daemon, place))
      } finally {
        daemon.close()
      }
    }
    // The process that had the pool may have changed its pool.yaml.
    const config = await configOf(reference, reads)
    const files = filesOrHolder(config, reads)
    if (!(files instanceof PoolHeld)) {
      try {
        // Whoever writes has to have the pool to himself before he reads.
        if (reads) await files.connect()
        return await useFiles(config, files)
      } finally {
        files.close()
      }
    }
    const now = performance.now()
    if (files.message !== holder.message) holder = { message: files.message, since: now }
    if (now - began >= waitMs || now - holder.since >= files.patienceMs) throw files
    if (now - began >= PATIENCE && !told) {
      process.stderr.write(`thinfs: waiting: ${files.message}\n`)
      told = true
    }
    await sleep(LOCK_PERIOD * (1 + Math.random()))
  }
}

/** @throws NOT_A_POOL */
function filesOrHolder(config: PoolConfig, reads: boolean): PoolFiles | PoolHeld {
  try {
    return lockPool(config, reads)
  } catch (err) {
    if (err instanceof PoolHeld) return err
    throw err
  }
}

/**
 * Calls `use` with the daemon of a mounted pool.
 * @param useServer is called instead where the pool is mounted and its daemon cannot be asked
 * @throws NOT_MOUNTED, DAEMON_FAILED, and what `use` throws
 */
export async function withDaemonOf(
  place: PoolPlace,
  use: (daemon: DaemonClient) => Promise<void>,
  useServer?: (server: Server) => Promise<void>,
): Promise<void> {
  const daemon = await connectDaemon(place)
  if (!daemon) {
    const server = serverOf(place.file)
    if (server === null || useServer === undefined) throw notMounted(place.file, server)
    return tellingWhoIsStopped(place, () => useServer(server))
  }
  try {
    await tellingWhoIsStopped(place, () => suggestingName(daemon, () => use(daemon)))
  } finally {
    daemon.close()
  }
}

/**
 * Milliseconds after which a daemon that has not answered is looked at: it may have been stopped.
 */
const PATIENCE = 3000

/** Calls `act`, and says on stderr for whom it waits, where it waits for one that was stopped. */
export async function tellingWhoIsStopped<T>(
  { folder }: PoolPlace,
  act: () => Promise<T>,
): Promise<T> {
  const timer = setTimeout(() => {
    const who = whoIsStopped(folder)
    if (who !== null) process.stderr.write(`thinfs: ${who}\n`)
  }, PATIENCE)
  try {
    return await act()
  } finally {
    clearTimeout(timer)
  }
}

/** Milliseconds after which a command that needs space says that it waits for it. */
const FULL_PATIENCE = 1000

/** Calls `act`, and says on stderr when it waits for space in the pool. */
export async function tellingOfFullPool<T>(admin: PoolAdmin, act: () => Promise<T>): Promise<T> {
  let ended = false
  const look = async (): Promise<void> => {
    const { mode } = await admin.status()
    if (ended || mode !== 'out_of_data_space') return
    process.stderr.write('thinfs: the pool is full: this waits for space; Ctrl-C gives it up\n')
  }
  const timer = setTimeout(() => look().catch(() => {}), FULL_PATIENCE)
  try {
    return await act()
  } finally {
    ended = true
    clearTimeout(timer)
  }
}

/** @throws NOT_A_POOL, BAD_CONFIG, NOT_TRUSTED */
export const placeOfPool = (reference: string): PoolPlace =>
  placeOf(findPool(reference), { served: true })

/**
 * @param reads nothing will be written: another user's copy will do for root
 * @throws NOT_A_POOL, BAD_CONFIG, NOT_TRUSTED
 */
export async function configOf(reference: string, reads = false): Promise<PoolConfig> {
  const { loadConfig } = await import('../config/index.js')
  return loadConfig(findPool(reference), { reads })
}

/**
 * The mount of the pool, as the mount table of this command's namespace has it.
 * @param pool path of its pool.yaml
 * @throws NOT_MOUNTED
 */
export async function mountOfPool(admin: PoolAdmin, pool: string): Promise<Mount> {
  const { mount } = await admin.status()
  if (!mount) throw notMounted(pool)
  const found = thinfsMountAt(mount.mountPoint)
  if (found !== null && found.source === mount.source) return found
  const detail = `${pool}: its mount at ${mount.mountPoint} is not seen from this mount namespace`
  throw new ThinfsError('NOT_MOUNTED', detail)
}

/** The file of a volume in the mount, by name and by what it keeps when it is renamed. */
export interface VolumeFile {
  path: string
  /** Device number of the mount, as `0:64`. */
  device: string
  ino: number
}

/**
 * The file of a volume that is there: any other name could lead out of the mount.
 * @param pool path of its pool.yaml
 * @throws NOT_MOUNTED, VOLUME_MISSING
 */
export async function volumeFile(
  admin: PoolAdmin,
  pool: string,
  name: string,
): Promise<VolumeFile> {
  const { mount, dm } = await admin.status()
  if (!mount) throw notMounted(pool)
  if (!dm.volumes.some(volume => volume.name === name)) throw volumeMissing(name)
  const { mountPoint, device } = await mountOfPool(admin, pool)
  const path = join(mountPoint, name)
  const { ino } = await stat(path).catch((err: unknown) => {
    // Somebody has renamed or removed it since.
    throw errnoOf(err) === 'ENOENT' ? volumeMissing(name, err) : err
  })
  return { path, device, ino }
}

/** @param pool path of its pool.yaml */
function notMounted(pool: string, server: Server | null = null): ThinfsError {
  if (server !== null) {
    const what = `${pool}: mounted at ${server.mount.mountPoint} by ${nameOf(server.pid)}`
    const cure = 'thinfs umount POOL, then thinfs mount, makes another'
    return new ThinfsError('DAEMON_FAILED', `${what}, but its control.sock is gone; ${cure}`)
  }
  const how = 'thinfs mount POOL MOUNTPOINT mounts it'
  return new ThinfsError('NOT_MOUNTED', `${pool}: the pool is not mounted; ${how}`)
}

/**
 * Calls `act`; when a volume is in its way because it is open, the error says who has it open.
 * @param pool path of its pool.yaml
 * @param names of the volumes that `act` is about
 */
export async function namingHolders<T>(
  admin: PoolAdmin,
  pool: string,
  names: readonly string[],
  act: () => Promise<T>,
): Promise<T> {
  try {
    return await act()
  } catch (err) {
    if (!(err instanceof ThinfsError && err.code === 'VOLUME_BUSY')) throw err
    const name = names.find(name => err.message.startsWith(`${name}: `))
    const holders = name === undefined ? [] : await holdersOf(admin, pool, name)
    if (holders.length === 0) throw err
    throw new ThinfsError('VOLUME_BUSY', `${err.message}, by ${holders.join(', ')}`, { cause: err })
  }
}

/** The processes that have a volume open, as far as they can be told. */
export async function holdersOf(admin: PoolAdmin, pool: string, name: string): Promise<string[]> {
  try {
    return await findFileHolders(await volumeFile(admin, pool, name))
  } catch {
    return [] // It may be gone by now. That it was open is what the command has to say.
  }
}
