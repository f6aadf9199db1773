/**
 * The memory of a ResidentStore: the whole content of a disk and what is known of each page, in a
 * descriptor that outlives the process. The content begins at byte 0, so that the memory reads as
 * the disk does: what is not in use there is a hole, and takes none.
 */
import { fchmodSync } from 'node:fs'
import {
  layout,
  MAX_METADATA_BLOCKS,
  METADATA_BLOCK_SIZE,
  PAGE_SIZE,
  ThinfsError,
} from '../base/index.js'
import { native } from '../native.js'
import { isOfDisk } from './memory-key.js'
import { mustBeWhole } from './remote-disk.js'

/** Bytes of a disk that are used at most: no metadata has more. docs/FORMAT.md */
const SIZE_MAX = MAX_METADATA_BLOCKS * METADATA_BLOCK_SIZE
/** The place of the bytes that say what is known of each page, and of the header behind them. */
const STATES = SIZE_MAX
const HEADER_AT = STATES + Math.ceil(SIZE_MAX / PAGE_SIZE / PAGE_SIZE) * PAGE_SIZE
const END = HEADER_AT + PAGE_SIZE

const MAGIC = 0x73_65_72_74
const VERSION = 1
const HEADER = layout('ResidentHeader', 56, {
  magic: [0, 'u32', 'tells this memory from any other'],
  version: [4, 'u32', '1'],
  size: [8, 'u64', 'bytes of the disk; 0: nobody has read it yet'],
  key: [16, 'bytes:32', 'SHA-256 of the disk’s name'],
  isWhole: [48, 'u32', '1: all that the disk held is here'],
  pad0: [52, 'u32', 'zero'],
})

/** The page is newer here than on the disk. */
export const DIRTY = 1
/** It was sent, and no flush has covered that. */
export const PENDING = 2

export class ResidentMemory {
  readonly fd: number
  /** By page: DIRTY, PENDING. */
  states: Uint8Array
  readonly #header: DataView

  /** Makes such memory, empty. @returns the descriptor */
  static create(): number {
    const fd = native.memory_create('thinfs-metadata', END)
    // Commands read it by way of /proc, and trust no file that others may write.
    fchmodSync(fd, 0o600)
    const header = new DataView(native.memory_map(fd, HEADER_AT, PAGE_SIZE))
    HEADER.write(header, 0, { magic: MAGIC, version: VERSION })
    return fd
  }

  /** The bytes of a disk of `size` that it can have. */
  static sizeOf(size: number): number {
    return Math.min(size - (size % PAGE_SIZE), SIZE_MAX)
  }

  /**
   * Maps it.
   * @param disk whose content it has; the first to map it decides. It may have become larger:
   *   nobody has used what is new of it
   * @throws BAD_ARGUMENT where it has that of another disk; POOL_MISMATCH for a smaller one
   */
  constructor(fd: number, disk: { path: string; size: number }) {
    const header = new DataView(native.memory_map(fd, HEADER_AT, PAGE_SIZE))
    const found = HEADER.read(header, 0)
    const refuse = (what: string): ThinfsError =>
      new ThinfsError('BAD_ARGUMENT', `${disk.path}: the memory is ${what}`)
    if (found.magic !== MAGIC || found.version !== VERSION) throw refuse('none of this version')
    const isIts = isOfDisk(header, HEADER.at.key, disk.path, found.size === 0)
    if (!isIts) throw refuse('that of another disk')
    mustBeWhole(disk, found.size)
    this.fd = fd
    this.#header = header
    this.states = this.grow(ResidentMemory.sizeOf(disk.size))
  }

  /**
   * The disk has `size` bytes from now on.
   * @returns `states` of them
   */
  grow(size: number): Uint8Array {
    HEADER.write(this.#header, 0, { size })
    const nrPages = size / PAGE_SIZE
    const length = Math.max(1, Math.ceil(nrPages / PAGE_SIZE)) * PAGE_SIZE
    this.states = new Uint8Array(native.memory_map(this.fd, STATES, length), 0, nrPages)
    return this.states
  }

  /** Whether it has all that the disk held. */
  get isWhole(): boolean {
    return HEADER.read(this.#header, 0).isWhole === 1
  }

  becomeWhole(): void {
    HEADER.write(this.#header, 0, { isWhole: 1 })
  }
}
