/** The environment of a command that has an ephemeral pool: where the pool's files are. */
import { join } from 'node:path'
import { ThinfsError } from '../base/index.js'

/** The folder at which the pool is mounted. It also tells which processes belong to the command. */
export const MARK = 'THINFS_MOUNT'

/** Variables with which thinfs itself is told something. */
const TAKEN = [MARK, 'THINFS_DEBUG', 'THINFS_STDOUT', 'THINFS_VERIFY']

/**
 * The variables for a pool: `THINFS_MOUNT`, and for each volume its file, as THINFS_WEB_1 for
 * web-1.
 * @throws BAD_ARGUMENT when two would have the same name
 */
export function environmentOf(
  mountPoint: string,
  volumes: readonly string[],
): Record<string, string> {
  const environment: Record<string, string> = { [MARK]: mountPoint }
  for (const volume of volumes) {
    const name = `THINFS_${volume.toUpperCase().replace(/[^A-Z0-9]/g, '_')}`
    if (Object.hasOwn(environment, name) || TAKEN.includes(name)) {
      const detail = `${volume}: its variable, ${name}, is taken; choose another name`
      throw new ThinfsError('BAD_ARGUMENT', detail)
    }
    environment[name] = join(mountPoint, volume)
  }
  return environment
}
