import { type DevId, SECTOR_SIZE } from '../base/index.js'
import { poolStatus, type ThinPool, thinStatus } from '../pool/index.js'
import type { Store } from '../storage/index.js'
import type { PoolStatus } from './admin.js'
import type { Volume } from './volume.js'

/**
 * The status of an open pool; whoever mounts it adds where. Takes no longer for large volumes than for
 * small ones.
 * @param of `warnings`: what was odd when the pool was opened; `refusal`: why it could not be written to
 */
export function statusOf(
  of: {
    name: string
    pool: ThinPool
    metadata: Store
    warnings?: readonly string[]
    refusal?: string | null
  },
  volumes: readonly Volume[],
): PoolStatus {
  const { name, pool, metadata: store, warnings, refusal } = of
  const { metadata } = pool
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
      hostFree: pool.space.hostRoomForData,
    },
    metadata: {
      path: store.path,
      blocks: metadata.nrMetadataBlocks,
      usedBlocks: metadata.nrAllocatedMetadataBlocks,
      hostFree: pool.space.hostRoomForMetadata,
    },
    writesWaiting: pool.space.writesWaiting,
    warnings: [...(warnings ?? []), ...pool.removed, ...pool.space.warnings],
    refusal: refusal ?? null,
    lowWaterMarkBlocks: pool.space.lowWaterMark,
    belowLowWater: pool.space.belowLowWater,
    heldRoot: metadata.heldRoot,
    discards: pool.discards,
    onFull: pool.space.onFull,
    volumes: volumes.length,
    mount: null,
    dm: {
      pool: `0 ${sectors(metadata.nrDataBlocks * pool.blockSize)} thin-pool ${poolStatus(pool)}`,
      volumes: volumes.map(volume => ({
        name: volume.name,
        line: `0 ${sectors(volume.device.size)} thin ${thinStatus(pool, volume.devId as DevId)}`,
      })),
    },
  }
}

const sectors = (size: number): number => Math.floor(size / SECTOR_SIZE)
