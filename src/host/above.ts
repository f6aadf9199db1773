/** What stands on a filesystem: loop devices on its files, and filesystems on those. */
import { ThinfsError } from '../base/index.js'
import { mountsOn } from './device-users.js'
import { isOn, processesWithin } from './holders.js'
import { detachLoop, isAttached, listLoops } from './loop.js'
import { type Mount, readMounts } from './mount-table.js'
import { nameOf } from './proc.js'
import { runTool } from './tool.js'

/**
 * Takes away what stands on a mount, the uppermost first: unmounts the filesystems, then detaches
 * the loop devices. Whoever takes the same away meanwhile is welcome.
 * @throws VOLUME_BUSY naming what is in use: that is left as it is, and so is all that is below it
 */
export async function clearAbove(mount: Mount): Promise<void> {
  for (const { path, backingFile } of (await listLoops()).filter(loop => isOn(loop, mount))) {
    await unmountFilesystem(path)
    // A device that mount(8) has made goes with its mount.
    if (isAttached(path, backingFile)) await detachLoop(path)
  }
}

/**
 * Unmounts all that is mounted from a device, its partitions, and what is stacked on them, in this
 * mount namespace; what is frozen is thawed.
 * @returns where it was mounted
 * @throws VOLUME_BUSY naming who uses it
 */
export async function unmountFilesystem(device: string): Promise<string[]> {
  const places: string[] = []
  for (;;) {
    const own = mountsOn(device, await listLoops()).filter(({ namespace }) => namespace.isOwn)
    const last = own.at(-1)?.mount
    if (last === undefined) return places
    // Frozen it would stop what is unmounted above it for ever. What is not frozen is refused.
    await runTool('fsfreeze', '--unfreeze', '--', last.mountPoint).catch(() => {})
    await clearAbove(last)
    await unmountOne(last)
    places.push(last.mountPoint)
  }
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
