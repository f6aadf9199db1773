/**
 * A B-tree with u64 keys and values of one size.
 *
 * A tree is its own cursor: a search leaves it on an entry, and the caller reads or writes the
 * value there (`view` at `at`) before the tree is used again. So a lookup allocates nothing.
 * Source: drivers/md/persistent-data/dm-btree.c.
 */
import { VERIFY_ALL } from '../../base/index.js'
import type { Block } from '../blocks/block.js'
import {
  capacity,
  childAt,
  isLeaf,
  keyAt,
  nrEntries,
  openSlot,
  setChildAt,
  setKeyAt,
  slotFrom,
  slotOf,
  valueAt,
} from '../blocks/node.js'
import { NODE_LEAF } from '../format.js'
import { removeRange } from './remove.js'
import { makeRoom, splitRoot } from './room.js'
import { checkDepth, newNode, readNode, shadowNode, type TreeInfo } from './tree.js'
import { verifyPath } from './verify.js'

const NO_VIEW = new DataView(new ArrayBuffer(0))

export class BTree {
  readonly info: TreeInfo
  /** Metadata block of the root; another one after the root was shadowed. */
  root: number
  /** Cursor: the entry's key, its leaf's bytes, and where in them its value is. */
  key = 0
  view: DataView = NO_VIEW
  at = 0

  constructor(info: TreeInfo, root: number) {
    this.info = info
    this.root = root
  }

  /** A tree without entries. Its root has a count of 1, which is the caller's. */
  static create(info: TreeInfo): BTree {
    return new BTree(info, newNode(info, NODE_LEAF, info.kind.valueSize).nr)
  }

  /** Moves to the entry of `key`. @returns whether there is one */
  search(key: number): boolean {
    let node = readNode(this.info, this.root)
    for (let depth = 0; ; depth++) {
      const slot = slotOf(node, key)
      if (slot < 0) return false
      if (isLeaf(node)) {
        this.#moveTo(node, slot)
        return this.key === key
      }
      checkDepth(this.info, node.nr, depth)
      node = readNode(this.info, childAt(node, slot))
    }
  }

  /** Moves to the first entry at or after `key`. @returns whether there is one */
  seek(key: number): boolean {
    let node = readNode(this.info, this.root)
    // The key to go on from when the leaf that `key` belongs to has nothing at or after it.
    let next = 0
    for (let depth = 0; !isLeaf(node); depth++) {
      checkDepth(this.info, node.nr, depth)
      const slot = Math.max(slotOf(node, key), 0)
      if (slot + 1 < nrEntries(node)) next = childAt(node, slot + 1)
      node = readNode(this.info, childAt(node, slot))
    }
    let slot = slotFrom(node, key)
    if (slot === nrEntries(node)) {
      if (next === 0) return false
      slot = 0
      node = readNode(this.info, next)
      for (let depth = 0; !isLeaf(node); depth++) {
        checkDepth(this.info, node.nr, depth)
        node = readNode(this.info, childAt(node, 0))
      }
      if (nrEntries(node) === 0) return false
    }
    this.#moveTo(node, slot)
    return true
  }

  /** Moves to the entry with the largest key. @returns false when the tree is empty */
  last(): boolean {
    let node = readNode(this.info, this.root)
    for (let depth = 0; !isLeaf(node); depth++) {
      checkDepth(this.info, node.nr, depth)
      node = readNode(this.info, childAt(node, nrEntries(node) - 1))
    }
    if (nrEntries(node) === 0) return false
    this.#moveTo(node, nrEntries(node) - 1)
    return true
  }

  /**
   * Moves to the entry of `key`, making it when there is none, in a leaf that may be changed. The
   * caller writes the value, whose old bytes are undefined when the entry is new, and sees to what
   * old and new value refer to.
   * @returns whether there was an entry
   */
  insert(key: number): boolean {
    let node = this.writableRoot()
    let parent: Block | null = null
    let parentSlot = 0
    for (let depth = 0; ; depth++) {
      checkDepth(this.info, node.nr, depth)
      if (nrEntries(node) === capacity(node) && !(isLeaf(node) && hasKey(node, key))) {
        if (parent === null) splitRoot(this.info, node)
        else node = makeRoom(this.info, parent, parentSlot, node, key)
      }
      let slot = slotOf(node, key)
      if (isLeaf(node)) {
        const found = slot >= 0 && keyAt(node, slot) === key
        if (!found) openSlot(node, ++slot, key)
        this.#moveTo(node, slot)
        if (VERIFY_ALL) verifyPath(this.info, this.root, key, true)
        return found
      }
      if (slot < 0) {
        slot = 0
        setKeyAt(node, 0, key)
      }
      const child = readNode(this.info, childAt(node, slot))
      const shadow = shadowNode(this.info, child)
      if (shadow !== child) setChildAt(node, slot, shadow.nr)
      parent = node
      parentSlot = slot
      node = shadow
    }
  }

  /** Removes the entry of `key` and what its value refers to. @returns whether there was one */
  remove(key: number): boolean {
    return this.removeRange(key, key + 1) > 0
  }

  /**
   * Removes the entries with keys in [begin, end) and what their values refer to.
   * @returns how many there were
   */
  removeRange(begin: number, end: number): number {
    if (!this.seek(begin) || this.key >= end) return 0
    const removed = removeRange(this.info, this.writableRoot(), begin, end)
    if (VERIFY_ALL) verifyPath(this.info, this.root, begin, false)
    return removed
  }

  /** The root, shadowed when it may not be changed in place. */
  writableRoot(): Block {
    const root = shadowNode(this.info, readNode(this.info, this.root))
    this.root = root.nr
    return root
  }

  #moveTo(leaf: Block, slot: number): void {
    this.key = keyAt(leaf, slot)
    this.view = leaf.view
    this.at = valueAt(leaf, slot)
  }
}

function hasKey(leaf: Block, key: number): boolean {
  const slot = slotOf(leaf, key)
  return slot >= 0 && keyAt(leaf, slot) === key
}
