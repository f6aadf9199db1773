import { createHash } from 'node:crypto'
import { accessSync, constants, mkdirSync, realpathSync } from 'node:fs'
import { join } from 'node:path'
import { errnoOf } from '../base/index.js'

/**
 * The folder of a mounted pool's sockets, log and daemon.json: the pool's own, or, if that is on a
 * read-only file system, one below /run, which may not be there.
 * @param folder the pool's, by whatever path
 */
export function runtimeFolder(folder: string): string {
  try {
    accessSync(folder, constants.W_OK)
    return folder
  } catch (err) {
    if (errnoOf(err) !== 'EROFS') return folder
  }
  const uid = process.geteuid!()
  const run = uid === 0 ? '/run' : (process.env.XDG_RUNTIME_DIR ?? `/run/user/${uid}`)
  const name = createHash('sha256').update(realpathSync(folder)).digest('hex').slice(0, 16)
  return join(run, 'thinfs', name)
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
