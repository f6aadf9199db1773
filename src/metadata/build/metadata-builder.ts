/**
 * Metadata made anew from devices and mappings: nothing of what the store held is read.
 *
 * Blocks are written one behind the other, trees from their leaves up, the space maps last and the
 * superblock, by `finish`, after all else: a store that is not finished has none.
 */
import {
  bytes,
  type DataBlock,
  MAX_METADATA_BLOCKS,
  METADATA_BLOCK_SIZE,
  writeU64,
} from '../../base/index.js'
import type { Store } from '../../storage/index.js'
import {
  BITMAP_ENTRIES_AT,
  BITMAP_KIND,
  Block,
  INDEX_ENTRIES_AT,
  INDEX_KIND,
  nodeKind,
} from '../blocks/block.js'
import { nrEntries, valueAt } from '../blocks/node.js'
import type { DeviceDetails } from '../device.js'
import { DEVICE_DETAILS, ENTRIES_PER_BITMAP, INDEX_ENTRY } from '../format.js'
import { mappedBlock, writeMapping } from '../mapping.js'
import type { SpaceMapRoot } from '../space/space-map.js'
import { superblockImage } from '../superblock.js'
import { BlockWriter } from './block-writer.js'
import { Counts } from './counts.js'
import { TreeWriter, type WrittenTree } from './tree-writer.js'

const MAPPING_KIND = nodeKind('mapping', 8)

/** The facts of the superblock, but for where things are. */
export interface NewSuperblock {
  /** 16 bytes. */
  uuid: Buffer
  flags: number
  time: number
  transactionId: number
  dataBlockSectors: number
  /** Data blocks of the pool; every mapping is below. */
  nrDataBlocks: number
}

/** The mappings of a device, or a run of them that several have. */
export class MappingWriter extends TreeWriter {
  /** Maps a virtual block behind all that were mapped. */
  map(vblock: number, dataBlock: DataBlock, time: number): void {
    const at = this.add(vblock)
    writeMapping(this.view, at, dataBlock, time)
  }
}

export class MetadataBuilder {
  readonly #store: Store
  readonly #writer: BlockWriter
  /** Pointers to metadata blocks, and mappings to data blocks. */
  readonly #pointers = new Counts()
  readonly #mappings = new Counts()
  readonly #devices = new Map<number, { root: number; details: DeviceDetails }>()

  /**
   * @param store whose first block is overwritten at once: what it holds is no metadata any more
   */
  constructor(store: Store) {
    this.#store = store
    const nrBlocks = Math.min(Math.floor(store.size / METADATA_BLOCK_SIZE), MAX_METADATA_BLOCKS)
    this.#writer = new BlockWriter(store, 1, nrBlocks)
    this.#pointers.inc(0)
    store.write(Buffer.alloc(METADATA_BLOCK_SIZE), 0, METADATA_BLOCK_SIZE, bytes(0))
  }

  get nrDevices(): number {
    return this.#devices.size
  }

  hasDevice(devId: number): boolean {
    return this.#devices.has(devId)
  }

  /** Whether a leaf or a tree belongs to a device already. */
  isOwned(block: number): boolean {
    return this.#pointers.get(block) > 0
  }

  beginMappings(): MappingWriter {
    return new MappingWriter({
      writer: this.#writer,
      counts: this.#pointers,
      kind: MAPPING_KIND,
      onLeaf: leaf => this.#countMappings(leaf),
    })
  }

  /** @param tree also one that another device has */
  addDevice(devId: number, tree: WrittenTree, details: Omit<DeviceDetails, 'mappedBlocks'>): void {
    this.#pointers.inc(tree.root)
    const all = { ...details, mappedBlocks: tree.nrEntries }
    this.#devices.set(devId, { root: tree.root, details: all })
  }

  /**
   * Writes all that is left; the superblock after all else is durable.
   * @throws NO_METADATA_SPACE
   */
  async finish(superblock: NewSuperblock): Promise<void> {
    const { nrDataBlocks, ...fields } = superblock
    const [mappingRoot, detailsRoot] = this.#writeDevices()
    const dataSpaceMap = this.#writeDataMap(nrDataBlocks)
    const metadataSpaceMap = this.#writeMetadataMap()
    this.#writer.flush()
    await this.#store.sync()
    const image = superblockImage({
      ...fields,
      heldRoot: 0,
      mappingRoot,
      detailsRoot,
      metadataNrBlocks: this.#writer.nrBlocks,
      dataSpaceMap,
      metadataSpaceMap,
    })
    this.#store.write(image, 0, METADATA_BLOCK_SIZE, bytes(0))
    await this.#store.sync()
  }

  #countMappings(leaf: Block): void {
    const nr = nrEntries(leaf)
    for (let slot = 0, at = valueAt(leaf, 0); slot < nr; slot++, at += 8) {
      this.#mappings.inc(mappedBlock(leaf.view, at))
    }
  }

  #beginTree(name: string, valueSize: number): TreeWriter {
    const kind = nodeKind(name, valueSize)
    return new TreeWriter({ writer: this.#writer, counts: this.#pointers, kind })
  }

  /** @returns the root of a tree, which has an owner now */
  #finishTree(tree: TreeWriter): number {
    const { root } = tree.finish()
    this.#pointers.inc(root)
    return root
  }

  #writeDevices(): [mappingRoot: number, detailsRoot: number] {
    const top = this.#beginTree('device', 8)
    const details = this.#beginTree('device details', DEVICE_DETAILS.size)
    const devIds = [...this.#devices.keys()].sort((a, b) => a - b)
    for (const devId of devIds) {
      const device = this.#devices.get(devId)!
      const at = top.add(devId)
      writeU64(top.view, at, device.root)
      const detailsAt = details.add(devId)
      DEVICE_DETAILS.write(details.view, detailsAt, device.details)
    }
    return [this.#finishTree(top), this.#finishTree(details)]
  }

  #writeDataMap(nrBlocks: number): SpaceMapRoot {
    const index = this.#beginTree('data index', INDEX_ENTRY.size)
    const nrBitmaps = Math.ceil(nrBlocks / ENTRIES_PER_BITMAP)
    for (let i = 0; i < nrBitmaps; i++) {
      const { content, ...entry } = bitmapOf(this.#mappings, i)
      const blockNr = this.#writer.append(BITMAP_KIND, content)
      this.#pointers.inc(blockNr)
      const at = index.add(i)
      INDEX_ENTRY.write(index.view, at, { blockNr, ...entry })
    }
    return {
      nrBlocks,
      nrAllocated: nrOwned(this.#mappings, nrBitmaps),
      bitmapRoot: this.#finishTree(index),
      refCountRoot: this.#writeOverflow(this.#mappings, nrBitmaps),
    }
  }

  /**
   * The map that describes its own blocks: where they come to be is known before they are written.
   */
  #writeMetadataMap(): SpaceMapRoot {
    const { nrBlocks } = this.#writer
    const nrBitmaps = Math.ceil(nrBlocks / ENTRIES_PER_BITMAP)
    // Nothing that is written from here on has three owners.
    const refCountRoot = this.#writeOverflow(this.#pointers, nrBitmaps)
    const firstBitmap = this.#writer.next
    const bitmapRoot = firstBitmap + nrBitmaps
    for (let nr = firstBitmap; nr <= bitmapRoot; nr++) this.#pointers.inc(nr)
    const index = new Block(bitmapRoot, INDEX_KIND, Buffer.alloc(METADATA_BLOCK_SIZE))
    for (let i = 0; i < nrBitmaps; i++) {
      const { content, ...entry } = bitmapOf(this.#pointers, i)
      const blockNr = this.#writer.append(BITMAP_KIND, content)
      const at = INDEX_ENTRIES_AT + i * INDEX_ENTRY.size
      INDEX_ENTRY.write(index.view, at, { blockNr, ...entry })
    }
    this.#writer.append(INDEX_KIND, index.bytes)
    const nrAllocated = nrOwned(this.#pointers, nrBitmaps)
    return { nrBlocks, nrAllocated, bitmapRoot, refCountRoot }
  }

  /** @returns the root of the tree of counts above 2, which has an owner */
  #writeOverflow(counts: Counts, nrBitmaps: number): number {
    const tree = this.#beginTree('overflow', 4)
    for (let index = 0; index < nrBitmaps; index++) {
      const page = counts.page(index)
      if (page === null) continue
      for (let i = 0; i < ENTRIES_PER_BITMAP; i++) {
        if (page[i]! < 3) continue
        const block = index * ENTRIES_PER_BITMAP + i
        const at = tree.add(block)
        tree.view.setUint32(at, counts.get(block), true)
      }
    }
    return this.#finishTree(tree)
  }
}

/** A bitmap block, and what its index entry says of it, as the kernel counts. */
function bitmapOf(
  counts: Counts,
  index: number,
): { content: Buffer; nrFree: number; noneFreeBefore: number } {
  const content = Buffer.alloc(METADATA_BLOCK_SIZE)
  const page = counts.page(index)
  let used = 0
  let firstFree = -1
  for (let i = 0; i < ENTRIES_PER_BITMAP; i++) {
    const count = Math.min(page?.[i] ?? 0, 3)
    if (count === 0) {
      if (firstFree < 0) firstFree = i
      if (page === null) break
      continue
    }
    used++
    // Of an entry's two bits the lower one is the high bit of the count.
    const raw = ((count & 1) << 1) | (count >>> 1)
    content[BITMAP_ENTRIES_AT + (i >>> 2)]! |= raw << (2 * (i & 3))
  }
  const noneFreeBefore = firstFree < 0 ? ENTRIES_PER_BITMAP : firstFree
  return { content, nrFree: ENTRIES_PER_BITMAP - used, noneFreeBefore }
}

function nrOwned(counts: Counts, nrBitmaps: number): number {
  let nr = 0
  for (let index = 0; index < nrBitmaps; index++) {
    for (const count of counts.page(index) ?? []) if (count > 0) nr++
  }
  return nr
}
