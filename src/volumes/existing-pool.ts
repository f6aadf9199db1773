import { dirname } from 'node:path'
import { SECTOR_SIZE, ThinfsError } from '../base/index.js'
import type { PoolConfig } from '../config/index.js'
import { ThinMetadata } from '../metadata/index.js'
import { PoolFiles } from './pool-files.js'

/** A pool that another program made, as its metadata has it. */
export interface ExistingPool {
  /** Bytes. */
  dataBlockSize: number
  /** Bytes that its data has. */
  dataSize: number
  /** Bytes that are there for it. */
  dataFound: number
  transactionId: number
  devices: ReadonlySet<number>
}

/**
 * Reads the metadata of a pool that thinfs does not have yet. Nothing is written.
 * @param config says where its files are; the size of data blocks does not count
 * @throws NOT_A_POOL, POOL_IN_USE, NOT_TRUSTED, METADATA_CORRUPT, METADATA_UNSUPPORTED, IO_ERROR
 */
export function readExistingPool(config: PoolConfig): ExistingPool {
  // The one of pool.yaml may be yet to be made.
  const files = PoolFiles.open({ ...config, folder: dirname(config.metadata.path) }, true)
  try {
    mustBeWhole(files.metadata, config.metadata)
    const metadata = ThinMetadata.open(files.metadata)
    const dataBlockSize = metadata.dataBlockSectors * SECTOR_SIZE
    return {
      dataBlockSize,
      dataSize: metadata.nrDataBlocks * dataBlockSize,
      dataFound: files.data.size,
      transactionId: metadata.transactionId,
      devices: new Set(metadata.deviceIds()),
    }
  } finally {
    files.close()
  }
}

/** @throws POOL_MISMATCH for a file that ends before the parts that are the pool's */
function mustBeWhole(
  store: { size: number },
  { path, extents = [] }: PoolConfig['metadata'],
): void {
  const wanted = extents.reduce((sum, { size }) => sum + size, 0)
  if (store.size >= wanted) return
  const end = Math.max(...extents.map(({ offset, size }) => offset + size))
  const found = `it ends before byte ${end}, where the pool's metadata does`
  throw new ThinfsError('POOL_MISMATCH', `${path}: ${found}: the copy is cut off, make it again`)
}
