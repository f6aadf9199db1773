/** Checks devices: the details tree, the mapping trees, and whether the two agree. */
import { MAX_DEV_ID, readU64 } from '../../base/index.js'
import { DEVICE_DETAILS, MAX_TIME, type SUPERBLOCK } from '../format.js'
import { type BlockMap, DAMAGED } from './block-map.js'
import type { DataCounts } from './data-counts.js'
import type { Node } from './node.js'
import type { Problems } from './problems.js'
import type { Steps } from './steps.js'
import type { Tree, TreeChecker } from './trees.js'

type Superblock = ReturnType<typeof SUPERBLOCK.read>

/** Totals of the trees of a superblock, or of a metadata snapshot. */
export interface DevicesFound {
  devices: number[]
  /** A block that two devices share counts twice. */
  mappedBlocks: number
}

/** Devices that are compared in one step. */
const STEP_DEVICES = 512

export class DeviceChecker {
  readonly #blocks: BlockMap
  readonly #trees: TreeChecker
  readonly #dataCounts: DataCounts
  readonly #problems: Problems

  constructor(blocks: BlockMap, trees: TreeChecker, dataCounts: DataCounts, problems: Problems) {
    this.#blocks = blocks
    this.#trees = trees
    this.#dataCounts = dataCounts
    this.#problems = problems
  }

  /**
   * Checks the details and mapping trees that `superblock` names.
   * @param of tells the trees of a metadata snapshot apart in messages
   * @param live the superblock whose time nothing may be later than
   */
  *check(
    of: string,
    superblock: Superblock,
    live: Superblock,
    nrDataBlocks: number,
  ): Steps<DevicesFound> {
    const isSound = yield* this.visit(of, superblock, live, nrDataBlocks)
    return isSound ? yield* this.#compare(of, superblock) : { devices: [], mappedBlocks: 0 }
  }

  /** Checks the trees, and nothing of one by another. @returns whether all of them are sound */
  *visit(
    of: string,
    superblock: Superblock,
    live: Superblock,
    nrDataBlocks: number,
  ): Steps<boolean> {
    const details: Tree = {
      where: `details tree${of}`,
      role: 'details node',
      tier: 0,
      valueSize: DEVICE_DETAILS.size,
      keyLimit: MAX_DEV_ID + 1,
      leaf: () => {},
    }
    const mapping: Tree = {
      where: '',
      role: 'mapping node',
      tier: 1,
      valueSize: 8,
      keyLimit: Number.MAX_SAFE_INTEGER,
      leaf: node => this.#countMappings(mapping.where, node, live.time, nrDataBlocks),
    }
    const trees = this.#trees
    function* visitDevices(node: Node): Steps<void> {
      for (let i = 0; i < node.nrEntries; i++) {
        mapping.where = `mapping tree of device ${node.key(i)}${of}`
        yield* trees.visitRoot(mapping, node.u64(i))
      }
    }
    const top: Tree = {
      where: `top-level mapping tree${of}`,
      role: 'top-level node',
      tier: 0,
      valueSize: 8,
      keyLimit: MAX_DEV_ID + 1,
      leaf: node => visitDevices(node),
    }
    if (superblock.time > live.time) {
      this.#problems.error(
        `metadata snapshot: time is ${superblock.time}, wanted at most ${live.time}`,
      )
    }
    const detailsSound = yield* trees.visitRoot(details, superblock.detailsRoot)
    const topSound = yield* trees.visitRoot(top, superblock.mappingRoot)
    return detailsSound && topSound
  }

  /** Counts the mappings of a leaf. Called once for each leaf, however many devices share it. */
  #countMappings(where: string, node: Node, timeLimit: number, nrDataBlocks: number): void {
    const { view, nrEntries } = node
    for (let i = 0, at = node.valueAt(0); i < nrEntries; i++, at += 8) {
      // A mapping is a data block of 40 bits above a time of 24.
      const low = view.getUint32(at, true)
      const block = view.getUint32(at + 4, true) * 256 + (low >>> 24)
      const time = low & MAX_TIME
      if (block < nrDataBlocks) this.#dataCounts.add(block)
      else {
        this.#problems.error(
          `${where}: virtual block ${node.key(i)} is mapped to data block ${block}, ` +
            `wanted one below ${nrDataBlocks}`,
        )
      }
      if (time > timeLimit) {
        this.#problems.error(
          `${where}: virtual block ${node.key(i)} has time ${time}, wanted at most ${timeLimit}`,
        )
      }
    }
  }

  /**
   * Compares the two trees that have an entry for each device, and the details with what is mapped.
   */
  *#compare(of: string, { detailsRoot, mappingRoot, time }: Superblock): Steps<DevicesFound> {
    const problems = this.#problems
    const details = this.#trees.entriesOf(detailsRoot)
    const tops = this.#trees.entriesOf(mappingRoot)
    let detail = details.next().value
    let top = tops.next().value
    const devices: number[] = []
    let mappedBlocks = 0
    while (detail || top) {
      const detailId = detail?.key ?? Number.POSITIVE_INFINITY
      const topId = top?.key ?? Number.POSITIVE_INFINITY
      const devId = Math.min(detailId, topId)
      const where = `device ${devId}${of}`
      devices.push(devId)
      if (devices.length % STEP_DEVICES === 0) yield
      if (detailId > topId) problems.error(`${where} is in the top-level tree, wanted details too`)
      if (topId > detailId) problems.error(`${where} has details, wanted a mapping tree too`)
      const root = top && topId <= detailId ? readU64(top.view, top.at) : -1
      if (detail && detailId <= topId) {
        this.#checkDetails(where, DEVICE_DETAILS.read(detail.view, detail.at), time, root)
      }
      if (this.#blocks.isUsable(root, 'mapping node')) mappedBlocks += this.#blocks.entries[root]!
      if (detailId <= topId) detail = details.next().value
      if (topId <= detailId) top = tops.next().value
    }
    return { devices, mappedBlocks }
  }

  /** @param root of the device's mapping tree, -1 for none */
  #checkDetails(
    where: string,
    details: ReturnType<typeof DEVICE_DETAILS.read>,
    timeLimit: number,
    root: number,
  ): void {
    const { mappedBlocks, creationTime, snapshottedTime } = details
    const problems = this.#problems
    if (creationTime > timeLimit) {
      problems.error(`${where}: creation_time is ${creationTime}, wanted at most ${timeLimit}`)
    }
    if (snapshottedTime > timeLimit) {
      problems.error(
        `${where}: snapshotted_time is ${snapshottedTime}, wanted at most ${timeLimit}`,
      )
    }
    if (root === -1) return
    const { entries, state } = this.#blocks
    if (!this.#blocks.isUsable(root, 'mapping node') || state[root]! & DAMAGED) {
      problems.error(`${where}: some of the ${mappedBlocks} mapped blocks are in damaged nodes`)
    } else if (mappedBlocks !== entries[root]) {
      problems.error(`${where}: mapped_blocks is ${mappedBlocks}, wanted ${entries[root]}`)
    }
  }
}
