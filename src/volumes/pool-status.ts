import { type DevId, SECTOR_SIZE, Slice } from '../base/index.js'
import { formatSizes } from '../config/index.js'
import { poolStatus, type ThinPool, thinStatus } from '../pool/index.js'
import type { Store } from '../storage/index.js'
import type { Tenancy } from '../tenancy/index.js'
import type { PoolStatus, TenancyInfo } from './admin.js'
import type { Volume } from './volume.js'

/**
 * The status of an open pool; whoever mounts it adds where. Takes no longer for large volumes than
 * for small ones.
 * @param of `warnings`: what was odd when the pool was opened; `refusal`: why it could not be
 *   written to
 */
export async function statusOf(
  of: {
    name: string
    pool: ThinPool
    metadata: Store
    warnings?: readonly string[]
    refusal?: string | null
    tenancy?: Tenancy | null
  },
  volumes: readonly Volume[],
): Promise<PoolStatus> {
  const { name, pool, metadata: store, warnings, refusal, tenancy } = of
  const { metadata } = pool
  const lines: PoolStatus['dm']['volumes'] = []
  const limits: string[] = []
  const slice = new Slice(pool.clock)
  for (const volume of volumes) {
    if (slice.isOver) await slice.yield()
    if (volume.device.gone) continue
    const line = `0 ${sectors(volume.device.size)} thin ${thinStatus(pool, volume.devId as DevId)}`
    lines.push({ name: volume.name, line })
    const atLimit = atLimitOf(pool, volume)
    if (atLimit !== null) limits.push(atLimit)
  }
  return {
    name: name,
    mode: pool.mode,
    reason: pool.reason,
    needsCheck: metadata.needsCheck,
    transactionId: metadata.transactionId,
    dataBlockSize: pool.blockSize,
    data: {
      path: pool.blocks.path,
      blocks: metadata.nrDataBlocks,
      usedBlocks: metadata.nrAllocatedDataBlocks,
      hostFree: pool.space.data.hostRoom,
    },
    metadata: {
      path: store.path,
      blocks: metadata.nrMetadataBlocks,
      usedBlocks: metadata.nrAllocatedMetadataBlocks,
      hostFree: pool.space.metadata.hostRoom,
    },
    writesWaiting: pool.space.writesWaiting,
    warnings: [
      ...(warnings ?? []),
      ...damageOf(of),
      ...pool.removed,
      ...pool.space.warnings,
      ...limits,
    ],
    refusal: refusal ?? null,
    shrink: shrinkOf(pool),
    lowWaterMarkBlocks: pool.space.data.lowWaterMark,
    belowLowWater: pool.space.data.belowLowWater,
    belowMetadataLowWater: pool.space.metadata.belowLowWater,
    metadataLowWaterMarkBlocks: pool.space.metadata.lowWaterMark,
    heldRoot: metadata.heldRoot,
    discards: pool.discards,
    onFull: pool.space.onFull,
    queueTimeout: pool.space.queueTimeout,
    minFreeSpace: pool.space.minFree,
    volumes: lines.length,
    reservedBlocks: pool.space.reserves.kept,
    mount: null,
    tenancy: tenancy ? tenancyInfo(tenancy) : null,
    dm: {
      pool: `0 ${sectors(metadata.nrDataBlocks * pool.blockSize)} thin-pool ${poolStatus(pool)}`,
      volumes: lines,
    },
  }
}

/** A warning where damaged metadata was met. */
function damageOf({ pool, metadata }: { pool: ThinPool; metadata: Store }): string[] {
  const { damage } = pool.metadata
  if (damage === null) return []
  const how = 'thinfs check finds all of it, thinfs repair, unmounted, saves what can be read'
  return [`${metadata.path}: damaged: ${damage}; ${how}`]
}

/** A warning where a volume maps its limit, or was refused a block for it; else null. */
function atLimitOf(pool: ThinPool, { name, device }: Volume): string | null {
  const { limit, limitReached, devId } = device
  if (limit === Number.POSITIVE_INFINITY || pool.mode === 'fail') return null
  const { mappedBlocks } = pool.metadata.details(devId)
  if (mappedBlocks < limit && !limitReached) return null
  const [maps, most] = formatSizes(mappedBlocks * pool.blockSize, limit * pool.blockSize)
  const sizes = `${maps} of its limit of ${most}`
  const how = `fstrim, or thinfs set POOL ${name} limit=SIZE, lets it go on`
  return `${name}: it maps ${sizes}: writes that want more fail; ${how}`
}

export const tenancyInfo = ({ strength, tenant }: Tenancy): TenancyInfo => ({
  host: tenant.host.name,
  since: tenant.since,
  strength,
  generation: tenant.generation,
})

function shrinkOf({
  shrink: { progress },
  blockSize,
}: ThinPool): NonNullable<PoolStatus['shrink']> | null {
  if (progress === null) return null
  const { blocks, left, waits } = progress
  return { data: blocks * blockSize, left: left * blockSize, waits }
}

const sectors = (size: number): number => Math.floor(size / SECTOR_SIZE)
