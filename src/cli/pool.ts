/** The pool that a command names: by way of its daemon, or by its files when it is not mounted. */
import { join } from 'node:path'
import { ThinfsError } from '../base/index.js'
import type { PoolConfig } from '../config/index.js'
import type { DaemonClient } from '../daemon/index.js'
import type { PoolAdmin, PoolFiles } from '../volumes/index.js'

/**
 * Calls `use` with the pool open.
 * @param reference a pool.yaml, its folder, or the mount point
 * @param access how files are opened; a daemon's pool is as it was mounted
 * @throws NOT_A_POOL, BAD_CONFIG, POOL_IN_USE, and what opening and `use` throw
 */
export async function withPool<T>(
  reference: string,
  access: 'read' | 'write',
  use: (admin: PoolAdmin, config: PoolConfig) => Promise<T>,
): Promise<T> {
  return withDaemonOr(reference, access, use, async (config, files) => {
    const { openPool } = await import('../volumes/index.js')
    const pool = await openPool(config, { readOnly: access === 'read', files })
    try {
      return await use(pool.volumes, config)
    } finally {
      await pool.close()
    }
  })
}

/**
 * Calls `use` when a daemon serves the pool, else `useFiles` with the pool locked.
 * @throws NOT_A_POOL, BAD_CONFIG, POOL_IN_USE, and what the two throw
 */
export async function withDaemonOr<T>(
  reference: string,
  access: 'read' | 'write',
  use: (admin: PoolAdmin, config: PoolConfig) => Promise<T>,
  useFiles: (config: PoolConfig, files: PoolFiles) => Promise<T>,
): Promise<T> {
  const { connectDaemon, lockPool } = await import('../daemon/index.js')
  const config = await configOf(reference)
  const daemon = await connectDaemon(config)
  if (daemon) {
    try {
      return await use(daemon, config)
    } finally {
      daemon.close()
    }
  }
  const files = lockPool(config, access === 'read')
  try {
    return await useFiles(config, files)
  } finally {
    files.close()
  }
}

/**
 * Calls `use` with the daemon of a mounted pool.
 * @returns the pool's configuration
 * @throws NOT_A_POOL, BAD_CONFIG, NOT_MOUNTED, and what `use` throws
 */
export async function withDaemon(
  reference: string,
  use: (daemon: DaemonClient) => Promise<void>,
): Promise<PoolConfig> {
  const { connectDaemon } = await import('../daemon/index.js')
  const config = await configOf(reference)
  const daemon = await connectDaemon(config)
  if (!daemon) throw new ThinfsError('NOT_MOUNTED', `${config.file}: the pool is not mounted`)
  try {
    await use(daemon)
    return config
  } finally {
    daemon.close()
  }
}

/** @throws NOT_A_POOL, BAD_CONFIG */
export async function configOf(reference: string): Promise<PoolConfig> {
  const { findPool } = await import('../daemon/index.js')
  const { loadConfig } = await import('../config/index.js')
  return loadConfig(findPool(reference))
}

/**
 * The file of a volume in the mount: of one that is there, for any other name could lead out of it.
 * @throws NOT_MOUNTED, VOLUME_MISSING
 */
export async function volumeFile(
  admin: PoolAdmin,
  config: PoolConfig,
  name: string,
): Promise<string> {
  const { mount, dm } = await admin.status()
  if (!mount) throw new ThinfsError('NOT_MOUNTED', `${config.file}: the pool is not mounted`)
  if (dm.volumes.some(volume => volume.name === name)) return join(mount.mountPoint, name)
  throw new ThinfsError('VOLUME_MISSING', `${name}: no volume has the name`)
}
