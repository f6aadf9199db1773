/** Checks the two space maps: their blocks, and the counts they store against the pointers seen. */
import { readU64 } from '../../base/index.js'
import {
  BITMAP,
  ENTRIES_PER_BITMAP,
  INDEX_BLOCK,
  INDEX_ENTRY,
  SALT,
  type SPACE_MAP_ROOT,
} from '../format.js'
import type { BlockMap } from './block-map.js'
import type { DataCounts } from './data-counts.js'
import { Differences } from './differences.js'
import type { Problems } from './problems.js'
import type { Steps } from './steps.js'
import type { Tree, TreeChecker } from './trees.js'

type SpaceMapRoot = ReturnType<typeof SPACE_MAP_ROOT.read>
type MapName = 'metadata' | 'data'

/**
 * Is told of each block that is counted more often than it has owners, where all owners are known.
 */
export type OnLeak = (map: MapName, block: number, excess: number) => void

export class SpaceMapChecker {
  readonly #blocks: BlockMap
  readonly #trees: TreeChecker
  readonly #dataCounts: DataCounts
  readonly #problems: Problems
  readonly #onLeak: OnLeak | null

  constructor(
    blocks: BlockMap,
    trees: TreeChecker,
    dataCounts: DataCounts,
    problems: Problems,
    onLeak: OnLeak | null,
  ) {
    this.#onLeak = onLeak
    this.#blocks = blocks
    this.#trees = trees
    this.#dataCounts = dataCounts
    this.#problems = problems
  }

  /** @returns the bitmap of each index; 0 for one that cannot be read */
  readIndexBlock(metadata: SpaceMapRoot): number[] {
    const block = metadata.bitmapRoot
    const blocks = this.#blocks
    if (!blocks.visitPlain(block, 'metadata index block', 'superblock', SALT.index)) return []
    const { view } = blocks.scratch
    const bitmaps: number[] = []
    for (let i = 0; i * ENTRIES_PER_BITMAP < blocks.nrBlocks; i++) {
      const at = INDEX_BLOCK.size + i * INDEX_ENTRY.size + INDEX_ENTRY.at.blockNr
      bitmaps.push(readU64(view, at))
    }
    const where = `metadata index block ${block}`
    return bitmaps.map(b => (blocks.visitPlain(b, 'metadata bitmap', where, SALT.bitmap) ? b : 0))
  }

  /** @returns the root, or null when not all of the tree can be trusted */
  *visitOverflow(map: MapName, root: number, nrBlocks: number): Steps<number | null> {
    const where = `${map} overflow tree`
    const tree: Tree = {
      where,
      role: `${map} overflow node`,
      tier: 0,
      valueSize: 4,
      keyLimit: nrBlocks,
      leaf: node => {
        for (let i = 0; i < node.nrEntries; i++) {
          const count = node.view.getUint32(node.valueAt(i), true)
          if (count > 2) continue
          this.#problems.error(
            `${where}: block ${node.key(i)} has count ${count}, wanted 3 or more`,
          )
        }
      },
    }
    return (yield* this.#trees.visitRoot(tree, root)) ? root : null
  }

  /** Tells `dataCounts` which blocks have a bitmap. @returns the root, or null as above */
  *visitDataIndex(data: SpaceMapRoot): Steps<number | null> {
    const tree: Tree = {
      where: 'data index tree',
      role: 'data index node',
      tier: 0,
      valueSize: INDEX_ENTRY.size,
      keyLimit: Math.ceil(data.nrBlocks / ENTRIES_PER_BITMAP),
      leaf: node => {
        for (let i = 0; i < node.nrEntries; i++) {
          const block = readU64(node.view, node.valueAt(i) + INDEX_ENTRY.at.blockNr)
          if (this.#blocks.visitPlain(block, 'data bitmap', tree.where, SALT.bitmap)) {
            this.#dataCounts.describe(node.key(i))
          }
        }
      },
    }
    return (yield* this.#trees.visitRoot(tree, data.bitmapRoot)) ? data.bitmapRoot : null
  }

  /** Index and block of each bitmap of the data map, block 0 for one that cannot be read. */
  *dataBitmaps(data: SpaceMapRoot, root: number | null): Generator<[number, number]> {
    if (root === null) return
    let next = 0
    const expect = (index: number) => {
      if (next < index) {
        this.#problems.error(`data index tree: bitmaps ${next} to ${index - 1} are missing`)
      }
      next = index + 1
    }
    for (const { key, view, at } of this.#trees.entriesOf(root)) {
      expect(key)
      const block = readU64(view, at + INDEX_ENTRY.at.blockNr)
      yield [key, this.#blocks.isUsable(block, 'data bitmap') ? block : 0]
    }
    expect(Math.ceil(data.nrBlocks / ENTRIES_PER_BITMAP))
  }

  /**
   * Compares the stored counts of a map with those wanted.
   * @param bitmaps index and block in order, block 0 for one that cannot be used
   * @returns blocks with a count that is not 0
   */
  *compareCounts(
    map: MapName,
    root: SpaceMapRoot,
    bitmaps: Iterable<[number, number]>,
    rules: {
      expected: (block: number) => number
      overflow: number | null
      excessAllowed: number
    },
  ): Steps<number> {
    const { scratch } = this.#blocks
    const { view } = scratch
    const problems = this.#problems
    const differences = new Differences(map, (severity, message) => {
      if (severity === 'error' || !problems.incomplete) problems.add(severity, message)
    })
    const overflow = rules.overflow === null ? null : this.#trees.entriesOf(rules.overflow)
    let large = overflow?.next().value
    const nextLarge = () => {
      large = overflow?.next().value
    }
    const stray = (end: number) => {
      for (; large && large.key < end; nextLarge()) {
        problems.error(
          `${map} overflow tree: block ${large.key} has an entry, but not in its bitmap`,
        )
      }
    }

    let used = 0
    let nrRead = 0
    for (const [index, bitmap] of bitmaps) {
      const begin = index * ENTRIES_PER_BITMAP
      const end = Math.min(begin + ENTRIES_PER_BITMAP, root.nrBlocks)
      if (bitmap === 0) continue
      yield
      // Nothing can be said of entries for bitmaps that were not read.
      while (large && large.key < begin) nextLarge()
      this.#blocks.load(scratch, bitmap)
      nrRead++
      for (let block = begin; block < end; block++) {
        let count = storedCount(view, block - begin)
        if (count === 3) {
          stray(block)
          if (large?.key === block) {
            count = large.view.getUint32(large.at, true)
            nextLarge()
          } else if (overflow) {
            problems.error(`${map} overflow tree: block ${block} has no entry, wanted its count`)
          }
        }
        if (count !== 0) used++
        const wanted = rules.expected(block)
        // Without its tree a count above 2 is not known.
        if (count !== wanted && (count < 3 || overflow || wanted < 3)) {
          differences.add(block, count, wanted)
          if (count > wanted && !problems.incomplete) this.#onLeak?.(map, block, count - wanted)
        }
      }
      stray(end)
      for (let e = end - begin; e < ENTRIES_PER_BITMAP; e++) {
        if (storedCount(view, e) === 0) continue
        problems.warn(`${map} bitmap ${bitmap}: entry ${e} lies beyond the map and is not 0`)
      }
    }
    differences.flush()
    const allRead = nrRead === Math.ceil(root.nrBlocks / ENTRIES_PER_BITMAP)
    const excess = root.nrAllocated - used
    if (allRead && excess !== 0 && excess !== rules.excessAllowed) {
      problems.warn(
        `superblock: nr_allocated of the ${map} map is ${root.nrAllocated}, wanted ${used}`,
      )
    }
    return used
  }
}

/** Count 0 to 2 of entry `e` of a bitmap, 3 for more. The even bit is the high one. */
function storedCount(view: DataView, e: number): number {
  const raw = (view.getUint8(BITMAP.size + (e >>> 2)) >>> (2 * (e & 3))) & 3
  return ((raw & 1) << 1) | (raw >>> 1)
}
