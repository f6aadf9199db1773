/**
 * What a request that writes does, worked out before it does anything: per virtual block where its
 * bytes go, and what has to happen to the mapping.
 *
 * A pool has one plan, for one request is resolved and executed at a time; its arrays are as long as
 * the largest request needs, and no request makes any.
 */
import {
  bytes,
  type DataBlock,
  type DevId,
  KIB,
  MIB,
  ThinfsError,
  type VirtualBlock,
} from '../base/index.js'
import { dataBlockOf, isShared, type LookupTable, UNMAPPED } from './lookup-table.js'
import type { Provisioner } from './provisioner.js'

/** Largest single read or write, in bytes. Longer ones are the caller's to split. */
export const MAX_IO = MIB
const SMALLEST_BLOCK = 4 * KIB
const MAX_BLOCKS = MAX_IO / SMALLEST_BLOCK + 1

/** Mapped by this device alone: written in place. */
const IN_PLACE = 0
/** Looks shared by its time, but nobody shares it any more: gets a new time. */
const RESTAMP = 1
/** Unmapped: gets a block. */
const PROVISION = 2
/** Really shared: gets a block, and the rest of the old one's content. */
const UNSHARE = 3

/** Whose request it is. */
export interface PlanOwner {
  readonly devId: DevId
  readonly table: LookupTable
}

export class WritePlan {
  readonly #pool: Provisioner
  readonly #blockSize: number
  /** Data block that the bytes go to. */
  readonly #targets = new Float64Array(MAX_BLOCKS)
  /** What has to happen to the mapping. */
  readonly #actions = new Uint8Array(MAX_BLOCKS)
  /** For UNSHARE: the data block that is shared. */
  readonly #sources = new Float64Array(MAX_BLOCKS)
  /** Blocks taken for the request. */
  readonly #taken = new Float64Array(MAX_BLOCKS)
  /**
   * What the outer blocks keep of those that they share: the first one's from 0, the last one's, when
   * it is another, from the size of a block. Empty where the store copies.
   */
  readonly #kept: Uint8Array
  #owner: PlanOwner | null = null
  #first = 0
  #nrBlocks = 0
  #nrWanted = 0

  constructor(pool: Provisioner) {
    this.#pool = pool
    this.#blockSize = pool.blockSize
    const copies = pool.data.copiesShare || pool.blockSize > MAX_IO
    this.#kept = new Uint8Array(copies ? 0 : 2 * pool.blockSize)
  }

  /** How many data blocks the request needs. */
  get nrWanted(): number {
    return this.#nrWanted
  }

  /** Data block that the first bytes go to. */
  get firstTarget(): number {
    return this.#targets[0]!
  }

  /** Whether the first block is unmapped. */
  get startsUnmapped(): boolean {
    return this.#actions[0] === PROVISION
  }

  /** Whether the first block gets a new data block, for it is shared. */
  get startsShared(): boolean {
    return this.#actions[0] === UNSHARE
  }

  /** Works out what a write of virtual blocks `first` to `last` does. Changes nothing. */
  resolve(owner: PlanOwner, first: number, last: number): void {
    const { table, devId } = owner
    const restamps = this.#pool.writable && this.#pool.hasMetadataRoom
    this.#owner = owner
    this.#first = first
    this.#nrBlocks = last - first + 1
    this.#nrWanted = 0
    for (let i = 0; i < this.#nrBlocks; i++) {
      const entry = table.get(first + i)
      if (entry === UNMAPPED) {
        this.#actions[i] = PROVISION
        this.#nrWanted++
      } else if (!isShared(entry)) {
        this.#actions[i] = IN_PLACE
        this.#targets[i] = dataBlockOf(entry)
      } else if (this.#pool.metadata.isReallyShared(devId, first + i)) {
        this.#actions[i] = UNSHARE
        this.#sources[i] = dataBlockOf(entry)
        this.#nrWanted++
      } else {
        this.#actions[i] = restamps ? RESTAMP : IN_PLACE
        this.#targets[i] = dataBlockOf(entry)
      }
    }
  }

  /**
   * Reads what the outer blocks of a write of [offset, end) keep of those that they share, unless the
   * store copies that itself.
   * @param waits whether to wait for a disk
   * @returns false when that would be needed
   */
  readKept(offset: number, end: number, waits: boolean): boolean {
    const blockSize = this.#blockSize
    const i = this.#nrBlocks - 1
    const before = offset - this.#first * blockSize
    const behind = (this.#first + this.#nrBlocks) * blockSize - end
    if (this.#isWithin(before, behind)) return this.#readSource(0, 0, blockSize, 0, waits)
    if (before > 0 && this.#isKept(0) && !this.#readSource(0, 0, before, 0, waits)) return false
    if (behind === 0 || !this.#isKept(i)) return true
    return this.#readSource(i, blockSize - behind, behind, blockSize, waits)
  }

  /**
   * Takes the data blocks that the request needs.
   * @param discards whether they may be of those that are kept back for the edges of discards
   * @returns false when there are none
   * @throws METADATA_CORRUPT when a block that is free is mapped: all of them stay taken then, for
   *   others may be somebody's too
   */
  take(discards = false): boolean {
    if (this.#nrWanted === 0) return true
    if (!this.#pool.allocate(this.#taken, this.#nrWanted, discards)) return false
    let taken = 0
    for (let i = 0; i < this.#nrBlocks; i++) {
      if (this.#actions[i]! >= PROVISION) this.#targets[i] = this.#taken[taken++]!
      if (this.#actions[i] !== UNSHARE || this.#targets[i] !== this.#sources[i]) continue
      const { devId } = this.#owner!
      const what = `data block ${this.#sources[i]} is mapped by device ${devId}, and free`
      throw new ThinfsError('METADATA_CORRUPT', what)
    }
    return true
  }

  /** Undoes `take`. */
  giveBack(): void {
    this.#pool.giveBack(this.#taken, this.#nrWanted)
  }

  /** Writes `size` bytes of `buffer` from `at` to `offset`, and what new blocks hold around them. */
  write(offset: number, size: number, buffer: Uint8Array, at: number): void {
    const blockSize = this.#blockSize
    const end = offset + size
    const before = offset - this.#first * blockSize
    const behind = (this.#first + this.#nrBlocks) * blockSize - end
    if (this.#isWithin(before, behind)) {
      // Changed and written as a whole: one system call, not three.
      this.#kept.set(buffer.subarray(at, at + size), before)
      this.#writeBytes(this.#kept, 0, blockSize, this.#targets[0]! * blockSize)
      return
    }
    this.fillAround(offset, end)
    for (let i = 0, run = 1; i < this.#nrBlocks; i += run) {
      // Blocks that follow each other in the data store are one write.
      run = 1
      while (i + run < this.#nrBlocks && this.#targets[i + run] === this.#targets[i]! + run) run++
      const begin = (this.#first + i) * blockSize
      const from = Math.max(offset, begin)
      const to = Math.min(end, begin + run * blockSize)
      const where = this.#targets[i]! * blockSize + (from - begin)
      this.#writeBytes(buffer, at + (from - offset), to - from, where)
    }
  }

  /** Fills what new blocks hold outside of [offset, end): only the outer blocks have such parts. */
  fillAround(offset: number, end: number): void {
    const blockSize = this.#blockSize
    const last = this.#nrBlocks - 1
    this.#fill(0, 0, offset - this.#first * blockSize, 0)
    const behind = end - (this.#first + last) * blockSize
    this.#fill(last, behind, blockSize, last === 0 ? behind : blockSize)
  }

  /** Makes [offset, end), which is within one block, zeros, and fills what that holds around them. */
  zero(offset: number, end: number): void {
    const { data, freeMeansHole } = this.#pool
    this.fillAround(offset, end)
    // A new block is a hole there already.
    if (this.startsShared && freeMeansHole) return
    const at = bytes(this.#targets[0]! * this.#blockSize + offset - this.#first * this.#blockSize)
    this.#pool.wrote()
    if (freeMeansHole) data.punch(at, bytes(end - offset))
    else data.zero(at, bytes(end - offset))
  }

  /** Puts the mappings in place. */
  remap(): void {
    const { devId, table } = this.#owner!
    const { time } = this.#pool.metadata
    for (let i = 0; i < this.#nrBlocks; i++) {
      if (this.#actions[i] === IN_PLACE) continue
      const vblock = (this.#first + i) as VirtualBlock
      this.#pool.map(devId, vblock, this.#targets[i] as DataBlock, time)
      table.set(vblock, this.#targets[i]!)
    }
  }

  // --- inside ---

  /** Whether what a block keeps is read here, and not left to a store that shares it. */
  #isKept(i: number): boolean {
    return this.#actions[i] === UNSHARE && this.#kept.length > 0
  }

  /** Whether the write goes to a part of one block, which is read, changed and written as a whole. */
  #isWithin(before: number, behind: number): boolean {
    return this.#nrBlocks === 1 && before + behind > 0 && this.#isKept(0)
  }

  #readSource(i: number, skip: number, length: number, to: number, waits: boolean): boolean {
    const { data } = this.#pool
    const source = this.#sources[i]!
    const from = bytes(source * this.#blockSize + skip)
    try {
      if (!waits) return data.readNow(this.#kept, to, length, from)
      data.read(this.#kept, to, length, from)
      return true
    } catch (err) {
      throw this.#pool.ioError('copy', err, this.#owner!.devId, source)
    }
  }

  /** @param kept where in #kept the part begins */
  #fill(i: number, from: number, to: number, kept: number): void {
    if (from >= to || this.#actions[i]! < PROVISION) return
    const blockSize = this.#blockSize
    const { data, freeMeansHole } = this.#pool
    const at = bytes(this.#targets[i]! * blockSize + from)
    const length = bytes(to - from)
    this.#pool.wrote()
    if (this.#isKept(i)) data.write(this.#kept, kept, length, at)
    else if (this.#actions[i] === UNSHARE) {
      data.copy(bytes(this.#sources[i]! * blockSize + from), at, length)
    } else if (!freeMeansHole) data.zero(at, length)
  }

  #writeBytes(buffer: Uint8Array, at: number, length: number, offset: number): void {
    this.#pool.wrote()
    this.#pool.data.write(buffer, at, length, bytes(offset))
  }
}
