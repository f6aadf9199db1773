/** The folder that a pool is mounted on: found, checked, freed of dead mounts, unmounted. */
import { execFile } from 'node:child_process'
import { realpathSync } from 'node:fs'
import { stat } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { errnoOf, ThinfsError } from '../base/index.js'
import { findHolders } from './holders.js'
import { thinfsMountAt } from './mount-table.js'

/**
 * `path` as the mount table names it. Looks only at what is above a mount of ours, whose server may
 * be gone.
 * @throws MOUNT_FAILED when there is no such path
 */
export function canonicalMountPoint(path: string): string {
  try {
    const absolute = resolve(path)
    const beside = join(realpathSync(dirname(absolute)), basename(absolute))
    return thinfsMountAt(beside) === null ? realpathSync(beside) : beside
  } catch (err) {
    const errno = errnoOf(err)
    const what = errno === 'ENOENT' ? 'no such folder' : String((err as Error).message)
    throw new ThinfsError('MOUNT_FAILED', `${path}: ${what}`, { cause: err, errno })
  }
}

/**
 * Makes sure that `mountPoint` is a folder that can be mounted on; mounts of ours that nobody
 * serves any more are taken away first.
 * @throws MOUNT_FAILED when it is not a folder, or a pool is mounted there
 */
export async function prepareMountPoint(mountPoint: string): Promise<void> {
  for (;;) {
    const mount = thinfsMountAt(mountPoint)
    try {
      const isDirectory = (await stat(mountPoint)).isDirectory()
      if (mount !== null) throw failed('EBUSY', `${mount.source} is mounted there already`)
      if (!isDirectory) throw failed('ENOTDIR', 'not a folder')
      return
    } catch (err) {
      // Aborted connections answer the one or the other, by the kernel's age.
      const dead = ['ENOTCONN', 'ECONNABORTED'].includes(errnoOf(err))
      if (mount === null || !dead) throw err
      await unmount(mountPoint, { lazy: true })
    }
  }

  function failed(errno: string, what: string): ThinfsError {
    return new ThinfsError('MOUNT_FAILED', `${mountPoint}: ${what}`, { errno })
  }
}

/**
 * Unmounts, by way of the system's own program: umount(2) writes dirty pages to the engine and
 * waits for it, and whoever may have to start another engine must not wait with it.
 * @param lazy detach even what is in use
 * @throws MOUNT_BUSY naming who holds it
 */
export async function unmount(mountPoint: string, { lazy = false } = {}): Promise<void> {
  const [program, args] =
    process.getuid?.() === 0
      ? ['umount', ['--internal-only', '--no-canonicalize', ...(lazy ? ['--lazy'] : [])]]
      : ['fusermount3', ['-u', ...(lazy ? ['-z'] : [])]]
  const error = await new Promise<string | null>(resolve => {
    const env = { ...process.env, LC_ALL: 'C' }
    execFile(program, [...args, '--', mountPoint], { env }, (err, _, stderr) =>
      resolve(err === null ? null : stderr.trim() || err.message),
    )
  })
  if (error === null) return
  if (!/busy/i.test(error)) throw new ThinfsError('MOUNT_FAILED', error)
  const holders = findHolders(mountPoint)
  const by = holders.length === 0 ? 'something that /proc does not show' : holders.join(', ')
  throw new ThinfsError('MOUNT_BUSY', `${mountPoint} is held by ${by}`)
}
