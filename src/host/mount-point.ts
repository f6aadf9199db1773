/** The mount point of a pool: finding and checking it, clearing dead mounts, unmounting. */
import { execFile } from 'node:child_process'
import { existsSync, realpathSync, statSync } from 'node:fs'
import { stat } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { deviceNumber, errnoOf, ThinfsError } from '../base/index.js'
import { findCopies, findHolders, mayPass } from './holders.js'
import {
  isWithin,
  MOUNT_TYPE,
  type Mount,
  mountOf,
  mountOver,
  readMounts,
  thinfsMountAt,
} from './mount-table.js'
import { read } from './proc.js'

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
      if (mount === null || !isDead(err)) throw err
      await unmountLazily(mountPoint)
    }
  }

  function failed(errno: string, what: string): ThinfsError {
    return new ThinfsError('MOUNT_FAILED', `${mountPoint}: ${what}`, { errno })
  }
}

/** Whether stat(2) of a mount says that nobody serves it any more. */
export const isDead = (err: unknown): boolean =>
  // Aborted connections answer the one or the other, by the kernel's age.
  ['ENOTCONN', 'ECONNABORTED'].includes(errnoOf(err))

/**
 * Takes the mounts of a pool away that nobody serves any more. Callers see to it that no process is
 * there that could serve them: this would wait for a live one.
 * @param source path of its pool.yaml
 * @returns where they were
 * @throws MOUNT_FAILED
 */
export async function unmountDead(source: string): Promise<string[]> {
  const gone: string[] = []
  for (const mount of readMounts()) {
    if (mount.type !== MOUNT_TYPE || mount.source !== source || mountOver(mount) !== null) continue
    const err: unknown = await stat(mount.mountPoint).then(
      () => null,
      err => err,
    )
    if (!isDead(err)) continue
    await unmountLazily(mount.mountPoint)
    gone.push(mount.mountPoint)
  }
  return gone
}

/**
 * Makes sure that a mount on `mountPoint` would not hide the files that its server needs: the
 * server would wait for itself.
 * @param needed paths; what is not there is looked for in the folder where it would be
 * @throws BAD_ARGUMENT naming one that it would hide, or that is on a volume mounted there before
 */
export function mustNotCover(mountPoint: string, needed: readonly string[]): void {
  const identity = (path: string): string => {
    const { dev, ino } = statSync(path)
    return `${dev} ${ino}`
  }
  const covered = identity(mountPoint)
  for (const path of needed) {
    const real = realPathOf(path)
    // A bind mount shows the same folder in another place: hence by identity, not by name.
    if (foldersAbove(real).some(folder => identity(folder) === covered)) {
      const detail = `${mountPoint}: a mount there would hide ${path}, which the pool needs`
      throw new ThinfsError('BAD_ARGUMENT', `${detail}; choose another folder`)
    }
    const backing = loopFileBelow(real)
    if (backing !== null && isWithin(mountPoint, backing)) {
      const detail = `${path} is on a volume of the pool itself (${backing})`
      throw new ThinfsError('BAD_ARGUMENT', `${detail}: move it elsewhere`)
    }
  }
}

/** Without symbolic links, as far as there is something. */
function realPathOf(path: string): string {
  try {
    return realpathSync(path)
  } catch {
    const folder = dirname(path)
    return folder === path ? path : join(realPathOf(folder), basename(path))
  }
}

/**
 * The folders that lead to a path, that itself when it is one. Those that are not there are left
 * out.
 */
function foldersAbove(path: string): string[] {
  const above = dirname(path)
  const isThere = existsSync(path) && statSync(path).isDirectory()
  return [...(isThere ? [path] : []), ...(above === path ? [] : foldersAbove(above))]
}

/**
 * The file behind the loop device that `path` is, or that its filesystem is or would be on; null
 * for none.
 */
function loopFileBelow(path: string): string | null {
  const stat = statSync(path, { throwIfNoEntry: false })
  if (stat === undefined) return loopFileBelow(dirname(path))
  const device = stat.isBlockDevice() ? deviceNumber(stat.rdev) : mountOf(path)?.device
  // A partition's folder is within its disk's.
  const file = ['loop', '../loop']
    .map(folder => read(`/sys/dev/block/${device}/${folder}/backing_file`))
    .find(text => text !== '')
  return file?.trimEnd() ?? null
}

/**
 * Callers look before an unmount, which would take a mount over ours away, or do nothing.
 * @throws MOUNT_BUSY naming what hides the mount
 */
export function mustNotBeHidden(mount: Mount): void {
  const over = mountOver(mount)
  if (over === null) return
  const what = `${mount.mountPoint}: a ${over.type} is mounted over it`
  throw new ThinfsError('MOUNT_BUSY', `${what}: umount ${over.mountPoint} first`)
}

/** How long `unmount` tries again where all holders may let go by themselves. */
const PATIENCE_MS = 3000
const RETRY_MS = 100

/**
 * Unmounts in another process, the system's own program: umount(2) writes dirty pages to the engine
 * and waits for it, and the daemon, which may have to start another engine, must not wait too.
 * @throws MOUNT_BUSY naming who holds it; then the mount is there as before
 */
export async function unmount(mountPoint: string): Promise<void> {
  const mount = thinfsMountAt(mountPoint)
  const deadline = Date.now() + PATIENCE_MS
  for (;;) {
    // Taken away here alone it could not be used here, and would not end.
    const isCopied = mount !== null && findCopies(mount).length > 0
    const error = isCopied ? 'busy' : await runUmount(mountPoint, false)
    if (error === null) return
    if (mount === null || !/busy/i.test(error)) throw new ThinfsError('MOUNT_FAILED', error)
    if (Date.now() > deadline || !(await mayPass(mount))) throw await busy(mount)
    await sleep(RETRY_MS)
    if (thinfsMountAt(mountPoint)?.id !== mount.id) return
  }
}

/**
 * Detaches the mount, also while it is in use. The filesystem ends with its last user.
 * @throws MOUNT_FAILED
 */
export async function unmountLazily(mountPoint: string): Promise<void> {
  const error = await runUmount(mountPoint, true)
  if (error !== null) throw new ThinfsError('MOUNT_FAILED', error)
}

async function busy(mount: Mount): Promise<ThinfsError> {
  return new ThinfsError('MOUNT_BUSY', `${mount.mountPoint} is held by ${await nameHolders(mount)}`)
}

/** For people: who uses a mount of ours, or used it when it was unmounted here. */
export async function nameHolders(mount: Mount): Promise<string> {
  const holders = await findHolders(mount)
  return holders.length === 0 ? 'something that /proc does not show' : holders.join(', ')
}

const cannotRun = (program: string, err: Error): string =>
  `${program}(8) cannot be run (${errnoOf(err)}): look at PATH and ulimit -n`

/** @returns null, or what the program says */
function runUmount(mountPoint: string, lazy: boolean): Promise<string | null> {
  const [program, args] =
    process.getuid?.() === 0
      ? ['umount', ['--internal-only', '--no-canonicalize', ...(lazy ? ['--lazy'] : [])]]
      : ['fusermount3', ['-u', ...(lazy ? ['-z'] : [])]]
  return new Promise(resolve => {
    const env = { ...process.env, LC_ALL: 'C' }
    execFile(program, [...args, '--', mountPoint], { env }, (err, _, stderr) =>
      resolve(err === null ? null : stderr.trim() || cannotRun(program, err)),
    )
  })
}
