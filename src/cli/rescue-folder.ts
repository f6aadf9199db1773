import { readFileSync, realpathSync, rmdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

/** The files that a rescue has in a folder of its own: a pool.yaml, and what goes with it. */
const FILES = ['pool.yaml', 'metadata', 'volumes.json', 'thinfs.log']
/**
 * Says that an unmount may take these away. It has the path of the folder: in no other folder, a
 * copy of that one for instance, does it say so.
 */
const MARK = '.thinfs-rescue'

/** @param folder that a rescue has made */
export function markRescued(folder: string): void {
  writeFileSync(join(folder, MARK), realpathSync(folder), { flag: 'wx' })
}

/** @param folder of a pool that was unmounted */
export function removeRescued(folder: string): void {
  if (!isRescued(folder)) return
  for (const name of [...FILES, MARK]) rmSync(join(folder, name), { force: true })
  try {
    rmdirSync(folder)
  } catch {} // somebody keeps something there
}

function isRescued(folder: string): boolean {
  try {
    return readFileSync(join(folder, MARK), 'utf8') === realpathSync(folder)
  } catch {
    return false
  }
}
