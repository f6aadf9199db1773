/**
 * The FUSE connection of a mount of ours. It outlives the mount while somebody else has the
 * filesystem: another mount namespace, or a file that is open.
 *
 * Source: Documentation/filesystems/fuse.rst, "Control filesystem".
 */
import { existsSync, writeFileSync } from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import { errnoOf, ThinfsError } from '../base/index.js'
import { native } from '../native.js'
import type { Mount } from './mount-table.js'

const CONNECTIONS = '/sys/fs/fuse/connections'
/** The kernel ends a filesystem that was unmounted for the last time within microseconds. */
const END_MS = 2000
const POLL_MS = 50

/**
 * Waits for the end of a filesystem that was unmounted.
 * @param mount as it was before
 * @param ended resolves when the connection's server has seen the end
 * @returns whether it has ended; not when it still lives after 2 s
 */
export async function hasEnded(mount: Mount, ended: Promise<unknown>): Promise<boolean> {
  let isOver = false
  const over = ended.then(
    () => true,
    () => true,
  )
  void over.then(() => {
    isOver = true
  })
  const deadline = Date.now() + END_MS
  while (!isOver && isAlive(mount)) {
    if (Date.now() > deadline) return false
    await Promise.race([over, setTimeout(POLL_MS)])
  }
  return true
}

/** Each FUSE filesystem has a backing device of its own as long as somebody has it. */
const isAlive = ({ device }: Mount): boolean => existsSync(`/sys/class/bdi/${device}`)

/**
 * A function that ends the connection: its server sees that as the last unmount, and users get
 * errors. Mounts fusectl where the system has not.
 * @throws MOUNT_FAILED when the connection cannot be ended from here; nothing was done
 */
export function connectionAborter({ device }: Mount): () => void {
  const folder = `${CONNECTIONS}/${device.slice(device.indexOf(':') + 1)}`
  try {
    if (!existsSync(folder)) native.mount_attach('none', CONNECTIONS, 'fusectl', 0, '')
  } catch (err) {
    const how = `as root, mount -t fusectl none ${CONNECTIONS}`
    throw new ThinfsError('MOUNT_FAILED', `the connection cannot be ended: ${how}`, {
      cause: err,
      errno: errnoOf(err),
    })
  }
  return () => writeFileSync(`${folder}/abort`, '1')
}
