import { type DevId, readU64, ThinfsError, writeU64 } from '../base/index.js'
import { SUPERBLOCK_KIND } from './blocks/block.js'
import type { Transaction } from './blocks/transaction.js'
import { BTree } from './btree/btree.js'
import { dropTree } from './btree/remove.js'
import { readNode, type TreeInfo } from './btree/tree.js'
import { isPathShared, lastSliceBegin } from './btree/walk.js'
import type { DeviceTable } from './device-table.js'
import { DEVICE_DETAILS } from './format.js'
import type { MetadataSpaceMap } from './space/metadata-space-map.js'
import { decodeSuperblock, encodeSuperblock, type Superblock } from './superblock.js'

const NO_SPACE_MAP = { nrBlocks: 0, nrAllocated: 0, bitmapRoot: 0, refCountRoot: 0 }

/**
 * The metadata snapshot: a copy of the superblock, which is the held root, names trees that it
 * shares with the live ones. There is at most one.
 */
export class MetadataSnapshot {
  readonly #transaction: Transaction
  readonly #metadataMap: MetadataSpaceMap
  /** Kind of the devices' trees: virtual block to mapping. */
  readonly #mappings: TreeInfo
  readonly #devices: DeviceTable

  constructor(
    transaction: Transaction,
    metadataMap: MetadataSpaceMap,
    mappings: TreeInfo,
    devices: DeviceTable,
  ) {
    this.#transaction = transaction
    this.#metadataMap = metadataMap
    this.#mappings = mappings
    this.#devices = devices
  }

  /**
   * Holds the trees as they are now. They are shared with the live ones from here on.
   * @param superblock the live one
   * @returns the held root
   * @throws SNAPSHOT_HELD
   */
  reserve(superblock: Superblock): number {
    const { heldRoot } = superblock
    if (heldRoot !== 0) {
      throw new ThinfsError('SNAPSHOT_HELD', `metadata block ${heldRoot} holds one`)
    }
    const { top, details } = this.#devices
    this.#devices.flush()
    const copy = this.#transaction.create(SUPERBLOCK_KIND)
    encodeSuperblock(copy, {
      ...superblock,
      mappingRoot: top.root,
      detailsRoot: details.root,
      dataSpaceMap: NO_SPACE_MAP,
      metadataSpaceMap: NO_SPACE_MAP,
    })
    this.#metadataMap.inc(top.root)
    this.#metadataMap.inc(details.root)
    this.#devices.shadowAnew()
    return copy.nr
  }

  /**
   * Releases the snapshot, or a part of it: what is left is a snapshot with fewer mappings and
   * devices, which a crash may leave.
   * @param leaves of mapping trees to visit at most
   * @returns the held root, 0 when nothing is left
   * @throws SNAPSHOT_NOT_HELD
   */
  release(heldRoot: number, leaves: number): number {
    if (heldRoot === 0) throw new ThinfsError('SNAPSHOT_NOT_HELD', 'held root is 0')
    const held = this.#transaction.cache.read(heldRoot, SUPERBLOCK_KIND)
    const copy = decodeSuperblock(held)
    this.#devices.noteMappingChange()
    const top = new BTree(this.#devices.top.info, copy.mappingRoot)
    // A tree that has other owners loses one reference, whatever its size.
    if (
      this.#metadataMap.isShared(top.root) ||
      !top.last() ||
      leaves === Number.POSITIVE_INFINITY
    ) {
      dropTree(top.info, copy.mappingRoot)
      dropTree(this.#devices.details.info, copy.detailsRoot)
      this.#metadataMap.dec(heldRoot)
      return 0
    }
    const details = new BTree(this.#devices.details.info, copy.detailsRoot)
    this.#releaseLastDevice(top, details, leaves)
    const changed = this.#transaction.shadow(held)
    encodeSuperblock(changed, { ...copy, mappingRoot: top.root, detailsRoot: details.root })
    return changed.nr
  }

  /** Takes the last device out of the snapshot, or some of its mappings if it has many. */
  #releaseLastDevice(top: BTree, details: BTree, leaves: number): void {
    const devId = top.key as DevId
    const tree = new BTree(this.#mappings, readU64(top.view, top.at))
    const isShared = isPathShared(top.info, top.root, devId)
    const info = this.#mappings
    const begin = isShared ? 0 : lastSliceBegin(info, readNode(info, tree.root), leaves)
    if (begin <= 0) {
      // Without progress the caller would go on for ever.
      if (!top.remove(devId)) throw lostDevice(devId)
      details.remove(devId)
      return
    }
    if (!top.insert(devId) || !details.insert(devId)) {
      throw lostDevice(devId)
    }
    const removed = tree.removeRange(begin, Number.POSITIVE_INFINITY)
    if (removed === 0) throw lostDevice(devId)
    writeU64(top.view, top.at, tree.root)
    const found = DEVICE_DETAILS.read(details.view, details.at)
    const mappedBlocks = found.mappedBlocks - removed
    DEVICE_DETAILS.write(details.view, details.at, { ...found, mappedBlocks })
  }
}

const lostDevice = (devId: DevId): ThinfsError =>
  new ThinfsError('METADATA_CORRUPT', `metadata snapshot: thin device ${devId} is gone`)
