/** A thin device as the metadata knows it: the tree of its mappings, and its details. */
import { readU64 } from '../base/index.js'
import type { BTree } from './btree/btree.js'
import { dropTree } from './btree/remove.js'
import type { TreeInfo, ValueRefs } from './btree/tree.js'
import { DEVICE_DETAILS } from './format.js'

export interface DeviceDetails {
  /** Entries in the device's tree. */
  mappedBlocks: number
  /** Transaction id of the pool when the device was made. */
  transactionId: number
  /** Time of the pool when the device was made. */
  creationTime: number
  /** Time of the last snapshot that involved the device: mappings that are older may be shared. */
  snapshottedTime: number
}

export class Device implements DeviceDetails {
  readonly devId: number
  readonly tree: BTree
  mappedBlocks: number
  transactionId: number
  creationTime: number
  snapshottedTime: number
  /** Details that the details tree lacks. */
  changed = false
  /** The epoch in which the way to the tree's root was shadowed; see DeviceTable. */
  epoch = -1
  /** The epoch of the last change. */
  changedIn = -1

  constructor(devId: number, tree: BTree, details: DeviceDetails) {
    this.devId = devId
    this.tree = tree
    this.mappedBlocks = details.mappedBlocks
    this.transactionId = details.transactionId
    this.creationTime = details.creationTime
    this.snapshottedTime = details.snapshottedTime
  }

  /** Writes the details into the tree of them. */
  flush(details: BTree): void {
    if (!this.changed) return
    details.insert(this.devId)
    DEVICE_DETAILS.write(details.view, details.at, this)
    this.changed = false
  }
}

/** A leaf of the top-level tree counts once for each device's root. */
export class DeviceRefs implements ValueRefs {
  readonly readsNoNode = false
  readonly #mappings: TreeInfo

  constructor(mappings: TreeInfo) {
    this.#mappings = mappings
  }

  inc(view: DataView, at: number): void {
    this.#mappings.transaction.counts.inc(readU64(view, at))
  }

  dec(view: DataView, at: number): void {
    dropTree(this.#mappings, readU64(view, at))
  }
}
