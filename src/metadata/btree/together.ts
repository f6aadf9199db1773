/**
 * The nodes and entries that some trees lead to and nothing else does. A node that several of them
 * share is theirs when no other tree leads to it: when it has as many owners as are found among
 * their nodes.
 */
import { childAt, isLeaf, slotOf } from '../blocks/node.js'
import { checkDepth, readNode, type TreeInfo } from './tree.js'
import { childEnd, type VisitEntry, walk } from './walk.js'

/** The nodes on the way to a key, the root first, and where the keys of each end. */
interface Path {
  nodes: number[]
  ends: number[]
}

function pathTo(info: TreeInfo, root: number, key: number): Path {
  const path: Path = { nodes: [root], ends: [Number.POSITIVE_INFINITY] }
  for (let depth = 0; ; depth++) {
    const end = path.ends[depth]!
    const node = readNode(info, path.nodes[depth]!)
    if (isLeaf(node)) return path
    checkDepth(info, node.nr, depth)
    const slot = Math.max(slotOf(node, key), 0)
    path.nodes.push(childAt(node, slot))
    path.ends.push(childEnd(node, slot, end))
  }
}

/** The place of a path's node that is so many levels above the leaf; negative: it has none. */
const placeOf = ({ nodes }: Path, level: number): number => nodes.length - 1 - level

/**
 * Visits entries of one leaf of a tree, from `key` on, when only the trees of `roots` lead to that
 * leaf. One that a tree before this leads to as well is left to that. The visitor must not walk.
 * @param roots one for each tree; trees may have the same
 * @param nr of the tree among them
 * @param key which that tree has
 * @returns the key to go on from, or Infinity
 */
export function walkTogether(
  info: TreeInfo,
  roots: readonly number[],
  nr: number,
  key: number,
  visit: VisitEntry,
): number {
  const paths = roots.map(root => pathTo(info, root, key))
  const path = paths[nr]!
  // A node that two trees share is as high in both, so levels count from the leaf.
  let owned: ReadonlySet<number> = new Set()
  for (let level = Math.max(...paths.map(({ nodes }) => nodes.length)) - 1; level >= 0; level--) {
    owned = ownedAt(info, paths, level, owned)
    const at = placeOf(path, level)
    if (at < 0) continue
    const node = path.nodes[at]!
    const isEarlier = paths.some(
      (other, i) => i < nr && other.nodes[placeOf(other, level)] === node,
    )
    if (isEarlier || !owned.has(node)) return path.ends[at]!
  }
  const leaf = readNode(info, path.nodes.at(-1)!)
  walk(info, leaf, key, Number.POSITIVE_INFINITY, visit)
  return path.ends.at(-1)!
}

/** Those nodes of a level that nothing but `above`, and the set of trees itself, leads to. */
function ownedAt(
  info: TreeInfo,
  paths: readonly Path[],
  level: number,
  above: ReadonlySet<number>,
): Set<number> {
  const owners = new Map<number, number>()
  const parents = new Set<number>()
  for (const path of paths) {
    const at = placeOf(path, level)
    if (at < 0) continue
    if (at > 0) {
      const parent = path.nodes[at - 1]!
      if (!above.has(parent) || parents.has(parent)) continue
      parents.add(parent)
    }
    const node = path.nodes[at]!
    owners.set(node, (owners.get(node) ?? 0) + 1)
  }
  const owned = new Set<number>()
  for (const [node, count] of owners) {
    if (info.transaction.counts.count(node) === count) owned.add(node)
  }
  return owned
}
