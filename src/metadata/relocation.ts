/**
 * Moving data blocks: what maps a block is made to map another, for all devices at once.
 *
 * Devices share nodes of their trees. A node that has to change is replaced once, and everything
 * that names it is made to name the new one: as many references go over, so what was shared stays
 * shared, and the metadata does not grow. This works as long as every way to the node is known.
 * So a survey goes down the trees of all devices at once, to the virtual blocks in question, and
 * counts. A block that more mappings own than it has found is not moved.
 */
import { type DataBlock, type DevId, METADATA_BLOCK_SIZE } from '../base/index.js'
import { type Block, DIRTY } from './blocks/block.js'
import {
  childAt,
  isLeaf,
  keyAt,
  nrEntries,
  setChildAt,
  slotFrom,
  slotOf,
  valueAt,
} from './blocks/node.js'
import { checkDepth, incChildren, passNode, readNode, type TreeInfo } from './btree/tree.js'
import { childEnd, readBounded } from './btree/walk.js'
import type { DeviceTable } from './device-table.js'
import { ENTRIES_PER_BITMAP } from './format.js'
import { mappedBlock, mappedTime, writeMapping } from './mapping.js'
import type { DataSpaceMap } from './space/data-space-map.js'

/** Metadata blocks that the count of a block with more than two owners takes at most. */
const COUNT_COST = 3
/** Cost of passing over a child that was seen, in leaves. */
const SKIP_COST = 1 / 32

/** A node on the way to the virtual blocks in question. */
interface Use {
  readonly nr: number
  /** How many nodes and devices name it. */
  references: number
  /** Slots of an internal node, and the children there. */
  readonly slots: number[]
  readonly children: Use[]
  /** Slots of a leaf, and the data blocks there. */
  readonly entries: number[]
  readonly dataBlocks: DataBlock[]
  /** The node that takes its place; -1 until there is one. */
  target: number
}

/** A data block that was found. */
export interface Found {
  /** Leaves that map it. */
  owners: number
  vblocks: number[]
}

/** All that maps some virtual blocks to data blocks at or above an end. */
export interface Survey {
  /** Roots, and the devices whose tree begins there. */
  readonly roots: ReadonlyMap<number, { use: Use; devIds: DevId[] }>
  /** Nodes by their metadata block. */
  readonly uses: ReadonlyMap<number, Use>
  /** Mappings of each of those data blocks, and of which virtual blocks they are. */
  readonly found: ReadonlyMap<DataBlock, Found>
}

/** Finds mappings of high data blocks, and changes them. */
export class Relocation {
  readonly #info: TreeInfo
  readonly #devices: DeviceTable
  readonly #data: DataSpaceMap
  /**
   * Shared nodes that `find` has been through. A node that is freed and comes to be another one
   * may be in it by mistake: what is passed over is found when it is looked for again.
   */
  readonly #seen = new Set<number>()

  /** @param info kind of the devices' trees */
  constructor(info: TreeInfo, devices: DeviceTable, data: DataSpaceMap) {
    this.#info = info
    this.#devices = devices
    this.#data = data
  }

  /**
   * Keeps a free data block from being allocated until it is moved to, or `unreserve`. The next
   * process does not know of it. @returns -1 when there is none
   */
  reserve(): DataBlock | -1 {
    return this.#data.reserve() as DataBlock | -1
  }

  unreserve(dataBlock: DataBlock): void {
    this.#data.unreserve(dataBlock)
  }

  /** From now on `find` goes through all mappings again. */
  startOver(): void {
    this.#seen.clear()
  }

  /**
   * Visits mappings of a device to data blocks past the end of what may be allocated, but for those
   * in nodes that it has been through already: parts that devices share are visited once. The
   * visitor must not change the metadata.
   * @param begin the first virtual block
   * @param leaves how many to look at
   * @returns the virtual block to go on from; Infinity at the end
   */
  find(
    devId: DevId,
    begin: number,
    leaves: number,
    visit: (vblock: number, dataBlock: DataBlock) => void,
  ): number {
    const budget = { leaves }
    const { end } = this.#data
    const root = readNode(this.#info, this.#devices.get(devId).tree.root)
    return this.#find(root, begin, Number.POSITIVE_INFINITY, 0, budget, (leaf, slot) => {
      const dataBlock = mappedBlock(leaf.view, valueAt(leaf, slot))
      if (dataBlock >= end) visit(keyAt(leaf, slot), dataBlock)
    })
  }

  #find(
    node: Block,
    begin: number,
    bound: number,
    depth: number,
    budget: { leaves: number },
    visit: (leaf: Block, slot: number) => void,
  ): number {
    const { nr } = node
    const isShared = this.#info.transaction.counts.isShared(nr)
    if (depth === 0 && isShared && this.#seen.has(nr)) return bound
    if (isLeaf(node)) {
      budget.leaves--
      for (let slot = slotFrom(node, begin); slot < nrEntries(node); slot++) visit(node, slot)
    } else {
      checkDepth(this.#info, nr, depth)
      for (let slot = Math.max(slotOf(node, begin), 0); slot < nrEntries(node); slot++) {
        if (budget.leaves <= 0) return Math.max(begin, keyAt(node, slot))
        const childNr = childAt(node, slot)
        if (this.#seen.has(childNr) && this.#info.transaction.counts.isShared(childNr)) {
          budget.leaves -= SKIP_COST
          continue
        }
        const childBound = childEnd(node, slot, bound)
        const child = readBounded(this.#info, node, slot, childBound, passNode)
        const next = this.#find(child, begin, childBound, depth + 1, budget, visit)
        if (next < childBound) return next
      }
    }
    if (isShared) this.#seen.add(nr)
    return bound
  }

  /**
   * Looks at what all devices map virtual blocks to. Good until the metadata changes.
   * @param vblocks ascending
   * @param end data blocks below do not count; default: those that may be allocated
   */
  survey(vblocks: readonly number[], end = this.#data.end): Survey {
    const roots = new Map<number, { use: Use; devIds: DevId[] }>()
    const uses = new Map<number, Use>()
    const found = new Map<DataBlock, Found>()

    const look = (nr: number, from: number, to: number, depth: number): Use => {
      const known = uses.get(nr)
      if (known !== undefined) {
        known.references++
        return known
      }
      const use: Use = {
        ...{ nr, references: 1, target: -1 },
        ...{ slots: [], children: [], entries: [], dataBlocks: [] },
      }
      uses.set(nr, use)
      const node = readNode(this.#info, nr)
      if (isLeaf(node)) lookAtLeaf(use, node, from, to)
      else lookBelow(use, node, from, to, depth)
      return use
    }
    const lookAtLeaf = (use: Use, leaf: Block, from: number, to: number): void => {
      for (let i = from; i < to; i++) {
        const vblock = vblocks[i]!
        const slot = slotOf(leaf, vblock)
        if (slot < 0 || keyAt(leaf, slot) !== vblock) continue
        const dataBlock = mappedBlock(leaf.view, valueAt(leaf, slot))
        if (dataBlock < end) continue
        use.entries.push(slot)
        use.dataBlocks.push(dataBlock)
        const before = found.get(dataBlock)
        if (before === undefined) found.set(dataBlock, { owners: 1, vblocks: [vblock] })
        else {
          before.owners++
          if (!before.vblocks.includes(vblock)) before.vblocks.push(vblock)
        }
      }
    }
    const lookBelow = (use: Use, node: Block, from: number, to: number, depth: number): void => {
      checkDepth(this.#info, node.nr, depth)
      for (let i = from; i < to; ) {
        const slot = slotOf(node, vblocks[i]!)
        const bound = childEnd(node, slot, Number.POSITIVE_INFINITY)
        let next = i + 1
        while (next < to && vblocks[next]! < bound) next++
        if (slot >= 0) {
          use.slots.push(slot)
          use.children.push(look(childAt(node, slot), i, next, depth + 1))
        }
        i = next
      }
    }

    const all: [DevId, number][] = []
    this.#devices.forEachRoot((devId, root) => all.push([devId, root]))
    for (const [devId, root] of all) {
      const known = roots.get(root)
      if (known === undefined) {
        roots.set(root, { use: look(root, 0, vblocks.length, 0), devIds: [devId] })
      } else {
        known.use.references++
        known.devIds.push(devId)
      }
    }
    return { roots, uses, found }
  }

  /** Whether all owners of a data block were found: it can be moved. */
  isWhole({ found }: Survey, dataBlock: DataBlock): boolean {
    return found.get(dataBlock)?.owners === this.#data.count(dataBlock)
  }

  /** Metadata blocks that `move` takes at most. */
  cost({ uses, roots, found }: Survey): number {
    const bitmaps = Math.ceil(this.#data.nrBlocks / ENTRIES_PER_BITMAP)
    let counts = 0
    for (const { owners } of found.values()) if (owners > 2) counts += COUNT_COST
    // The way to each device in the tree of them.
    const ways = 2 * Math.ceil(roots.size / 84) + 2
    return uses.size + ways + Math.min(2 * found.size, bitmaps) + counts
  }

  /**
   * Makes everything that maps the data blocks map others instead: of all devices, with their
   * times, and with nothing shared that was not, or not shared that was.
   * @param survey made since the last change of the metadata
   * @param moves data blocks that are whole, to ones that `reserve` returned
   */
  move({ roots, found }: Survey, moves: ReadonlyMap<DataBlock, DataBlock>): void {
    const changes = new Map<Use, boolean>()
    const hasMoves = (use: Use): boolean => {
      const known = changes.get(use)
      if (known !== undefined) return known
      // Every child has to be looked at: `replace` asks for each.
      let has = use.dataBlocks.some(dataBlock => moves.has(dataBlock))
      for (const child of use.children) has = hasMoves(child) || has
      changes.set(use, has)
      return has
    }
    const replace = (use: Use): number => {
      if (use.target >= 0) return use.target
      const node = this.#changeable(use)
      use.target = node.nr
      use.children.forEach((child, i) => {
        if (hasMoves(child)) setChildAt(node, use.slots[i]!, replace(child))
      })
      use.entries.forEach((slot, i) => {
        const to = moves.get(use.dataBlocks[i]!)
        const at = valueAt(node, slot)
        if (to !== undefined) writeMapping(node.view, at, to, mappedTime(node.view, at))
      })
      return node.nr
    }
    for (const { use, devIds } of roots.values()) {
      if (!hasMoves(use)) continue
      const root = replace(use)
      for (const devId of devIds) this.#devices.moved(devId, root)
    }
    for (const [from, to] of moves) this.#data.moveOwners(from, to, found.get(from)!.owners)
  }

  /**
   * Makes a move of the journal again, as far as there are such mappings.
   * @param from what they map, when they are of one virtual block
   */
  moveAgain(vblock: number, from: DataBlock, to: DataBlock): void {
    const survey = this.survey([vblock], from)
    if (survey.found.has(from)) this.move(survey, new Map([[from, to]]))
  }

  /** The node itself where nothing else can reach it but what was found; else one in its place. */
  #changeable(use: Use): Block {
    const { transaction } = this.#info
    const { counts, cache } = transaction
    const node = readNode(this.#info, use.nr)
    if (node.state === DIRTY && counts.count(node.nr) === use.references) return node
    const nr = counts.allocate()
    const content = Buffer.allocUnsafeSlow(METADATA_BLOCK_SIZE)
    node.bytes.copy(content)
    const copy = cache.create(nr, node.kind, content)
    copy.writable = use.references === 1
    // All that it names has one owner more where somebody keeps the old one, and no other else.
    if (counts.pass(node.nr, nr, use.references)) incChildren(this.#info, copy)
    if (this.#seen.delete(node.nr)) this.#seen.add(nr)
    return copy
  }
}
