import { ThinfsError } from '../base/index.js'
import type { ServedFiles } from '../streams/index.js'
import { openServedOf } from './held.js'
import { withDaemonOr } from './pool.js'

/**
 * Calls `use` with the metadata of a pool that is not mounted, or with its metadata snapshot, which
 * does not change in a mounted one either.
 * @param ofSnapshot the metadata snapshot
 * @throws SNAPSHOT_NOT_HELD without one, and for the metadata of a mounted pool; what `use` throws
 */
export function withMetadata(
  pool: string,
  ofSnapshot: boolean,
  use: (metadata: ServedFiles['metadata'], held: number | null) => Promise<void>,
): Promise<void> {
  return withDaemonOr(
    pool,
    'read',
    async (admin, place) => {
      const { heldRoot } = await admin.status()
      if (!ofSnapshot || heldRoot === 0) {
        const what = ofSnapshot
          ? 'none is held'
          : 'the metadata of a mounted pool changes all the time'
        const how = 'thinfs message POOL reserve_metadata_snap, then this command with -m'
        throw new ThinfsError('SNAPSHOT_NOT_HELD', `${place.file}: ${what}; ${how}`)
      }
      const files = await openServedOf(admin, place)
      try {
        await use(files.metadata, heldRoot)
      } finally {
        files.close()
      }
      if ((await admin.status()).heldRoot === heldRoot) return
      const what = 'the metadata snapshot was released while it was looked at'
      throw new ThinfsError('SNAPSHOT_NOT_HELD', `${place.file}: ${what}`)
    },
    async (_, { metadata }) => {
      const { heldRootOf } = await import('../streams/index.js')
      await use(metadata, ofSnapshot ? heldRootOf(metadata) : null)
    },
  )
}
