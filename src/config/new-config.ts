/** The PoolConfig of a pool that is to be made. */
import { dirname, join } from 'node:path'
import { DEFAULTS, type PoolConfig } from './pool-config.js'

/**
 * The configuration of a pool.yaml at `file` that says no more than `said`.
 * @param file an absolute path
 */
export function newConfig(
  file: string,
  said: Pick<PoolConfig, 'pool' | 'volumes'> &
    Partial<Pick<PoolConfig, 'dataBlockSize' | 'onFull'>> & {
      dataSize: number | null
      metadataSize?: PoolConfig['metadata']['size']
    },
): PoolConfig {
  const folder = dirname(file)
  return {
    file,
    folder,
    pool: said.pool,
    data: { path: join(folder, DEFAULTS.dataPath), size: said.dataSize },
    metadata: { path: join(folder, DEFAULTS.metadataPath), size: said.metadataSize ?? 'auto' },
    dataBlockSize: said.dataBlockSize ?? DEFAULTS.dataBlockSize,
    lowWaterMark: DEFAULTS.lowWaterMark,
    discards: DEFAULTS.discards,
    onFull: said.onFull ?? DEFAULTS.onFull,
    queueTimeout: DEFAULTS.queueTimeout,
    transport: DEFAULTS.transport,
    spin: DEFAULTS.spin,
    spinShare: DEFAULTS.spinShare,
    volumes: said.volumes,
  }
}

/** A pool's name after a folder's, or another program's: what none may have becomes a hyphen. */
export function poolNameOf(text: string): string {
  const name = text.replace(/[^A-Za-z0-9._+-]/g, '-').replace(/^[^A-Za-z0-9]+/, '')
  return name.slice(0, 127) || 'pool'
}
