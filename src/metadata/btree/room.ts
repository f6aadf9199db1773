/**
 * Room for one more entry: what an insertion does with a full node before it descends.
 *
 * The policy is the kernel's, so that the same operations give the same bytes. A parent has room
 * always, because it was handled on the way down.
 * Source: drivers/md/persistent-data/dm-btree.c.
 */
import type { Block } from '../blocks/block.js'
import {
  capacity,
  checkSiblings,
  childAt,
  copyEntries,
  initNode,
  keyAt,
  nrEntries,
  openSlot,
  setChildAt,
  setKeyAt,
  setNrEntries,
  shareOut,
  valueSize,
} from '../blocks/node.js'
import { NODE, NODE_INTERNAL } from '../format.js'
import { newNode, readNode, shadowChild, type TreeInfo } from './tree.js'

/** A sibling takes entries over when it has this much room. */
const SIBLING_ROOM = 8

/** Splits a full root into two children; the root's block stays the root. */
export function splitRoot(info: TreeInfo, root: Block): void {
  const left = newSibling(info, root)
  const right = newSibling(info, root)
  const nr = nrEntries(root)
  const nrLeft = Math.floor(nr / 2)
  copyEntries(root, 0, left, 0, nrLeft)
  setNrEntries(left, nrLeft)
  copyEntries(root, nrLeft, right, 0, nr - nrLeft)
  setNrEntries(right, nr - nrLeft)
  initNode(root, NODE_INTERNAL, 8)
  addChild(root, 0, left)
  addChild(root, 1, right)
}

/**
 * Makes room in a full node at `slot` of its parent; all of it is writable.
 * @returns the node that `key` goes to
 */
export function makeRoom(
  info: TreeInfo,
  parent: Block,
  slot: number,
  node: Block,
  key: number,
): Block {
  const nrChildren = nrEntries(parent)
  let siblingShared = false
  if (slot > 0) {
    const free = freeSlots(info, childAt(parent, slot - 1))
    if (free >= SIBLING_ROOM) {
      return balance(parent, slot, shadowChild(info, parent, slot - 1), node, key)
    }
    siblingShared = free < 0
  }
  if (slot < nrChildren - 1) {
    const free = freeSlots(info, childAt(parent, slot + 1))
    if (free >= SIBLING_ROOM) {
      return balance(parent, slot + 1, node, shadowChild(info, parent, slot + 1), key)
    }
    siblingShared ||= free < 0
  }
  if (siblingShared || nrChildren <= 2 || slot === 0 || slot === nrChildren - 1) {
    return splitInTwo(info, parent, slot, node, key)
  }
  return splitPairInThree(info, parent, slot, node, key)
}

/** Room in a sibling; -1 when it is shared, because moving entries would mean a copy. */
function freeSlots(info: TreeInfo, nr: number): number {
  if (info.transaction.counts.isShared(nr)) return -1
  const sibling = readNode(info, nr)
  return capacity(sibling) - nrEntries(sibling)
}

/** Gives neighbours half of the entries each; `slot` is the right one's. */
function balance(parent: Block, slot: number, left: Block, right: Block, key: number): Block {
  checkSiblings(left, right)
  shareOut(left, right, Math.floor((nrEntries(left) + nrEntries(right)) / 2))
  setKeyAt(parent, slot, keyAt(right, 0))
  return key < keyAt(right, 0) ? left : right
}

function splitInTwo(info: TreeInfo, parent: Block, slot: number, left: Block, key: number): Block {
  const right = newSibling(info, left)
  shareOut(left, right, Math.floor(nrEntries(left) / 2))
  addChild(parent, slot + 1, right)
  return key < keyAt(right, 0) ? left : right
}

/** Splits a node and its left sibling, both about full, into three. */
function splitPairInThree(
  info: TreeInfo,
  parent: Block,
  slot: number,
  right: Block,
  key: number,
): Block {
  const left = shadowChild(info, parent, slot - 1)
  checkSiblings(left, right)
  const middle = newSibling(info, right)
  const total = nrEntries(left) + nrEntries(right)
  const nrLeft = Math.floor(total / 3)
  // The middle one is filled up from the left, then levelled with the right one.
  shareOut(left, middle, nrLeft)
  shareOut(middle, right, Math.floor((total - nrLeft) / 2))
  setKeyAt(parent, slot, keyAt(right, 0))
  addChild(parent, slot, middle)
  if (key < keyAt(middle, 0)) return left
  return key < keyAt(right, 0) ? middle : right
}

function newSibling(info: TreeInfo, node: Block): Block {
  return newNode(info, node.view.getUint32(NODE.at.flags, true), valueSize(node))
}

function addChild(parent: Block, slot: number, child: Block): void {
  openSlot(parent, slot, keyAt(child, 0))
  setChildAt(parent, slot, child.nr)
}
