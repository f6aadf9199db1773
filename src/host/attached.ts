/** Loop devices on volumes of all pools, and those that mounts which have died left behind. */
import { stat } from 'node:fs/promises'
import { basename } from 'node:path'
import { errnoOf, inTime } from '../base/index.js'
import { loopNamed, namesOfUsers, openersOf, usersOf } from './device-users.js'
import { isOn } from './holders.js'
import { detachLoop, type LoopDevice, listLoops } from './loop.js'
import { namesOfLoop } from './loop-names.js'
import { isDead } from './mount-point.js'
import { MOUNT_TYPE, type Mount, readNamespaces } from './mount-table.js'
import { nameOf, read } from './proc.js'
import { runToolWithin } from './tool.js'

export interface AttachedVolume {
  /** Such as `/dev/loop0`. */
  device: string
  /** Path of the pool.yaml; null for a pool whose mount is gone. */
  pool: string | null
  /** The volume's name when it was attached, or since it was renamed in the mount. */
  volume: string
  /** See `AttachedLoop`. */
  attachment: string
  /** Paths of the names that the device has. */
  names: string[]
  readOnly: boolean
  /** Nobody serves its volume any more: each read of it fails. */
  stale: boolean
  /** For people: mounts in all namespaces, swap, devices on top, processes. */
  users: string[]
}

/** How long a mount, or a device, may take to show that it is dead: a live one may be busy. */
const LOOK_MS = 2000

/** @param pool path of a pool.yaml; null: all pools, and what mounts that are gone have left */
export async function attachedVolumes(pool: string | null): Promise<AttachedVolume[]> {
  const loops = await listLoops()
  const mounts = readNamespaces()
    .flatMap(({ mounts }) => mounts)
    .filter(({ type }) => type === MOUNT_TYPE)
  const found: AttachedVolume[] = []
  for (const loop of loops) {
    const mount = mounts.find(mount => isOn(loop, mount))
    const stale =
      mount === undefined
        ? await isLeftBehind(loop)
        : (await isDeadMount(mount)) && (await isUnreadable(loop.path))
    if (mount === undefined && !stale) continue
    if (pool !== null && mount?.source !== pool) continue
    found.push({
      device: loop.path,
      pool: mount?.source ?? null,
      volume: basename(loop.backingFile),
      attachment: loop.attachment,
      names: namesOfLoop(loop.path),
      readOnly: read(`/sys/block/${basename(loop.path)}/ro`) === '1\n',
      stale,
      users: [
        ...usersOf(loop.path, loops),
        ...openersOf(loop.path).map(pid => `open by ${nameOf(pid)}`),
      ],
    })
  }
  return found
}

/** The error that a look at a path ends with, in time; null otherwise. */
function errorAt(path: string): Promise<unknown> {
  const look = stat(path).then(
    () => null,
    (err: unknown) => err,
  )
  return inTime(LOOK_MS, look, null)
}

async function isDeadMount({ mountPoint }: Mount): Promise<boolean> {
  const err = await errorAt(mountPoint)
  return err !== null && isDead(err)
}

/**
 * Whether a device is on a file whose filesystem has gone: nothing is known of the file, nor has it
 * a name, and the device cannot be read.
 */
async function isLeftBehind({ path, backingId, backingFile }: LoopDevice): Promise<boolean> {
  if (backingId !== null) return false
  const err = await errorAt(backingFile)
  return err !== null && errnoOf(err) === 'ENOENT' && (await isUnreadable(path))
}

/**
 * Whether reads of a device fail: what is at the path of its mount may be another one, in another
 * namespace or below a dead one, and serve it.
 */
async function isUnreadable(path: string): Promise<boolean> {
  const reading = ['iflag=direct', 'bs=4096', 'count=1', 'status=none', 'of=/dev/null']
  try {
    await runToolWithin(LOOK_MS, 'dd', `if=${path}`, ...reading)
    return false
  } catch (err) {
    return /Input\/output error/.test((err as Error).message)
  }
}

/**
 * Detaches the stale ones among `volumes` that nobody uses.
 * @returns for each stale one that stays, who keeps it
 */
export async function detachStale(
  volumes: readonly AttachedVolume[],
): Promise<{ detached: string[]; kept: string[] }> {
  const [detached, kept]: string[][] = [[], []]
  for (const { device, attachment, stale, users } of volumes) {
    if (!stale) continue
    if (users.length > 0) {
      kept!.push(`${device} is ${namesOfUsers(users)}`)
      continue
    }
    try {
      // Somebody else may have detached it since, and another have its number.
      const isSame = loopNamed(basename(device)).attachment === attachment
      if (!isSame || !(await isUnreadable(device))) continue
      await detachLoop(device)
      detached!.push(device)
    } catch (err) {
      kept!.push((err as Error).message)
    }
  }
  return { detached: detached!, kept: kept! }
}
