/**
 * A B-tree made of entries in order: full leaves first, then the levels above them.
 *
 * Leaves of another tree may come in between, which both have from then on. Every node but a root
 * has at least a third of its entries: a leaf that would have fewer takes some of the one before
 * it, and becomes the tree's own for that.
 */
import { METADATA_BLOCK_SIZE } from '../../base/index.js'
import { Block, type BlockKind } from '../blocks/block.js'
import {
  capacity,
  copyEntries,
  initNode,
  keyAt,
  minEntries,
  nrEntries,
  setChildAt,
  setKeyAt,
  setNrEntries,
  shareOut,
  valueAt,
} from '../blocks/node.js'
import { maxEntries, NODE_INTERNAL, NODE_LEAF } from '../format.js'
import type { BlockWriter } from './block-writer.js'
import type { Counts } from './counts.js'

/** A leaf that is written. */
export interface WrittenLeaf {
  nr: number
  nrEntries: number
  firstKey: number
  lastKey: number
}

/** A tree that is written. */
export interface WrittenTree {
  /** Metadata block. */
  root: number
  nrEntries: number
}

export interface TreeWriterParts {
  writer: BlockWriter
  /** Pointers to metadata blocks. */
  counts: Counts
  kind: BlockKind
  /** Called with each leaf that gets its first owner. */
  onLeaf?: (leaf: Block) => void
}

export class TreeWriter {
  readonly #parts: TreeWriterParts
  readonly #leaves: WrittenLeaf[] = []
  /** A full leaf that is not written: the one after it may be short of entries. */
  #held: Block | null = null
  #current: Block
  #lastKey = -1

  constructor(parts: TreeWriterParts) {
    this.#parts = parts
    this.#current = this.#newNode(NODE_LEAF)
  }

  /** The largest key so far, -1 for none. */
  get lastKey(): number {
    return this.#lastKey
  }

  /** The leaf's bytes of the entry that `add` made, and where in them its value is. */
  get view(): DataView {
    return this.#current.view
  }

  /**
   * Adds an entry behind all others; the caller writes its value.
   * @returns byte offset of the value in `view`
   */
  add(key: number): number {
    let leaf = this.#current
    let slot = nrEntries(leaf)
    if (slot === capacity(leaf)) {
      if (this.#held !== null) this.#write(this.#held)
      this.#held = leaf
      leaf = this.#newNode(NODE_LEAF)
      this.#current = leaf
      slot = 0
    }
    setKeyAt(leaf, slot, key)
    setNrEntries(leaf, slot + 1)
    this.#lastKey = key
    return valueAt(leaf, slot)
  }

  /** Adds all entries of a leaf, behind all others, as entries of this tree's own. */
  addAll(leaf: Block): void {
    const nr = nrEntries(leaf)
    for (let slot = 0; slot < nr; slot++) {
      const at = this.add(keyAt(leaf, slot))
      const from = valueAt(leaf, slot)
      leaf.bytes.copy(this.#current.bytes, at, from, from + leaf.kind.valueSize)
    }
  }

  /**
   * Adds a leaf behind all entries, which stays as it is; or its entries, where it, or what comes
   * before it, would be short of them.
   */
  share(leaf: WrittenLeaf): void {
    if (leaf.nrEntries < minEntries(this.#current) || !this.#settle()) {
      this.addAll(this.#read(leaf.nr))
      return
    }
    this.#leaves.push(leaf)
    this.#lastKey = leaf.lastKey
  }

  /**
   * Writes a leaf behind all entries, as it is; or adds its entries, as `share`.
   * @param leaf whose location and checksum may change
   * @returns null where it is no leaf that others may share
   */
  append(leaf: Block): WrittenLeaf | null {
    if (nrEntries(leaf) < minEntries(leaf) || !this.#settle()) {
      this.addAll(leaf)
      return null
    }
    this.#lastKey = keyAt(leaf, nrEntries(leaf) - 1)
    return this.#write(leaf)
  }

  /** All leaves, where a tree above them is not wanted. */
  leaves(): readonly WrittenLeaf[] {
    this.#settleLast()
    return this.#leaves
  }

  /** Writes what is left, and the levels above the leaves. The root has no owner yet. */
  finish(): WrittenTree {
    this.#settleLast()
    if (this.#leaves.length === 0) this.#write(this.#current)
    this.#countLeaves()
    let level: { nr: number; firstKey: number }[] = this.#leaves
    while (level.length > 1) level = this.#levelAbove(level)
    const entries = this.#leaves.reduce((sum, leaf) => sum + leaf.nrEntries, 0)
    return { root: level[0]!.nr, nrEntries: entries }
  }

  #countLeaves(): void {
    const { counts, onLeaf } = this.#parts
    if (onLeaf === undefined) return
    for (const { nr } of this.#leaves) if (counts.get(nr) === 0) onLeaf(this.#read(nr))
  }

  #levelAbove(level: readonly { nr: number; firstKey: number }[]) {
    const most = maxEntries(8)
    const nrNodes = Math.ceil(level.length / most)
    return Array.from({ length: nrNodes }, (_, i) => {
      const begin = Math.floor((level.length * i) / nrNodes)
      const end = Math.floor((level.length * (i + 1)) / nrNodes)
      const node = this.#newNode(NODE_INTERNAL)
      for (let slot = 0; slot < end - begin; slot++) {
        const { nr, firstKey } = level[begin + slot]!
        setKeyAt(node, slot, firstKey)
        setChildAt(node, slot, nr)
        this.#parts.counts.inc(nr)
      }
      setNrEntries(node, end - begin)
      const nr = this.#parts.writer.append(node.kind, node.bytes)
      return { nr, firstKey: level[begin]!.firstKey }
    })
  }

  /**
   * Writes what is not written, so that another leaf may come behind it.
   * @returns false where that would have too few entries, and nothing before it has some to give
   */
  #settle(): boolean {
    const nr = nrEntries(this.#current)
    if (nr > 0 && nr < minEntries(this.#current)) {
      if (this.#held === null && !this.#takeBack()) return false
      this.#level()
    }
    this.#writeAll()
    return true
  }

  /** As `#settle`, at the end: a tree that has one leaf may have few entries. */
  #settleLast(): void {
    if (!this.#settle()) this.#writeAll()
  }

  #writeAll(): void {
    if (this.#held !== null) this.#write(this.#held)
    this.#held = null
    if (nrEntries(this.#current) === 0) return
    this.#write(this.#current)
    this.#current = this.#newNode(NODE_LEAF)
  }

  /** Makes a copy of the last leaf the held one. @returns false where there is none */
  #takeBack(): boolean {
    const last = this.#leaves.pop()
    if (last === undefined) return false
    this.#held = this.#read(last.nr)
    return true
  }

  /** Gives the held leaf and the current one half of the entries each, or all to one. */
  #level(): void {
    const [held, current] = [this.#held!, this.#current]
    const total = nrEntries(held) + nrEntries(current)
    if (total > capacity(held)) {
      shareOut(held, current, Math.ceil(total / 2))
      return
    }
    copyEntries(current, 0, held, nrEntries(held), nrEntries(current))
    setNrEntries(held, total)
    setNrEntries(current, 0)
  }

  #write(leaf: Block): WrittenLeaf {
    const nr = this.#parts.writer.append(leaf.kind, leaf.bytes)
    const entries = nrEntries(leaf)
    const [firstKey, lastKey] = [keyAt(leaf, 0), keyAt(leaf, Math.max(entries - 1, 0))]
    const written = { nr, nrEntries: entries, firstKey, lastKey }
    this.#leaves.push(written)
    return written
  }

  #read(nr: number): Block {
    return this.#parts.writer.read(nr, this.#parts.kind)
  }

  #newNode(flags: number): Block {
    const { kind } = this.#parts
    const node = new Block(0, kind, Buffer.alloc(METADATA_BLOCK_SIZE))
    initNode(node, flags, flags === NODE_LEAF ? kind.valueSize : 8)
    return node
  }
}
