import { ThinfsError } from '../base/index.js'
import type { PoolConfig } from '../config/index.js'
import type { PoolFiles } from '../volumes/index.js'
import { withDaemonOr } from './pool.js'

/**
 * Calls `use` with the files of a pool that nobody serves, locked to be written to.
 * @throws POOL_IN_USE for a mounted one, and as `withDaemonOr`
 */
export function withUnmounted<T>(
  pool: string,
  use: (config: PoolConfig, files: PoolFiles) => Promise<T>,
): Promise<T> {
  return withDaemonOr(
    pool,
    'write',
    (_, place) => {
      const what = `${place.file}: the pool is mounted; thinfs umount comes first`
      return Promise.reject(new ThinfsError('POOL_IN_USE', what))
    },
    async (config, files) => {
      await files.connect()
      return use(config, files)
    },
  )
}

/**
 * Says on stderr what keeps a pool with other metadata from being mounted as it is.
 * @param pool which nobody has
 */
export async function noteDoubts(pool: string): Promise<void> {
  const { checkPool } = await import('../volumes/index.js')
  const problems = await withDaemonOr(
    pool,
    'read',
    async () => [],
    async (config, files) => (await checkPool(config, { files })).problems,
  )
  for (const { severity, message, code } of problems) {
    const isDoubt = code === 'POOL_MISMATCH' || severity === 'error'
    if (isDoubt) process.stderr.write(`thinfs: before it is mounted to be written to: ${message}\n`)
  }
}
