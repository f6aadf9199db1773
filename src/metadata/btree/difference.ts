/**
 * The difference of two trees of one kind, by a walk of both at once.
 *
 * Trees that were one once, as those of a snapshot and its origin, share what nobody has changed
 * since: both name the same node. Such a subtree is passed over without being read, so the cost
 * follows what differs, not what is there.
 */
import type { Block } from '../blocks/block.js'
import { childAt, isLeaf, keyAt, nrEntries, slotFrom, slotOf, valueAt } from '../blocks/node.js'
import { checkDepth, readNode, type TreeInfo } from './tree.js'
import { childEnd, readBounded } from './walk.js'

const END = Number.POSITIVE_INFINITY
/** The item at the cursor is an entry, no subtree: block 0 is the superblock. */
const ENTRY = 0

/** Is told of each key that is looked at. The bytes are good during the call. */
export interface DifferenceVisitor {
  leftOnly(key: number, view: DataView, at: number): void
  rightOnly(key: number, view: DataView, at: number): void
  both(key: number, left: DataView, leftAt: number, right: DataView, rightAt: number): void
}

export interface DifferenceRange {
  /** The first key to look at. */
  begin: number
  /** No key from here on is looked at. */
  end: number
  /** Whether subtrees that both trees have are walked, too: the visitor hears of every key. */
  shared: boolean
}

/** A place in a tree: at a subtree that has not been read, or at an entry. */
class Cursor {
  /** No key of the item is smaller; Infinity past the last item. */
  key = 0
  /** The subtree's metadata block, or ENTRY. */
  node: number
  /** Levels of nodes below the item: 0 for a leaf, -1 for an entry. */
  level = 0
  readonly #info: TreeInfo
  readonly #range: DifferenceRange
  readonly #nodes: Block[] = []
  readonly #slots: number[] = []
  /** The key at which each of `#nodes` ends. */
  readonly #ends: number[] = []
  readonly #height: number = 0

  /** @param root null for a tree without entries */
  constructor(info: TreeInfo, root: number | null, range: DifferenceRange) {
    this.#info = info
    this.#range = range
    this.node = root ?? ENTRY
    if (root === null) {
      this.key = END
      return
    }
    for (let node = readNode(info, root); !isLeaf(node); this.#height++) {
      checkDepth(info, node.nr, this.#height)
      node = readNode(info, childAt(node, 0))
    }
    this.level = this.#height
  }

  get view(): DataView {
    return this.#nodes.at(-1)!.view
  }

  get at(): number {
    return valueAt(this.#nodes.at(-1)!, this.#slots.at(-1)!)
  }

  /** From a subtree to its first item. */
  enter(): void {
    const depth = this.#nodes.length
    const { begin } = this.#range
    checkDepth(this.#info, this.node, depth)
    let node: Block
    let end = END
    if (depth === 0) node = readNode(this.#info, this.node)
    else {
      const parent = this.#nodes[depth - 1]!
      const slot = this.#slots[depth - 1]!
      end = childEnd(parent, slot, this.#ends[depth - 1]!)
      node = readBounded(this.#info, parent, slot, end)
    }
    this.#nodes.push(node)
    this.#ends.push(end)
    this.#slots.push(isLeaf(node) ? slotFrom(node, begin) : Math.max(slotOf(node, begin), 0))
    this.#settle()
  }

  /** Moves to the item after this one, past all that is in it. */
  skip(): void {
    if (this.#nodes.length === 0) this.#finish()
    else {
      this.#slots[this.#slots.length - 1]!++
      this.#settle()
    }
  }

  #settle(): void {
    while (this.#slots.at(-1)! >= nrEntries(this.#nodes.at(-1)!)) {
      this.#nodes.pop()
      this.#slots.pop()
      this.#ends.pop()
      if (this.#nodes.length === 0) {
        this.#finish()
        return
      }
      this.#slots[this.#slots.length - 1]!++
    }
    const node = this.#nodes.at(-1)!
    const slot = this.#slots.at(-1)!
    this.key = keyAt(node, slot)
    this.node = isLeaf(node) ? ENTRY : childAt(node, slot)
    this.level = isLeaf(node) ? -1 : this.#height - this.#nodes.length
    if (this.key >= this.#range.end) this.#finish()
  }

  #finish(): void {
    this.key = END
    this.node = ENTRY
  }
}

/**
 * Visits the keys, ascending, of which not both trees are known to have the same: some may turn out
 * to have equal values. Yields after each node that it has read, where work may pause.
 * @param left root of a tree; null for one without entries
 * @param right the same
 */
export function* differences(
  info: TreeInfo,
  left: number | null,
  right: number | null,
  range: DifferenceRange,
  visitor: DifferenceVisitor,
): Generator<void> {
  const a = new Cursor(info, left, range)
  const b = new Cursor(info, right, range)
  while (a.key < END || b.key < END) {
    if (a.node !== ENTRY && a.node === b.node && !range.shared) {
      a.skip()
      b.skip()
    } else if (a.key === b.key && a.node === ENTRY && b.node === ENTRY) {
      visitor.both(a.key, a.view, a.at, b.view, b.at)
      a.skip()
      b.skip()
    } else {
      // Of two subtrees that begin alike the higher one may have the other in it. Both where they
      // are of one height: neither is in the other.
      const isLeft = a.key < b.key || (a.key === b.key && a.level >= b.level)
      const isRight = b.key < a.key || (a.key === b.key && b.level >= a.level)
      const reads = (isLeft && a.node !== ENTRY) || (isRight && b.node !== ENTRY)
      if (isLeft && a.node !== ENTRY) a.enter()
      else if (isLeft) {
        visitor.leftOnly(a.key, a.view, a.at)
        a.skip()
      }
      if (isRight && b.node !== ENTRY) b.enter()
      else if (isRight) {
        visitor.rightOnly(b.key, b.view, b.at)
        b.skip()
      }
      if (reads) yield
    }
  }
}
