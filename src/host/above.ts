/** Everything that stands on a filesystem: loop devices on its files, and filesystems on those. */
import { ThinfsError } from '../base/index.js'
import { type AttachedLoop, isStillAttached, mountsOn } from './device-users.js'
import { isOn, processesWithin } from './holders.js'
import { detachLoop, type LoopDevice, listLoops } from './loop.js'
import { forgetDetached } from './loop-names.js'
import { type Mount, mountOver, readMounts, readNamespaces } from './mount-table.js'
import { nameOf } from './proc.js'
import { runTool } from './tool.js'

/**
 * Takes away what stands on a mount, the uppermost first: unmounts the filesystems, then detaches
 * the loop devices. Another program may take the same away meanwhile.
 * @throws VOLUME_BUSY naming what is in use: that is left as it is, and so is all that is below it
 */
export async function clearAbove(mount: Mount): Promise<void> {
  const loops = await listLoops()
  const own = readNamespaces().filter(({ isOwn }) => isOwn)
  const mounts = own.flatMap(({ mounts }) => mounts)
  const lastMount = ({ path }: LoopDevice): number =>
    Math.max(-1, ...mountsOn(path, loops, own).map(({ mount }) => mounts.indexOf(mount)))
  // The last mount may be over another.
  const above = loops
    .filter(loop => isOn(loop, mount))
    .map(loop => ({ ...loop, at: lastMount(loop) }))
    .sort((a, b) => b.at - a.at)
  for (const loop of above) await takeAway(loop)
}

/**
 * Unmounts what is mounted from a loop device, see `unmountFilesystem`, and detaches it.
 * @param label begins the messages
 * @returns where it was mounted
 * @throws VOLUME_BUSY naming who uses it
 */
export async function takeAway(loop: AttachedLoop, label = ''): Promise<string[]> {
  const places = await unmountFilesystem(loop)
  if (isStillAttached(loop)) await detachLoop(loop.path, label)
  // A device that mount(8) has made goes with its mount.
  else forgetDetached(loop.path)
  return places
}

/**
 * Unmounts all that is mounted from a device, its partitions, and what is stacked on them, in this
 * mount namespace; what is frozen is thawed.
 * @returns where it was mounted
 * @throws VOLUME_BUSY naming who uses it
 */
async function unmountFilesystem(device: AttachedLoop): Promise<string[]> {
  const places: string[] = []
  for (;;) {
    const loops = await listLoops()
    if (!isStillAttached(device)) return places
    const own = mountsOn(device.path, loops).filter(({ namespace }) => namespace.isOwn)
    const last = own.at(-1)?.mount
    if (last === undefined) return places
    mustBeOnTop(last)
    // A frozen filesystem would keep unmounts above it waiting for ever. The kernel refuses to thaw
    // one that is not frozen.
    await runTool('fsfreeze', '--unfreeze', '--', last.mountPoint).catch(() => {})
    await clearAbove(last)
    // Somebody may have mounted something over it meanwhile.
    mustBeOnTop(last)
    await unmountOne(last)
    places.push(last.mountPoint)
  }
}

/**
 * An unmount goes by the path, and would take what is mounted over it.
 * @throws VOLUME_BUSY naming that
 */
function mustBeOnTop(mount: Mount): void {
  const over = mountOver(mount)
  if (over === null) return
  const what = `${mount.mountPoint}: a ${over.type} is mounted over it`
  throw new ThinfsError('VOLUME_BUSY', `${what}: umount ${over.mountPoint} first`)
}

async function unmountOne({ id, mountPoint }: Mount): Promise<void> {
  try {
    await runTool('umount', '--recursive', '--', mountPoint)
  } catch (err) {
    if (!readMounts().some(mount => mount.id === id)) return
    const users = processesWithin(mountPoint).map(nameOf)
    const why = users.length === 0 ? (err as Error).message : `in use by ${users.join(', ')}`
    throw new ThinfsError('VOLUME_BUSY', `${mountPoint}: ${why}`, { cause: err })
  }
}
