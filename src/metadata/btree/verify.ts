/** Postconditions of changes to trees, checked under THINFS_VERIFY alone. */
import { assert } from '../../base/index.js'
import { type Block, DIRTY } from '../blocks/block.js'
import { capacity, childAt, isLeaf, keyAt, nrEntries, slotOf } from '../blocks/node.js'
import { checkDepth, readNode, type TreeInfo } from './tree.js'

/**
 * Walks from the root to where `key` belongs: nodes are in order, and none that may be changed in
 * place has two owners.
 * @param isThere whether the tree has to have the key
 */
export function verifyPath(info: TreeInfo, root: number, key: number, isThere: boolean): void {
  let node = readNode(info, root)
  for (let depth = 0; ; depth++) {
    verifyNode(info, node)
    const slot = slotOf(node, key)
    if (isLeaf(node)) {
      const found = slot >= 0 && keyAt(node, slot) === key
      assert(found === isThere, `${where(info, node)}: key ${key} is ${found ? '' : 'not '}there`)
      return
    }
    if (slot < 0) {
      assert(!isThere, `${where(info, node)}: key ${key} is in front of the tree`)
      return
    }
    checkDepth(info, node.nr, depth)
    node = readNode(info, childAt(node, slot))
  }
}

function verifyNode(info: TreeInfo, node: Block): void {
  const nr = nrEntries(node)
  assert(nr <= capacity(node), `${where(info, node)}: ${nr} entries`)
  for (let slot = 1; slot < nr; slot++) {
    const inOrder = keyAt(node, slot - 1) < keyAt(node, slot)
    assert(inOrder, `${where(info, node)}: key ${keyAt(node, slot)} is out of order`)
  }
  if (!node.writable) return
  assert(
    node.state === DIRTY,
    `${where(info, node)}: written in place, yet not of this transaction`,
  )
  const { counts } = info.transaction
  assert(!counts.isShared(node.nr), `${where(info, node)}: written in place, yet shared`)
}

const where = (info: TreeInfo, node: Block): string => `${info.kind.name} ${node.nr}`
