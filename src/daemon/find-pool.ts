/** Which pool a person means. */
import { realpathSync, statSync } from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'
import { errnoOf, ThinfsError } from '../base/index.js'
import { thinfsMountAt } from '../host/index.js'

/**
 * The path of the pool.yaml that `reference` is, or is the folder of, or is mounted from. A mount is
 * recognised by the mount table alone, whether its server lives or not.
 * @throws NOT_A_POOL saying what was tried
 */
export function findPool(reference: string): string {
  const path = resolve(reference)
  try {
    const mount = thinfsMountAt(join(realpathSync(dirname(path)), basename(path)))
    if (mount !== null) return mount.source
    const real = realpathSync(path)
    const linked = thinfsMountAt(real)
    if (linked !== null) return linked.source
    if (!statSync(real).isDirectory()) return path
    const file = join(path, 'pool.yaml')
    if (statSync(file, { throwIfNoEntry: false })?.isFile()) return file
  } catch (err) {
    const errno = errnoOf(err)
    const what = errno === 'ENOENT' ? 'no such file or folder' : (err as Error).message
    throw new ThinfsError('NOT_A_POOL', `${reference}: ${what}`, { cause: err, errno })
  }
  const detail = `${reference}: no pool.yaml in that folder, and no pool is mounted there`
  throw new ThinfsError('NOT_A_POOL', detail)
}
