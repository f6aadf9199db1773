/**
 * The checker's knowledge of each metadata block: its role, who points to it, and what it contains.
 *
 * A block has one role only. The checker parses it once; for a second pointer it looks up here what
 * it found. Six numbers for each block bound its memory by the size of the metadata.
 */
import { crc32c } from '@node-rs/crc32'
import {
  bytes,
  MAX_METADATA_BLOCKS,
  METADATA_BLOCK_SIZE,
  readU64,
  ThinfsError,
} from '../../base/index.js'
import type { Store } from '../../storage/index.js'
import { BITMAP, type SPACE_MAP_ROOT, SUPERBLOCK_LOCATION } from '../format.js'
import { Node } from './node.js'
import type { Problems } from './problems.js'

/** Roles of a block. */
const ROLES = [
  'free block',
  'superblock',
  'metadata snapshot',
  'metadata index block',
  'metadata bitmap',
  'metadata overflow node',
  'data index node',
  'data bitmap',
  'data overflow node',
  'details node',
  'top-level node',
  'mapping node',
] as const
export type Role = (typeof ROLES)[number]

/** States of a block; a sound one has the height of its subtree (1: leaf or no node) and flags. */
export const UNSEEN = 0
export const HEIGHT = 0x1f
/** Below the node something could not be read or is out of place. */
export const DAMAGED = 0x40
/** The block itself cannot be used. */
export const BROKEN = 0x80
/** The checker is reading its subtree: meeting it again is a cycle. */
export const OPEN = 0xff

/** Progress of a check, by metadata blocks that were read. */
export type OnCheckProgress = (done: number, all: number) => void

export class BlockMap {
  /** The block that was read last by whoever needs no more than one at a time. */
  readonly scratch = new Node()
  /** Blocks that may be pointed to: those of the metadata map that the store has. */
  nrBlocks = 0
  state = new Uint8Array(0)
  /** Pointers to each block. */
  pointers = new Uint32Array(0)
  /** Of each sound node: its first key, the last key and the number of entries of its leaves. */
  firstKey = new Float64Array(0)
  lastKey = new Float64Array(0)
  entries = new Float64Array(0)
  #role = new Uint8Array(0)
  readonly #store: Store
  readonly #problems: Problems
  readonly #onProgress: OnCheckProgress | null
  #nrLoaded = 0
  #nrToLoad: number

  constructor(store: Store, problems: Problems, onProgress: OnCheckProgress | null) {
    this.#store = store
    this.#problems = problems
    this.#onProgress = onProgress
    this.#nrToLoad = Math.floor(store.size / METADATA_BLOCK_SIZE)
  }

  /** Tells how many blocks the check will read, as far as the superblock can tell. */
  expect(nrBlocks: number): void {
    this.#nrToLoad = nrBlocks
  }

  /** Makes room for the blocks that the metadata's own space map has. */
  allocate(metadata: ReturnType<typeof SPACE_MAP_ROOT.read>): void {
    const blocks = Math.floor(this.#store.size / METADATA_BLOCK_SIZE)
    const limit = Math.min(blocks, MAX_METADATA_BLOCKS)
    const n = Math.min(metadata.nrBlocks, limit)
    if (metadata.nrBlocks > limit) {
      this.#problems.error(
        `the metadata map has ${metadata.nrBlocks} blocks, wanted at most the ${limit} there are`,
      )
    }
    this.nrBlocks = n
    this.#role = new Uint8Array(n)
    this.state = new Uint8Array(n)
    this.pointers = new Uint32Array(n)
    this.firstKey = new Float64Array(n)
    this.lastKey = new Float64Array(n)
    this.entries = new Float64Array(n)
    this.#role[SUPERBLOCK_LOCATION] = ROLES.indexOf('superblock')
    this.pointers[SUPERBLOCK_LOCATION] = 1
  }

  /** Counts a pointer to `block`. @returns whether it can be a block of that role */
  point(block: number, role: Role, where: string): boolean {
    if (block < 1 || block >= this.nrBlocks) {
      this.#problems.broken(`${where}: ${role} ${block} is wanted within 1 to ${this.nrBlocks - 1}`)
      return false
    }
    this.pointers[block]!++
    const found = ROLES[this.#role[block]!]!
    if (found === 'free block') this.#role[block] = ROLES.indexOf(role)
    else if (found !== role) {
      this.#problems.broken(`${where}: block ${block} is a ${found} already, wanted a ${role}`)
      return false
    }
    return true
  }

  /**
   * Follows a pointer to a block that has no children and one owner, and leaves it in `scratch`.
   * @returns whether the block can be used
   */
  visitPlain(block: number, role: Role, where: string, salt: number): boolean {
    if (!this.point(block, role, where)) return false
    if (this.state[block] !== UNSEEN) {
      this.#problems.error(`${where}: ${role} ${block} has more than one pointer, wanted one`)
      return this.state[block] !== BROKEN
    }
    const sound = this.read(this.scratch, block, salt, `${role} ${block}`)
    this.state[block] = sound ? 1 : BROKEN
    return sound
  }

  isUsable(block: number, role: Role): boolean {
    return ROLES[this.#role[block] ?? 0] === role && (this.state[block]! & BROKEN) === 0
  }

  /** Reads a block and checks what all kinds have: checksum and own location. */
  read(target: Node, block: number, salt: number, where: string): boolean {
    const refuse = (what: string): boolean => {
      this.#problems.broken(`${where}: ${what}`)
      return false
    }
    if (this.#store.size < (block + 1) * METADATA_BLOCK_SIZE) {
      return refuse(`the metadata ends at byte ${this.#store.size}, before it`)
    }
    try {
      this.load(target, block)
    } catch (err) {
      if (!(err instanceof ThinfsError)) throw err
      return refuse(err.message)
    }
    // The three kinds have checksum and location in the same place.
    const found = target.view.getUint32(BITMAP.at.csum, true)
    const wanted = (~crc32c(target.buffer.subarray(4)) ^ salt) >>> 0
    if (found !== wanted) return refuse(`checksum is ${found}, wanted ${wanted}`)
    const location = readU64(target.view, BITMAP.at.blockNr)
    if (location !== block) return refuse(`blocknr is ${location}, wanted ${block}`)
    return true
  }

  /** Reads a block that `read` found sound. */
  load(target: Node, block: number): void {
    this.#store.read(target.buffer, 0, METADATA_BLOCK_SIZE, bytes(block * METADATA_BLOCK_SIZE))
    this.#onProgress?.(++this.#nrLoaded, this.#nrToLoad)
  }
}
