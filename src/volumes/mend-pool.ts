import { ThinfsError } from '../base/index.js'
import type { PoolConfig } from '../config/index.js'
import { checkMetadata, ThinMetadata } from '../metadata/index.js'
import { checkPool, openPool } from './open-pool.js'
import type { PoolFiles } from './pool-files.js'

/** The parts of a pool that were mended. */
export interface Mended {
  /** Blocks that were counted more often than they had owners. */
  dataLeaks: number
  metadataLeaks: number
  /** Whether needs_check was set. */
  needsCheck: boolean
}

/**
 * Gives leaked blocks back and clears needs_check, as thin_check --auto-repair does, in a pool in
 * which nothing else is wrong.
 * @param files locked to be written to
 * @param leaks false: only needs_check is cleared, where there are no leaks
 * @throws METADATA_CORRUPT, POOL_MISMATCH before anything is changed; what opening the pool throws
 */
export async function mendPool(
  config: PoolConfig,
  files: PoolFiles,
  { leaks }: { leaks: boolean },
): Promise<Mended> {
  const { problems } = await checkPool(config, { files })
  const error = problems.find(({ severity }) => severity === 'error')
  if (error !== undefined) {
    const what = `${error.message}: nothing is mended where more is wrong than leaks`
    throw new ThinfsError(error.code ?? 'METADATA_CORRUPT', what)
  }
  if (!leaks && leaksIn(files).found.length > 0) {
    const what = 'it has leaks, --repair-leaks gives them back: needs_check stays as it is'
    throw new ThinfsError('METADATA_CORRUPT', `${config.metadata.path}: ${what}`)
  }
  const { needsCheck } = ThinMetadata.open(files.metadata)
  const open = await openPool(config, { files, mendsLeaks: true })
  try {
    const { pool } = open.volumes
    pool.mustBeWritable()
    // Changes that a journal had are in the metadata then, and those of removals that go on.
    do await pool.commit()
    while (pool.metadata.changed)
    const { found, used } = leaksIn(files)
    if (leaks) pool.metadata.mendLeaks(found, used)
    await pool.commit()
    const ofData = found.filter(({ map }) => map === 'data').length
    return { dataLeaks: ofData, metadataLeaks: found.length - ofData, needsCheck }
  } finally {
    await open.close()
  }
}

interface Leak {
  map: 'data' | 'metadata'
  block: number
  excess: number
}

function leaksIn({ metadata }: PoolFiles) {
  const found: Leak[] = []
  const { usedDataBlocks, usedMetadataBlocks } = checkMetadata(metadata, (map, block, excess) =>
    found.push({ map, block, excess }),
  )
  return { found, used: { data: usedDataBlocks, metadata: usedMetadataBlocks } }
}
