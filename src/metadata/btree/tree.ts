/** Shared by the parts of the B-tree: the kinds of trees, and copy on write of nodes. */
import { ThinfsError } from '../../base/index.js'
import type { Block, BlockKind } from '../blocks/block.js'
import { childAt, initNode, isLeaf, nrEntries, setChildAt, valueAt } from '../blocks/node.js'
import type { Transaction } from '../blocks/transaction.js'

/** Counts the targets of the values in a tree's leaves. */
export interface ValueRefs {
  inc(view: DataView, at: number): void
  dec(view: DataView, at: number): void
  /** Whether counting reads no node, so that a leaf read by `passNode` stays valid. */
  readonly readsNoNode: boolean
}

/** Kind of tree; the kernel's dm_btree_info. */
export interface TreeInfo {
  readonly transaction: Transaction
  readonly kind: BlockKind
  /** null when values refer to nothing. */
  readonly refs: ValueRefs | null
}

/** No tree of 2^64 keys is as deep; a cycle is. */
export const MAX_DEPTH = 16

export function checkDepth(info: TreeInfo, nr: number, depth: number): void {
  if (depth < MAX_DEPTH) return
  throw new ThinfsError(
    'METADATA_CORRUPT',
    `metadata block ${nr}: ${info.kind.name}: the tree is deeper than ${MAX_DEPTH} levels`,
  )
}

export const readNode = (info: TreeInfo, nr: number): Block =>
  info.transaction.cache.read(nr, info.kind)

/** As `readNode`, for walks: a leaf is valid until the next call, for whichever tree. */
export const passNode = (info: TreeInfo, nr: number): Block =>
  info.transaction.cache.readPassing(nr, info.kind)

/** Reads a node that is dropped with all that it refers to. */
export const dropReader = (info: TreeInfo): typeof readNode =>
  info.refs === null || info.refs.readsNoNode ? passNode : readNode

/** A new, empty node. */
export function newNode(info: TreeInfo, flags: number, valueSize: number): Block {
  const node = info.transaction.create(info.kind)
  initNode(node, flags, valueSize)
  return node
}

/** The node to change in place of `node`. The caller points the parent at it. */
export function shadowNode(info: TreeInfo, node: Block): Block {
  const { transaction } = info
  if (transaction.isWritable(node)) return node
  const shared = transaction.counts.isShared(node.nr)
  const copy = transaction.copy(node)
  if (shared) incChildren(info, copy)
  return copy
}

/** Shadows a child of a writable node and points the node at it. */
export function shadowChild(info: TreeInfo, parent: Block, slot: number): Block {
  const child = readNode(info, childAt(parent, slot))
  const shadow = shadowNode(info, child)
  if (shadow !== child) setChildAt(parent, slot, shadow.nr)
  return shadow
}

/** Counts all that a node points to once more, because a second node points to it now. */
export function incChildren(info: TreeInfo, node: Block): void {
  const nr = nrEntries(node)
  if (!isLeaf(node)) {
    for (let slot = 0; slot < nr; slot++) info.transaction.counts.inc(childAt(node, slot))
  } else if (info.refs !== null) {
    for (let slot = 0; slot < nr; slot++) info.refs.inc(node.view, valueAt(node, slot))
  }
}
