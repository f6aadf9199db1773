/**
 * Pools whose keeper and owner were killed both, as a CI system does that kills all processes of a
 * job: the next keeper takes them away.
 *
 * A pool's folder has a file on which both hold a shared lock, which ends with the process. A pool
 * for which an exclusive one can be had is nobody's any more.
 */
import { closeSync, lstatSync, openSync, readdirSync, renameSync } from 'node:fs'
import { join } from 'node:path'
import { native } from '../native.js'
import { clean } from './clean.js'
import { isBase, Layout } from './layout.js'

/** Makes the file of a pool that is about to be made; locked until this process ends. */
export function lockNew({ alive }: Layout): void {
  const unfinished = `${alive}.new`
  native.file_lock(openSync(unfinished, 'wx+', 0o600), false)
  renameSync(unfinished, alive)
}

/** @returns a descriptor that holds the lock until it is closed */
export function lockAlso({ alive }: Layout): number {
  const fd = openSync(alive, 'r')
  native.file_lock(fd, false)
  return fd
}

/** Takes away all of this user's pools in a folder that nobody has any more. */
export async function cleanAbandoned(parent: string): Promise<void> {
  for (const name of readdirSync(parent).filter(isBase)) {
    const layout = new Layout(join(parent, name))
    const lock = lockAbandoned(layout)
    if (lock === null) continue
    // A pool that cannot be taken away now may go the next time.
    await clean(layout, 0).catch(() => {})
    closeSync(lock)
  }
}

/**
 * @returns a descriptor that holds the lock; null for a pool that somebody has, or is another
 *   user's
 */
function lockAbandoned({ base, alive }: Layout): number | null {
  let fd: number | null = null
  try {
    const stat = lstatSync(base)
    if (!stat.isDirectory() || stat.uid !== process.geteuid!()) return null
    fd = openSync(alive, 'r+')
    if (native.file_lock(fd, true)) return fd
  } catch {
    // It went meanwhile, or is just being made.
  }
  if (fd !== null) closeSync(fd)
  return null
}
