/**
 * Metadata blocks in memory: checked when they are read, stamped before they are written.
 *
 * A clock: blocks that are not dirty or sealed leave in the order they came, those that were used
 * meanwhile get a second round.
 */
import {
  assert,
  bytes,
  METADATA_BLOCK_SIZE,
  readU64,
  ThinfsError,
  VERIFY_ALL,
  writeU64,
} from '../../base/index.js'
import type { Store } from '../../storage/index.js'
import { BLOCK_CSUM_AT, BLOCK_NR_AT, Block, type BlockKind, CLEAN, DIRTY, SEALED } from './block.js'
import { checksum } from './checksum.js'
import { checkNode, isLeaf } from './node.js'

/** Blocks looked at for one that can leave, each time one comes. */
const HAND_STEPS = 16
/** Blocks that one write to the store takes at most. */
const RUN_BLOCKS = 64

/** How long work is cut into slices, between which requests run. */
export interface Pauses {
  /** Whether the slice is over, and requests should run. */
  readonly isOver: boolean
  yield(): Promise<void>
}

/** For work that keeps no request waiting. */
export const NO_PAUSES: Pauses = { isOver: false, yield: async () => {} }

export class BlockCache {
  readonly #store: Store
  /** Blocks kept, plus those that are dirty or sealed. */
  readonly #limit: number
  readonly #blocks = new Map<number, Block>()
  #hand: MapIterator<Block>
  #dirty: Block[] = []
  /** The first damaged block that was met; null: none. */
  damage: string | null = null
  /** The buffer into which `readPassing` reads leaves. */
  #passing = Buffer.allocUnsafeSlow(METADATA_BLOCK_SIZE)

  constructor(store: Store, limit: number) {
    this.#store = store
    this.#limit = limit
    this.#hand = this.#blocks.values()
  }

  /** Whether the running transaction has changed blocks. */
  get hasDirty(): boolean {
    return this.#dirty.length > 0
  }

  /** @throws METADATA_CORRUPT, or what the store throws */
  read(nr: number, kind: BlockKind): Block {
    const block = this.#blocks.get(nr)
    if (block === undefined) return this.#load(nr, kind)
    if (block.kind !== kind) {
      throw new ThinfsError(
        'METADATA_CORRUPT',
        `metadata block ${nr}: in use as ${block.kind.name} and as ${kind.name}`,
      )
    }
    block.referenced = true
    return block
  }

  /**
   * As `read`, of a node, for walks over many leaves: a leaf that is not in memory does not come to
   * stay, so it pushes nothing out and needs no buffer. It is good until the next call.
   */
  readPassing(nr: number, kind: BlockKind): Block {
    if (this.#blocks.has(nr)) return this.read(nr, kind)
    const node = this.#fetch(nr, kind, this.#passing)
    if (isLeaf(node)) return node
    this.#passing = Buffer.allocUnsafeSlow(METADATA_BLOCK_SIZE)
    this.#add(node)
    return node
  }

  /** The block if it is in memory. */
  peek(nr: number): Block | undefined {
    return this.#blocks.get(nr)
  }

  /** A dirty block with the given content, in place of whatever was at `nr`. */
  create(nr: number, kind: BlockKind, content: Buffer): Block {
    if (VERIFY_ALL) {
      const isTaken = this.#blocks.get(nr)?.writable ?? false
      assert(!isTaken, `metadata block ${nr}: given out, yet the running transaction has it`)
    }
    const block = new Block(nr, kind, content)
    block.state = DIRTY
    block.writable = true
    this.#dirty.push(block)
    this.#add(block)
    return block
  }

  /** Ends the running transaction. @returns its blocks, ascending */
  seal(): Block[] {
    const sealed = this.#dirty.sort((a, b) => a.nr - b.nr)
    this.#dirty = []
    for (const block of sealed) {
      block.state = SEALED
      block.writable = false
    }
    return sealed
  }

  /** Writes blocks that `seal` returned, with location and checksum. */
  async write(sealed: readonly Block[], pauses: Pauses): Promise<void> {
    const run = Buffer.allocUnsafe(RUN_BLOCKS * METADATA_BLOCK_SIZE)
    for (let i = 0; i < sealed.length; ) {
      const first = sealed[i]!.nr
      let length = 0
      do {
        stamp(sealed[i]!)
        sealed[i]!.bytes.copy(run, length)
        length += METADATA_BLOCK_SIZE
        i++
      } while (
        i < sealed.length &&
        length < run.length &&
        sealed[i]!.nr === first + length / METADATA_BLOCK_SIZE
      )
      this.#store.write(run, 0, length, bytes(first * METADATA_BLOCK_SIZE))
      if (pauses.isOver) await pauses.yield()
    }
    for (const block of sealed) block.state = CLEAN
  }

  /** Forgets everything, dirty and sealed blocks too. */
  clear(): void {
    this.#blocks.clear()
    this.#hand = this.#blocks.values()
    this.#dirty = []
  }

  #load(nr: number, kind: BlockKind): Block {
    const block = this.#fetch(nr, kind, Buffer.allocUnsafeSlow(METADATA_BLOCK_SIZE))
    this.#add(block)
    return block
  }

  /** Reads a block into `content`, which is the block's then, and checks it. */
  #fetch(nr: number, kind: BlockKind, content: Buffer): Block {
    const offset = nr * METADATA_BLOCK_SIZE
    if (offset + METADATA_BLOCK_SIZE > this.#store.size) {
      throw new ThinfsError(
        'METADATA_CORRUPT',
        `metadata block ${nr}: wanted as ${kind.name}, but the store ends before it`,
      )
    }
    this.#store.read(content, 0, METADATA_BLOCK_SIZE, bytes(offset))
    const block = new Block(nr, kind, content)
    try {
      checkStamp(block)
      if (kind.valueSize > 0) checkNode(block)
    } catch (err) {
      this.damage ??= (err as Error).message
      throw err
    }
    return block
  }

  #add(block: Block): void {
    for (let step = 0; step < HAND_STEPS && this.#blocks.size >= this.#limit; step++) {
      const next = this.#hand.next()
      if (next.done) {
        this.#hand = this.#blocks.values()
        continue
      }
      const candidate = next.value
      if (candidate.referenced) candidate.referenced = false
      else if (candidate.state === CLEAN) this.#blocks.delete(candidate.nr)
    }
    this.#blocks.set(block.nr, block)
  }
}

/** Writes a block's own location and its checksum into it. */
export function stamp(block: Block): void {
  writeU64(block.view, BLOCK_NR_AT, block.nr)
  block.view.setUint32(BLOCK_CSUM_AT, checksum(block.bytes, block.kind.salt), true)
}

/** @throws METADATA_CORRUPT when the checksum or the location that a block carries is wrong */
export function checkStamp(block: Block): void {
  const found = block.view.getUint32(BLOCK_CSUM_AT, true)
  const computed = checksum(block.bytes, block.kind.salt)
  if (found !== computed) {
    throw new ThinfsError(
      'METADATA_CORRUPT',
      `metadata block ${block.nr}: ${block.kind.name}: checksum is 0x${found.toString(16)}, ` +
        `computed 0x${computed.toString(16)}`,
    )
  }
  const location = readU64(block.view, BLOCK_NR_AT)
  if (location !== block.nr) {
    throw new ThinfsError(
      'METADATA_CORRUPT',
      `metadata block ${block.nr}: ${block.kind.name}: says that it is block ${location}`,
    )
  }
}
