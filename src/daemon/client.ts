/** The daemon of a pool, as seen from a command. */
import type { PoolConfig } from '../config/index.js'
import {
  adminClient,
  connectControlSocket,
  controlSocketPath,
  fromResponseError,
  PING,
  RESTART,
  UMOUNT,
} from '../engine/index.js'
import { unmount } from '../host/index.js'
import type { PoolAdmin } from '../volumes/index.js'

export interface DaemonClient extends PoolAdmin {
  /** @returns the daemon's process id, null when it has died and the engine answers; and the mount */
  ping(): Promise<{ pid: number | null; mountPoint: string }>
  /**
   * Unmounts the pool; resolves when all is committed and the engine has ended.
   * @throws MOUNT_BUSY naming who holds the mount, which stays
   */
  umount(): Promise<void>
  /** Has another engine serve; resolves when it does. Callers of the mount only wait. */
  restart(): Promise<void>
  /** Lets go of the daemon. What is not answered yet is rejected. */
  close(): void
}

/**
 * Connects to the daemon that serves the pool.
 * @returns null when there is none
 * @throws DAEMON_FAILED when its socket cannot be reached for another reason
 */
export async function connectDaemon(config: PoolConfig): Promise<DaemonClient | null> {
  const connection = await connectControlSocket(controlSocketPath(config.folder))
  if (connection === null) return null
  const failed = (err: unknown): never => {
    throw fromResponseError(err)
  }
  const admin = adminClient(connection)
  const ping = () => connection.sendRequest(PING).catch(failed)
  const umount = async (): Promise<void> => {
    const { pid, mountPoint } = await ping()
    const unmounted = connection.sendRequest(UMOUNT).then(() => {}, failed)
    if (pid === null) {
      // No daemon: the engine cannot unmount what it serves, and answers when that was done.
      unmounted.catch(() => {})
      await unmount(mountPoint)
    }
    await unmounted
  }
  return {
    ...admin,
    ping,
    umount,
    restart: () => connection.sendRequest(RESTART).then(() => {}, failed),
    close: () => connection.dispose(),
  }
}
