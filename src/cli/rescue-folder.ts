import { existsSync, rmdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'

/** What a rescue has in a folder of its own: a pool.yaml, and what goes with it. */
const FILES = ['pool.yaml', 'metadata', 'volumes.json', 'thinfs.log']
/** Says that an unmount may take these away. */
export const RESCUED = 'rescued'

/** @param folder of a pool that was unmounted */
export function removeRescued(folder: string): void {
  if (!existsSync(join(folder, RESCUED))) return
  for (const name of [...FILES, RESCUED]) rmSync(join(folder, name), { force: true })
  try {
    rmdirSync(folder)
  } catch {} // somebody keeps something there
}
