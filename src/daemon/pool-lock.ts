/**
 * One process at a time has a pool: the write lock on its metadata file.
 *
 * The lock belongs to the open file, which the engine inherits: it holds until the last of both has
 * ended, so a daemon that was killed does not give away a pool whose engine still serves.
 */
import { closeSync, existsSync, openSync } from 'node:fs'
import { errnoOf, ThinfsError } from '../base/index.js'
import type { PoolConfig } from '../config/index.js'
import { lockFile } from '../storage/index.js'
import { readDaemonFile } from './daemon-file.js'

/**
 * @returns a descriptor of the metadata file; closing it, where it was not inherited, gives up the lock
 * @throws NOT_A_POOL when the file cannot be opened; POOL_IN_USE naming who has it
 */
export function lockPool(config: PoolConfig): number {
  const { path } = config.metadata
  let fd: number
  try {
    fd = openSync(path, 'r+')
  } catch (err) {
    const errno = errnoOf(err)
    const what = errno === 'ENOENT' ? 'no such file; thinfs init makes it' : (err as Error).message
    throw new ThinfsError('NOT_A_POOL', `${path}: ${what}`, { cause: err, errno })
  }
  if (lockFile(fd)) return fd
  closeSync(fd)
  throw new ThinfsError('POOL_IN_USE', `${config.file} is served by ${owner(config.folder)}`)
}

function owner(folder: string): string {
  const daemon = readDaemonFile(folder)
  if (daemon === null) return 'another process'
  const { pid, mountPoint } = daemon
  return existsSync(`/proc/${pid}`)
    ? `process ${pid} at ${mountPoint}`
    : `an engine whose daemon has died; thinfs mount at ${mountPoint} takes it over`
}
