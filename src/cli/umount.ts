import { ThinfsError } from '../base/index.js'
import type { PoolPlace } from '../config/index.js'
import { connectDaemon, umountUnasked } from '../control/index.js'
import { serverOf, strayMountAt } from '../daemon/index.js'
import {
  clearAbove,
  type Mount,
  mustBeClearable,
  mustBeHeldByLoopsAlone,
  mustNotBeHidden,
  unmount as unmountAt,
  unmountDead,
} from '../host/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { placeOfPool, withDaemonOf } from './pool.js'
import { removeRescued } from './rescue-folder.js'

interface UmountOptions {
  force?: true
  recursive?: true
}

type Options = Output & UmountOptions

export const umount = command(
  'umount',
  'Unmount a pool; returns when all is committed.',
  'thinfs umount /mnt/thin',
)
  .argument('<POOL>', POOL_HELP)
  .option(
    '--force',
    'also while somebody uses it, who gets I/O errors; what was acknowledged is committed',
  )
  .option(
    '-R, --recursive',
    'first the filesystems on its volumes, then their loop devices; all of it, or nothing where some is in use',
  )
  .action(async (pool: string, { json, ...how }: Options) => {
    const file = await umountPool(pool, how)
    print({ ...(json && { json }) }, { file }, '')
  })

/**
 * Finds out whether a pool could be unmounted once nothing stands on its volumes.
 * @throws what that would end with
 */
async function mustBeUnmountable(place: PoolPlace, mount: Mount): Promise<void> {
  const daemon = await connectDaemon(place)
  try {
    const stays = (await daemon?.ping())?.stays ?? null
    if (stays !== null) throw stays
  } finally {
    daemon?.close()
  }
  await mustBeHeldByLoopsAlone(mount)
}

/**
 * Unmounts a pool; returns when all is committed.
 * @returns the path of its pool.yaml
 */
export async function umountPool(
  pool: string,
  { force, recursive }: UmountOptions,
): Promise<string> {
  const stray = strayMountAt(pool)
  if (stray !== null) {
    process.chdir('/')
    await unmountAt(stray.mountPoint)
    return stray.source
  }
  const place = placeOfPool(pool)
  // This process must not hold the mount that it stands in.
  process.chdir('/')
  if (recursive) {
    const server = serverOf(place.file)
    if (server !== null) {
      // All of it or nothing.
      mustNotBeHidden(server.mount)
      await mustBeClearable(server.mount)
      if (!force) await mustBeUnmountable(place, server.mount)
      await clearAbove(server.mount)
    }
  }
  try {
    await withDaemonOf(
      place,
      daemon => (force ? daemon.umountForcibly() : daemon.umount()),
      ({ mount, pid }) => umountUnasked(mount, pid, force === true),
    )
  } catch (err) {
    if (!(err instanceof ThinfsError && err.code === 'NOT_MOUNTED')) throw err
    // Both processes have died: nothing is left to commit.
    const ended = await unmountDead(place.file)
    if (ended.length === 0) throw err
    process.stderr.write(`thinfs: nobody served ${ended.join(', ')} any more\n`)
  }
  removeRescued(place.folder)
  return place.file
}
