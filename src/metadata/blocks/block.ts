import { METADATA_BLOCK_SIZE } from '../../base/index.js'
import { BITMAP, INDEX_BLOCK, SALT } from '../format.js'

/**
 * The use of a metadata block. A block has one use: a block found in another one is corruption.
 */
export interface BlockKind {
  /** For messages. */
  readonly name: string
  readonly salt: number
  /** Bytes of a value in the leaves of the tree that a node belongs to; 0 when it is not a node. */
  readonly valueSize: number
}

export const SUPERBLOCK_KIND: BlockKind = {
  name: 'superblock',
  salt: SALT.superblock,
  valueSize: 0,
}
export const BITMAP_KIND: BlockKind = { name: 'bitmap', salt: SALT.bitmap, valueSize: 0 }
export const INDEX_KIND: BlockKind = { name: 'index block', salt: SALT.index, valueSize: 0 }
/** @param name of the tree */
export const nodeKind = (name: string, valueSize: number): BlockKind => ({
  name: `${name} node`,
  salt: SALT.node,
  valueSize,
})

/** The own location is at the same place in every kind of block, and the checksum comes first. */
export const BLOCK_CSUM_AT = BITMAP.at.csum
export const BLOCK_NR_AT = BITMAP.at.blockNr
/** The byte at which the entries of a bitmap and of the index block begin. */
export const BITMAP_ENTRIES_AT = BITMAP.size
export const INDEX_ENTRIES_AT = INDEX_BLOCK.size

/** On the store as it is here. */
export const CLEAN = 0
/** Belongs to a sealed transaction that is not written yet: does not change, must not be lost. */
export const SEALED = 1
/** Belongs to the running transaction. */
export const DIRTY = 2

/**
 * A metadata block in memory.
 *
 * Only dirty blocks change, and those stay in the cache. A caller that still holds a block that the
 * cache has dropped reads the right bytes, so nothing has to be pinned.
 */
export class Block {
  /** Own location, in metadata blocks. */
  readonly nr: number
  readonly kind: BlockKind
  readonly bytes: Buffer
  readonly view: DataView
  state: typeof CLEAN | typeof SEALED | typeof DIRTY = CLEAN
  /** True for a dirty block with one owner, which may be changed in place. False means unknown. */
  writable = false
  /** Used since the cache last considered to drop it. */
  referenced = true

  /** @param bytes 4096 of them, which the block takes over */
  constructor(nr: number, kind: BlockKind, bytes: Buffer) {
    this.nr = nr
    this.kind = kind
    this.bytes = bytes
    this.view = new DataView(bytes.buffer, bytes.byteOffset, METADATA_BLOCK_SIZE)
  }
}
