/**
 * Whether a pool.yaml may be followed. It names the files that thinfs writes to, any file or disk,
 * so root must not take it from somebody else; and in a folder where others may write, the files
 * beside it could be links to anywhere.
 */
import { lstatSync, type Stats, statSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { ThinfsError, whyNotOf, whyNotTrusted } from '../base/index.js'

/**
 * Files that thinfs keeps beside pool.yaml and opens by name: the folder's owner vouches for them.
 */
const OWN_FILES = ['volumes.json', 'journal', 'tenant', 'daemon.json', 'thinfs.log']
/** Other names in that folder that thinfs uses, or has used when it makes a file anew. */
const OTHER_NAMES = /^(control\.sock|lab\.json|record-\d+\.(log|data)|.*\.(new|old))$/
const OTHERS_WRITE = 0o002
const STICKY = 0o1000

/** Whether thinfs keeps something of its own under a name in the folder of pool.yaml. */
export const isOwnName = (name: string): boolean =>
  name === 'pool.yaml' || OWN_FILES.includes(name) || OTHER_NAMES.test(name)

/**
 * Checks the folder of a pool.yaml, the folders above it, and what thinfs keeps in it.
 * @param folder an absolute path without symbolic links
 * @throws NOT_TRUSTED naming what others could have changed
 */
export function checkPoolFolder(folder: string): void {
  mustBeTrusted(folder, statSync(folder))
  for (const name of OWN_FILES.flatMap(name => [name, `${name}.new`, `${name}.old`])) {
    const path = join(folder, name)
    const stat = lstatSync(path, { throwIfNoEntry: false })
    if (stat === undefined) continue
    if (!stat.isFile()) throw new ThinfsError('NOT_TRUSTED', `${path}: is not a regular file`)
    mustBeTrusted(path, stat)
  }
  for (let above = dirname(folder); ; above = dirname(above)) {
    const { mode } = statSync(above)
    // A user who may write there could put another folder in the place of this one.
    if ((mode & OTHERS_WRITE) !== 0 && (mode & STICKY) === 0) {
      const what = 'everybody may write to it, wanted a sticky bit at least (chmod +t)'
      throw new ThinfsError('NOT_TRUSTED', `${above}: ${what}`)
    }
    if (above === '/') return
  }
}

/** The owner of the folder, where root looks at another user's; undefined otherwise. */
export function otherOwner(folder: string): number | undefined {
  const { uid } = statSync(folder)
  return process.geteuid!() === 0 && uid !== 0 ? uid : undefined
}

/**
 * Checks the folder of another user's copy of a pool, which is only read. The files in it have to
 * be his: then root reads nothing for him that he could not read himself.
 * @throws NOT_TRUSTED
 */
export function checkCopy(folder: string, uid: number): void {
  for (const name of OWN_FILES) {
    const path = join(folder, name)
    const stat = lstatSync(path, { throwIfNoEntry: false })
    if (stat !== undefined) mustBeOf(uid, path, stat)
  }
}

/** @throws NOT_TRUSTED for what is not a regular file of the user's */
export function mustBeOf(uid: number, path: string, stat: Stats): void {
  const why = whyNotOf(stat, uid)
  if (why !== null) throw new ThinfsError('NOT_TRUSTED', `${path}: ${why}`)
}

/** @throws NOT_TRUSTED */
export function mustBeTrusted(path: string, stat: Stats): void {
  const why = whyNotTrusted(stat, process.geteuid!())
  if (why !== null) throw new ThinfsError('NOT_TRUSTED', `${path}: ${why}`)
}
