import { ThinfsError } from '../base/index.js'
import type { PoolAdmin } from '../volumes/index.js'

/** Letters that may be wrong, added or missing at most: as the parser has it for commands. */
const MAX_DISTANCE = 3

/** Calls `act`; where no volume has the name that it is about, the error says which one is near. */
export async function suggestingName<T>(
  admin: Pick<PoolAdmin, 'list'>,
  act: () => Promise<T>,
): Promise<T> {
  try {
    return await act()
  } catch (err) {
    if (!(err instanceof ThinfsError && err.code === 'VOLUME_MISSING')) throw err
    const name = /^(.+): no volume has the name$/.exec(err.message)?.[1]
    const near = name === undefined ? undefined : await nearestName(admin, name)
    if (near === undefined) throw err
    const message = `${err.message}; did you mean ${near}?`
    throw new ThinfsError(err.code, message, { cause: err, errno: err.errno })
  }
}

/** Commands by the names that they have elsewhere, and that no spelling leads to. */
export const MEANT: Readonly<Record<string, string>> = {
  ...{ destroy: 'remove', delete: 'remove', del: 'remove', rm: 'remove', lvremove: 'remove' },
  ...{ erase: 'remove', forget: 'prune', expire: 'prune' },
  ...{ new: 'create', add: 'create', lvcreate: 'create' },
  ...{ snap: 'snapshot', clone: 'snapshot', undo: 'rollback', revert: 'rollback' },
  ...{ mv: 'rename', lvrename: 'rename' },
  ...{ lvresize: 'resize', lvextend: 'resize', lvreduce: 'resize', grow: 'resize' },
  ...{ ls: 'list', lvs: 'list', volumes: 'list', thin_ls: 'list' },
  ...{ df: 'status', info: 'status', show: 'status', vgs: 'pools', iostat: 'stats' },
  ...{ unmount: 'umount', losetup: 'attach', fstrim: 'trim', thin_trim: 'trim' },
  ...{ fsck: 'check', scrub: 'check', verify: 'check', thin_check: 'check' },
  ...{ thin_dump: 'dump', thin_restore: 'restore', thin_repair: 'repair' },
  ...{ thin_delta: 'delta', diff: 'delta', thin_rmap: 'rmap' },
  ...{ backup: 'send', recv: 'receive', filefrag: 'map', bmap: 'map' },
}

async function nearestName(
  admin: Pick<PoolAdmin, 'list'>,
  name: string,
): Promise<string | undefined> {
  // Of a short name every other one would be near.
  const maxDistance = Math.min(MAX_DISTANCE, Math.floor(name.length / 2))
  if (maxDistance === 0) return undefined
  const { closestMatch } = await import('leven')
  const volumes = await admin.list().catch(() => [])
  return closestMatch(
    name,
    volumes.map(volume => volume.name),
    { maxDistance },
  )
}
