/**
 * Mounting the filesystem on a volume: from a loop device by root, and by fuse2fs where there is no
 * loop device.
 */
import { ThinfsError } from '../base/index.js'
import { nameOf, processesWithin, runTool, unmount } from '../host/index.js'

/** Mounts what is on a loop device. */
export async function mountDevice(device: string, folder: string): Promise<void> {
  await runTool('mount', device, folder)
}

/** Mounts an ext2, ext3 or ext4 filesystem by a process of its own, which ends with the mount. */
export async function mountFile(file: string, folder: string): Promise<void> {
  await runTool('fuse2fs', '-o', 'rw,fakeroot', file, folder)
}

/** @throws MOUNT_BUSY naming who uses it; MOUNT_FAILED */
export async function unmountFilesystem(folder: string): Promise<void> {
  try {
    await unmount(folder)
  } catch (err) {
    if (!/busy/i.test((err as Error).message)) throw err
    const others = processesWithin(folder).map(nameOf)
    // The list has all processes but this one.
    const by = others.length === 0 ? 'this process' : others.join(', ')
    throw new ThinfsError('MOUNT_BUSY', `${folder} is used by ${by}`, { cause: err })
  }
}
