/** Visits of whole subtrees, which change nothing. */
import { ThinfsError } from '../../base/index.js'
import type { Block } from '../blocks/block.js'
import {
  childAt,
  isLeaf,
  keyAt,
  nrEntries,
  slotFrom,
  slotOf,
  valueAt,
  valueSize,
} from '../blocks/node.js'
import { checkDepth, passNode, readNode, type TreeInfo } from './tree.js'

/** @param at byte offset of the value in the leaf */
export type VisitEntry = (key: number, leaf: Block, at: number) => void

/**
 * Reads a child in a walk, where the bounds of its keys matter: trees in which nodes are named many
 * times would keep a walk busy for ever.
 * @param end no key of the child may be this or larger
 * @param read `passNode` where a leaf is not needed for long
 * @throws METADATA_CORRUPT
 */
export function readBounded(
  info: TreeInfo,
  parent: Block,
  slot: number,
  end: number,
  read = readNode,
): Block {
  const child = read(info, childAt(parent, slot))
  const nr = nrEntries(child)
  const first = keyAt(parent, slot)
  if (nr === 0 || (keyAt(child, 0) >= first && keyAt(child, nr - 1) < end)) return child
  throw new ThinfsError(
    'METADATA_CORRUPT',
    `metadata block ${child.nr}: ${info.kind.name}: keys ${keyAt(child, 0)} to ` +
      `${keyAt(child, nr - 1)}, wanted from ${first} below ${end} as its parent says`,
  )
}

/**
 * The end of a child's keys: those of its neighbour begin there, or those of the parent end there.
 */
export const childEnd = (parent: Block, slot: number, end: number): number =>
  slot + 1 < nrEntries(parent) ? keyAt(parent, slot + 1) : end

/** Visits the entries with keys in [begin, end), ascending. The visitor must not walk itself. */
export function walk(
  info: TreeInfo,
  node: Block,
  begin: number,
  end: number,
  visit: VisitEntry,
  bound = Number.POSITIVE_INFINITY,
  depth = 0,
): void {
  if (isLeaf(node)) {
    const nr = nrEntries(node)
    const size = valueSize(node)
    let slot = slotFrom(node, begin)
    for (let at = valueAt(node, slot); slot < nr; slot++, at += size) {
      const key = keyAt(node, slot)
      if (key >= end) return
      visit(key, node, at)
    }
    return
  }
  checkDepth(info, node.nr, depth)
  for (let slot = Math.max(slotOf(node, begin), 0); slot < nrEntries(node); slot++) {
    if (keyAt(node, slot) >= end) return
    const childBound = childEnd(node, slot, bound)
    const child = readBounded(info, node, slot, childBound, passNode)
    walk(info, child, begin, end, visit, childBound, depth + 1)
  }
}

/**
 * How far keys follow each other without a gap.
 * @returns the first key at or after `begin` that has no entry, or `end`
 */
export function runEnd(
  info: TreeInfo,
  node: Block,
  begin: number,
  end: number,
  bound = Number.POSITIVE_INFINITY,
  depth = 0,
): number {
  if (isLeaf(node)) return Math.min(runEndInLeaf(node, begin), end)
  checkDepth(info, node.nr, depth)
  let at = begin
  for (let slot = Math.max(slotOf(node, begin), 0); slot < nrEntries(node) && at < end; slot++) {
    const childBound = childEnd(node, slot, bound)
    const child = readBounded(info, node, slot, childBound, passNode)
    at = runEnd(info, child, at, end, childBound, depth + 1)
    if (at < childBound) break
  }
  return at
}

/** The first key at or after `begin` that a leaf has no entry for. */
function runEndInLeaf(leaf: Block, begin: number): number {
  const slot = slotOf(leaf, begin)
  if (slot < 0 || keyAt(leaf, slot) !== begin) return begin
  // Keys ascend: where the n-th from here is larger by n, no key in between is missing.
  let low = slot
  let high = nrEntries(leaf)
  while (high - low > 1) {
    const middle = (low + high) >>> 1
    if (keyAt(leaf, middle) - begin === middle - slot) low = middle
    else high = middle
  }
  return begin + (low - slot) + 1
}

/** Cost of skipping a shared child, in leaves. */
const SKIP_COST = 1 / 32

/**
 * Visits the entries of those leaves that no other tree can reach: each node has one owner. The
 * visitor must not walk itself.
 * @param begin the first key to visit
 * @param budget leaves that may be visited; counted down
 * @returns the key to go on from, or `bound`
 */
export function walkExclusive(
  info: TreeInfo,
  node: Block,
  begin: number,
  budget: { leaves: number },
  visit: VisitEntry,
  bound = Number.POSITIVE_INFINITY,
  depth = 0,
): number {
  const { counts } = info.transaction
  if (counts.isShared(node.nr)) return bound
  if (isLeaf(node)) {
    budget.leaves--
    walk(info, node, begin, Number.POSITIVE_INFINITY, visit)
    return bound
  }
  checkDepth(info, node.nr, depth)
  for (let slot = Math.max(slotOf(node, begin), 0); slot < nrEntries(node); slot++) {
    if (budget.leaves <= 0) return keyAt(node, slot)
    if (counts.isShared(childAt(node, slot))) {
      budget.leaves -= SKIP_COST
      continue
    }
    const childBound = childEnd(node, slot, bound)
    const child = readBounded(info, node, slot, childBound, passNode)
    const next = walkExclusive(info, child, begin, budget, visit, childBound, depth + 1)
    if (next < childBound) return next
  }
  return bound
}

/** Whether a node on the way to `key`, the leaf included, has more owners than one. */
export function isPathShared(info: TreeInfo, root: number, key: number): boolean {
  let nr = root
  for (let depth = 0; ; depth++) {
    if (info.transaction.counts.isShared(nr)) return true
    const node = readNode(info, nr)
    if (isLeaf(node)) return false
    checkDepth(info, nr, depth)
    nr = childAt(node, Math.max(slotOf(node, key), 0))
  }
}

/** Entries of a subtree. */
export function countEntries(
  info: TreeInfo,
  node: Block,
  bound = Number.POSITIVE_INFINITY,
  depth = 0,
): number {
  if (isLeaf(node)) return nrEntries(node)
  checkDepth(info, node.nr, depth)
  let count = 0
  for (let slot = 0; slot < nrEntries(node); slot++) {
    const childBound = childEnd(node, slot, bound)
    const child = readBounded(info, node, slot, childBound, passNode)
    count += countEntries(info, child, childBound, depth + 1)
  }
  return count
}

/**
 * The cost of dropping a subtree, in nodes to read. A subtree with other owners only loses a count.
 * @param limit where counting may stop
 */
function dropCost(info: TreeInfo, root: number, limit: number, depth = 0): number {
  if (info.transaction.counts.isShared(root)) return 0
  const node = readNode(info, root)
  let cost = 1
  if (isLeaf(node)) return cost
  checkDepth(info, root, depth)
  for (let slot = 0; slot < nrEntries(node) && cost <= limit; slot++) {
    cost += dropCost(info, childAt(node, slot), limit - cost, depth + 1)
  }
  return cost
}

/**
 * The key at which the last `leaves` leaves of a subtree begin; 0 when it has no more than those.
 * Reads no leaf but the first.
 */
function lastLeavesBegin(info: TreeInfo, root: Block, leaves: number): number {
  let height = 0
  for (let node = root; !isLeaf(node); height++) {
    checkDepth(info, node.nr, height)
    node = readNode(info, childAt(node, 0))
  }
  let left = leaves
  let begin = 0
  const descend = (node: Block, level: number): void => {
    for (let slot = nrEntries(node) - 1; slot >= 0 && left > 0; slot--) {
      if (level > 1) {
        descend(readNode(info, childAt(node, slot)), level - 1)
      } else {
        begin = keyAt(node, slot)
        left--
      }
    }
  }
  if (height > 0) descend(root, height)
  return left > 0 ? 0 : begin
}

/**
 * The key at which the last slice of a subtree begins: at most `leaves` leaves. 0 when dropping all
 * of it is no more work than that.
 */
export function lastSliceBegin(info: TreeInfo, root: Block, leaves: number): number {
  if (dropCost(info, root.nr, leaves) <= leaves) return 0
  return lastLeavesBegin(info, root, leaves)
}
