/**
 * Metadata made of what can still be read of damaged metadata.
 *
 * A device's mappings that are in a block that cannot be read are lost, and named. All others are
 * as they were. Both space maps are made anew. Nothing of the damaged metadata is changed.
 */
import { type DataBlock, SECTOR_SIZE } from '../../base/index.js'
import type { Store } from '../../storage/index.js'
import type { Block } from '../blocks/block.js'
import { keyAt, nrEntries, valueAt } from '../blocks/node.js'
import {
  type MappingWriter,
  MetadataBuilder,
  type WrittenLeaf,
  type WrittenTree,
} from '../build/index.js'
import { mappedBlock, mappedTime } from '../mapping.js'
import {
  DamagedMetadata,
  type LostMappings,
  type OnRepairProgress,
  type PoolFacts,
  type RepairReport,
} from './damaged.js'
import type { LostRange } from './sound-nodes.js'

/** Lost blocks of a device that a rescue marks; where there are more it leaves the device out. */
const MAX_MARKED = 2 ** 24

/**
 * Makes new metadata in `target` of the damaged one in `source`. Lost blocks are not mapped.
 * @throws METADATA_CORRUPT when nothing can be found; METADATA_UNSUPPORTED; NO_METADATA_SPACE when
 *   `target` is too small
 */
export async function repairMetadata(
  source: Store,
  target: Store,
  facts: PoolFacts,
  onProgress: OnRepairProgress,
): Promise<RepairReport> {
  const damaged = new DamagedMetadata(source, facts, onProgress)
  const copier = new Copier({ damaged, target, onProgress, lostBlock: null })
  for (const [devId, root] of damaged.found.roots) copier.device(devId, root, 0)
  return await copier.finish()
}

export interface RescueReport extends RepairReport {
  /** Bytes. */
  dataBlockSize: number
  /** The devices that are there, each with the virtual block at which its mappings end. */
  ends: Map<number, number>
}

/**
 * As `repairMetadata`, to be read alone: what is lost is mapped to a place behind the data, where a
 * read fails. It is not metadata that a check would pass.
 * @param sizeOf bytes of a device; null where nobody knows
 */
export async function rescueMetadata(
  source: Store,
  target: Store,
  facts: PoolFacts & { sizeOf(devId: number): number | null },
  onProgress: OnRepairProgress,
): Promise<RescueReport> {
  const damaged = new DamagedMetadata(source, facts, onProgress)
  const dataBlockSize = damaged.dataBlockSectors * SECTOR_SIZE
  const lostBlock = (Math.ceil(facts.dataSize / dataBlockSize) + 1) as DataBlock
  const copier = new Copier({ damaged, target, onProgress, lostBlock })
  for (const [devId, root] of damaged.found.roots) {
    const size = facts.sizeOf(devId)
    // So many blocks may follow the last that is known.
    const mapped = damaged.found.details.get(devId)?.mappedBlocks ?? 1
    copier.device(devId, root, size === null ? -mapped : Math.ceil(size / dataBlockSize))
  }
  const { ends } = copier
  return { ...(await copier.finish()), dataBlockSize, ends }
}

interface CopierParts {
  damaged: DamagedMetadata
  target: Store
  onProgress: OnRepairProgress
  /** The data block that lost blocks are mapped to; null: none. */
  lostBlock: DataBlock | null
}

interface Copy {
  tree: WrittenTree
  lost: LostRange[]
  /** Lost blocks that are mapped all the same. */
  marked: number
  end: number
}

/** Copies trees of mappings, as far as they can be read. */
class Copier {
  readonly ends = new Map<number, number>()
  readonly #parts: CopierParts
  readonly #builder: MetadataBuilder
  readonly #nrDataBlocks: number
  /** Copies of the trees and leaves that were read whole, by their old place. */
  readonly #trees = new Map<number, Copy>()
  readonly #leaves = new Map<number, WrittenLeaf>()
  readonly #devices = new Map<number, WrittenTree>()
  readonly #lost: LostMappings[] = []
  #marked = 0
  /** The latest time of a mapping. */
  #time = 0
  #read = 0

  constructor(parts: CopierParts) {
    const { damaged, target, lostBlock } = parts
    this.#parts = parts
    this.#builder = new MetadataBuilder(target)
    // If the data is cut off, a rescue knows that the missing part cannot be read.
    const { nrDataBlocks, nrDataBlocksThere } = damaged
    this.#nrDataBlocks =
      lostBlock === null ? nrDataBlocks : Math.min(nrDataBlocks, nrDataBlocksThere)
  }

  /**
   * Copies the mappings of a device.
   * @param end the virtual block at which it ends; negative: so many blocks after the last known
   *   one
   */
  device(devId: number, root: number, end: number): void {
    let copy = this.#trees.get(root)
    if (copy === undefined) {
      copy = this.#copy(root, end)
      if (copy.lost.length === 0) this.#trees.set(root, copy)
    }
    for (const range of copy.lost) this.#lost.push({ devId, ...range })
    if (copy.marked > MAX_MARKED) return
    this.#marked += copy.marked
    this.#devices.set(devId, copy.tree)
    this.ends.set(devId, copy.end)
  }

  async finish(): Promise<RepairReport> {
    const as = { time: this.#time, nrDataBlocks: this.#nrDataBlocks }
    const report = await this.#parts.damaged.finish(this.#builder, this.#devices, as)
    const mappedBlocks = report.mappedBlocks - this.#marked
    return { ...report, mappedBlocks, lost: this.#lost }
  }

  #copy(root: number, deviceEnd: number): Copy {
    const { lostBlock, onProgress } = this.#parts
    const { nodes } = this.#parts.damaged
    const lost: LostRange[] = []
    const tree = this.#builder.beginMappings()
    let marked = 0
    const lose = (range: LostRange): void => {
      const last = lost.at(-1)
      if (last?.end === range.begin && last.why === range.why) last.end = range.end
      else lost.push(range)
      if (lostBlock === null) return
      const known = deviceEnd >= 0 ? Math.max(deviceEnd, range.begin) : range.begin - deviceEnd
      const end = Math.min(range.end, known)
      marked += end - range.begin
      if (marked > MAX_MARKED) return
      for (let vblock = range.begin; vblock < end; vblock++) tree.map(vblock, lostBlock, 0)
    }
    nodes.visit(root, 8, {
      knows: (nr, begin, end) => {
        const leaf = this.#leaves.get(nr)
        if (leaf === undefined || !this.#builder.isOwned(leaf.nr)) return false
        if (leaf.firstKey < begin || leaf.lastKey >= end) return false
        tree.share(leaf)
        return true
      },
      leaf: node => {
        onProgress(++this.#read, nodes.nrBlocks)
        const { nr } = node
        if (this.#isWithin(node)) {
          const written = tree.append(node)
          if (written !== null) this.#leaves.set(nr, written)
        } else this.#copyEach(node, tree, lose)
      },
      lost: lose,
    })
    const end = tree.lastKey + 1
    return { tree: tree.finish(), lost, marked, end }
  }

  /** Whether all mappings of a leaf lead to blocks that the pool has. */
  #isWithin(leaf: Block): boolean {
    let isWithin = true
    for (let slot = 0; slot < nrEntries(leaf); slot++) {
      const at = valueAt(leaf, slot)
      this.#time = Math.max(this.#time, mappedTime(leaf.view, at))
      if (mappedBlock(leaf.view, at) >= this.#nrDataBlocks) isWithin = false
    }
    return isWithin
  }

  #copyEach(leaf: Block, tree: MappingWriter, lose: (range: LostRange) => void): void {
    const why = `they lead to data blocks beyond the ${this.#nrDataBlocks} that there are`
    for (let slot = 0; slot < nrEntries(leaf); slot++) {
      const at = valueAt(leaf, slot)
      const key = keyAt(leaf, slot)
      const dataBlock = mappedBlock(leaf.view, at)
      if (dataBlock >= this.#nrDataBlocks) lose({ begin: key, end: key + 1, why })
      else tree.map(key, dataBlock, mappedTime(leaf.view, at))
    }
  }
}
