/**
 * Contents of volumes that are kept between runs: sparse files in the user's cache folder, which
 * are images of the volumes. They are not compressed: a copy of what they hold is faster than that.
 */
import { createHash } from 'node:crypto'
import { closeSync, fsyncSync, mkdirSync, openSync, renameSync, statSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { errnoOf, ThinfsError, whyNotTrusted } from '../base/index.js'
import { native } from '../native.js'
import { run } from './programs.js'

const LOOK_MS = 50

/**
 * Gives the file at `path` what the cache has under a key. Where there is nothing, `make` writes
 * the file, and the cache gets it. One process at a time makes what a key stands for: others wait
 * for it.
 * @throws what `make` throws; NOT_TRUSTED, IO_ERROR
 */
export async function fromCache(
  key: string,
  path: string,
  make: () => Promise<void>,
): Promise<void> {
  const kept = join(cacheFolder(), `${createHash('sha256').update(key).digest('hex')}.img`)
  if (isThere(kept)) return await copy(kept, path)
  // The process that has the lock writes this file, and gives it the other name when it is
  // complete. It writes anew what a process that was killed has left.
  const unfinished = `${kept}.new`
  const lock = openSync(unfinished, 'a+', 0o600)
  try {
    while (!native.file_lock(lock, true)) await sleep(LOOK_MS)
    if (isThere(kept)) return await copy(kept, path)
    await make()
    await copy(path, unfinished)
    fsyncSync(lock)
    renameSync(unfinished, kept)
  } finally {
    closeSync(lock)
  }
}

const isThere = (path: string): boolean => statSync(path, { throwIfNoEntry: false }) !== undefined

/** Copies a file with its holes; runs of zeros become holes. */
const copy = (source: string, target: string): Promise<void> =>
  run('cp', '--sparse=always', '--', source, target)

/**
 * The folder, which is made if need be. Root may mount what is in it: nobody else may write there.
 * @throws NOT_TRUSTED, IO_ERROR
 */
function cacheFolder(): string {
  const folder = join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'thinfs')
  try {
    mkdirSync(folder, { recursive: true, mode: 0o700 })
    const why = whyNotTrusted(statSync(folder), process.geteuid!())
    if (why !== null) throw new ThinfsError('NOT_TRUSTED', `${folder}: ${why}`)
  } catch (err) {
    if (err instanceof ThinfsError) throw err
    const detail = `${folder}: ${(err as Error).message}; XDG_CACHE_HOME names another place`
    throw new ThinfsError('IO_ERROR', detail, { cause: err, errno: errnoOf(err) })
  }
  return folder
}
