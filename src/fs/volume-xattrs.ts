/** The facts about a volume that its file shows as `user.thinfs.*`. Source: xattr(7). */
import type { DevId, Later } from '../base/index.js'
import type { Volume, Volumes } from '../volumes/index.js'

/** Always there, and counted only when it is asked for. */
const EXCLUSIVE = 'user.thinfs.exclusive_bytes'

const detailsOf = (volumes: Volumes, { devId }: Volume) =>
  volumes.pool.metadata.details(devId as DevId)

const XATTRS: Record<string, (volumes: Volumes, volume: Volume) => Later<string> | null> = {
  'user.thinfs.dev_id': (_volumes, { devId }) => String(devId),
  'user.thinfs.origin': (volumes, volume) => volumes.infos.originOf(volume),
  'user.thinfs.mapped_bytes': (volumes, volume) => String(volumes.infos.mappedBytes(volume)),
  [EXCLUSIVE]: (volumes, volume) => volumes.usage.exclusiveBytes(volume).then(String),
  'user.thinfs.created': (_volumes, { entry }) =>
    entry.created === null ? null : new Date(entry.created * 1000).toISOString(),
  'user.thinfs.creation_time': (volumes, volume) => String(detailsOf(volumes, volume).creationTime),
  'user.thinfs.snapshotted_time': (volumes, volume) =>
    String(detailsOf(volumes, volume).snapshottedTime),
}

/** Whether a volume may have an attribute of that name. */
export const isXattr = (name: string): boolean => Object.hasOwn(XATTRS, name)

/** The value of such an attribute; null where the volume lacks it. */
export const xattrOf = (volumes: Volumes, volume: Volume, name: string): Later<string> | null =>
  XATTRS[name]!(volumes, volume)

/**
 * Names of those that have a value: of a volume that is no snapshot, or of unknown age, one is
 * missing.
 */
export const xattrsOf = (volumes: Volumes, volume: Volume): string[] =>
  Object.keys(XATTRS).filter(name => name === EXCLUSIVE || XATTRS[name]!(volumes, volume) !== null)
