/**
 * Removal of ranges of keys, and of whole trees.
 *
 * First the entries go: subtrees that lie inside the range are dropped whole, the two paths along
 * its ends are shadowed. Nodes along these paths may be left with too few entries, even with a
 * single child. So then both paths are mended from the root down: before the walk goes into a node
 * it is given a minimum, and one to spare, by its neighbours.
 */
import type { Block } from '../blocks/block.js'
import {
  checkSiblings,
  childAt,
  copyEntries,
  initNode,
  isLeaf,
  keyAt,
  minEntries,
  nrEntries,
  removeSlots,
  setKeyAt,
  setNrEntries,
  shareOut,
  slotFrom,
  slotOf,
  valueAt,
} from '../blocks/node.js'
import { NODE_LEAF } from '../format.js'
import {
  checkDepth,
  dropReader,
  incChildren,
  readNode,
  shadowChild,
  type TreeInfo,
} from './tree.js'
import { childEnd, countEntries, readBounded } from './walk.js'

const { POSITIVE_INFINITY } = Number

/**
 * Removes the entries with keys in [begin, end) below a writable root.
 * @returns how many there were
 */
export function removeRange(info: TreeInfo, root: Block, begin: number, end: number): number {
  const removed = removeBelow(info, root, begin, end, POSITIVE_INFINITY, 0)
  if (removed > 0) {
    mend(info, root, begin)
    if (end > begin + 1) mend(info, root, end)
  }
  return removed
}

/** Drops one reference on a tree, and with the last one all that it refers to. */
export function dropTree(info: TreeInfo, nr: number): void {
  const { counts } = info.transaction
  if (counts.isShared(nr)) counts.dec(nr)
  else dropContent(info, readNode(info, nr), POSITIVE_INFINITY, false, 0)
}

/** As `dropTree`. @returns entries of the tree, for which shared ones are read as well */
function dropCounted(info: TreeInfo, node: Block, bound: number, depth: number): number {
  const { counts } = info.transaction
  if (!counts.isShared(node.nr)) return dropContent(info, node, bound, true, depth)
  const entries = countEntries(info, node, bound, depth)
  counts.dec(node.nr)
  return entries
}

function dropContent(
  info: TreeInfo,
  node: Block,
  bound: number,
  counting: boolean,
  depth: number,
): number {
  checkDepth(info, node.nr, depth)
  const { counts } = info.transaction
  const nr = nrEntries(node)
  let entries = 0
  if (isLeaf(node)) {
    entries = nr
    dropValues(info, node, 0, nr)
  } else {
    for (let slot = 0; slot < nr; slot++) {
      const childBound = childEnd(node, slot, bound)
      if (!counting && counts.isShared(childAt(node, slot))) {
        counts.dec(childAt(node, slot))
        continue
      }
      const child = readBounded(info, node, slot, childBound, dropReader(info))
      entries += counting
        ? dropCounted(info, child, childBound, depth + 1)
        : dropContent(info, child, childBound, false, depth + 1)
    }
  }
  counts.dec(node.nr)
  return entries
}

function dropValues(info: TreeInfo, leaf: Block, from: number, to: number): void {
  if (info.refs === null) return
  for (let slot = from; slot < to; slot++) info.refs.dec(leaf.view, valueAt(leaf, slot))
}

/** Removes entries below a writable node without regard to how few stay. */
function removeBelow(
  info: TreeInfo,
  node: Block,
  begin: number,
  end: number,
  bound: number,
  depth: number,
): number {
  if (isLeaf(node)) {
    const from = slotFrom(node, begin)
    const to = slotFrom(node, end)
    dropValues(info, node, from, to)
    removeSlots(node, from, to - from)
    return to - from
  }
  checkDepth(info, node.nr, depth)
  let removed = 0
  const first = Math.max(slotOf(node, begin), 0)
  for (let slot = slotFrom(node, end) - 1; slot >= first; slot--) {
    const childBound = childEnd(node, slot, bound)
    const isWhole = keyAt(node, slot) >= begin && childBound <= end
    const child = readBounded(info, node, slot, childBound, isWhole ? dropReader(info) : readNode)
    if (isWhole) {
      removed += dropCounted(info, child, childBound, depth + 1)
      removeSlots(node, slot, 1)
    } else if (!isLeaf(child) || slotFrom(child, begin) < slotFrom(child, end)) {
      const shadow = shadowChild(info, node, slot)
      removed += removeBelow(info, shadow, begin, end, childBound, depth + 1)
      if (nrEntries(shadow) > 0) continue
      info.transaction.counts.dec(shadow.nr)
      removeSlots(node, slot, 1)
    }
  }
  return removed
}

/** Restores the minimum along the path to `key`. Nodes that are not writable lost nothing. */
function mend(info: TreeInfo, root: Block, key: number): void {
  let node = root
  for (let depth = 0; node.writable; depth++) {
    if (node === root) collapseRoot(info, root)
    if (isLeaf(node)) return
    checkDepth(info, node.nr, depth)
    const child = mendChild(info, node, key)
    // A root that is left with one child takes its place.
    node = node === root && nrEntries(root) === 1 ? root : child
  }
}

/** A root with a single child becomes that child, one with none an empty leaf. */
function collapseRoot(info: TreeInfo, root: Block): void {
  const { counts } = info.transaction
  for (let depth = 0; !isLeaf(root) && nrEntries(root) <= 1; depth++) {
    checkDepth(info, root.nr, depth)
    if (nrEntries(root) === 0) {
      initNode(root, NODE_LEAF, info.kind.valueSize)
      return
    }
    const child = readNode(info, childAt(root, 0))
    // The targets of a shared child get one more owner: this root.
    if (counts.isShared(child.nr)) incChildren(info, child)
    child.bytes.copy(root.bytes)
    counts.dec(child.nr)
  }
}

/**
 * Merges the child on the path to `key` with neighbours, or evens them out, until it has enough: a
 * leaf the minimum, an internal node one more, since mending its children may cost it one.
 * @returns the child that is on the path then
 */
function mendChild(info: TreeInfo, node: Block, key: number): Block {
  for (;;) {
    const slot = Math.max(slotOf(node, key), 0)
    const child = readNode(info, childAt(node, slot))
    const wanted = minEntries(child) + (isLeaf(child) ? 0 : 1)
    if (nrEntries(child) >= wanted || nrEntries(node) === 1) return child
    const rightSlot = Math.max(slot, 1)
    const left = shadowChild(info, node, rightSlot - 1)
    const right = shadowChild(info, node, rightSlot)
    checkSiblings(left, right)
    const total = nrEntries(left) + nrEntries(right)
    if (total < 2 * (minEntries(left) + 1)) {
      copyEntries(right, 0, left, nrEntries(left), nrEntries(right))
      setNrEntries(left, total)
      removeSlots(node, rightSlot, 1)
      info.transaction.counts.dec(right.nr)
    } else {
      shareOut(left, right, Math.floor(total / 2))
      setKeyAt(node, rightSlot, keyAt(right, 0))
    }
  }
}
