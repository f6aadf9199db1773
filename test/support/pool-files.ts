import { execFileSync } from 'node:child_process'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { MIB, type NbdAddress } from '../../src/base/index.js'
import { DEFAULTS, type PoolConfig } from '../../src/config/index.js'
import { initPool } from '../../src/volumes/index.js'

/**
 * A pool.yaml in `folder`, with data of 64 MiB and 1024 metadata blocks unless `options` say other.
 */
export const poolConfig = (folder: string, options: Partial<PoolConfig> = {}): PoolConfig => ({
  file: join(folder, 'pool.yaml'),
  folder,
  pool: 'p',
  dataBlockSize: DEFAULTS.dataBlockSize,
  lowWaterMark: { bytes: 0 },
  discards: DEFAULTS.discards,
  onFull: 'error',
  queueTimeout: DEFAULTS.queueTimeout,
  transport: DEFAULTS.transport,
  spin: DEFAULTS.spin,
  spinShare: DEFAULTS.spinShare,
  volumes: {},
  ...options,
  data: { path: join(folder, 'data'), size: options.data ? options.data.size : 64 * MIB },
  metadata: { path: join(folder, 'metadata'), size: options.metadata?.size ?? 4 * MIB },
})

/** A pool.yaml in `folder`, of a pool all of which is on exports. */
export function exportsConfig(
  folder: string,
  exports: Record<'data' | 'metadata' | 'state', NbdAddress>,
): PoolConfig {
  const at = (remote: NbdAddress) => ({ path: remote.text, remote })
  return {
    ...poolConfig(folder),
    data: { ...at(exports.data), size: null },
    metadata: { ...at(exports.metadata), size: 'auto' },
    state: at(exports.state),
    cache: { size: 4 * MIB },
  }
}

/** The files of a new pool in `folder`. */
export async function makePool(
  folder: string,
  options: Partial<PoolConfig> = {},
): Promise<PoolConfig> {
  const config = poolConfig(folder, options)
  await initPool(config)
  return config
}

/**
 * Copies of the files, holes and all, as the next process finds them when this moment is the last
 * of this one.
 */
export function filesLeft(config: PoolConfig, name = 'left'): PoolConfig {
  const folder = join(config.folder, name)
  mkdirSync(folder, { recursive: true })
  const files = ['data', 'metadata', 'journal', 'volumes.json'].map(n => join(config.folder, n))
  execFileSync('cp', ['--sparse=always', ...files, folder])
  return poolConfig(folder, {
    ...config,
    data: { path: '', size: null },
    metadata: { path: '', size: 'auto' },
    file: join(folder, 'pool.yaml'),
    folder,
  })
}
