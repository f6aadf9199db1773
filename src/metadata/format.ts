/**
 * dm-thin's on-disk structures, superblock version 2, all little-endian.
 *
 * Source: Documentation/admin-guide/device-mapper/thin-provisioning.rst and the layouts of
 * drivers/md/dm-thin-metadata.c and drivers/md/persistent-data/; checked against images that the
 * kernel wrote (test/fixtures). docs/FORMAT.md prints these tables.
 */
import { isZero, layout, METADATA_BLOCK_SIZE, SECTOR_SIZE } from '../base/index.js'

/** Sectors of a metadata block. */
export const METADATA_BLOCK_SECTORS = METADATA_BLOCK_SIZE / SECTOR_SIZE
/** Location of the superblock. */
export const SUPERBLOCK_LOCATION = 0

export const SUPERBLOCK_MAGIC = 27022010
export const SUPERBLOCK_VERSION = 2
/** Bit of superblock `flags`: a past failure asks for an offline check before the next write. */
export const FLAG_NEEDS_CHECK = 1

/** XORed with the checksum, one per kind of block, so that no kind can pass for another. */
export const SALT = {
  superblock: 160774,
  node: 121107,
  bitmap: 240779,
  index: 160478,
} as const

/** Blocks that one bitmap block describes. */
export const ENTRIES_PER_BITMAP = 16320
/** Largest mapping time: 24 bits of a mapping value. */
export const MAX_TIME = 0xff_ffff
/** Data block numbers have 40 bits in a mapping value. */
export const MAX_DATA_BLOCKS = 2 ** 40

/** One of the two space map roots within the superblock. */
export const SPACE_MAP_ROOT = layout('SpaceMapRoot', 32, {
  nrBlocks: [0, 'u64', 'blocks described'],
  nrAllocated: [8, 'u64', 'blocks whose count is not 0'],
  bitmapRoot: [16, 'u64', 'data: root of the index tree; metadata: the index block'],
  refCountRoot: [24, 'u64', 'root of the tree of counts above 2'],
})

/** Metadata block 0, and a metadata snapshot's copy of it. Only 364 bytes carry fields. */
export const SUPERBLOCK = layout('Superblock', 364, {
  csum: [0, 'u32', 'CRC-32C of bytes 4..4096 without final inversion, xor SALT.superblock'],
  flags: [4, 'u32', 'bit 0: needs_check'],
  blockNr: [8, 'u64', 'own location'],
  uuid: [16, 'bytes:16', 'id of the pool, which thinfs init chooses; the kernel writes zeros'],
  magic: [32, 'u64', '27022010'],
  version: [40, 'u32', '2'],
  time: [44, 'u32', 'snapshot clock, one up for every snapshot'],
  transactionId: [48, 'u64', 'set by the user of the pool'],
  heldRoot: [56, 'u64', 'metadata block of the metadata snapshot, 0 for none'],
  dataSpaceMap: [64, 'bytes:128', 'SpaceMapRoot in the first 32 bytes; the rest is undefined'],
  metadataSpaceMap: [192, 'bytes:128', 'SpaceMapRoot in the first 32 bytes; the rest is undefined'],
  mappingRoot: [320, 'u64', 'root of the top-level mapping tree: dev id to root of its tree'],
  detailsRoot: [328, 'u64', 'root of the device details tree'],
  dataBlockSectors: [336, 'u32', 'data block size in sectors'],
  metadataBlockSectors: [340, 'u32', '8'],
  metadataNrBlocks: [344, 'u64', 'metadata blocks at the time of format; stale after growth'],
  compatFlags: [352, 'u32', '0'],
  compatRoFlags: [356, 'u32', '0; an unknown bit forbids writing'],
  incompatFlags: [360, 'u32', '0; an unknown bit forbids opening'],
})

/** Bytes of a superblock's uuid. */
export const UUID_SIZE = 16

/** The usual text of a superblock's 16 bytes; null for zeros, which name no pool. */
export function uuidText(uuid: Uint8Array): string | null {
  if (isZero(uuid)) return null
  const hex = Buffer.from(uuid).toString('hex')
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5')
}

/** Header of every B-tree node; keys (u64) follow, then from 32 + 8 * maxEntries the values. */
export const NODE = layout('NodeHeader', 32, {
  csum: [0, 'u32', 'CRC-32C as above, xor SALT.node'],
  flags: [4, 'u32', '1 internal, 2 leaf'],
  blockNr: [8, 'u64', 'own location'],
  nrEntries: [16, 'u32', 'keys in use, 0..maxEntries'],
  maxEntries: [20, 'u32', 'capacity, a multiple of 3'],
  valueSize: [24, 'u32', 'bytes of a value; 8 in every internal node'],
  padding: [28, 'u32', 'zero'],
})
export const NODE_INTERNAL = 1
export const NODE_LEAF = 2

/**
 * Entries that fit a node with values of `valueSize` bytes: 336, 252, 168, 126 for 4, 8, 16, 24.
 */
export function maxEntries(valueSize: number): number {
  const fit = Math.floor((METADATA_BLOCK_SIZE - NODE.size) / (8 + valueSize))
  return 3 * Math.floor(fit / 3)
}

/** Value of the device details tree. */
export const DEVICE_DETAILS = layout('DeviceDetails', 24, {
  mappedBlocks: [0, 'u64', 'entries in the tree of the device'],
  transactionId: [8, 'u64', 'transaction id of the pool when the device was made'],
  creationTime: [16, 'u32', 'time of the pool when the device was made'],
  snapshottedTime: [20, 'u32', 'time of the last snapshot that involved the device'],
})

/**
 * Describes one bitmap block: a value of the data index tree, a slot of the metadata index block.
 */
export const INDEX_ENTRY = layout('IndexEntry', 16, {
  blockNr: [0, 'u64', 'metadata block of the bitmap'],
  nrFree: [8, 'u32', 'free entries; counts the tail of a partial last bitmap as free too'],
  noneFreeBefore: [12, 'u32', 'no entry before this one is free; a lower bound'],
})

/** Header of a bitmap block; 16320 entries of two bits follow, the even bit being the high one. */
export const BITMAP = layout('BitmapHeader', 16, {
  csum: [0, 'u32', 'CRC-32C as above, xor SALT.bitmap'],
  unused: [4, 'u32', 'zero'],
  blockNr: [8, 'u64', 'own location'],
})

/** Header of the metadata index block; 255 IndexEntry slots follow. */
export const INDEX_BLOCK = layout('IndexBlockHeader', 16, {
  csum: [0, 'u32', 'CRC-32C as above, xor SALT.index'],
  padding: [4, 'u32', 'zero'],
  blockNr: [8, 'u64', 'own location'],
})
