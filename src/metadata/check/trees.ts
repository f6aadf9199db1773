/** Checks the nodes of B-trees: each by itself, and children against their parents. */
import { maxEntries, NODE, NODE_INTERNAL, NODE_LEAF, SALT } from '../format.js'
import { type BlockMap, BROKEN, DAMAGED, HEIGHT, OPEN, type Role, UNSEEN } from './block-map.js'
import { Node } from './node.js'
import type { Problems } from './problems.js'
import type { Steps } from './steps.js'

/** Nodes that are read in one step. */
const STEP_NODES = 64
/** A tree of 4161600 nodes with 84 entries each has four levels; more than this is damage. */
const MAX_LEVELS = 16

export interface Tree {
  /** Names the tree in messages. */
  where: string
  role: Role
  /** 1 for the trees that hang off the leaves of another, whose buffers must stay as they are. */
  tier: 0 | 1
  valueSize: number
  /** All keys are below. */
  keyLimit: number
  /** Called for every leaf when the checker first meets it. */
  leaf(node: Node): Steps<void> | void
}

export interface Entry {
  key: number
  view: DataView
  /** The place of the value in `view`. */
  at: number
}

export class TreeChecker {
  readonly #blocks: BlockMap
  readonly #problems: Problems
  readonly #rootsOnly: boolean
  readonly #nodes = Array.from({ length: 2 * MAX_LEVELS }, () => new Node())
  #nrNodes = 0

  /** @param rootsOnly whether it follows no pointer of an internal node */
  constructor(blocks: BlockMap, problems: Problems, rootsOnly: boolean) {
    this.#blocks = blocks
    this.#problems = problems
    this.#rootsOnly = rootsOnly
  }

  /** @returns whether all of the tree is as it should be */
  *visitRoot(tree: Tree, root: number): Steps<boolean> {
    return ((yield* this.#visit(tree, root, 0)) & (DAMAGED | BROKEN)) === 0
  }

  /**
   * Entries of a tree in order of their keys. Only for trees found sound, whose nodes all lead to
   * other keys: in any other a walk might not end.
   */
  *entriesOf(block: number): Generator<Entry, undefined> {
    const node = new Node()
    this.#blocks.load(node, block)
    const nr = node.nrEntries
    for (let i = 0; i < nr; i++) {
      if (node.isInternal) yield* this.entriesOf(node.u64(i))
      else yield { key: node.key(i), view: node.view, at: node.valueAt(i) }
    }
    return undefined
  }

  /** Follows a pointer to a node. @returns its state: DAMAGED, BROKEN, height */
  *#visit(tree: Tree, block: number, depth: number): Steps<number> {
    const { state } = this.#blocks
    if (!this.#blocks.point(block, tree.role, tree.where)) return BROKEN
    let found = state[block]!
    if (found === OPEN) {
      this.#problems.broken(`${tree.where}: node ${block} is below itself`)
      return BROKEN
    }
    if (found === UNSEEN) {
      state[block] = OPEN
      if (++this.#nrNodes % STEP_NODES === 0) yield
      found = yield* this.#visitNode(tree, block, depth)
      state[block] = found
    }
    return found
  }

  *#visitNode(tree: Tree, block: number, depth: number): Steps<number> {
    const where = `${tree.where}: node ${block}`
    if (depth === MAX_LEVELS) {
      this.#problems.broken(`${where} is at level ${depth + 1}, wanted at most ${MAX_LEVELS}`)
      return BROKEN
    }
    const node = this.#nodes[tree.tier * MAX_LEVELS + depth]!
    if (!this.#blocks.read(node, block, SALT.node, where)) return BROKEN
    if (!this.#checkNode(tree, node, where, depth)) return BROKEN
    const { firstKey, lastKey, entries } = this.#blocks
    const nr = node.nrEntries
    firstKey[block] = nr > 0 ? node.key(0) : Number.POSITIVE_INFINITY
    lastKey[block] = nr > 0 ? node.key(nr - 1) : Number.NEGATIVE_INFINITY
    if (node.isInternal) {
      return this.#rootsOnly ? 1 : yield* this.#visitChildren(tree, node, block, depth)
    }
    entries[block] = nr
    const steps = tree.leaf(node)
    if (steps) yield* steps
    return 1
  }

  /** Checks what a node alone can tell. @returns whether its entries can be used */
  #checkNode(tree: Tree, node: Node, where: string, depth: number): boolean {
    const { nrEntries: nr, maxEntries: max, valueSize } = node
    const flags = node.view.getUint32(NODE.at.flags, true)
    const size = node.isInternal ? 8 : tree.valueSize
    const refuse = (what: string): boolean => {
      this.#problems.broken(`${where}: ${what}`)
      return false
    }
    if (flags !== NODE_INTERNAL && flags !== NODE_LEAF) {
      return refuse(`flags is ${flags}, wanted 1 or 2`)
    }
    if (valueSize !== size) return refuse(`value_size is ${valueSize}, wanted ${size}`)
    // The kernel would read nodes with room for fewer, but never makes them; thinfs does not read
    // them.
    if (max !== maxEntries(size)) {
      return refuse(`max_entries is ${max}, wanted ${maxEntries(size)}`)
    }
    if (nr > max) return refuse(`nr_entries is ${nr}, wanted at most ${max}`)
    if (nr === 0 && (node.isInternal || depth > 0)) {
      return refuse('nr_entries is 0, wanted at least 1')
    }
    let previous = -1
    for (let i = 0; i < nr; i++) {
      const key = node.key(i)
      if (key <= previous) return refuse(`key ${i} is ${key}, wanted more than ${previous}`)
      previous = key
    }
    if (previous >= tree.keyLimit) {
      return refuse(`the last key is ${previous}, wanted one below ${tree.keyLimit}`)
    }
    // Costs space, loses nothing: kernels before late 2019 could leave a node one entry short.
    if (depth > 0 && nr < max / 3) {
      this.#problems.warn(`${where}: nr_entries is ${nr}, wanted at least ${max / 3}`)
    }
    return true
  }

  *#visitChildren(tree: Tree, node: Node, block: number, depth: number): Steps<number> {
    const { firstKey, lastKey, entries } = this.#blocks
    const nr = node.nrEntries
    let height = 0
    let damaged = 0
    let nrEntries = 0
    const misplaced = (what: string): void => {
      damaged = DAMAGED
      this.#problems.broken(`${tree.where}: node ${block}: ${what}`)
    }
    for (let i = 0; i < nr; i++) {
      const child = node.u64(i)
      const state = yield* this.#visit(tree, child, depth + 1)
      damaged |= state & DAMAGED
      if (state & BROKEN) {
        damaged = DAMAGED
        continue
      }
      height ||= state & HEIGHT
      if ((state & HEIGHT) !== height) {
        misplaced(`child ${child} has height ${state & HEIGHT}, wanted ${height} as its siblings`)
      }
      const begin = node.key(i)
      const end = i + 1 < nr ? node.key(i + 1) : Number.POSITIVE_INFINITY
      const first = firstKey[child]!
      const last = lastKey[child]!
      if (first < begin || last >= end || first > last) {
        misplaced(`child ${child} has keys ${first} to ${last}, wanted ${begin} to below ${end}`)
      }
      nrEntries += entries[child]!
      lastKey[block] = Math.max(last, lastKey[block]!)
    }
    entries[block] = nrEntries
    return height === 0 ? BROKEN : (height + 1) | damaged
  }
}
