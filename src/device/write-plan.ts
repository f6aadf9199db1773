/**
 * The plan of a request that writes, made before anything changes: per virtual block, where its
 * bytes go and what happens to the mapping.
 *
 * A pool has one plan, for one request is resolved and executed at a time; its arrays are as long
 * as the largest request needs, and no request makes any. Only where the data store answers with a
 * promise is a copy kept until that resolves.
 */
import {
  allEnded,
  type DataBlock,
  type DevId,
  KIB,
  type Later,
  MAX_IO,
  ThinfsError,
  type VirtualBlock,
} from '../base/index.js'
import type { DataBlocks } from './data-blocks.js'
import { dataBlockOf, isShared, type LookupTable, UNMAPPED } from './lookup-table.js'
import type { Provisioner } from './provisioner.js'

const SMALLEST_BLOCK = 4 * KIB
const MAX_BLOCKS = MAX_IO / SMALLEST_BLOCK + 1

/** Mapped by this device alone: written in place. */
const IN_PLACE = 0
/** Looks shared by its time, but nobody shares it any more: gets a new time. */
const RESTAMP = 1
/** Unmapped: gets a block. */
const PROVISION = 2
/**
 * Shared: gets a block, and the rest of the old one's content. So does one that was shared and that
 * somebody still reads: what is written now is not his to see.
 */
const UNSHARE = 3

/** The device of a request. */
export interface PlanOwner {
  readonly devId: DevId
  readonly table: LookupTable
  /** True once the device was deleted. */
  readonly gone: boolean
}

/** The content of a plan's outer blocks where they were shared, side by side in `bytes`. */
export interface Fetched {
  /** Their data blocks; -1 for one that was not shared. */
  sources: number[]
  bytes: Uint8Array
}

/** Two blocks, or nothing where the store is to copy: what it shares itself, and large blocks. */
const keptSizeOf = ({ blockSize, copiesShare }: DataBlocks): number =>
  copiesShare || blockSize > MAX_IO ? 0 : 2 * blockSize

export class WritePlan {
  readonly #pool: Provisioner
  readonly #blockSize: number
  /** Data block that the bytes go to. */
  readonly #targets: Float64Array
  /** The change of each block's mapping. */
  readonly #actions: Uint8Array
  /** For UNSHARE: the data block that is shared. */
  readonly #sources: Float64Array
  /** Blocks taken for the request. */
  readonly #taken: Float64Array
  /**
   * The bytes that the outer blocks keep of the shared ones, each at its place in a block: the
   * first block from 0, the last one, if it is another, from the size of a block. Empty where the
   * store copies.
   */
  readonly #kept: Uint8Array
  /** Writes of the request that have not ended. */
  readonly #begun: Promise<void>[] = []
  #owner: PlanOwner | null = null
  #first = 0
  #nrBlocks = 0
  #nrWanted = 0
  #nrNew = 0

  /**
   * @param size of the arrays, in virtual blocks
   * @param keptSize bytes
   */
  constructor(pool: Provisioner, size = MAX_BLOCKS, keptSize = keptSizeOf(pool.blocks)) {
    this.#pool = pool
    this.#blockSize = pool.blocks.blockSize
    this.#targets = new Float64Array(size)
    this.#actions = new Uint8Array(size)
    this.#sources = new Float64Array(size)
    this.#taken = new Float64Array(size)
    this.#kept = new Uint8Array(keptSize)
  }

  /** A copy to be kept while a request waits and others use the plan: to give back, or to remap. */
  keep(): WritePlan {
    const plan = new WritePlan(this.#pool, this.#nrBlocks, 0)
    plan.#targets.set(this.#targets.subarray(0, this.#nrBlocks))
    plan.#actions.set(this.#actions.subarray(0, this.#nrBlocks))
    plan.#sources.set(this.#sources.subarray(0, this.#nrBlocks))
    plan.#taken.set(this.#taken.subarray(0, this.#nrWanted))
    plan.#owner = this.#owner
    plan.#first = this.#first
    plan.#nrBlocks = this.#nrBlocks
    plan.#nrWanted = this.#nrWanted
    plan.#nrNew = this.#nrNew
    return plan
  }

  /** The first virtual block that it is about. */
  get first(): number {
    return this.#first
  }

  /** The virtual block behind the last one. */
  get end(): number {
    return this.#first + this.#nrBlocks
  }

  /** How many data blocks the request needs. */
  get nrWanted(): number {
    return this.#nrWanted
  }

  /** How many virtual blocks it maps that were not mapped. */
  get nrNew(): number {
    return this.#nrNew
  }

  /** Data block that the first bytes go to. */
  get firstTarget(): number {
    return this.#targets[0]!
  }

  /** Whether the first block is unmapped. */
  get startsUnmapped(): boolean {
    return this.#actions[0] === PROVISION
  }

  /** Data block of the first block where that is written in place; else -1. */
  get firstInPlace(): number {
    return this.#actions[0]! <= RESTAMP ? this.#targets[0]! : -1
  }

  /** Works out what a write of virtual blocks `first` to `last` does. Changes nothing. */
  resolve(owner: PlanOwner, first: number, last: number): void {
    const { table, devId } = owner
    const restamps = this.#pool.writable && this.#pool.space.metadata.hasRoom
    this.#owner = owner
    this.#first = first
    this.#nrBlocks = last - first + 1
    this.#nrWanted = 0
    this.#nrNew = 0
    for (let i = 0; i < this.#nrBlocks; i++) {
      const entry = table.get(first + i)
      if (entry === UNMAPPED) {
        this.#actions[i] = PROVISION
        this.#nrWanted++
        this.#nrNew++
      } else if (!isShared(entry)) {
        this.#actions[i] = IN_PLACE
        this.#targets[i] = dataBlockOf(entry)
      } else if (
        this.#pool.metadata.mappings.isReallyShared(devId, first + i) ||
        (restamps && this.#pool.blocks.isRead(dataBlockOf(entry)))
      ) {
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
   * Reads the bytes that the outer blocks of a write of [offset, end) keep of shared ones, unless
   * the store copies them itself.
   * @param fetched what `fetchKept` brought; null when it was not called
   * @returns false when it has to be called
   */
  readKept(offset: number, end: number, fetched: Fetched | null): boolean {
    const blockSize = this.#blockSize
    const before = offset - this.#first * blockSize
    const behind = this.end * blockSize - end
    const last = this.#nrBlocks - 1
    if (this.#isWithin(before, behind)) return this.#readSource(0, 0, blockSize, fetched)
    if (before > 0 && this.#isKept(0) && !this.#readSource(0, 0, before, fetched)) return false
    if (behind === 0 || !this.#isKept(last)) return true
    return this.#readSource(last, blockSize - behind, behind, fetched)
  }

  /**
   * Reads the outer blocks where they are shared, and waits for the disk. Other requests may use
   * the plan meanwhile, but none may change a mapping that it is about.
   */
  async fetchKept(): Promise<Fetched> {
    const { devId } = this.#owner!
    const blockSize = this.#blockSize
    const isShared = (i: number): boolean => this.#isKept(i)
    const outer = this.#nrBlocks === 1 ? [0] : [0, this.#nrBlocks - 1]
    const sources = outer.map(i => (isShared(i) ? this.#sources[i]! : -1))
    const fetched: Fetched = { sources, bytes: new Uint8Array(2 * blockSize) }
    const reads = sources.map(async (source, i) => {
      if (source < 0) return
      try {
        await this.#pool.blocks.readLater(
          fetched.bytes,
          i * blockSize,
          blockSize,
          source * blockSize,
        )
      } catch (err) {
        throw this.#pool.ioError('copy', err, devId, source)
      }
    })
    await allEnded(reads)
    return fetched
  }

  /**
   * Whether the data blocks that the request needs can be taken now.
   * @param discards whether they may be of those that are kept back for the edges of discards
   */
  hasSpace(discards = false): boolean {
    if (this.#nrWanted === 0) return true
    return this.#pool.space.canAllocate(this.#owner!.devId, this.#nrWanted, discards)
  }

  /**
   * Takes those data blocks.
   * @throws METADATA_CORRUPT when a block that is free is mapped: all of them stay taken then, for
   *   others may be somebody's too
   */
  take(): void {
    if (this.#nrWanted === 0) return
    this.#pool.allocate(this.#taken, this.#nrWanted)
    let taken = 0
    for (let i = 0; i < this.#nrBlocks; i++) {
      if (this.#actions[i]! >= PROVISION) this.#targets[i] = this.#taken[taken++]!
      if (this.#actions[i] !== UNSHARE || this.#targets[i] !== this.#sources[i]) continue
      const { devId } = this.#owner!
      const what = `data block ${this.#sources[i]} is mapped by device ${devId}, and free`
      throw new ThinfsError('METADATA_CORRUPT', what)
    }
  }

  /** Undoes `take`. */
  giveBack(): Later<void> {
    return this.#pool.giveBack(this.#taken, this.#nrWanted)
  }

  /**
   * Writes `size` bytes of `buffer` from `at` to `offset`, and what new blocks hold around them.
   * The bytes are copied before it returns a promise, which waits for all that was begun.
   */
  write(offset: number, size: number, buffer: Uint8Array, at: number): Later<void> {
    try {
      this.#beginWrite(offset, size, buffer, at)
    } catch (err) {
      return this.#failed(err)
    }
    return this.#ended()
  }

  #beginWrite(offset: number, size: number, buffer: Uint8Array, at: number): void {
    const blockSize = this.#blockSize
    const end = offset + size
    const before = offset - this.#first * blockSize
    if (this.#isWithin(before, this.end * blockSize - end)) {
      // Changed and written as a whole: one system call, not three.
      this.#kept.set(buffer.subarray(at, at + size), before)
      this.#writeBytes(this.#kept, 0, blockSize, this.#targets[0]! * blockSize)
      return
    }
    this.#fillAround(offset, end)
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

  /**
   * Makes [offset, end), which is within one block, zeros, and fills what that holds around them.
   */
  zero(offset: number, end: number): Later<void> {
    const { blocks } = this.#pool
    const at = this.#targets[0]! * this.#blockSize + offset - this.#first * this.#blockSize
    try {
      this.#fillAround(offset, end)
      // A new block is a hole there already.
      const isHole = this.#actions[0]! >= PROVISION && blocks.freeMeansHole
      if (!isHole && offset < end) this.#begin(blocks.clear(at, end - offset))
    } catch (err) {
      return this.#failed(err)
    }
    return this.#ended()
  }

  /** Drops changes of mappings that were shared anew while the bytes were under way. */
  recheck(): void {
    const { metadata, writable, space } = this.#pool
    for (let i = 0; i < this.#nrBlocks; i++) {
      if (this.#actions[i] !== RESTAMP) continue
      const isFree =
        writable &&
        space.metadata.hasRoom &&
        !this.#owner!.gone &&
        !metadata.mappings.isReallyShared(this.#owner!.devId, this.#first + i)
      if (!isFree) this.#actions[i] = IN_PLACE
    }
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

  /** Whether this reads the bytes that a block keeps, because the store does not share them. */
  #isKept(i: number): boolean {
    return this.#actions[i] === UNSHARE && this.#kept.length > 0
  }

  /**
   * Whether the write goes to a part of one block, which is read, changed and written as a whole.
   */
  #isWithin(before: number, behind: number): boolean {
    return this.#nrBlocks === 1 && before + behind > 0 && this.#isKept(0)
  }

  /** The byte of #kept at which a block begins. */
  #keptAt(i: number): number {
    return i === 0 ? 0 : this.#blockSize
  }

  #readSource(i: number, skip: number, length: number, fetched: Fetched | null): boolean {
    const source = this.#sources[i]!
    const to = this.#keptAt(i) + skip
    const which = fetched?.sources.indexOf(source) ?? -1
    if (which >= 0) {
      const at = which * this.#blockSize + skip
      this.#kept.set(fetched!.bytes.subarray(at, at + length), to)
      return true
    }
    try {
      return this.#pool.blocks.readNow(this.#kept, to, length, source * this.#blockSize + skip)
    } catch (err) {
      throw this.#pool.ioError('copy', err, this.#owner!.devId, source)
    }
  }

  /** Fills what new blocks hold outside of [offset, end): only the outer blocks have such parts. */
  #fillAround(offset: number, end: number): void {
    const last = this.#nrBlocks - 1
    this.#fill(0, 0, offset - this.#first * this.#blockSize)
    this.#fill(last, end - (this.#first + last) * this.#blockSize, this.#blockSize)
  }

  #fill(i: number, from: number, to: number): void {
    if (from >= to || this.#actions[i]! < PROVISION) return
    const { blocks } = this.#pool
    const at = this.#targets[i]! * this.#blockSize + from
    if (this.#isKept(i)) this.#writeBytes(this.#kept, this.#keptAt(i) + from, to - from, at)
    else if (this.#actions[i] === UNSHARE) {
      this.#begin(blocks.copy(this.#sources[i]! * this.#blockSize + from, at, to - from))
    } else if (!blocks.freeMeansHole) this.#begin(blocks.clear(at, to - from))
  }

  #writeBytes(buffer: Uint8Array, at: number, length: number, offset: number): void {
    this.#begin(this.#pool.blocks.write(buffer, at, length, offset))
  }

  #begin(write: Later<void>): void {
    if (write !== undefined) this.#begun.push(write)
  }

  #ended(): Later<void> {
    if (this.#begun.length > 0) return allEnded(this.#begun.splice(0))
  }

  /** Throws the error of one write, once those before it have ended. */
  #failed(err: unknown): Later<void> {
    if (this.#begun.length === 0) throw err
    return allEnded([Promise.reject(err), ...this.#begun.splice(0)])
  }
}
