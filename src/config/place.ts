import { realpathSync, statSync } from 'node:fs'
import { dirname } from 'node:path'
import { errnoOf, isOutOfReach, ThinfsError } from '../base/index.js'
import type { PoolPlace } from './pool-config.js'
import { checkCopy, checkPoolFolder, mustBeOf, mustBeTrusted, otherOwner } from './trust.js'

/**
 * Finds the place of the pool that a pool.yaml describes, without reading the file: a command that
 * finds a daemon there does not need its content.
 * @param options.reads nothing will be written: root may read another user's copy
 * @param options.served its daemon is asked first: where the file system does not answer, the
 *   daemon still does
 * @throws BAD_CONFIG when it is no file; NOT_TRUSTED when another user could have written it, or
 *   what thinfs keeps beside it
 */
export function placeOf(path: string, { reads = false, served = false } = {}): PoolPlace {
  const found = find(path, served)
  if (found === null) return { file: path, folder: dirname(path) }
  const { file, stat } = found
  if (!stat.isFile()) throw new ThinfsError('BAD_CONFIG', `${path}: is not a regular file`)
  const folder = dirname(file)
  const ofUser = reads ? otherOwner(folder) : undefined
  if (ofUser !== undefined) {
    mustBeOf(ofUser, path, stat)
    checkCopy(folder, ofUser)
    return { file, folder, ofUser }
  }
  mustBeTrusted(path, stat)
  checkPoolFolder(folder)
  return { file, folder }
}

/** @returns null if the file system does not answer, and the daemon is asked instead */
function find(path: string, served: boolean) {
  try {
    const file = realpathSync(path)
    return { file, stat: statSync(file) }
  } catch (err) {
    if (served && isOutOfReach(err)) return null
    const detail = `${path}: cannot be read`
    throw new ThinfsError('BAD_CONFIG', detail, { cause: err, errno: errnoOf(err) })
  }
}
