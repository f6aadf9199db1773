/**
 * The users of a block device: mounts in all namespaces, swap, loop and mapped devices on top of
 * it, and processes that have it open. Uses of its partitions, and of devices on top, count as
 * well.
 *
 * Source: Documentation/ABI/testing/sysfs-block (`holders`); proc(5), `swaps`.
 */
import { statSync } from 'node:fs'
import { basename } from 'node:path'
import { deviceNumber } from '../base/index.js'
import { type Mount, type MountNamespace, readNamespaces } from './mount-table.js'
import { list, nameOf, openFiles, otherProcesses, read, readLink } from './proc.js'

/** A mount of a filesystem on the device. */
export interface DeviceMount {
  mount: Mount
  namespace: MountNamespace
}

/** A loop device, as /sys has it. */
export interface AttachedLoop {
  /** Such as `/dev/loop0`. */
  path: string
  /**
   * Path of the file that it is on, as it was when it was attached; ` (deleted)` follows when it
   * was removed.
   */
  backingFile: string
  /**
   * Tells this attachment from later ones of the same number; '' on a kernel before 5.15. Source:
   * Documentation/ABI/stable/sysfs-block, `diskseq`.
   */
  attachment: string
}

/** All loop devices that are attached to something. */
export const attachedLoops = (): AttachedLoop[] =>
  list('/sys/block')
    .filter(name => name.startsWith('loop'))
    .map(loopNamed)
    .filter(({ backingFile }) => backingFile !== '')

/** A loop device as it is now; without a backing file it is attached to nothing. */
export const loopNamed = (name: string): AttachedLoop => ({
  path: `/dev/${name}`,
  backingFile: backingFileOf(name),
  attachment: read(`/sys/block/${name}/diskseq`).trimEnd(),
})

/** Whether a device is still attached as it was: somebody else may have its number by now. */
export function isStillAttached({ path, attachment }: AttachedLoop): boolean {
  const now = loopNamed(basename(path))
  return now.backingFile !== '' && now.attachment === attachment
}

/**
 * Of the loop device of that name; a device without a file has no such entry, and '' is answered.
 */
export const backingFileOf = (name: string): string =>
  read(`/sys/block/${name}/loop/backing_file`).slice(0, -1)

/** The kernel's path of the block device that `path`, of whatever name, leads to. */
export const kernelPathOf = (path: string): string =>
  `/dev/${basename(readLink(`/sys/dev/block/${deviceNumber(statSync(path).rdev)}`))}`

/** The kernel's names of the device, its partitions, and all that is stacked on them. */
export function stackOn(path: string, loops: readonly AttachedLoop[]): string[] {
  const names: string[] = []
  const visit = (name: string): void => {
    if (names.includes(name)) return
    names.push(name)
    const sys = `/sys/class/block/${name}`
    const partitions = list(sys).filter(entry => read(`${sys}/${entry}/partition`) !== '')
    const onIt = loops.filter(loop => loop.backingFile === `/dev/${name}`)
    const above = [...list(`${sys}/holders`), ...onIt.map(loop => basename(loop.path))]
    for (const next of [...partitions, ...above]) visit(next)
  }
  visit(basename(path))
  return names
}

/** Mounts of what is on the device, in all namespaces. */
export function mountsOn(
  path: string,
  loops: readonly AttachedLoop[],
  namespaces = readNamespaces(),
): DeviceMount[] {
  const names = stackOn(path, loops)
  const numbers = names.map(name => read(`/sys/class/block/${name}/dev`).trimEnd())
  // The mounts of btrfs have a device number of their own, and the device as their source.
  // Of other types anybody may say what the source is, and keep root from detaching a device.
  const isOn = ({ device, source, type }: Mount): boolean =>
    numbers.includes(device) || (type === 'btrfs' && names.some(name => source === `/dev/${name}`))
  return namespaces.flatMap(namespace =>
    namespace.mounts.filter(isOn).map(mount => ({ mount, namespace })),
  )
}

/**
 * Uses that only somebody ends, for people: `mounted at /srv`, `used as swap`, `below /dev/dm-0`.
 * @param path the kernel's, such as `/dev/sda`
 */
export function usersOf(path: string, loops: readonly AttachedLoop[] = attachedLoops()): string[] {
  const mounts = mountsOn(path, loops)
  const places = new Set(
    mounts.map(
      ({ mount, namespace }) =>
        `${mount.mountPoint}${namespace.isOwn ? '' : ` in ${namespaceName(namespace)}`}`,
    ),
  )
  return [
    ...(places.size === 0 ? [] : [`mounted at ${[...places].join(' and ')}`]),
    ...otherUsersOf(path, loops).map(({ use }) => use),
  ]
}

/**
 * Whether all that keeps a device are mounts of other namespaces. One that was made a moment ago
 * has copies of all mounts, and may be about to let go of them.
 */
export function isOnlyElsewhere(path: string, loops = attachedLoops()): boolean {
  const isOwn = mountsOn(path, loops).some(({ namespace }) => namespace.isOwn)
  return !isOwn && otherUsersOf(path, loops).length === 0
}

/** Those of `usersOf` that are no mounts, and the kernel's name of the device that each is by. */
export function otherUsersOf(
  path: string,
  loops: readonly AttachedLoop[],
): { use: string; name: string }[] {
  const [, ...above] = stackOn(path, loops)
  const isPartition = (name: string): boolean => read(`/sys/class/block/${name}/partition`) !== ''
  const devices = new Set([path, ...above.map(name => `/dev/${name}`)])
  const swaps = read('/proc/swaps')
    .split('\n')
    .map(line => line.split(/\s/)[0] ?? '')
    .filter(device => devices.has(device))
  return [
    ...swaps.map(device => ({
      use: device === path ? 'used as swap' : `used as swap, by ${device}`,
      name: basename(device),
    })),
    ...above.filter(name => !isPartition(name)).map(name => ({ use: `below /dev/${name}`, name })),
  ]
}

/** `mount namespace 4026532211 of process 123 (sleep) and 2 more` */
export function namespaceName({ id, pids }: MountNamespace): string {
  const more = pids.length > 1 ? ` and ${pids.length - 1} more` : ''
  return `mount namespace ${id} of ${nameOf(pids[0]!)}${more}`
}

/** Processes that have the device or a partition of it open. */
export function openersOf(path: string): number[] {
  const partition = new RegExp(`^${path}(p\\d+)?$`)
  return otherProcesses().filter(pid => openFiles(pid).some(file => partition.test(file)))
}

export const namesOfUsers = (users: readonly string[]): string => users.join(', ')
