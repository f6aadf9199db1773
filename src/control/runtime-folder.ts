import { createHash } from 'node:crypto'
import { accessSync, constants, existsSync, mkdirSync, realpathSync } from 'node:fs'
import { join } from 'node:path'
import { errnoOf, TENANT_FILE } from '../base/index.js'

/**
 * The folder of a mounted pool's sockets, log and daemon.json: the pool's own, or, if that is on a
 * read-only file system or other hosts reach it as well, one below /run, which may not be there.
 * @param folder the pool's, by whatever path
 */
export function runtimeFolder(folder: string): string {
  if (!isOfManyHosts(folder) && !isReadOnly(folder)) return folder
  const uid = process.geteuid!()
  const run = uid === 0 ? '/run' : (process.env.XDG_RUNTIME_DIR ?? `/run/user/${uid}`)
  const name = createHash('sha256').update(realpathSync(folder)).digest('hex').slice(0, 16)
  return join(run, 'thinfs', name)
}

/** A socket there would be another host's, and take the place of this one's. */
const isOfManyHosts = (folder: string): boolean => existsSync(join(folder, TENANT_FILE))

function isReadOnly(folder: string): boolean {
  try {
    accessSync(folder, constants.W_OK)
    return false
  } catch (err) {
    return errnoOf(err) === 'EROFS'
  }
}

/** As `runtimeFolder`, and makes the folder if need be: for a process that serves the pool. */
export function makeRuntimeFolder(folder: string): string {
  const path = runtimeFolder(folder)
  try {
    if (path !== folder) mkdirSync(path, { recursive: true, mode: 0o700 })
  } catch {
    // The first to open a file in it reports the failure, with a path.
  }
  return path
}
