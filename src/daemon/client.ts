/** The daemon of a pool, as seen from a command. */
import type { PoolConfig } from '../config/index.js'
import {
  adminClient,
  connectControlSocket,
  controlSocketPath,
  fromResponseError,
  PING,
  UMOUNT,
} from '../engine/index.js'
import type { PoolAdmin } from '../volumes/index.js'

export interface DaemonClient extends PoolAdmin {
  /** @returns the daemon's process id */
  ping(): Promise<{ pid: number }>
  /**
   * Unmounts the pool; resolves when all is committed and the engine has ended.
   * @throws MOUNT_BUSY naming who holds the mount, which stays
   */
  umount(): Promise<void>
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
  return {
    ...adminClient(connection),
    ping: () => connection.sendRequest(PING).catch(failed),
    umount: () => connection.sendRequest(UMOUNT).then(() => {}, failed),
    close: () => connection.dispose(),
  }
}
