/** Finds the pool that a person means. */
import { existsSync, realpathSync, statSync } from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'
import { errnoOf, isOutOfReach, ThinfsError } from '../base/index.js'
import {
  MOUNT_TYPE,
  type Mount,
  openFiles,
  otherProcesses,
  parseMountInfo,
  read,
  readMounts,
  removedFiles,
  thinfsMountAt,
} from '../host/index.js'
import { type DaemonRecord, readDaemonFile } from './daemon-file.js'
import { serversOf, startOf } from './pool-lock.js'

/**
 * The path of the pool.yaml that `reference` is, or is the folder of, or is mounted from. A mount
 * is recognised by the mount table alone, whether its server lives or not.
 * @throws NOT_A_POOL saying what was tried; FILE_REMOVED
 */
export function findPool(reference: string): string {
  const path = resolve(reference)
  try {
    const mount = thinfsMountAt(join(realpathSync(dirname(path)), basename(path)))
    if (mount !== null) return servedFrom(mount)
    const real = realpathSync(path)
    const linked = thinfsMountAt(real)
    if (linked !== null) return servedFrom(linked)
    if (!statSync(real).isDirectory()) return path
    const file = join(path, 'pool.yaml')
    if (statSync(file, { throwIfNoEntry: false })?.isFile()) return file
  } catch (err) {
    if (err instanceof ThinfsError) {
      throw new ThinfsError(err.code, `${reference}: ${err.message}`, { cause: err })
    }
    const served = isOutOfReach(err) ? mountFrom(path) : undefined
    if (served !== undefined) return served.source
    const errno = errnoOf(err)
    const moved = errno === 'ENOENT' ? mountFrom(path) : undefined
    const where = moved ? `; the pool that was there is mounted at ${moved.mountPoint}` : ''
    const what = errno === 'ENOENT' ? `no such file or folder${where}` : (err as Error).message
    throw new ThinfsError('NOT_A_POOL', `${reference}: ${what}`, { cause: err, errno })
  }
  const detail = `${reference}: no pool.yaml in that folder, and no pool is mounted there`
  throw new ThinfsError('NOT_A_POOL', detail)
}

/**
 * The pool.yaml of a mount, where it is now: the pool's folder may have been moved, and another
 * pool put in its place. The process that serves the mount has the folder open.
 * @throws NOT_A_POOL when its server lives and the file is gone; FILE_REMOVED when the mount alone
 *   keeps the pool's other files as well, saying how to save them
 */
function servedFrom(mount: Mount): string {
  const { mountPoint, source } = mount
  const daemon = livingDaemonOf(mount)
  if (daemon !== null && isStray(mount, daemon)) {
    const what = `the pool ${source} is mounted at ${daemon.mountPoint}; another mount has its name`
    throw new ThinfsError('NOT_A_POOL', `${what}: thinfs umount ${mountPoint} ends that one alone`)
  }
  if (daemon !== null) return source
  const file = basename(source)
  const servers = otherProcesses().filter(pid => {
    const start = startOf(pid)
    return start?.mountPoint === mountPoint && start.configFile === source
  })
  if (servers.length === 0) return source
  const folder = servers.flatMap(openFiles).find(path => existsSync(join(path, file)))
  if (folder !== undefined) return join(folder, file)
  const what = `the ${file} of the pool that is mounted there, once ${source}, was removed`
  const end = `umount ${mountPoint}`
  // The daemon's and its engine's, by name.
  const removed = new Map(
    servers.flatMap(removedFiles).map(({ was, descriptor }) => [was, descriptor]),
  )
  if (removed.size > 0) {
    const copies = [...removed].map(howToSave)
    const cure = `save them once nobody writes, before ${end} loses them: ${copies.join('; ')}`
    throw new ThinfsError('FILE_REMOVED', `${what}, and so were its files; ${cure}`)
  }
  throw new ThinfsError('NOT_A_POOL', `${what}; put it back, or end the mount: ${end}`)
}

/** The daemon of the pool that a mount has the name of. */
function livingDaemonOf({ source }: Mount): DaemonRecord | null {
  const daemon = readDaemonFile(dirname(source))
  const lives = daemon !== null && openFiles(daemon.pid).includes(dirname(source))
  return lives ? daemon : null
}

/**
 * Whether a mount is not that of the daemon: it is left of one that has died, or a user has given
 * his own the pool's name.
 */
function isStray({ device, source }: Mount, { pid, mountPoint }: DaemonRecord): boolean {
  const served = parseMountInfo(read(`/proc/${pid}/mountinfo`)).findLast(
    mount =>
      mount.type === MOUNT_TYPE && mount.source === source && mount.mountPoint === mountPoint,
  )
  return served !== undefined && served.device !== device
}

/** The mount at a path, where it has the name of a pool that is mounted elsewhere; or null. */
export function strayMountAt(reference: string): Mount | null {
  const path = resolve(reference)
  if (!existsSync(dirname(path))) return null
  const mount = thinfsMountAt(join(realpathSync(dirname(path)), basename(path)))
  const daemon = mount === null ? null : livingDaemonOf(mount)
  return daemon !== null && isStray(mount!, daemon) ? mount : null
}

const howToSave = ([was, descriptor]: [string, string]): string =>
  `cp --sparse=always ${descriptor} ELSEWHERE/${basename(was)}`

/** A mount of a pool, and the process that has it. */
export interface Server {
  mount: Mount
  pid: number
}

/**
 * The mount of a pool in this namespace, and the daemon, or the engine of one that has died, that
 * has it; null where there is none. For where nobody answers at the pool's control socket.
 */
export function serverOf(file: string): Server | null {
  const mount = readMounts().find(({ type, source }) => type === MOUNT_TYPE && source === file)
  if (mount === undefined) return null
  const pid = serversOf(file).find(pid => startOf(pid)?.mountPoint === mount.mountPoint)
  return pid === undefined ? null : { mount, pid }
}

/** The mount of a pool whose folder, or pool.yaml, was at `path`. */
const mountFrom = (path: string): Mount | undefined =>
  readMounts().find(
    ({ type, source }) => type === MOUNT_TYPE && (source === path || dirname(source) === path),
  )
