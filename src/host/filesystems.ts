/**
 * The filesystems on a volume: those that are mounted from its loop devices, or what is on top of
 * them.
 */
import { realpathSync } from 'node:fs'
import { errnoOf, ThinfsError } from '../base/index.js'
import { type DeviceMount, mountsOn } from './device-users.js'
import { loopsOnFile } from './holders.js'
import { listLoops } from './loop.js'
import { type Mount, mountOf } from './mount-table.js'
import { nameOf, openFiles, otherProcesses } from './proc.js'

/**
 * A folder of each filesystem on the volume, by which it can be frozen, or trimmed: of one in
 * another mount namespace by way of a process there.
 * @param volume its name, for messages
 * @param file of the volume in its mount
 * @param folder narrows them down to the filesystem that has this folder
 * @param done what is to be done with them, for messages
 * @throws NOT_MOUNTED when there is none; BAD_ARGUMENT when `folder` is not in one of them
 */
export async function findFilesystems(
  volume: string,
  file: { path: string; device: string; ino: number },
  folder: string | null,
  done: 'frozen' | 'trimmed' = 'frozen',
): Promise<string[]> {
  const loops = await listLoops()
  const mounts = loopsOnFile(loops, file).flatMap(({ path }) => mountsOn(path, loops))
  if (folder !== null) {
    const wanted = mountOfFolder(folder)
    if (mounts.some(({ mount }) => mount.device === wanted.device)) return [folder]
    throw new ThinfsError('BAD_ARGUMENT', whyNot(folder, wanted, volume, mounts))
  }
  // This process's namespace comes first, so that its folders are taken where it has any.
  const first = new Map<string, DeviceMount>()
  for (const found of mounts) {
    if (!first.has(found.mount.device)) first.set(found.mount.device, found)
  }
  if (first.size > 0) return [...first.values()].map(folderOf)
  const users = otherProcesses().filter(pid => openFiles(pid).includes(file.path))
  const by =
    users.length === 0
      ? ''
      : `; what ${users.map(nameOf).join(', ')} does with it cannot be ${done} from here`
  const detail = `${volume}: no filesystem is mounted from a loop device on it${by}`
  throw new ThinfsError('NOT_MOUNTED', detail)
}

function mountOfFolder(folder: string): Mount {
  let mount: Mount | null
  try {
    mount = mountOf(realpathSync(folder))
  } catch (err) {
    const what = errnoOf(err) === 'ENOENT' ? 'no such folder' : (err as Error).message
    throw new ThinfsError('BAD_ARGUMENT', `${folder}: ${what}`, { cause: err, errno: errnoOf(err) })
  }
  if (mount !== null) return mount
  throw new ThinfsError('BAD_ARGUMENT', `${folder}: the mount table does not have it`)
}

function whyNot(folder: string, found: Mount, volume: string, mounts: DeviceMount[]): string {
  const what = `${folder}: its filesystem is ${found.source} (${found.type}), not on ${volume}`
  if (/^fuse(\.|blk|$)/.test(found.type)) return `${what}; FUSE filesystems cannot be frozen`
  const places = [...new Set(mounts.map(folderOf))]
  return places.length === 0 ? what : `${what}, whose is at ${places.join(' and ')}`
}

const folderOf = ({ mount, namespace }: DeviceMount): string =>
  namespace.isOwn ? mount.mountPoint : `/proc/${namespace.pids[0]}/root${mount.mountPoint}`
