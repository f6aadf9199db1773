/**
 * Mapping trees as they are in the store, for a reader in another process: it changes nothing,
 * takes little memory, and somebody else sees to it that the trees stay as they are.
 */
import { type DataBlock, MAX_DEV_ID, readU64, ThinfsError } from '../base/index.js'
import type { Store } from '../storage/index.js'
import { nodeKind, SUPERBLOCK_KIND } from './blocks/block.js'
import { BlockCache } from './blocks/block-cache.js'
import { Transaction } from './blocks/transaction.js'
import { BTree } from './btree/btree.js'
import { type DifferenceRange, differences } from './btree/difference.js'
import type { TreeInfo } from './btree/tree.js'
import type { DeviceDetails } from './device.js'
import { DEVICE_DETAILS } from './format.js'
import { mappedBlock, mappedTime } from './mapping.js'
import { decodeSuperblock, readSuperblock, type Superblock } from './superblock.js'

/** 1 MiB of metadata blocks: those near the roots. */
const CACHE_BLOCKS = 256

/** The data blocks that two devices map a virtual block to; -1 where one does not map it. */
export type VisitPair = (vblock: number, left: DataBlock | -1, right: DataBlock | -1) => void

/** A thin device as metadata has it. */
export interface ViewedDevice {
  devId: number
  /** Metadata block of the root of its mapping tree. */
  root: number
  details: DeviceDetails
}

/** Neighbours that are mapped to neighbours, at one time. */
export interface MappedRun {
  begin: number
  dataBegin: number
  length: number
  time: number
}

export class MetadataView {
  readonly #store: Store
  readonly #transaction: Transaction
  readonly #mappings: TreeInfo
  readonly #tops: TreeInfo
  readonly #details: TreeInfo

  /** @param store in which nothing changes of what is looked at */
  constructor(store: Store) {
    const transaction = new Transaction(new BlockCache(store, CACHE_BLOCKS))
    this.#store = store
    this.#transaction = transaction
    this.#mappings = { transaction, kind: nodeKind('mapping', 8), refs: null }
    this.#tops = { transaction, kind: nodeKind('device', 8), refs: null }
    const kind = nodeKind('device details', DEVICE_DETAILS.size)
    this.#details = { transaction, kind, refs: null }
  }

  /**
   * @param held the block of a metadata snapshot; null for the live superblock
   * @throws METADATA_CORRUPT, METADATA_UNSUPPORTED
   */
  superblock(held: number | null): Superblock {
    if (held === null) return readSuperblock(this.#store)
    return decodeSuperblock(this.#transaction.cache.read(held, SUPERBLOCK_KIND))
  }

  /** The devices that a superblock leads to, ascending. @throws METADATA_CORRUPT */
  *devices({ mappingRoot, detailsRoot }: Superblock): Generator<ViewedDevice> {
    const top = new BTree(this.#tops, mappingRoot)
    const details = new BTree(this.#details, detailsRoot)
    for (let devId = 0; top.seek(devId); devId++) {
      devId = top.key
      if (devId > MAX_DEV_ID || !details.search(devId)) {
        throw new ThinfsError('METADATA_CORRUPT', `thin device ${devId} has no details`)
      }
      const found = DEVICE_DETAILS.read(details.view, details.at)
      yield { devId, root: readU64(top.view, top.at), details: found }
    }
  }

  /** The runs of a mapping tree, ascending. @throws METADATA_CORRUPT */
  *runs(root: number): Generator<MappedRun> {
    let done: MappedRun[] = []
    let run: MappedRun | null = null
    const never = (): void => {}
    const range = { begin: 0, end: Number.POSITIVE_INFINITY, shared: true }
    const steps = differences(this.#mappings, null, root, range, {
      leftOnly: never,
      both: never,
      rightOnly(vblock, view, at) {
        const dataBlock = mappedBlock(view, at)
        const time = mappedTime(view, at)
        const isNext =
          run !== null &&
          run.begin + run.length === vblock &&
          run.dataBegin + run.length === dataBlock &&
          run.time === time
        if (isNext) run!.length++
        else {
          if (run !== null) done.push(run)
          run = { begin: vblock, dataBegin: dataBlock, length: 1, time }
        }
      },
    })
    while (!steps.next().done) {
      yield* done
      done = []
    }
    yield* done
    if (run !== null) yield run
  }

  /**
   * Visits the virtual blocks, ascending, that two mapping trees may map to different data blocks.
   * Yields where work may pause, some hundred visits apart at most.
   * @param left root of a mapping tree; null for a device that maps nothing
   * @throws METADATA_CORRUPT
   */
  compare(
    left: number | null,
    right: number | null,
    range: DifferenceRange,
    visit: VisitPair,
  ): Generator<void> {
    return differences(this.#mappings, left, right, range, {
      leftOnly: (vblock, view, at) => visit(vblock, mappedBlock(view, at), -1),
      rightOnly: (vblock, view, at) => visit(vblock, -1, mappedBlock(view, at)),
      both: (vblock, one, at, other, otherAt) =>
        visit(vblock, mappedBlock(one, at), mappedBlock(other, otherAt)),
    })
  }
}
