/** Metadata without devices, block by block as the kernel formats it. */
import {
  bytes,
  isDataBlockSize,
  MAX_METADATA_BLOCKS,
  METADATA_BLOCK_SIZE,
  SECTOR_SIZE,
  ThinfsError,
} from '../base/index.js'
import type { Store } from '../storage/index.js'
import {
  BITMAP_ENTRIES_AT,
  BITMAP_KIND,
  Block,
  type BlockKind,
  INDEX_ENTRIES_AT,
  INDEX_KIND,
  nodeKind,
} from './blocks/block.js'
import { stamp } from './blocks/block-cache.js'
import { initNode } from './blocks/node.js'
import { DEVICE_DETAILS, ENTRIES_PER_BITMAP, INDEX_ENTRY, NODE_LEAF, UUID_SIZE } from './format.js'
import { superblockImage } from './superblock.js'

/** The kernel too can do nothing with fewer. */
const MIN_METADATA_BLOCKS = 12
/** Bits of four blocks with a count of 1. */
const FOUR_ONCE = 0xaa

export interface FormatOptions {
  /** Data block size in sectors. */
  dataBlockSectors: number
  /** 16 bytes that tell the pool from all others; default: zeros, as the kernel has them. */
  uuid?: Buffer
}

/**
 * Writes fresh metadata, for data of no blocks yet, over whatever is in the store. Does not sync.
 * @throws BAD_ARGUMENT
 */
export function writeFreshMetadata(store: Store, options: FormatOptions): void {
  const { dataBlockSectors, uuid = Buffer.alloc(UUID_SIZE) } = options
  if (!isDataBlockSize(dataBlockSectors * SECTOR_SIZE)) {
    throw new ThinfsError(
      'BAD_ARGUMENT',
      `data blocks of ${dataBlockSectors} sectors: wanted 8, 16, 32, 64 or a multiple of 128 to 2097152`,
    )
  }
  const nrBlocks = Math.min(Math.floor(store.size / METADATA_BLOCK_SIZE), MAX_METADATA_BLOCKS)
  if (nrBlocks < MIN_METADATA_BLOCKS) {
    throw new ThinfsError(
      'BAD_ARGUMENT',
      `${store.path}: ${nrBlocks} metadata blocks, wanted at least ${MIN_METADATA_BLOCKS}`,
    )
  }
  const nrBitmaps = Math.ceil(nrBlocks / ENTRIES_PER_BITMAP)
  const indexBlock = 1
  const metadataRefCounts = 2
  const firstBitmap = 3
  const dataIndex = firstBitmap + nrBitmaps
  const dataRefCounts = dataIndex + 1
  const mappingRoot = dataIndex + 2
  const detailsRoot = dataIndex + 3
  const nrAllocated = dataIndex + 4

  const write = (nr: number, content: Buffer): void =>
    store.write(content, 0, METADATA_BLOCK_SIZE, bytes(nr * METADATA_BLOCK_SIZE))
  const fill = (nr: number, kind: BlockKind, fields: (block: Block) => void): void => {
    const block = new Block(nr, kind, Buffer.alloc(METADATA_BLOCK_SIZE))
    fields(block)
    stamp(block)
    write(nr, block.bytes)
  }
  const emptyTree = (nr: number, valueSize: number): void =>
    fill(nr, nodeKind('new', valueSize), node => initNode(node, NODE_LEAF, valueSize))

  fill(indexBlock, INDEX_KIND, index => {
    for (let i = 0; i < nrBitmaps; i++) {
      const used = i === 0 ? nrAllocated : 0
      INDEX_ENTRY.write(index.view, INDEX_ENTRIES_AT + i * INDEX_ENTRY.size, {
        blockNr: firstBitmap + i,
        nrFree: ENTRIES_PER_BITMAP - used,
        noneFreeBefore: used,
      })
    }
  })
  emptyTree(metadataRefCounts, 4)
  for (let i = 0; i < nrBitmaps; i++) {
    fill(firstBitmap + i, BITMAP_KIND, ({ bytes }) => {
      if (i > 0) return
      const rest = nrAllocated % 4
      const whole = BITMAP_ENTRIES_AT + (nrAllocated - rest) / 4
      bytes.fill(FOUR_ONCE, BITMAP_ENTRIES_AT, whole)
      bytes[whole] = FOUR_ONCE & (4 ** rest - 1)
    })
  }
  emptyTree(dataIndex, INDEX_ENTRY.size)
  emptyTree(dataRefCounts, 4)
  emptyTree(mappingRoot, 8)
  emptyTree(detailsRoot, DEVICE_DETAILS.size)
  const superblock = {
    uuid,
    flags: 0,
    time: 0,
    transactionId: 0,
    heldRoot: 0,
    mappingRoot,
    detailsRoot,
    dataBlockSectors,
    metadataNrBlocks: nrBlocks,
    dataSpaceMap: {
      nrBlocks: 0,
      nrAllocated: 0,
      bitmapRoot: dataIndex,
      refCountRoot: dataRefCounts,
    },
    metadataSpaceMap: {
      nrBlocks,
      nrAllocated,
      bitmapRoot: indexBlock,
      refCountRoot: metadataRefCounts,
    },
  }
  write(0, superblockImage(superblock))
}
