/**
 * Contents of volumes that are kept between runs: sparse files in the user's cache folder, which
 * are images of the volumes. They are not compressed: a copy of what they hold is faster than that.
 */
import { createHash } from 'node:crypto'
import {
  accessSync,
  closeSync,
  constants,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  renameSync,
  statSync,
} from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { errnoOf, ThinfsError, whyNotTrusted } from '../base/index.js'
import { runTool } from '../host/index.js'
import { native } from '../native.js'

const LOOK_MS = 50

/**
 * Gives the file at `path` what the cache has under a key. If the cache has nothing, `make` writes
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
  const lock = inCache(unfinished, () => openSync(unfinished, 'a+', 0o600))
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

/** @throws IO_ERROR for one that this user may not read */
function isThere(kept: string): boolean {
  return inCache(kept, () => {
    if (!existsSync(kept)) return false
    accessSync(kept, constants.R_OK)
    return true
  })
}

/** Copies a file with its holes; runs of zeros become holes. */
async function copy(source: string, target: string): Promise<void> {
  await runTool('cp', '--sparse=always', '--', source, target)
}

/**
 * The folder, which is made if need be. Root may mount what is in it: nobody else may write there.
 * @throws NOT_TRUSTED, IO_ERROR
 */
function cacheFolder(): string {
  const folder = join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'thinfs')
  return inCache(folder, () => {
    mkdirSync(folder, { recursive: true, mode: 0o700 })
    const why = whyNotTrusted(statSync(folder), process.geteuid!())
    if (why !== null) throw new ThinfsError('NOT_TRUSTED', `${folder}: ${why}${OTHER_PLACE}`)
    accessSync(folder, constants.W_OK | constants.X_OK)
    return folder
  })
}

/**
 * The cache of another user may be found: root's with `sudo`, the machine's in a user namespace.
 */
const OTHER_PLACE = '; XDG_CACHE_HOME names another place'

/** Calls what looks at `path`. @throws IO_ERROR saying what there is instead */
function inCache<T>(path: string, look: () => T): T {
  try {
    return look()
  } catch (err) {
    if (err instanceof ThinfsError) throw err
    const detail = `${path}: ${(err as Error).message}${OTHER_PLACE}`
    throw new ThinfsError('IO_ERROR', detail, { cause: err, errno: errnoOf(err) })
  }
}
