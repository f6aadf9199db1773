/**
 * The memory of a RemoteStore's cache: slots of 64 KiB and what is known of each, in a descriptor
 * that outlives the process. Whoever maps it next finds every change that was made.
 *
 * The order of changes makes any moment of a death a good one: bytes first, then that they are
 * valid, then that they are dirty.
 */
import { fstatSync } from 'node:fs'
import { assert, KIB, layout, MIB, PAGE_SIZE, ThinfsError } from '../base/index.js'
import { native } from '../native.js'
import { isOfDisk } from './memory-key.js'
import { mustBeWhole } from './remote-disk.js'

/** Bytes of a slot. */
export const SLOT = 64 * KIB
/** Pages of a slot: a bit each. */
export const SLOT_PAGES = SLOT / PAGE_SIZE
export const ALL_PAGES = 2 ** SLOT_PAGES - 1
/** Bytes of the disk that count as a request to be, wherever in them something is dirty. */
const RUN = 256 * KIB
export const RUN_SLOTS = RUN / SLOT
/**
 * Bytes of the disk that are read or written by one request at most, which does not pass a
 * multiple.
 */
export const REQUEST = MIB
/** Ranges that were zeroed and not flushed: as many as a flush may be far away. */
export const ZEROED_MAX = 4096
/** Slots that are mapped as one ArrayBuffer. */
const SEGMENT_SLOTS = (256 * MIB) / SLOT
/** A slot that holds nothing. */
export const FREE = -1

const MAGIC = 0x63_66_69_74
const VERSION = 1
const HEADER = layout('CacheHeader', 64, {
  magic: [0, 'u32', 'tells this memory from any other'],
  version: [4, 'u32', '1'],
  nrSlots: [8, 'u32', 'slots'],
  pad0: [12, 'u32', 'zero'],
  size: [16, 'u64', 'bytes of the disk; 0: nobody has used it yet'],
  key: [24, 'bytes:32', 'SHA-256 of the disk’s name'],
  zeroedBegin: [56, 'u32', 'the first range that was zeroed and not flushed, of all ever'],
  zeroedEnd: [60, 'u32', 'the one behind the last'],
})

const { zeroedBegin: ZEROED_BEGIN, zeroedEnd: ZEROED_END } = HEADER.at

/** Where the parts of the memory are. Bytes. */
function placesOf(nrSlots: number) {
  const zeroed = PAGE_SIZE
  const blocks = zeroed + ZEROED_MAX * 2 * Float64Array.BYTES_PER_ELEMENT
  const valid = blocks + nrSlots * Float64Array.BYTES_PER_ELEMENT
  const dirty = valid + nrSlots * Uint16Array.BYTES_PER_ELEMENT
  const pending = dirty + nrSlots * Uint16Array.BYTES_PER_ELEMENT
  const end = pending + nrSlots * Uint16Array.BYTES_PER_ELEMENT
  const slots = Math.ceil(end / SLOT) * SLOT
  return { zeroed, blocks, valid, dirty, pending, slots, end: slots + nrSlots * SLOT }
}

export class CacheMemory {
  readonly nrSlots: number
  /** By slot: which 64 KiB of the disk it has, or FREE. */
  readonly blocks: Float64Array
  /** By slot and page: whether the bytes are those of the disk, or newer. */
  readonly valid: Uint16Array
  /** Whether they are newer, and were not sent since. */
  readonly dirty: Uint16Array
  /** Whether they were sent, and no flush has covered that. */
  readonly pending: Uint16Array
  /** Offset and length of ranges that were zeroed, and no flush has covered that. */
  readonly zeroed: Float64Array
  readonly #header: DataView
  readonly #segments: Uint8Array[] = []

  /**
   * Makes such memory, empty.
   * @param size bytes, at least four slots
   * @returns the descriptor
   */
  static create(size: number): number {
    const nrSlots = Math.floor(size / SLOT)
    assert(nrSlots >= 4, 'a cache has a few slots')
    const fd = native.memory_create('thinfs-cache', placesOf(nrSlots).end)
    const header = native.memory_map(fd, 0, PAGE_SIZE)
    const { blocks } = placesOf(nrSlots)
    const end = Math.ceil((blocks + 8 * nrSlots) / PAGE_SIZE) * PAGE_SIZE
    new Float64Array(native.memory_map(fd, 0, end), blocks, nrSlots).fill(FREE)
    HEADER.write(new DataView(header), 0, { magic: MAGIC, version: VERSION, nrSlots })
    return fd
  }

  /**
   * Maps it.
   * @param disk whose content it has; the first to map it decides. It may have become larger
   * @throws BAD_ARGUMENT where it has that of another disk; POOL_MISMATCH for a smaller one
   */
  constructor(fd: number, disk: { path: string; size: number }) {
    const header = new DataView(native.memory_map(fd, 0, PAGE_SIZE))
    const found = HEADER.read(header, 0)
    const places = placesOf(found.nrSlots)
    if (found.magic !== MAGIC || found.version !== VERSION || fstatSync(fd).size !== places.end) {
      throw new ThinfsError('BAD_ARGUMENT', `${disk.path}: the cache is none of this version`)
    }
    if (!isOfDisk(header, HEADER.at.key, disk.path, found.size === 0)) {
      throw new ThinfsError('BAD_ARGUMENT', `${disk.path}: the cache is that of another disk`)
    }
    mustBeWhole(disk, found.size)
    const { nrSlots } = found
    const index = native.memory_map(fd, 0, places.slots)
    this.nrSlots = nrSlots
    this.#header = header
    this.blocks = new Float64Array(index, places.blocks, nrSlots)
    this.valid = new Uint16Array(index, places.valid, nrSlots)
    this.dirty = new Uint16Array(index, places.dirty, nrSlots)
    this.pending = new Uint16Array(index, places.pending, nrSlots)
    this.zeroed = new Float64Array(index, places.zeroed, 2 * ZEROED_MAX)
    for (let slot = 0; slot < nrSlots; slot += SEGMENT_SLOTS) {
      const length = Math.min(SEGMENT_SLOTS, nrSlots - slot) * SLOT
      const segment = native.memory_map(fd, places.slots + slot * SLOT, length)
      this.#segments.push(new Uint8Array(segment))
    }
    this.grow(disk.size)
  }

  /**
   * The disk has so many bytes now. What was behind its end in the slot of that end is not known,
   * but for what was written there.
   */
  grow(size: number): void {
    const { size: before } = HEADER.read(this.#header, 0)
    if (size === before) return
    const slot = this.blocks.indexOf(Math.floor(before / SLOT))
    if (slot >= 0) {
      const known = 2 ** Math.floor((before % SLOT) / PAGE_SIZE) - 1
      this.valid[slot]! &= known | this.dirty[slot]! | this.pending[slot]!
    }
    HEADER.write(this.#header, 0, { size })
  }

  /** How many ranges are noted as zeroed. */
  get nrZeroed(): number {
    return (
      (this.#header.getUint32(ZEROED_END, true) - this.#header.getUint32(ZEROED_BEGIN, true)) >>> 0
    )
  }

  /**
   * Notes a range that is about to be zeroed.
   * @returns its place in `zeroed`
   */
  noteZeroed(offset: number, length: number): number {
    const end = this.#header.getUint32(ZEROED_END, true)
    const at = 2 * (end % ZEROED_MAX)
    this.zeroed[at] = offset
    this.zeroed[at + 1] = length
    this.#header.setUint32(ZEROED_END, (end + 1) >>> 0, true)
    return at
  }

  /** Forgets a range by its place: it is zeroed for good. */
  forgetZeroed(at: number): void {
    this.zeroed[at + 1] = 0
    let begin = this.#header.getUint32(ZEROED_BEGIN, true)
    const end = this.#header.getUint32(ZEROED_END, true)
    while (begin !== end && this.zeroed[2 * (begin % ZEROED_MAX) + 1] === 0) {
      begin = (begin + 1) >>> 0
    }
    this.#header.setUint32(ZEROED_BEGIN, begin, true)
  }

  /** The places of the ranges that are noted. */
  *zeroedPlaces(): Iterable<number> {
    const end = this.#header.getUint32(ZEROED_END, true)
    for (let i = this.#header.getUint32(ZEROED_BEGIN, true); i !== end; i = (i + 1) >>> 0) {
      const at = 2 * (i % ZEROED_MAX)
      if (this.zeroed[at + 1]! > 0) yield at
    }
  }

  /** The array that has the bytes of a slot, from `beginOf`. */
  bytesOf(slot: number): Uint8Array {
    return this.#segments[Math.floor(slot / SEGMENT_SLOTS)]!
  }

  beginOf(slot: number): number {
    return (slot % SEGMENT_SLOTS) * SLOT
  }

  /** So many bytes of a slot from byte `at` of it. */
  piece(slot: number, at: number, length: number): Uint8Array {
    const begin = this.beginOf(slot) + at
    return this.bytesOf(slot).subarray(begin, begin + length)
  }
}
