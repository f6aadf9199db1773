/** The daemon of a pool, as seen from a command. */

import { setTimeout as sleep } from 'node:timers/promises'
import { ThinfsError } from '../base/index.js'
import type { PoolPlace } from '../config/index.js'
import {
  connectionAborter,
  hasEnded,
  type Mount,
  mustNotBeHidden,
  nameHolders,
  read,
  thinfsMountAt,
  unmount,
  unmountLazily,
} from '../host/index.js'
import type { MountedAdmin } from '../volumes/index.js'
import { connectControlSocket, controlSocketPath } from './control-socket.js'
import { EVENTS, type EventsAnswer, PING, RESTART, UMOUNT, UMOUNT_FORCE } from './protocol.js'
import { adminClient, adminOf, callAdmin, fromResponseError, fromWire } from './rpc.js'
import { mustSpeakOurs } from './version.js'

/** How long a daemon may take to end once it has answered, and how often it is looked at. */
const PATIENCE_MS = 5000
const LOOK_MS = 10

/**
 * Its methods throw VERSION_MISMATCH, but those that end the mount, where the daemon's thinfs is
 * another.
 */
export interface DaemonClient extends MountedAdmin {
  /**
   * @returns the daemon's process id, null when it has died and the engine answers; the mount; and
   *   why the daemon would refuse to unmount it, null where it would not
   */
  ping(): Promise<{ pid: number | null; mountPoint: string; stays: Error | null }>
  /**
   * Unmounts the pool; resolves when all is committed and the engine has ended.
   * @throws MOUNT_BUSY naming who holds the mount, which stays
   */
  umount(): Promise<void>
  /**
   * As `umount`, also while somebody holds the mount: he gets errors from then on.
   * @throws MOUNT_FAILED when that cannot be done
   */
  umountForcibly(): Promise<void>
  /** Replaces the engine; resolves when the next one serves. Callers of the mount only wait. */
  restart(): Promise<void>
  /**
   * The events after that of an id, or, without one, where those from now on begin.
   * @param request.waits until there is one
   */
  events(request: { after?: number; waits?: boolean }): Promise<EventsAnswer>
  /** Closes the connection. Requests that are not answered yet reject. */
  close(): void
}

/**
 * Connects to the daemon that serves the pool.
 * @returns null when there is none
 * @throws DAEMON_FAILED when its socket cannot be reached for another reason
 */
export async function connectDaemon(pool: PoolPlace): Promise<DaemonClient | null> {
  const connection = await connectControlSocket(controlSocketPath(pool.folder))
  if (connection === null) return null
  const failed = (err: unknown): never => {
    throw fromResponseError(err)
  }
  const remote = adminClient(connection)
  const ping = () => connection.sendRequest(PING).catch(failed)
  const fits = once(async () => {
    const { protocol, mountPoint } = await ping()
    const who = `the daemon of ${mountPoint}`
    mustSpeakOurs(protocol, who, `thinfs umount ${mountPoint}, then thinfs mount`)
  })
  const admin = adminOf(async (method, request, signal) => {
    await fits()
    return await callAdmin(remote, method, request, signal)
  })
  const end = async (
    request: typeof UMOUNT,
    unmountIt: (mountPoint: string, ended: Promise<void>) => Promise<void>,
  ): Promise<void> => {
    const { pid, mountPoint } = await ping()
    const unmounted = connection.sendRequest(request).then(() => {}, failed)
    if (pid === null) {
      // No daemon: the engine cannot unmount what it serves, and answers when that was done.
      unmounted.catch(() => {})
      await unmountIt(mountPoint, unmounted)
    }
    await unmounted
    if (pid !== null) await processEnds(pid)
  }
  return {
    ...admin,
    async ping() {
      const { pid, mountPoint, stays } = await ping()
      return { pid, mountPoint, stays: stays ? fromWire(stays) : null }
    },
    umount: () => end(UMOUNT, unmountOrphan),
    umountForcibly: () => end(UMOUNT_FORCE, unmountOrphanForcibly),
    restart: async () => {
      // The daemon would start a program of another thinfs, which does not serve under it.
      await fits()
      await connection.sendRequest(RESTART).catch(failed)
    },
    events: async request => {
      await fits()
      return await connection.sendRequest(EVENTS, request).catch(failed)
    },
    close: () => connection.dispose(),
  }
}

/**
 * Unmounts a pool whose daemon cannot be asked; resolves when that has ended, which commits before.
 * @param pid of the daemon
 * @throws MOUNT_BUSY naming who holds the mount; MOUNT_FAILED
 */
export async function umountUnasked(mount: Mount, pid: number, force: boolean): Promise<void> {
  const ended = new Promise<void>(() => {})
  const { mountPoint } = mount
  mustNotBeHidden(mount)
  await (force ? unmountOrphanForcibly(mountPoint) : unmountOrphan(mountPoint, ended))
  // It commits now: that may take long.
  await processEnds(pid, Number.POSITIVE_INFINITY)
}

/** Calls `act` once, and returns that outcome to every caller. */
function once<T>(act: () => Promise<T>): () => Promise<T> {
  let outcome: Promise<T> | null = null
  return () => {
    outcome ??= act()
    return outcome
  }
}

/**
 * Resolves when a process has given up its files, which takes a daemon a moment after its answer.
 */
async function processEnds(pid: number, patienceMs = PATIENCE_MS): Promise<void> {
  const deadline = Date.now() + patienceMs
  while (read(`/proc/${pid}/cmdline`) !== '' && Date.now() < deadline) await sleep(LOOK_MS)
}

/** @param ended resolves when the engine has seen the end of the mount */
async function unmountOrphan(mountPoint: string, ended: Promise<void>): Promise<void> {
  const mount = thinfsMountAt(mountPoint)
  if (mount !== null) await unmount(mountPoint)
  if (mount !== null && (await hasEnded(mount, ended))) return
  const by = mount === null ? 'somebody else' : await nameHolders(mount)
  throw new ThinfsError('MOUNT_BUSY', `${mountPoint} is unmounted here, but used by ${by}`)
}

async function unmountOrphanForcibly(mountPoint: string): Promise<void> {
  const mount = thinfsMountAt(mountPoint)
  if (mount === null) {
    const how = `thinfs mount at ${mountPoint} takes it over, then it can be unmounted by force`
    throw new ThinfsError('MOUNT_BUSY', `${mountPoint} is unmounted here, but still used; ${how}`)
  }
  const abort = connectionAborter(mount)
  await unmountLazily(mountPoint)
  abort()
}
