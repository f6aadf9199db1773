/**
 * Metadata made of what can still be read of damaged metadata.
 *
 * A device's mappings that are in a block that cannot be read are lost, and named. All others are as
 * they were. Both space maps are made anew. Nothing of the damaged metadata is changed.
 */
import {
  bytes,
  isDataBlockSize,
  METADATA_BLOCK_SIZE,
  SECTOR_SIZE,
  ThinfsError,
} from '../../base/index.js'
import type { Store } from '../../storage/index.js'
import { Block, SUPERBLOCK_KIND } from '../blocks/block.js'
import { keyAt, nrEntries, valueAt } from '../blocks/node.js'
import { MetadataBuilder, type WrittenLeaf, type WrittenTree } from '../build/index.js'
import type { DeviceDetails } from '../device.js'
import {
  MAX_DATA_BLOCKS,
  MAX_TIME,
  SUPERBLOCK,
  SUPERBLOCK_MAGIC,
  SUPERBLOCK_VERSION,
  UUID_SIZE,
} from '../format.js'
import { mappedBlock, mappedTime } from '../mapping.js'
import { decodeSuperblock, readSuperblock, type Superblock } from '../superblock.js'
import { devicesOf, type FoundDevices, searchRoots } from './roots.js'
import { type LostRange, SoundNodes } from './sound-nodes.js'

/** What is known of a pool beside its metadata, for a superblock that cannot be read. */
export interface PoolFacts {
  dataBlockSectors: number
  /** Data blocks that are there. */
  nrDataBlocks: number
  /** 16 bytes of the pool's id; null where it is not known. */
  uuid: Buffer | null
  transactionId: number | null
  /** Devices that have names. */
  devIds: ReadonlySet<number> | null
}

export interface RepairReport {
  /** What is wrong with the superblock; null where it was used as it is. */
  superblock: string | null
  /** Whether the trees were found by a search of all blocks. */
  searched: boolean
  transactionId: number
  devices: number
  mappedBlocks: number
  lost: LostMappings[]
  /** Devices of which not even the mappings' root is known, by ranges of ids [begin, end). */
  lostDevices: LostRange[]
  /** Devices whose details are made up: when they were made is not known. */
  withoutDetails: number[]
}

/** Virtual blocks [begin, end) of a device whose mappings are lost, where it had some. */
export interface LostMappings extends LostRange {
  devId: number
}

/** Progress of a repair, by metadata blocks that were looked at. */
export type OnRepairProgress = (done: number, all: number) => void

/**
 * Makes new metadata in `target` of the damaged one in `source`.
 * @throws METADATA_CORRUPT when nothing can be found; NO_METADATA_SPACE when `target` is too small
 */
export async function repairMetadata(
  source: Store,
  target: Store,
  facts: PoolFacts,
  onProgress: OnRepairProgress,
): Promise<RepairReport> {
  const nodes = new SoundNodes(source)
  const { superblock, problem } = superblockOf(source)
  const { found, searched } = findDevices(source, nodes, { superblock, problem, facts, onProgress })
  const said = superblock?.dataSpaceMap.nrBlocks ?? 0
  const isSaid = said > 0 && (problem === null || said <= facts.nrDataBlocks)
  const nrDataBlocks = isSaid ? said : facts.nrDataBlocks
  const rescue = new Rescue(nodes, target, { nrDataBlocks, onProgress })
  for (const [devId, root] of found.roots) rescue.device(devId, root)
  return await rescue.finish({ found, searched, superblock, problem, facts })
}

/** The superblock, or what can be read of it, and what is wrong with it. */
function superblockOf(source: Store): { superblock: Superblock | null; problem: string | null } {
  try {
    return { superblock: readSuperblock(source), problem: null }
  } catch (err) {
    // What something newer wrote is not damaged.
    if (!(err instanceof ThinfsError) || err.code === 'METADATA_UNSUPPORTED') throw err
    return { superblock: readAnyway(source), problem: err.message }
  }
}

/** A superblock whose checksum or roots are wrong, and which is plausible otherwise. */
function readAnyway(source: Store): Superblock | null {
  const content = Buffer.alloc(METADATA_BLOCK_SIZE)
  if (source.size < content.length) return null
  try {
    source.read(content, 0, content.length, bytes(0))
    const isOne =
      content.readBigUInt64LE(SUPERBLOCK.at.magic) === BigInt(SUPERBLOCK_MAGIC) &&
      content.readUInt32LE(SUPERBLOCK.at.version) === SUPERBLOCK_VERSION
    if (!isOne) return null
    const superblock = decodeSuperblock(new Block(0, SUPERBLOCK_KIND, content))
    return superblock.dataSpaceMap.nrBlocks <= MAX_DATA_BLOCKS ? superblock : null
  } catch (err) {
    if (err instanceof ThinfsError) return null
    throw err
  }
}

interface Finding {
  superblock: Superblock | null
  problem: string | null
  facts: PoolFacts
  onProgress: OnRepairProgress
}

/** The trees that the superblock names, unless their roots cannot be read; else those of a search. */
function findDevices(
  source: Store,
  nodes: SoundNodes,
  { superblock, problem, facts, onProgress }: Finding,
): { found: FoundDevices; searched: boolean } {
  const named = superblock && devicesOf(nodes, superblock.mappingRoot, superblock.detailsRoot)
  if (named !== null) {
    const { roots, lostDevices, lostDetails } = named
    // What a superblock says whose checksum is wrong counts where it leads to all there is.
    const isAll = lostDevices.length === 0 && lostDetails.length === 0
    const isSure = problem === null ? roots.size > 0 || lostDevices.length === 0 : isAll
    if (isSure) return { found: named, searched: false }
  }
  const steps = searchRoots(source, { devIds: facts.devIds, onProgress })
  let step = steps.next()
  while (!step.done) step = steps.next()
  if (step.value !== null) return { found: step.value, searched: true }
  if (named !== null && named.roots.size > 0) return { found: named, searched: false }
  const what = `${source.path}: no tree of devices can be found; ${problem ?? 'its root is damaged'}`
  throw new ThinfsError('METADATA_CORRUPT', what)
}

/** Copies trees of mappings, as far as they can be read. */
class Rescue {
  readonly #nodes: SoundNodes
  readonly #builder: MetadataBuilder
  readonly #nrDataBlocks: number
  readonly #onProgress: OnRepairProgress
  /** Copies of the trees and leaves that were read, by their old place. */
  readonly #trees = new Map<number, { tree: WrittenTree; lost: LostRange[] }>()
  readonly #leaves = new Map<number, WrittenLeaf>()
  readonly #devices = new Map<number, WrittenTree>()
  readonly #lost: LostMappings[] = []
  #mappedBlocks = 0
  #time = 0
  #read = 0

  constructor(
    nodes: SoundNodes,
    target: Store,
    options: { nrDataBlocks: number; onProgress: OnRepairProgress },
  ) {
    this.#nodes = nodes
    this.#builder = new MetadataBuilder(target)
    this.#nrDataBlocks = options.nrDataBlocks
    this.#onProgress = options.onProgress
  }

  /** Copies the mappings of a device. */
  device(devId: number, root: number): void {
    let copy = this.#trees.get(root)
    if (copy === undefined) {
      copy = this.#copy(root)
      this.#trees.set(root, copy)
    }
    for (const range of copy.lost) this.#lost.push({ devId, ...range })
    this.#mappedBlocks += copy.tree.nrEntries
    this.#devices.set(devId, copy.tree)
  }

  #copy(root: number): { tree: WrittenTree; lost: LostRange[] } {
    const lost: LostRange[] = []
    const tree = this.#builder.beginMappings()
    this.#nodes.visit(root, 8, {
      knows: (nr, begin, end) => {
        const leaf = this.#leaves.get(nr)
        if (leaf === undefined || !this.#builder.isOwned(leaf.nr)) return false
        if (leaf.firstKey < begin || leaf.lastKey >= end) return false
        tree.share(leaf)
        return true
      },
      leaf: node => {
        this.#onProgress(++this.#read, this.#nodes.nrBlocks)
        const { nr } = node
        if (this.#isSound(node, lost)) {
          const written = tree.append(node)
          if (written !== null) this.#leaves.set(nr, written)
          return
        }
        for (let slot = 0; slot < nrEntries(node); slot++) {
          const at = valueAt(node, slot)
          const dataBlock = mappedBlock(node.view, at)
          if (dataBlock >= this.#nrDataBlocks) continue
          tree.map(keyAt(node, slot), dataBlock, mappedTime(node.view, at))
        }
      },
      lost: range => lost.push(range),
    })
    return { tree: tree.finish(), lost }
  }

  /** Whether all mappings of a leaf lead to blocks that the pool has; those that do not are lost. */
  #isSound(leaf: Block, lost: LostRange[]): boolean {
    let isSound = true
    for (let slot = 0; slot < nrEntries(leaf); slot++) {
      const at = valueAt(leaf, slot)
      const dataBlock = mappedBlock(leaf.view, at)
      this.#time = Math.max(this.#time, mappedTime(leaf.view, at))
      if (dataBlock < this.#nrDataBlocks) continue
      isSound = false
      const begin = keyAt(leaf, slot)
      const why = `mapped to data block ${dataBlock}, of ${this.#nrDataBlocks}`
      lost.push({ begin, end: begin + 1, why })
    }
    return isSound
  }

  async finish(of: Omit<Finding, 'onProgress'> & { found: FoundDevices; searched: boolean }) {
    const { found, searched, superblock, problem, facts } = of
    const withoutDetails: number[] = []
    for (const { creationTime, snapshottedTime } of found.details.values()) {
      this.#time = Math.max(this.#time, creationTime, snapshottedTime)
    }
    const time = Math.min(Math.max(this.#time, superblock?.time ?? 0), MAX_TIME)
    const transactionId = this.#transactionOf(of)
    for (const [devId, tree] of this.#devices) {
      const details = found.details.get(devId)
      if (details === undefined) withoutDetails.push(devId)
      // With the present time all mappings look shared: nothing of it is written in place.
      const madeUp = { transactionId, creationTime: time, snapshottedTime: time }
      this.#builder.addDevice(devId, tree, details === undefined ? madeUp : within(details, time))
    }
    await this.#builder.finish({
      uuid: superblock?.uuid ?? facts.uuid ?? Buffer.alloc(UUID_SIZE),
      flags: 0,
      time,
      transactionId,
      dataBlockSectors: this.#blockSizeOf(superblock, facts),
      nrDataBlocks: this.#nrDataBlocks,
    })
    const report: RepairReport = {
      superblock: problem,
      searched,
      transactionId,
      devices: this.#devices.size,
      mappedBlocks: this.#mappedBlocks,
      lost: this.#lost,
      lostDevices: found.lostDevices,
      withoutDetails,
    }
    return report
  }

  #transactionOf({
    superblock,
    facts,
    found,
  }: Pick<Finding, 'superblock' | 'facts'> & { found: FoundDevices }): number {
    if (superblock !== null) return superblock.transactionId
    if (facts.transactionId !== null) return facts.transactionId
    let last = 0
    for (const { transactionId } of found.details.values()) last = Math.max(last, transactionId)
    return last
  }

  #blockSizeOf(superblock: Superblock | null, facts: PoolFacts): number {
    const size = superblock?.dataBlockSectors ?? 0
    return isDataBlockSize(size * SECTOR_SIZE) ? size : facts.dataBlockSectors
  }
}

function within(details: DeviceDetails, time: number): DeviceDetails {
  const { creationTime, snapshottedTime } = details
  return {
    ...details,
    creationTime: Math.min(creationTime, time),
    snapshottedTime: Math.min(snapshottedTime, time),
  }
}
