/**
 * The holders of a mount: loop devices on its files, processes that have them open or mapped or
 * that stand in the folder, mounts on top of it, and mounts of the same filesystem elsewhere.
 *
 * Nothing here asks the mount's server: it reads links and tables in /proc and /sys, and runs
 * losetup(8), which it gives up on when that waits.
 */
import { namesOfUsers, namespaceName, usersOf } from './device-users.js'
import { type LoopDevice, listLoops } from './loop.js'
import {
  goesWith,
  isWithin,
  type Mount,
  type MountNamespace,
  readMounts,
  readNamespaces,
  thinfsMountAt,
} from './mount-table.js'
import {
  isInOwnNamespace,
  list,
  nameOf,
  openFiles,
  otherProcesses,
  read,
  readLink,
} from './proc.js'

/** Naming more than these helps no reader. */
const MAX_NAMED = 16

/**
 * For people: `/dev/loop0 (mounted at /srv/web)`, `process 123 (bash)`. At most 16, then how many
 * more. Processes of other users are seen by root alone.
 * @param mount a mount of ours, which may have been unmounted here meanwhile
 */
export async function findHolders(mount: Mount): Promise<string[]> {
  const loops = await listLoops()
  const holders = [
    ...loops.filter(loop => isOn(loop, mount)).map(loop => describeLoop(loop, loops)),
    ...mountsOver(mount),
    ...findCopies(mount).map(describeCopy),
    ...processHolders(mount),
  ]
  const rest = holders.length - MAX_NAMED
  return rest <= 0 ? holders : [...holders.slice(0, MAX_NAMED), `${rest} more`]
}

/**
 * For people: who would keep a mount from being unmounted here once its loop devices are gone.
 * Unlike `findHolders`, it leaves out whatever may be in another mount's files of the same name.
 */
export const holdersBesideLoops = (mount: Mount): string[] => [
  ...mountsOver(mount),
  ...findCopies(mount).map(describeCopy),
  ...processesWithin(mount.mountPoint).filter(isInOwnNamespace).map(nameOf),
]

/** A mount of the same filesystem as another, and the mount namespace that it is in. */
interface Copy {
  mount: Mount
  namespace: MountNamespace
}

/**
 * Mounts of the same filesystem that unmounting `mount` leaves: in other namespaces, and bind
 * mounts. They keep the filesystem when `mount` is gone.
 */
export function findCopies(mount: Mount): Copy[] {
  const namespaces = readNamespaces()
  const known = new Set([mount.id])
  return namespaces.flatMap(namespace =>
    namespace.mounts
      .filter(({ id, device }) => device === mount.device && !known.has(id))
      .filter(copy => {
        known.add(copy.id)
        return !goesWith(mount, copy, namespaces)
      })
      .map(copy => ({ mount: copy, namespace })),
  )
}

/**
 * Whether all holders of a mount may let go by themselves: holders that /proc does not show, and
 * copies in other namespaces. A container that starts has a copy of every mount until it leaves its
 * old root, and the kernel closes some files only after their process has ended.
 */
export async function mayPass(mount: Mount): Promise<boolean> {
  const isOwn = findCopies(mount).some(({ namespace }) => namespace.isOwn)
  if (isOwn || mountsOver(mount).length > 0 || processHolders(mount).length > 0) return false
  return !(await listLoops()).some(loop => isOn(loop, mount))
}

const describeCopy = ({ mount, namespace }: Copy): string =>
  namespace.isOwn
    ? `the mount at ${mount.mountPoint}`
    : `the mount at ${mount.mountPoint} in ${namespaceName(namespace)}`

/**
 * The holders of one file of a mount: its loop devices and the processes that have it open.
 * @param path of the file in the mount
 */
export async function findFileHolders(file: {
  path: string
  device: string
  ino: number
}): Promise<string[]> {
  const loops = await listLoops()
  const processes = otherProcesses().filter(pid => openFiles(pid).includes(file.path))
  return [
    ...loopsOnFile(loops, file).map(loop => describeLoop(loop, loops)),
    ...processes.map(nameOf),
  ]
}

/** The loop devices on a file, whatever its name is or was. */
export function loopsOnFile(
  loops: readonly LoopDevice[],
  file: { path: string; device: string; ino: number },
): LoopDevice[] {
  return loops.filter(({ backingId, backingFile }) =>
    backingId === null
      ? backingFile === file.path
      : backingId.device === file.device && backingId.ino === file.ino,
  )
}

/** Whether the device is on a file of the mount, which may be gone from there. */
export function isOn({ backingId, backingFile }: LoopDevice, mount: Mount): boolean {
  return backingId === null
    ? isWithin(mount.mountPoint, backingFile)
    : backingId.device === mount.device
}

export function describeLoop({ path }: LoopDevice, loops: readonly LoopDevice[]): string {
  const users = usersOf(path, loops)
  return users.length === 0 ? path : `${path} (${namesOfUsers(users)})`
}

/** Mounts of other filesystems below the mount point. */
function mountsOver({ mountPoint, device }: Mount): string[] {
  return readMounts()
    .filter(other => other.mountPoint !== mountPoint && isWithin(mountPoint, other.mountPoint))
    .filter(other => other.device !== device)
    .map(other => `the mount at ${other.mountPoint}`)
}

function processHolders(mount: Mount): string[] {
  // The paths of files in a mount that was detached do not tell of which.
  const isGone = thinfsMountAt(mount.mountPoint)?.id !== mount.id
  return otherProcesses()
    .filter(pid => holds(pid, mount.mountPoint) || (isGone && hasOpenIn(pid, mount.id)))
    .map(nameOf)
}

/**
 * The other processes that stand in a folder or below it, or have something there open or mapped.
 */
export const processesWithin = (folder: string): number[] =>
  otherProcesses().filter(pid => holds(pid, folder))

function holds(pid: number, mountPoint: string): boolean {
  const links = ['cwd', 'root', 'exe'].map(link => readLink(`/proc/${pid}/${link}`))
  return (
    [...links, ...openFiles(pid)].some(path => isWithin(mountPoint, path)) ||
    // A mapping outlives its descriptor. Its path begins after a blank and runs to the line's end.
    read(`/proc/${pid}/maps`)
      .split('\n')
      .some(line => isWithin(mountPoint, line.slice(line.indexOf('/'))))
  )
}

function hasOpenIn(pid: number, mountId: number): boolean {
  const line = new RegExp(`^mnt_id:\\s+${mountId}$`, 'm')
  return list(`/proc/${pid}/fdinfo`).some(fd => line.test(read(`/proc/${pid}/fdinfo/${fd}`)))
}
