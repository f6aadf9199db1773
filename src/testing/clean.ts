/**
 * Takes an ephemeral pool away, with all that is on it, whatever state it is in.
 *
 * Nothing of it is needed any more, so what does not end when it is asked to is ended by force. Only
 * /proc and /sys are looked at: the mount's server may hang.
 */
import { rmSync } from 'node:fs'
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
  type Mount,
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

/**
 * @param owner process id of whoever had the pool: it is not ended, whatever it has open
 * @throws MOUNT_BUSY naming what is left
 */
export async function clean(layout: Layout, owner: number): Promise<void> {
  const { base, mountPoint, filesystems } = layout
  const mount = thinfsMountAt(mountPoint)
  const others = (pids: number[]): number[] => pids.filter(pid => pid !== owner)
  await end(() => others(markedWith(mountPoint)), { force: true })
  await end(() => others(processesWithin(filesystems)))
  const loops = mount === null ? [] : await loopsOn(mount)
  for (const folder of filesystemsOf(layout, loops)) await unmountAnyhow(folder)
  for (const { path } of loops) await detachLoop(path).catch(() => {})
  await end(() => others(processesWithin(mountPoint)))
  await umountPool(layout)
  const left = [
    ...(mount === null ? [] : (await loopsOn(mount)).map(({ path }) => path)),
    ...readMounts()
      .filter(other => isWithin(base, other.mountPoint))
      .map(other => `the mount at ${other.mountPoint}`),
  ]
  if (left.length > 0) {
    const by = processesWithin(filesystems).map(nameOf)
    const who = by.length === 0 ? '' : `, used by ${by.join(', ')}`
    throw new ThinfsError('MOUNT_BUSY', `${base}: ${left.join(', ')} cannot be taken away${who}`)
  }
  rmSync(base, { recursive: true, force: true })
}

/** The processes that a command which has the pool has started, and they in turn. */
function markedWith(mountPoint: string): number[] {
  const mark = `${MARK}=${mountPoint}`
  return otherProcesses().filter(pid => read(`/proc/${pid}/environ`).split('\0').includes(mark))
}

/**
 * Asks processes to end, and waits for that for a while.
 * @param options.force kills those that have not ended by then
 */
async function end(find: () => number[], { force = false } = {}): Promise<void> {
  const deadline = Date.now() + GRACE_MS
  const asked = new Set<number>()
  for (let pids = find(); pids.length > 0; pids = find()) {
    const late = Date.now() - deadline
    if (late > (force ? GRACE_MS : 0)) return
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

const loopsOn = async (mount: Mount): Promise<LoopDevice[]> =>
  (await listLoops()).filter(loop => isOn(loop, mount))

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

/** In order where that is possible; otherwise its processes are killed, and the connection with them. */
async function umountPool({ place, mountPoint }: Layout): Promise<void> {
  if (await umountInOrder(place)) return
  if (thinfsMountAt(mountPoint) !== null) await unmountLazily(mountPoint).catch(() => {})
  const deadline = Date.now() + UMOUNT_MS
  for (let pids = serversOf(place.file); pids.length > 0; pids = serversOf(place.file)) {
    for (const pid of pids) signal(pid, 'SIGKILL')
    if (Date.now() > deadline) return
    await sleep(LOOK_MS)
  }
}

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
