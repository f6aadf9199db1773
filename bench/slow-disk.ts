/** A disk that gives less than this machine's: what cgroups call a throttled device. */
import { existsSync, mkdirSync, readFileSync, rmdirSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

/** Control groups as the kernel has had them since its versions 4.5 and 2.6. */
const HIERARCHIES = [
  {
    root: '/sys/fs/cgroup',
    own: /^0::(.*)$/m,
    key: 'io.max',
    limit: (device: string, reads: number): string => `${device} riops=${reads}`,
  },
  {
    root: '/sys/fs/cgroup/blkio',
    own: /^\d+:(?:[^:]*,)?blkio(?:,[^:]*)?:(.*)$/m,
    key: 'blkio.throttle.read_iops_device',
    limit: (device: string, reads: number): string => `${device} ${reads}`,
  },
]

/**
 * Runs `use` while the processes `pids`, and those that they start, read from the disk that has
 * `folder` at most `readsPerSecond` times a second.
 * @returns null, and does not run it, where the system cannot do that; it says why
 */
export async function withSlowDisk<T>(
  folder: string,
  readsPerSecond: number,
  pids: readonly number[],
  use: () => Promise<T>,
): Promise<T | null> {
  const hierarchy = HIERARCHIES.find(({ root }) => existsSync(join(root, 'cgroup.procs')))
  const device = wholeDisk(folder)
  if (!hierarchy || device === null) {
    console.log('no slow disk: it takes a block device and control groups')
    return null
  }
  const { root, own, key, limit } = hierarchy
  const group = join(root, `thinfs-bench-${process.pid}`)
  const home = new Map<number, string>()
  try {
    mkdirSync(group)
    writeFileSync(join(group, key), limit(device, readsPerSecond))
    for (const pid of pids) {
      const path = own.exec(readFileSync(`/proc/${pid}/cgroup`, 'utf8'))![1]!
      writeFileSync(join(group, 'cgroup.procs'), String(pid))
      home.set(pid, join(root, path, 'cgroup.procs'))
    }
  } catch (err) {
    console.log(`no slow disk: ${(err as Error).message}`)
    leave(group, home)
    return null
  }
  try {
    return await use()
  } finally {
    leave(group, home)
  }
}

function leave(group: string, home: ReadonlyMap<number, string>): void {
  for (const [pid, procs] of home) {
    if (existsSync(`/proc/${pid}`)) writeFileSync(procs, String(pid))
  }
  if (existsSync(group)) rmdirSync(group)
}

/**
 * The numbers of the device whose file system has `path`, or whose partition it is on; null: none.
 */
function wholeDisk(path: string): string | null {
  const { dev } = statSync(path)
  const major = (dev >>> 8) & 0xfff
  const minor = (dev & 0xff) | ((dev >>> 12) & 0xfff00)
  const device = `/sys/dev/block/${major}:${minor}`
  if (!existsSync(device)) return null
  if (!existsSync(join(device, 'partition'))) return `${major}:${minor}`
  return readFileSync(join(device, '..', 'dev'), 'utf8').trim()
}
