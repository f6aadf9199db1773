/** The superblock, and the copy of it that a metadata snapshot is. */
import {
  bytes,
  isDataBlockSize,
  MAX_METADATA_BLOCKS,
  METADATA_BLOCK_SIZE,
  SECTOR_SIZE,
  ThinfsError,
} from '../base/index.js'
import type { Store } from '../storage/index.js'
import { Block, SUPERBLOCK_KIND } from './blocks/block.js'
import { checkStamp, stamp } from './blocks/block-cache.js'
import {
  MAX_DATA_BLOCKS,
  MAX_TIME,
  METADATA_BLOCK_SECTORS,
  SPACE_MAP_ROOT,
  SUPERBLOCK,
  SUPERBLOCK_LOCATION,
  SUPERBLOCK_MAGIC,
  SUPERBLOCK_VERSION,
  UUID_SIZE,
} from './format.js'
import type { SpaceMapRoot } from './space/space-map.js'

export interface Superblock {
  /** 16 bytes. The kernel writes zeros into a new pool, and keeps what others put there. */
  uuid: Buffer
  flags: number
  time: number
  transactionId: number
  heldRoot: number
  mappingRoot: number
  detailsRoot: number
  /** Data block size in sectors. */
  dataBlockSectors: number
  /** Metadata blocks at the time of format. */
  metadataNrBlocks: number
  dataSpaceMap: SpaceMapRoot
  metadataSpaceMap: SpaceMapRoot
}

const UUID_AT = SUPERBLOCK.at.uuid

/**
 * Reads and checks the superblock of a store.
 * @throws METADATA_CORRUPT, METADATA_UNSUPPORTED
 */
export function readSuperblock(store: Store): Superblock {
  const nrBlocks = Math.floor(store.size / METADATA_BLOCK_SIZE)
  if (nrBlocks === 0) throw corrupt(`${store.path} is ${store.size} bytes, too short for it`)
  const content = Buffer.alloc(METADATA_BLOCK_SIZE)
  store.read(content, 0, METADATA_BLOCK_SIZE, bytes(SUPERBLOCK_LOCATION))
  const block = new Block(SUPERBLOCK_LOCATION, SUPERBLOCK_KIND, content)
  const { magic, version } = SUPERBLOCK.read(block.view, 0)
  if (magic !== SUPERBLOCK_MAGIC) {
    throw corrupt(`magic is ${magic}, wanted ${SUPERBLOCK_MAGIC}: this is no thin pool metadata`)
  }
  checkStamp(block)
  if (version !== SUPERBLOCK_VERSION) {
    throw unsupported(`version is ${version}, wanted ${SUPERBLOCK_VERSION}`)
  }
  const superblock = decodeSuperblock(block)
  const { metadataSpaceMap, dataSpaceMap } = superblock
  if (metadataSpaceMap.nrBlocks > Math.min(nrBlocks, MAX_METADATA_BLOCKS)) {
    throw corrupt(
      `the space map has ${metadataSpaceMap.nrBlocks} metadata blocks, ${store.path} ${nrBlocks}`,
    )
  }
  if (dataSpaceMap.nrBlocks > MAX_DATA_BLOCKS) {
    throw corrupt(
      `the space map has ${dataSpaceMap.nrBlocks} data blocks, at most 2^40 are possible`,
    )
  }
  checkRoots(superblock)
  return superblock
}

/** A block outside of the map would count as free once the map grows. @throws METADATA_CORRUPT */
function checkRoots({ mappingRoot, detailsRoot, ...superblock }: Superblock): void {
  const { dataSpaceMap, metadataSpaceMap } = superblock
  const roots = {
    mappingRoot,
    detailsRoot,
    dataIndex: dataSpaceMap.bitmapRoot,
    dataRefCounts: dataSpaceMap.refCountRoot,
    metadataIndex: metadataSpaceMap.bitmapRoot,
    metadataRefCounts: metadataSpaceMap.refCountRoot,
  }
  const { nrBlocks } = metadataSpaceMap
  for (const [name, root] of Object.entries(roots)) {
    if (root > SUPERBLOCK_LOCATION && root < nrBlocks) continue
    throw corrupt(`${name} is block ${root}, wanted one from 1 to ${nrBlocks - 1}`)
  }
}

/**
 * The fields of a superblock, or a copy of it, whose checksum is right.
 * @throws METADATA_CORRUPT, METADATA_UNSUPPORTED
 */
export function decodeSuperblock({ bytes: content, view }: Block): Superblock {
  const fields = SUPERBLOCK.read(view, 0)
  if (fields.incompatFlags !== 0 || fields.compatRoFlags !== 0) {
    throw unsupported(
      `incompat_flags are ${fields.incompatFlags} and compat_ro_flags ${fields.compatRoFlags}, ` +
        'wanted 0: something newer wrote this metadata',
    )
  }
  if (fields.metadataBlockSectors !== METADATA_BLOCK_SECTORS) {
    throw unsupported(
      `metadata block size is ${fields.metadataBlockSectors} sectors, ` +
        `wanted ${METADATA_BLOCK_SECTORS}`,
    )
  }
  if (!isDataBlockSize(fields.dataBlockSectors * SECTOR_SIZE)) {
    throw corrupt(`data block size is ${fields.dataBlockSectors} sectors`)
  }
  if (fields.transactionId > Number.MAX_SAFE_INTEGER) {
    throw unsupported(`transaction id is ${fields.transactionId}, wanted below 2^53`)
  }
  if (fields.time > MAX_TIME) throw corrupt(`time is ${fields.time}, wanted at most ${MAX_TIME}`)
  const { flags, time, transactionId, heldRoot, mappingRoot, detailsRoot } = fields
  return {
    uuid: Buffer.from(content.subarray(UUID_AT, UUID_AT + UUID_SIZE)),
    flags,
    time,
    transactionId,
    heldRoot,
    mappingRoot,
    detailsRoot,
    dataBlockSectors: fields.dataBlockSectors,
    metadataNrBlocks: fields.metadataNrBlocks,
    dataSpaceMap: SPACE_MAP_ROOT.read(view, SUPERBLOCK.at.dataSpaceMap),
    metadataSpaceMap: SPACE_MAP_ROOT.read(view, SUPERBLOCK.at.metadataSpaceMap),
  }
}

/** Writes the fields of a superblock into a block of zeros. Location and checksum are not set. */
export function encodeSuperblock({ bytes: content, view }: Block, superblock: Superblock): void {
  SUPERBLOCK.write(view, 0, {
    magic: SUPERBLOCK_MAGIC,
    version: SUPERBLOCK_VERSION,
    metadataBlockSectors: METADATA_BLOCK_SECTORS,
    ...superblock,
  })
  superblock.uuid.copy(content, UUID_AT)
  SPACE_MAP_ROOT.write(view, SUPERBLOCK.at.dataSpaceMap, superblock.dataSpaceMap)
  SPACE_MAP_ROOT.write(view, SUPERBLOCK.at.metadataSpaceMap, superblock.metadataSpaceMap)
}

/** The 4096 bytes of metadata block 0. */
export function superblockImage(superblock: Superblock): Buffer {
  const content = Buffer.alloc(METADATA_BLOCK_SIZE)
  const block = new Block(SUPERBLOCK_LOCATION, SUPERBLOCK_KIND, content)
  encodeSuperblock(block, superblock)
  stamp(block)
  return content
}

const corrupt = (what: string): ThinfsError =>
  new ThinfsError('METADATA_CORRUPT', `metadata block ${SUPERBLOCK_LOCATION}: superblock: ${what}`)
const unsupported = (what: string): ThinfsError =>
  new ThinfsError(
    'METADATA_UNSUPPORTED',
    `metadata block ${SUPERBLOCK_LOCATION}: superblock: ${what}`,
  )
