/**
 * Who keeps a mount busy: loop devices on its files, processes that have them open or mapped or
 * that stand in the folder, mounts on top of it.
 *
 * Reads links and tables in /proc and /sys only: nothing here asks the mount's server.
 */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { readMounts } from './mount-table.js'

/** More names than these do not help who reads them. */
const MAX_NAMED = 16

/**
 * For people: `/dev/loop0 (mounted at /srv/web)`, `process 123 (bash)`. At most 16, then how many
 * more. Processes of other users are seen by root alone.
 */
export function findHolders(mountPoint: string): string[] {
  const holders = [
    ...loopHolders(mountPoint),
    ...mountHolders(mountPoint),
    ...processHolders(mountPoint),
  ]
  const rest = holders.length - MAX_NAMED
  return rest <= 0 ? holders : [...holders.slice(0, MAX_NAMED), `${rest} more`]
}

function loopHolders(mountPoint: string): string[] {
  return list('/sys/block')
    .filter(name => name.startsWith('loop'))
    .filter(name => within(mountPoint, read(`/sys/block/${name}/loop/backing_file`).trimEnd()))
    .map(name => {
      const partition = new RegExp(`^/dev/${name}(p\\d+)?$`)
      const places = readMounts()
        .filter(mount => partition.test(mount.source))
        .map(mount => mount.mountPoint)
      return `/dev/${name}${places.length === 0 ? '' : ` (mounted at ${places.join(' and ')})`}`
    })
}

function mountHolders(mountPoint: string): string[] {
  return readMounts()
    .filter(mount => mount.mountPoint !== mountPoint && within(mountPoint, mount.mountPoint))
    .map(mount => `the mount at ${mount.mountPoint}`)
}

function processHolders(mountPoint: string): string[] {
  return list('/proc')
    .filter(name => /^\d+$/.test(name) && holds(`/proc/${name}`, mountPoint))
    .map(pid => `process ${pid} (${read(`/proc/${pid}/comm`).trimEnd()})`)
}

/** @param process its folder in /proc */
function holds(process: string, mountPoint: string): boolean {
  const links = ['cwd', 'root', 'exe', ...list(`${process}/fd`).map(fd => `fd/${fd}`)]
  return (
    links.some(link => within(mountPoint, readLink(`${process}/${link}`))) ||
    // A mapping outlives its descriptor. Its path begins after a blank and runs to the line's end.
    read(`${process}/maps`)
      .split('\n')
      .some(line => within(mountPoint, line.slice(line.indexOf('/'))))
  )
}

const within = (folder: string, path: string): boolean =>
  path === folder || path.startsWith(folder === '/' ? '/' : `${folder}/`)

// Processes end and devices detach while we look: what is gone holds nothing.
const list = (path: string): string[] => attempt(() => readdirSync(path)) ?? []
const read = (path: string): string => attempt(() => readFileSync(path, 'utf8')) ?? ''
const readLink = (path: string): string => attempt(() => readlinkSync(path)) ?? ''

function attempt<T>(look: () => T): T | null {
  try {
    return look()
  } catch {
    return null
  }
}
