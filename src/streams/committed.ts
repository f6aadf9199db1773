import { bytes, METADATA_BLOCK_SIZE, SECTOR_SIZE } from '../base/index.js'
import { MetadataView } from '../metadata/index.js'
import type { Store } from '../storage/index.js'

/** The state that the last durable commit of a pool leads to. */
export interface Committed {
  /** The snapshot clock. */
  time: number
  transactionId: number
  /** Bytes. */
  dataBlockSize: number
  dataBlocks: number
  /** By device id: the metadata block of the root of its mapping tree, and blocks mapped. */
  devices: Map<number, { root: number; mappedBlocks: number }>
  /**
   * Whether that is the last one still. Nothing that it leads to has changed then: blocks that a
   * commit frees are written to by those after it.
   */
  isLast(): boolean
}

/**
 * Looks at a pool that may be mounted, as of its last commit.
 * @throws METADATA_CORRUPT, also when the next commit comes meanwhile
 */
export function committedOf(metadata: Store): Committed {
  const before = superblockOf(metadata)
  const view = new MetadataView(metadata)
  const superblock = view.superblock(null)
  const devices: Committed['devices'] = new Map()
  for (const { devId, root, details } of view.devices(superblock)) {
    devices.set(devId, { root, mappedBlocks: details.mappedBlocks })
  }
  return {
    time: superblock.time,
    transactionId: superblock.transactionId,
    dataBlockSize: superblock.dataBlockSectors * SECTOR_SIZE,
    dataBlocks: superblock.dataSpaceMap.nrBlocks,
    devices,
    isLast: () => superblockOf(metadata).equals(before),
  }
}

function superblockOf(metadata: Store): Buffer {
  const superblock = Buffer.alloc(METADATA_BLOCK_SIZE)
  metadata.read(superblock, 0, superblock.length, bytes(0))
  return superblock
}
