import { existsSync, mkdtempSync, realpathSync, rmdirSync, rmSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'

/** What a rescue has in a folder of its own: a pool.yaml, and what goes with it. */
const FILES = ['pool.yaml', 'metadata', 'volumes.json', 'thinfs.log']
/** Says that an unmount may take these away. */
export const RESCUED = 'rescued'

/** What the path of such a folder begins with. A pool elsewhere is a person's, whatever it has in it. */
const PLACE = '/var/tmp/thinfs-rescue-'

export const makeRescueFolder = (): string => mkdtempSync(PLACE)

/** @param folder of a pool that was unmounted */
export function removeRescued(folder: string): void {
  if (!existsSync(join(folder, RESCUED)) || !isRescueFolder(folder)) return
  for (const name of [...FILES, RESCUED]) rmSync(join(folder, name), { force: true })
  try {
    rmdirSync(folder)
  } catch {} // somebody keeps something there
}

function isRescueFolder(folder: string): boolean {
  const place = join(realpathSync(dirname(PLACE)), basename(PLACE))
  return folder.startsWith(place) && !folder.slice(place.length).includes('/')
}
