/**
 * The mounts of this process's mount namespace and of all others, without touching any of them.
 *
 * A mount whose server is gone or slow still has its line here, while stat(2) on it fails or waits.
 * Source: proc_pid_mountinfo(5), mount_namespaces(7).
 */
import { readFileSync } from 'node:fs'
import { list, read, readLink } from './proc.js'

/** The type of our mounts. */
export const MOUNT_TYPE = 'fuse.thinfs'

export interface Mount {
  /** Unique on the machine, whatever the namespace. */
  id: number
  parentId: number
  /** Device number of the filesystem, as `0:64`; the same for all mounts of it. */
  device: string
  mountPoint: string
  type: string
  /** For a mount of ours, the absolute path of its pool.yaml. */
  source: string
  /** The peer group that it is in, null when mounts on it do not propagate. */
  peerGroup: number | null
  /** The peer group from which it receives mounts and unmounts, null for none. */
  masterGroup: number | null
}

/** A mount namespace, as the processes in it that share a root directory see it. */
export interface MountNamespace {
  /** The number in `mnt:[4026532211]`. */
  id: string
  /** Whether it is this process's. */
  isOwn: boolean
  /** The processes in it; only the first one that was found of this process's own. */
  pids: number[]
  mounts: Mount[]
}

/** All mounts of this process's namespace, in the order in which they were made. */
export function readMounts(): Mount[] {
  return parseMountInfo(readFileSync('/proc/self/mountinfo', 'utf8'))
}

/** The mount of ours that is on top at `mountPoint`, an absolute path without symbolic links. */
export function thinfsMountAt(mountPoint: string, mounts: Mount[] = readMounts()): Mount | null {
  const top = mounts.findLast(mount => mount.mountPoint === mountPoint)
  return top?.type === MOUNT_TYPE ? top : null
}

/** The mount that has `path`, which is absolute and without symbolic links. */
export function mountOf(path: string, mounts: Mount[] = readMounts()): Mount | null {
  const over = mounts.filter(({ mountPoint }) => isWithin(mountPoint, path))
  const longest = Math.max(...over.map(({ mountPoint }) => mountPoint.length))
  return over.findLast(({ mountPoint }) => mountPoint.length === longest) ?? null
}

/**
 * The mount that hides `mount`: it is mounted over it, or over a folder above. Null when `mount` is
 * what a path lookup of its mount point finds, or is not there any more.
 */
export function mountOver(mount: Mount, mounts: Mount[] = readMounts()): Mount | null {
  if (!mounts.some(({ id }) => id === mount.id)) return null
  const ids = new Set(mounts.map(({ id }) => id))
  const top = mounts.find(({ parentId }) => !ids.has(parentId))
  if (top === undefined) return null
  // A changed root that is no mount point has no line; what is mounted in it has it as its parent.
  let found = top.mountPoint === '/' ? top : undefined
  for (let from = found?.id ?? top.parentId; ; from = found.id) {
    const next = nextOnTheWay(from, mount, mounts)
    if (next === undefined) break
    found = next
  }
  return found === undefined || found.id === mount.id ? null : found
}

/** The mount in the one with id `from` that a path lookup of `to` comes to first. */
function nextOnTheWay(from: number, to: Mount, mounts: Mount[]): Mount | undefined {
  const next = mounts.filter(
    ({ id, parentId, mountPoint }) =>
      parentId === from && id !== parentId && isWithin(mountPoint, to.mountPoint),
  )
  const shortest = Math.min(...next.map(({ mountPoint }) => mountPoint.length))
  return next.findLast(({ mountPoint }) => mountPoint.length === shortest)
}

/** Whether `path` is `folder` or below it; both are absolute. */
export const isWithin = (folder: string, path: string): boolean =>
  path === folder || path.startsWith(folder === '/' ? '/' : `${folder}/`)

/**
 * This process's namespace first, then the others that have processes. Those of other users are
 * seen by root alone. A namespace without a process, which only a file keeps, is not seen.
 */
export function readNamespaces(): MountNamespace[] {
  const namespaceOf = (process: string) => readLink(`/proc/${process}/ns/mnt`)
  const id = (link: string): string => link.slice('mnt:['.length, -1)
  const own = namespaceOf('self')
  // A process in a changed root sees only the mounts below it, so each root has its own table.
  const tables = new Map<string, MountNamespace>()
  for (const pid of list('/proc').filter(name => /^\d+$/.test(name))) {
    const namespace = namespaceOf(pid)
    if (namespace === '' || namespace === own) continue
    const key = `${namespace} ${readLink(`/proc/${pid}/root`)}`
    const known = tables.get(key)
    if (known) {
      known.pids.push(Number(pid))
      continue
    }
    const mounts = parseMountInfo(read(`/proc/${pid}/mountinfo`))
    tables.set(key, { id: id(namespace), isOwn: false, pids: [Number(pid)], mounts })
  }
  return [
    { id: id(own), isOwn: true, pids: [process.pid], mounts: readMounts() },
    ...tables.values(),
  ]
}

/**
 * Whether unmounting `mount` takes `copy`, another mount of the same filesystem, away as well: it
 * was propagated, and so is the unmount.
 */
export function goesWith(mount: Mount, copy: Mount, namespaces: MountNamespace[]): boolean {
  const all = new Map(namespaces.flatMap(({ mounts }) => mounts.map(entry => [entry.id, entry])))
  const group = all.get(mount.parentId)?.peerGroup
  const parent = all.get(copy.parentId)
  if (group == null || parent === undefined) return false
  const masterOf = new Map<number, number>()
  for (const { peerGroup, masterGroup } of all.values()) {
    if (peerGroup !== null && masterGroup !== null) masterOf.set(peerGroup, masterGroup)
  }
  const seen = new Set<number>()
  let from = parent.peerGroup ?? parent.masterGroup
  while (from !== null && !seen.has(from)) {
    if (from === group) return true
    seen.add(from)
    from = masterOf.get(from) ?? null
  }
  return false
}

/** @param text content of /proc/PID/mountinfo */
export function parseMountInfo(text: string): Mount[] {
  return text
    .split('\n')
    .filter(line => line !== '')
    .map(line => {
      const fields = line.split(' ')
      // The optional fields, from the seventh on, end with a hyphen.
      const end = fields.indexOf('-', 6)
      const groupOf = (kind: string): number | null => {
        const field = fields.slice(6, end).find(option => option.startsWith(`${kind}:`))
        return field === undefined ? null : Number(field.slice(kind.length + 1))
      }
      const [type, source] = fields.slice(end + 1)
      return {
        id: Number(fields[0]),
        parentId: Number(fields[1]),
        device: fields[2]!,
        mountPoint: unescaped(fields[4]!),
        type: type!,
        source: unescaped(source!),
        peerGroup: groupOf('shared'),
        masterGroup: groupOf('master'),
      }
    })
}

/** Blank, tab, newline and backslash are written as octal numbers, byte by byte. */
function unescaped(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, octal) => String.fromCharCode(Number.parseInt(octal, 8)))
}
