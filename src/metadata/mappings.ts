/**
 * The mappings of the devices: which data block each virtual block is in.
 *
 * Every call throws DEVICE_MISSING where there is no such device. A change is one of the running
 * transaction; an error in the middle of it leaves that unusable.
 */
import { createHash } from 'node:crypto'
import { assert, type DataBlock, type DevId } from '../base/index.js'
import { walkTogether } from './btree/together.js'
import { readNode, type TreeInfo } from './btree/tree.js'
import { isPathShared, lastSliceBegin, runEnd, walk, walkExclusive } from './btree/walk.js'
import type { DeviceTable } from './device-table.js'
import { MAX_TIME, NODE } from './format.js'
import { type Mapping, mappedBlock, mappedTime, readMapping, writeMapping } from './mapping.js'
import type { DataSpaceMap } from './space/data-space-map.js'
import type { MetadataSpaceMap } from './space/metadata-space-map.js'

const { MAX_SAFE_INTEGER, POSITIVE_INFINITY } = Number

export class Mappings {
  /** Kind of the devices' trees: virtual block to mapping. */
  readonly #info: TreeInfo
  readonly #devices: DeviceTable
  readonly #data: DataSpaceMap
  readonly #metadata: MetadataSpaceMap

  /** @param info kind of the devices' trees */
  constructor(
    info: TreeInfo,
    devices: DeviceTable,
    maps: { data: DataSpaceMap; metadata: MetadataSpaceMap },
  ) {
    this.#info = info
    this.#devices = devices
    this.#data = maps.data
    this.#metadata = maps.metadata
  }

  /** @returns whether the virtual block is mapped; only then `out` is filled */
  find(devId: DevId, vblock: number, out: Mapping): boolean {
    const { tree } = this.#devices.get(devId)
    if (!tree.search(vblock)) return false
    readMapping(tree.view, tree.at, out)
    return true
  }

  /**
   * How far a device maps block after block. Costs a look at each leaf in between: `end` bounds it.
   * @returns the first virtual block at or after `begin` that is not mapped, or `end`
   */
  mappedUntil(devId: DevId, begin: number, end: number): number {
    return runEnd(this.#info, this.#root(devId), begin, end)
  }

  /** The first mapping at or after `vblock`. @returns its virtual block, or -1 */
  next(devId: DevId, vblock: number, out: Mapping): number {
    const { tree } = this.#devices.get(devId)
    if (!tree.seek(vblock)) return -1
    readMapping(tree.view, tree.at, out)
    return tree.key
  }

  /** The largest virtual block that is mapped, or -1. */
  highestMapped(devId: DevId): number {
    const { tree } = this.#devices.get(devId)
    return tree.last() ? tree.key : -1
  }

  /**
   * Visits the mappings of [begin, end), ascending. The visitor must not change the metadata, nor
   * visit mappings.
   */
  forEach(
    devId: DevId,
    begin: number,
    end: number,
    visit: (vblock: number, dataBlock: DataBlock, time: number) => void,
  ): void {
    walk(this.#info, this.#root(devId), begin, end, (vblock, { view }, at) =>
      visit(vblock, mappedBlock(view, at), mappedTime(view, at)),
    )
  }

  /**
   * Visits mappings from `begin` on, ascending, to data blocks that are the device's alone: those
   * in one leaf, so that others have their turn between two calls. The visitor must not change the
   * metadata, nor visit mappings.
   * @returns the virtual block to go on from; Infinity at the end
   */
  forEachExclusive(
    devId: DevId,
    begin: number,
    visit: (vblock: number, dataBlock: DataBlock) => void,
  ): number {
    const root = this.#root(devId)
    if (this.#devices.isPathShared(devId)) return POSITIVE_INFINITY
    return walkExclusive(this.#info, root, begin, { leaves: 1 }, (vblock, { view }, at) => {
      const dataBlock = mappedBlock(view, at)
      if (this.#data.count(dataBlock) === 1) visit(vblock, dataBlock)
    })
  }

  /**
   * As `forEachExclusive`, of some devices together: mappings of one of them, in a leaf that
   * nothing but these devices can reach. Of a leaf that several of them share, those of the first.
   * @param nr of that device among them
   * @param visit gets the data block's count too: each mapping in such a leaf is one owner
   */
  forEachExclusiveTogether(
    devIds: readonly DevId[],
    nr: number,
    begin: number,
    visit: (vblock: number, dataBlock: DataBlock, count: number) => void,
  ): number {
    const { tree } = this.#devices.get(devIds[nr]!)
    // Nothing is a device's alone that the metadata snapshot leads to.
    const isOwn = (devId: DevId): boolean => !this.#devices.isPathShared(devId)
    if (!isOwn(devIds[nr]!) || !tree.seek(begin)) return POSITIVE_INFINITY
    const key = tree.key
    const own = devIds.filter(isOwn)
    const roots = own.map(devId => this.#devices.get(devId).tree.root)
    const at = own.indexOf(devIds[nr]!)
    return walkTogether(this.#info, roots, at, key, (vblock, { view }, place) => {
      const dataBlock = mappedBlock(view, place)
      visit(vblock, dataBlock, this.#data.count(dataBlock))
    })
  }

  /**
   * Whether something else can reach the data block that a virtual block is mapped to: another
   * device or the metadata snapshot. The time of the mapping, by which dm-thin judges, may say so
   * wrongly.
   *
   * A power cut brings the last durable transaction back, and with it an owner that has given the
   * block up since. So while a transaction that took owners away is not durable, everything with
   * an old time counts as shared.
   */
  isReallyShared(devId: DevId, vblock: number): boolean {
    const { tree } = this.#devices.get(devId)
    if (this.#data.hasDisowned || this.#metadata.hasDisowned) return true
    return (
      tree.search(vblock) &&
      (this.#data.count(mappedBlock(tree.view, tree.at)) > 1 ||
        isPathShared(this.#info, tree.root, vblock) ||
        this.#devices.isPathShared(devId))
    )
  }

  /** Whether a virtual block is mapped to a data block that nothing else leads to now. */
  isExclusive(devId: DevId, vblock: number): boolean {
    const { tree } = this.#devices.get(devId)
    return (
      tree.search(vblock) &&
      this.#data.count(mappedBlock(tree.view, tree.at)) === 1 &&
      !isPathShared(this.#info, tree.root, vblock) &&
      !this.#devices.isPathShared(devId)
    )
  }

  /**
   * Maps a virtual block, over what it was mapped to. Takes over the caller's reference on the data
   * block, unless the virtual block is mapped to that already.
   */
  insert(devId: DevId, vblock: number, dataBlock: DataBlock, time: number): void {
    assert(time <= MAX_TIME, 'a mapping has 24 bits of time')
    const device = this.#devices.writable(devId)
    const { tree } = device
    const found = tree.insert(vblock)
    const old = found ? mappedBlock(tree.view, tree.at) : dataBlock
    writeMapping(tree.view, tree.at, dataBlock, time)
    if (old !== dataBlock) this.#data.dec(old)
    if (found) return
    device.mappedBlocks++
    device.changed = true
  }

  /**
   * Unmaps [begin, end). Shared leaves are dropped without being read.
   * @param end may be Infinity
   * @returns how many virtual blocks were mapped
   */
  removeRange(devId: DevId, begin: number, end: number): number {
    const { tree } = this.#devices.get(devId)
    if (!tree.seek(begin) || tree.key >= end) return 0
    const device = this.#devices.writable(devId)
    const removed = tree.removeRange(begin, end < MAX_SAFE_INTEGER ? end : POSITIVE_INFINITY)
    device.mappedBlocks -= removed
    device.changed = true
    return removed
  }

  /**
   * The beginning of a device's last slice: `removeRange(devId, begin, Infinity)` from there
   * touches at most `leaves` leaves. 0 when `deleteDevice` would do no more work than that: shared
   * parts of the tree cost it nothing.
   */
  sliceBegin(devId: DevId, leaves: number): number {
    const root = this.#root(devId)
    if (this.#devices.isPathShared(devId)) return 0
    return lastSliceBegin(this.#info, root, leaves)
  }

  /** Metadata block of the root of a device's tree. */
  rootOf(devId: DevId): number {
    return this.#root(devId).nr
  }

  /**
   * A text that is another one after any change of the mappings of a device that a commit has
   * ended. Writes in place change no mapping: `markShared`, or a snapshot, sees to it that the
   * first one does.
   */
  fingerprint(devId: DevId): string {
    const { transactionId, creationTime } = this.#devices.get(devId)
    const root = this.#root(devId)
    const hash = createHash('sha256')
    hash.update(`${devId} ${transactionId} ${creationTime} ${root.nr} `)
    // Location and checksum come with the commit.
    hash.update(root.bytes.subarray(NODE.at.nrEntries))
    return hash.digest('hex').slice(0, 32)
  }

  #root(devId: DevId) {
    return readNode(this.#info, this.#devices.get(devId).tree.root)
  }
}
