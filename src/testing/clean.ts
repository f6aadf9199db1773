/**
 * Takes an ephemeral pool away, with all that is on it, whatever state it is in.
 *
 * Nothing of it is needed any more, so what does not end when it is asked to is ended by force. Only
 * /proc and /sys are looked at: the mount's server may hang.
 */
import { rmSync } from 'node:fs'
import { basename } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { ThinfsError } from '../base/index.js'
import { connectDaemon } from '../control/index.js'
import { serversOf } from '../daemon/index.js'
import {
  detachLoop,
  isOn,
  isWithin,
  type LoopDevice,
  listLoops,
  mountsOn,
  nameOf,
  otherProcesses,
  processesWithin,
  read,
  readMounts,
  thinfsMountAt,
  unmount,
  unmountLazily,
} from '../host/index.js'
import { MARK } from './environment.js'
import type { Layout } from './layout.js'

/** How long processes may take to end when they are asked to, in milliseconds. */
const GRACE_MS = 2000
/** How long the daemon may take to unmount. It has nothing to wait for. */
const UMOUNT_MS = 10_000
const LOOK_MS = 20
/** How often it is tried in order before it is done by force. */
const ROUNDS = 2

/**
 * @param owner process id of whoever had the pool: it is not ended, whatever it has open
 * @throws MOUNT_BUSY naming what is left
 */
export async function clean(layout: Layout, owner: number): Promise<void> {
  const { base, mountPoint, place } = layout
  const mount = thinfsMountAt(mountPoint)
  await end(() => markedWith(mountPoint), { owner, force: true })
  const loops: LoopDevice[] = []
  const users: number[] = []
  for (let round = 0; mount !== null && round < ROUNDS; round++) {
    // A program that the owner started may have attached or mounted something meanwhile.
    await end(() => processesWithin(mountPoint), { owner })
    const found = (await listLoops()).filter(loop => isOn(loop, mount))
    const folders = filesystemsOf(layout, found)
    if (folders.length > 0) {
      users.push(...(await end(() => folders.flatMap(processesWithin), { owner })))
    }
    for (const folder of folders) await unmountAnyhow(folder)
    for (const { path } of found) await detachLoop(path).catch(() => {})
    loops.push(...found)
    if (await umountInOrder(place)) break
  }
  await umountByForce(layout)
  const attached = (await stillAttached(loops)).map(({ path }) => path)
  const mounts = readMounts()
    .map(({ mountPoint }) => mountPoint)
    .filter(folder => isWithin(base, folder))
  if (mounts.length === 0) rmSync(base, { recursive: true, force: true })
  const left = [...attached, ...mounts]
  if (left.length > 0) {
    const by = users.length === 0 ? '' : `, used by ${[...new Set(users)].map(nameOf).join(', ')}`
    throw new ThinfsError('MOUNT_BUSY', `${base}: ${left.join(', ')} cannot be taken away${by}`)
  }
}

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
    if (pids.length === 0 || late > (force ? GRACE_MS : 0)) return found
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

/** Those of some loop devices that are not gone. Where the mount is, nobody knows their files. */
async function stillAttached(loops: readonly LoopDevice[]): Promise<LoopDevice[]> {
  const isSame = (one: LoopDevice, other: LoopDevice): boolean =>
    one.path === other.path && basename(one.backingFile) === basename(other.backingFile)
  return loops.length === 0
    ? []
    : (await listLoops()).filter(other => loops.some(one => isSame(one, other)))
}

/** Folders at which filesystems on volumes are mounted, those on top first. */
function filesystemsOf({ filesystems }: Layout, loops: readonly LoopDevice[]): string[] {
  const onLoops = loops
    .flatMap(({ path }) => mountsOn(path, loops))
    .filter(({ namespace }) => namespace.isOwn)
    .map(({ mount }) => mount.id)
  return readMounts()
    .filter(({ id, mountPoint }) => onLoops.includes(id) || isWithin(filesystems, mountPoint))
    .map(({ mountPoint }) => mountPoint)
    .reverse()
}

async function unmountAnyhow(folder: string): Promise<void> {
  await unmount(folder)
    .catch(() => unmountLazily(folder))
    .catch(() => {})
}

/** Kills the processes that serve the mount, if there are any, and the connection with them. */
async function umountByForce({ place, mountPoint }: Layout): Promise<void> {
  if (thinfsMountAt(mountPoint) !== null) await unmountLazily(mountPoint).catch(() => {})
  const deadline = Date.now() + UMOUNT_MS
  for (let pids = serversOf(place.file); pids.length > 0; pids = serversOf(place.file)) {
    for (const pid of pids) signal(pid, 'SIGKILL')
    if (Date.now() > deadline) return
    await sleep(LOOK_MS)
  }
}

/** @returns whether that was possible */
async function umountInOrder(place: Layout['place']): Promise<boolean> {
  const daemon = await connectDaemon(place).catch(() => null)
  if (daemon === null) return false
  const timeout = new AbortController()
  try {
    return await Promise.race([
      daemon.umount().then(() => true),
      sleep(UMOUNT_MS, false, { signal: timeout.signal }).catch(() => false),
    ])
  } catch {
    return false
  } finally {
    timeout.abort()
    daemon.close()
  }
}
