import { realpathSync, statSync } from 'node:fs'
import { dirname } from 'node:path'
import { errnoOf, ThinfsError } from '../base/index.js'
import type { PoolPlace } from './pool-config.js'
import { checkPoolFolder, mustBeTrusted } from './trust.js'

/**
 * Where the pool of a pool.yaml is. Does not read it: a command that finds a daemon there has no need
 * of what it says.
 * @throws BAD_CONFIG when it is no file; NOT_TRUSTED when another user could have written it, or what
 *   thinfs keeps beside it
 */
export function placeOf(path: string): PoolPlace {
  const { file, stat } = find(path)
  if (!stat.isFile()) throw new ThinfsError('BAD_CONFIG', `${path}: is not a regular file`)
  mustBeTrusted(path, stat)
  const folder = dirname(file)
  checkPoolFolder(folder)
  return { file, folder }
}

function find(path: string) {
  try {
    const file = realpathSync(path)
    return { file, stat: statSync(file) }
  } catch (err) {
    const detail = `${path}: cannot be read`
    throw new ThinfsError('BAD_CONFIG', detail, { cause: err, errno: errnoOf(err) })
  }
}
