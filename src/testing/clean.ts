/**
 * Takes an ephemeral pool away, with all that is on it, whatever state it is in.
 *
 * First in order, so that nobody sees errors who ends in time. Anything that does not go that way,
 * or not soon, goes by force: nothing of the pool is needed any more. Only /proc and /sys are
 * looked at: the mount's server may hang.
 */
import { rmSync } from 'node:fs'
import { basename, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { errnoOf, inTime, ThinfsError } from '../base/index.js'
import { connectDaemon } from '../control/index.js'
import { serversOf } from '../daemon/index.js'
import {
  type AttachedLoop,
  attachedLoops,
  detachLoop,
  isOn,
  isWithin,
  list,
  listLoops,
  type Mount,
  mountsOn,
  nameOf,
  otherProcesses,
  processesWithin,
  read,
  readMounts,
  runTool,
  thinfsMountAt,
  unmount,
  unmountLazily,
} from '../host/index.js'
import { MARK } from './environment.js'
import type { Layout } from './layout.js'

/** How long processes may take to end when they are asked to, in milliseconds. */
const GRACE_MS = 2000
/** How long all may take that is done in order. There is nothing to wait for but a busy machine. */
const ORDERLY_MS = 10_000
/** How long processes that were killed may take to be gone. */
const FORCE_MS = 10_000
const LOOK_MS = 20
/** How often it is tried in order. */
const ROUNDS = 2

/**
 * The devices and mounts found on the pool: once its mount is gone the paths do not tell any more.
 */
interface Found {
  loops: Map<string, AttachedLoop>
  /** Processes that used a filesystem when it was to be unmounted. */
  users: Set<number>
}

/**
 * @param owner process id of whoever had the pool: it is not ended, whatever it has open
 * @throws MOUNT_BUSY naming what is left; IO_ERROR naming a file that cannot be removed
 */
export async function clean(layout: Layout, owner: number): Promise<void> {
  const { base, mountPoint } = layout
  const mount = thinfsMountAt(mountPoint)
  const found: Found = { loops: new Map(), users: new Set() }
  await end(() => markedWith(mountPoint), { owner, force: true })
  if (mount !== null) await within(ORDERLY_MS, cleanInOrder(layout, mount, owner, found))
  await cleanByForce(layout, found)
  const attached = stillAttached(found).map(({ path }) => path)
  const mounts = readMounts()
    .map(({ mountPoint }) => mountPoint)
    .filter(folder => isWithin(base, folder))
  if (mounts.length === 0) await removeAll(layout)
  const left = [...attached, ...mounts]
  if (left.length === 0) return
  const by = [...found.users].map(nameOf).join(', ')
  const who = by === '' ? '' : `, used by ${by}`
  throw new ThinfsError('MOUNT_BUSY', `${base}: ${left.join(', ')} cannot be taken away${who}`)
}

/** @throws IO_ERROR naming a file that stays; all others are gone */
async function removeAll({ base, alive }: Layout): Promise<void> {
  // By this file a later keeper knows that nobody has the pool, and tries again.
  const parts = list(base)
    .map(name => join(base, name))
    .filter(path => path !== alive)
  const remove = (): void => {
    for (const path of [...parts, base]) rmSync(path, { recursive: true, force: true })
  }
  try {
    remove()
  } catch {
    // Files that are left take memory, and rm(1) does not stop at the first file that it cannot
    // remove.
    await runTool('rm', '-rf', '--', ...parts).catch(() => {})
    try {
      remove()
    } catch (err) {
      const { path = base } = err as NodeJS.ErrnoException
      const detail = `${path}: of a pool that has ended, and cannot be removed`
      throw new ThinfsError('IO_ERROR', detail, { cause: err, errno: errnoOf(err) })
    }
  }
}

async function cleanInOrder(
  layout: Layout,
  mount: Mount,
  owner: number,
  found: Found,
): Promise<void> {
  const { mountPoint, place } = layout
  // A program that the owner had started may attach or mount something in the meantime.
  for (let round = 0; round < ROUNDS; round++) {
    await end(() => processesWithin(mountPoint), { owner })
    const loops = (await listLoops()).filter(loop => isOn(loop, mount))
    for (const loop of loops) found.loops.set(loop.path, loop)
    const folders = filesystemsOf(layout, loops)
    if (folders.length > 0) {
      const users = await end(() => folders.flatMap(processesWithin), { owner })
      for (const pid of users) found.users.add(pid)
    }
    for (const folder of folders) await unmount(folder).catch(() => detachMount(folder))
    for (const { path } of loops) await detachLoop(path).catch(() => {})
    const daemon = await connectDaemon(place).catch(() => null)
    try {
      if (daemon === null) return
      await daemon.umount()
      return
    } catch {
      // Somebody still uses the mount, or it is not served.
    } finally {
      daemon?.close()
    }
  }
}

/**
 * Kills the processes that serve the mount, and the connection with them: what waits for it gets
 * errors, and comes to an end.
 */
async function cleanByForce(layout: Layout, found: Found): Promise<void> {
  const { place, mountPoint } = layout
  const deadline = Date.now() + FORCE_MS
  if (thinfsMountAt(mountPoint) !== null) await within(FORCE_MS, detachMount(mountPoint))
  for (let pids = serversOf(place.file); pids.length > 0; pids = serversOf(place.file)) {
    for (const pid of pids) signal(pid, 'SIGKILL')
    if (Date.now() > deadline) return
    await sleep(LOOK_MS)
  }
  const loops = stillAttached(found)
  for (const folder of filesystemsOf(layout, loops)) await within(FORCE_MS, detachMount(folder))
  for (const { path } of loops)
    await within(
      FORCE_MS,
      detachLoop(path).catch(() => {}),
    )
}

/** Waits until an act has ended, well or not, but not for long: that may be later. */
async function within(ms: number, act: Promise<void>): Promise<void> {
  await inTime(ms, act, undefined).catch(() => {})
}

const detachMount = (folder: string): Promise<void> => unmountLazily(folder).catch(() => {})

/** The processes that a command which has the pool has started, and they in turn. */
function markedWith(mountPoint: string): number[] {
  const mark = `${MARK}=${mountPoint}`
  return otherProcesses().filter(pid => read(`/proc/${pid}/environ`).split('\0').includes(mark))
}

/**
 * Asks processes to end, and waits for that for a while.
 * @param options.owner is not asked
 * @param options.force kills those that have not ended by then
 * @returns those that are still there
 */
async function end(
  find: () => number[],
  { owner, force = false }: { owner: number; force?: boolean },
): Promise<number[]> {
  const deadline = Date.now() + GRACE_MS
  const asked = new Set<number>()
  for (;;) {
    const found = find()
    const pids = found.filter(pid => pid !== owner)
    const late = Date.now() - deadline
    if (pids.length === 0 || late > (force ? FORCE_MS : 0)) return found
    for (const pid of pids) {
      if (late > 0) signal(pid, 'SIGKILL')
      else if (!asked.has(pid)) signal(pid, 'SIGTERM')
      asked.add(pid)
    }
    await sleep(LOOK_MS)
  }
}

function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name)
  } catch {
    // It has ended meanwhile, or is another user's.
  }
}

/** Those that were found and are not gone. A number may be somebody else's by now. */
function stillAttached({ loops }: Found): AttachedLoop[] {
  const nameOfFile = (loop: AttachedLoop | undefined): string => basename(loop?.backingFile ?? '')
  return attachedLoops().filter(loop => nameOfFile(loop) === nameOfFile(loops.get(loop.path)))
}

/** Folders at which filesystems on volumes are mounted, those on top first. */
function filesystemsOf({ filesystems }: Layout, loops: readonly AttachedLoop[]): string[] {
  const onLoops = loops
    .flatMap(({ path }) => mountsOn(path, loops))
    .filter(({ namespace }) => namespace.isOwn)
    .map(({ mount }) => mount.id)
  return readMounts()
    .filter(({ id, mountPoint }) => onLoops.includes(id) || isWithin(filesystems, mountPoint))
    .map(({ mountPoint }) => mountPoint)
    .reverse()
}
