/**
 * Nodes of B-trees: header, keys, values.
 *
 * Plain functions over a block; a slot is an index into keys and values alike. Slots past the
 * number of entries hold leftovers, which is how the kernel leaves them.
 * Source: drivers/md/persistent-data/dm-btree-internal.h.
 */
import { readU64, ThinfsError, writeU64 } from '../../base/index.js'
import { maxEntries, NODE, NODE_INTERNAL, NODE_LEAF } from '../format.js'
import type { Block } from './block.js'

const KEYS_AT = NODE.size
/** The byte at which the values of every internal node begin. */
const CHILDREN_AT = KEYS_AT + 8 * maxEntries(8)

export const isLeaf = (node: Block): boolean =>
  node.view.getUint32(NODE.at.flags, true) === NODE_LEAF
export const nrEntries = (node: Block): number => node.view.getUint32(NODE.at.nrEntries, true)
export const capacity = (node: Block): number => node.view.getUint32(NODE.at.maxEntries, true)
export const valueSize = (node: Block): number => node.view.getUint32(NODE.at.valueSize, true)
/** Fewest entries of a node that is not the root of its tree. */
export const minEntries = (node: Block): number => capacity(node) / 3

export function setNrEntries(node: Block, nr: number): void {
  node.view.setUint32(NODE.at.nrEntries, nr, true)
}

export const keyAt = (node: Block, slot: number): number => readU64(node.view, KEYS_AT + slot * 8)

export function setKeyAt(node: Block, slot: number, key: number): void {
  writeU64(node.view, KEYS_AT + slot * 8, key)
}

/** Byte offset of a value. */
export const valueAt = (node: Block, slot: number): number =>
  KEYS_AT + capacity(node) * 8 + slot * valueSize(node)

/** Metadata block of a child of an internal node. */
export const childAt = (node: Block, slot: number): number =>
  readU64(node.view, CHILDREN_AT + slot * 8)

export function setChildAt(node: Block, slot: number, nr: number): void {
  writeU64(node.view, CHILDREN_AT + slot * 8, nr)
}

/** The last slot whose key is <= `key`, or -1. */
export function slotOf(node: Block, key: number): number {
  const { view } = node
  let low = -1
  let high = view.getUint32(NODE.at.nrEntries, true)
  while (high - low > 1) {
    const middle = (low + high) >>> 1
    if (readU64(view, KEYS_AT + middle * 8) <= key) low = middle
    else high = middle
  }
  return low
}

/** The first slot whose key is >= `key`, or the number of entries. */
export function slotFrom(node: Block, key: number): number {
  const slot = slotOf(node, key)
  return slot >= 0 && keyAt(node, slot) === key ? slot : slot + 1
}

/** Makes an empty node of a block; its bytes after the header stay. */
export function initNode(node: Block, flags: number, valueSize: number): void {
  NODE.write(node.view, 0, {
    flags,
    nrEntries: 0,
    maxEntries: maxEntries(valueSize),
    valueSize,
    padding: 0,
  })
}

/** Makes room for an entry and writes its key. @returns byte offset of its value */
export function openSlot(node: Block, slot: number, key: number): number {
  const nr = nrEntries(node)
  if (slot < nr) moveEntries(node, slot, slot + 1, nr - slot)
  setNrEntries(node, nr + 1)
  setKeyAt(node, slot, key)
  return valueAt(node, slot)
}

export function removeSlots(node: Block, slot: number, count: number): void {
  const nr = nrEntries(node)
  moveEntries(node, slot + count, slot, nr - slot - count)
  setNrEntries(node, nr - count)
}

/** Moves entries within a node; the ranges may overlap. The number of entries stays. */
export function moveEntries(node: Block, from: number, to: number, count: number): void {
  const { bytes } = node
  const key = KEYS_AT + from * 8
  bytes.copyWithin(KEYS_AT + to * 8, key, key + count * 8)
  const value = valueAt(node, from)
  bytes.copyWithin(valueAt(node, to), value, value + count * valueSize(node))
}

/** Copies entries to another node of the same tree and level. The numbers of entries stay. */
export function copyEntries(
  source: Block,
  from: number,
  target: Block,
  to: number,
  count: number,
): void {
  const key = KEYS_AT + from * 8
  source.bytes.copy(target.bytes, KEYS_AT + to * 8, key, key + count * 8)
  const value = valueAt(source, from)
  source.bytes.copy(target.bytes, valueAt(target, to), value, value + count * valueSize(source))
}

/** Moves entries between neighbours until `left` has `target` of them. */
export function shareOut(left: Block, right: Block, target: number): void {
  const nrLeft = nrEntries(left)
  const nrRight = nrEntries(right)
  if (nrLeft < target) {
    const count = target - nrLeft
    copyEntries(right, 0, left, nrLeft, count)
    moveEntries(right, count, 0, nrRight - count)
  } else if (nrLeft > target) {
    const count = nrLeft - target
    moveEntries(right, 0, count, nrRight)
    copyEntries(left, target, right, 0, count)
  }
  setNrEntries(left, target)
  setNrEntries(right, nrLeft + nrRight - target)
}

/** @throws METADATA_CORRUPT when a block just read is no node of its kind */
export function checkNode(node: Block): void {
  const { flags, nrEntries, maxEntries: max, valueSize } = NODE.read(node.view, 0)
  if (flags !== NODE_INTERNAL && flags !== NODE_LEAF) {
    throw bad(node, `flags are ${flags}, wanted ${NODE_INTERNAL} or ${NODE_LEAF}`)
  }
  const wanted = flags === NODE_LEAF ? node.kind.valueSize : 8
  if (valueSize !== wanted) throw bad(node, `value size is ${valueSize}, wanted ${wanted}`)
  if (max !== maxEntries(wanted)) {
    throw bad(node, `capacity is ${max} entries, wanted ${maxEntries(wanted)}`)
  }
  if (nrEntries > max) throw bad(node, `${nrEntries} entries, wanted at most ${max}`)
  if (nrEntries === 0 && flags === NODE_INTERNAL) throw bad(node, 'no children, wanted some')
  let last = -1
  for (let slot = 0; slot < nrEntries; slot++) {
    const key = keyAt(node, slot)
    if (key <= last) throw bad(node, `key ${key} follows ${last}, wanted a larger one`)
    last = key
  }
}

/** @throws METADATA_CORRUPT when entries cannot go from one child of a node to the other */
export function checkSiblings(left: Block, right: Block): void {
  if (left !== right && isLeaf(left) === isLeaf(right)) return
  throw bad(right, `is a child of the same node as block ${left.nr}, wanted one at the same level`)
}

const bad = (node: Block, what: string): ThinfsError =>
  new ThinfsError('METADATA_CORRUPT', `metadata block ${node.nr}: ${node.kind.name}: ${what}`)
