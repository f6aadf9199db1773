/**
 * The thin devices of a pool: the tree of their mapping trees, the tree of their details, and those
 * that were used lately, in memory.
 */
import { type DevId, MAX_DEV_ID, readU64, ThinfsError, writeU64 } from '../base/index.js'
import { nodeKind } from './blocks/block.js'
import { BTree } from './btree/btree.js'
import { readNode, type TreeInfo } from './btree/tree.js'
import { isPathShared, walk } from './btree/walk.js'
import { Device, type DeviceDetails, DeviceRefs } from './device.js'
import { DEVICE_DETAILS } from './format.js'

/** Devices kept in memory from one transaction to the next. */
const MAX_DEVICES = 4096

export class DeviceTable {
  /** Dev id to the root of the device's tree. */
  readonly top: BTree
  readonly details: BTree
  /** Kind of the devices' trees: virtual block to mapping. */
  readonly #mappings: TreeInfo
  /** Devices used so far; those with changed details are only here. */
  readonly #devices = new Map<number, Device>()
  /**
   * Counts the moments from which the way from the superblock to a device must be shadowed anew.
   */
  #epoch = 0
  /** The epochs in which the running transaction, and the one sealed last, began. */
  #runningSince = 0
  #sealedSince = 0
  /** Whether devices that the transaction sealed last had changed were let go of. */
  #sealedForgot = false
  #mappingChanges = 0

  constructor(mappings: TreeInfo) {
    const { transaction } = mappings
    this.#mappings = mappings
    const refs = new DeviceRefs(mappings)
    this.top = new BTree({ transaction, kind: nodeKind('device', 8), refs }, 0)
    const kind = nodeKind('device details', DEVICE_DETAILS.size)
    this.details = new BTree({ transaction, kind, refs: null }, 0)
  }

  /** Takes over the trees that a superblock names, as on opening. */
  reset(mappingRoot: number, detailsRoot: number): void {
    this.top.root = mappingRoot
    this.details.root = detailsRoot
    this.#devices.clear()
    this.shadowAnew()
    this.#runningSince = this.#epoch
  }

  /** Another number after any change of any device's mappings. */
  get mappingChanges(): number {
    return this.#mappingChanges
  }

  /** Something else than a device changes what can be reached: the metadata snapshot. */
  noteMappingChange(): void {
    this.#mappingChanges++
  }

  /** From now on the trees have another owner: the way to each device has to be copied again. */
  shadowAnew(): void {
    this.#mappingChanges++
    this.#epoch++
  }

  has(devId: DevId): boolean {
    return this.#devices.has(devId) || this.top.search(devId)
  }

  /** @throws DEVICE_MISSING, METADATA_CORRUPT */
  get(devId: DevId): Device {
    return this.#devices.get(devId) ?? this.#load(devId)
  }

  /** Ascending. Devices may come and go meanwhile. */
  *ids(): Generator<DevId> {
    for (let devId = 0; this.top.seek(devId); devId++) {
      devId = this.top.key
      if (devId > MAX_DEV_ID) {
        throw new ThinfsError('METADATA_CORRUPT', `thin device ${devId}: ids end at ${MAX_DEV_ID}`)
      }
      yield devId as DevId
    }
  }

  /** As `get`, of a device whose root may be changed in place, and so may the way to it. */
  writable(devId: DevId): Device {
    const device = this.get(devId)
    const { tree } = device
    device.changedIn = this.#epoch
    this.#mappingChanges++
    const isShadowed = device.epoch === this.#epoch
    if (isShadowed && tree.info.transaction.cache.peek(tree.root)?.writable) return device
    if (!this.top.insert(devId)) {
      throw new ThinfsError('METADATA_CORRUPT', `thin device ${devId} is gone from the device tree`)
    }
    writeU64(this.top.view, this.top.at, tree.writableRoot().nr)
    device.epoch = this.#epoch
    return device
  }

  /** Metadata block of the root of each device's tree, ascending by id. */
  forEachRoot(visit: (devId: DevId, root: number) => void): void {
    walk(
      this.top.info,
      readNode(this.top.info, this.top.root),
      0,
      Number.POSITIVE_INFINITY,
      (devId, { view }, at) => visit(devId as DevId, readU64(view, at)),
    )
  }

  /**
   * Notes that the mappings of a device were moved to other data blocks, and where the root of its
   * tree is since; the reference on that is the device's.
   */
  moved(devId: DevId, root: number): void {
    const { tree } = this.get(devId)
    this.get(devId).changedIn = this.#epoch
    this.#mappingChanges++
    if (tree.root === root) return
    if (!this.top.insert(devId)) {
      throw new ThinfsError('METADATA_CORRUPT', `thin device ${devId} is gone from the device tree`)
    }
    writeU64(this.top.view, this.top.at, root)
    tree.root = root
  }

  /** Adds a device that is not there; the caller's reference on the root of `tree` goes with it. */
  add(devId: DevId, tree: BTree, details: DeviceDetails): void {
    this.top.insert(devId)
    writeU64(this.top.view, this.top.at, tree.root)
    const device = new Device(devId, tree, details)
    this.noteChange(device)
    this.#mappingChanges++
    this.#devices.set(devId, device)
  }

  /** Removes a device that is there, and what its tree alone leads to. */
  remove(devId: DevId): void {
    this.#mappingChanges++
    this.#devices.delete(devId)
    this.details.remove(devId)
    this.top.remove(devId)
  }

  /** The device's details have changed. */
  noteChange(device: Device): void {
    device.changed = true
    device.changedIn = this.#epoch
  }

  /** Whether another tree leads to all of a device, as the metadata snapshot's may. */
  isPathShared(devId: DevId): boolean {
    return isPathShared(this.top.info, this.top.root, devId)
  }

  /** Writes changed details into their tree. */
  flush(): void {
    for (const device of this.#devices.values()) device.flush(this.details)
  }

  /** The running transaction is sealed, and the next begins. `flush` came before. */
  seal(): void {
    this.#epoch++
    this.#sealedSince = this.#runningSince
    this.#runningSince = this.#epoch
    this.#sealedForgot = this.#devices.size > MAX_DEVICES
    if (this.#sealedForgot) this.#devices.clear()
  }

  /**
   * Whether all that was changed about a device is durable.
   * @param isSealedDurable whether the transaction that was sealed last is
   */
  isDurable(devId: DevId, isSealedDurable: boolean): boolean {
    if (!isSealedDurable && this.#sealedForgot) return false
    const since = isSealedDurable ? this.#runningSince : this.#sealedSince
    return this.get(devId).changedIn < since
  }

  #load(devId: DevId): Device {
    if (!this.top.search(devId)) {
      throw new ThinfsError('DEVICE_MISSING', `thin device ${devId} does not exist`)
    }
    if (!this.details.search(devId)) {
      throw new ThinfsError('METADATA_CORRUPT', `thin device ${devId} has mappings but no details`)
    }
    const tree = new BTree(this.#mappings, readU64(this.top.view, this.top.at))
    const details = DEVICE_DETAILS.read(this.details.view, this.details.at)
    const device = new Device(devId, tree, details)
    this.#devices.set(devId, device)
    return device
  }
}
