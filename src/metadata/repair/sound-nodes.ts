import { bytes, METADATA_BLOCK_SIZE, ThinfsError } from '../../base/index.js'
import type { Store } from '../../storage/index.js'
import { Block, nodeKind } from '../blocks/block.js'
import { checkStamp } from '../blocks/block-cache.js'
import { checkNode, childAt, isLeaf, keyAt, nrEntries } from '../blocks/node.js'
import { NODE } from '../format.js'

/** A tree of 4161600 nodes with 84 entries each has four levels. */
export const MAX_DEPTH = 16

/** Keys [begin, end) of a tree that cannot be read. */
export interface LostRange {
  begin: number
  /** May be Infinity. */
  end: number
  /** The damage of the block that leads to them. */
  why: string
}

export interface TreeVisitor {
  leaf(node: Block): void
  lost(range: LostRange): void
  /** Whether the visitor knows a node, and has done with it what is to be done. */
  knows?(nr: number, begin: number, end: number): boolean
}

/** Reads nodes of damaged metadata: each is sound by itself, or named. */
export class SoundNodes {
  readonly nrBlocks: number
  readonly #store: Store

  constructor(store: Store) {
    this.#store = store
    this.nrBlocks = Math.floor(store.size / METADATA_BLOCK_SIZE)
  }

  /**
   * @param valueSize of the tree's leaves; null: as the node says
   * @returns the node, or what is wrong with it
   */
  read(nr: number, valueSize: number | null): Block | string {
    if (nr < 1 || nr >= this.nrBlocks) return `metadata block ${nr}: not one of ${this.nrBlocks}`
    const content = Buffer.allocUnsafeSlow(METADATA_BLOCK_SIZE)
    try {
      this.#store.read(content, 0, METADATA_BLOCK_SIZE, bytes(nr * METADATA_BLOCK_SIZE))
      const node = new Block(
        nr,
        nodeKind('tree', valueSize ?? content.readUInt32LE(VALUE_SIZE)),
        content,
      )
      checkStamp(node)
      checkNode(node)
      return hasOrder(node) ? node : `metadata block ${nr}: tree node: its keys do not ascend`
    } catch (err) {
      if (err instanceof ThinfsError) return err.message
      throw err
    }
  }

  /** Visits the leaves of a tree, ascending, and the ranges of keys that cannot be reached. */
  visit(
    nr: number,
    valueSize: number,
    visitor: TreeVisitor,
    begin = 0,
    end = Number.POSITIVE_INFINITY,
    depth = 0,
  ): void {
    if (visitor.knows?.(nr, begin, end)) return
    const node = depth === MAX_DEPTH ? `metadata block ${nr}: too deep` : this.read(nr, valueSize)
    const why = typeof node === 'string' ? node : whyNotWithin(node, { begin, end, depth })
    if (typeof node === 'string' || why !== null) {
      visitor.lost({ begin, end, why: why! })
      return
    }
    if (isLeaf(node)) {
      if (nrEntries(node) > 0) visitor.leaf(node)
      return
    }
    const last = nrEntries(node) - 1
    for (let slot = 0; slot <= last; slot++) {
      const childEnd = slot < last ? keyAt(node, slot + 1) : end
      this.visit(childAt(node, slot), valueSize, visitor, keyAt(node, slot), childEnd, depth + 1)
    }
  }
}

const VALUE_SIZE = NODE.at.valueSize

/** The fault of a node as one that has keys of [begin, end); null for none. */
function whyNotWithin(
  node: Block,
  { begin, end, depth }: { begin: number; end: number; depth: number },
): string | null {
  const last = nrEntries(node) - 1
  if (last < 0) {
    const mayBeEmpty = depth === 0 && isLeaf(node)
    return mayBeEmpty ? null : `metadata block ${node.nr}: it has no entries`
  }
  if (keyAt(node, 0) >= begin && keyAt(node, last) < end) return null
  const keys = `keys ${keyAt(node, 0)} to ${keyAt(node, last)}`
  return `metadata block ${node.nr}: ${keys}, wanted from ${begin} below ${end}`
}

function hasOrder(node: Block): boolean {
  for (let slot = nrEntries(node) - 1; slot > 0; slot--) {
    if (keyAt(node, slot) <= keyAt(node, slot - 1)) return false
  }
  return true
}
