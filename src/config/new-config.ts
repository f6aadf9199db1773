/** The PoolConfig of a pool that is to be made. */
import { dirname, join } from 'node:path'
import type { RemoteAddress } from '../base/index.js'
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
      /** Where its stores are: absolute paths, or addresses. */
      at?: {
        data?: string | RemoteAddress
        metadata?: string | RemoteAddress
        state?: RemoteAddress
      }
    },
): PoolConfig {
  const folder = dirname(file)
  const { data = join(folder, DEFAULTS.dataPath), metadata, state } = said.at ?? {}
  const ofData = storeAt(data)
  return {
    file,
    folder,
    pool: said.pool,
    data: { ...ofData, size: said.dataSize },
    metadata: {
      ...storeAt(metadata ?? join(folder, DEFAULTS.metadataPath)),
      size: said.metadataSize ?? 'auto',
    },
    ...(state && { state: { path: state.text, remote: state } }),
    ...(ofData.remote?.kind === 'rbd' && { ceph: { ...DEFAULTS.ceph } }),
    ...(ofData.remote && { cache: { size: DEFAULTS.cacheSize } }),
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

const storeAt = (place: string | RemoteAddress): { path: string; remote?: RemoteAddress } =>
  typeof place === 'string' ? { path: place } : { path: place.text, remote: place }

/** A pool's name after a folder's, or another program's: what none may have becomes a hyphen. */
export function poolNameOf(text: string): string {
  const name = text.replace(/[^A-Za-z0-9._+-]/g, '-').replace(/^[^A-Za-z0-9]+/, '')
  return name.slice(0, 127) || 'pool'
}
