/**
 * Growth of a pool: it becomes as large as its files are, or the block devices have become. It
 * makes the files longer when a command says so, or its own rule does.
 *
 * A store is made longer first, and then the space map over it. So a death between the two leaves
 * a store that is longer than the pool, and the next opening, or the next look, goes on from there.
 * Data becomes smaller by another way (shrink.ts), and not larger meanwhile.
 */
import {
  allEnded,
  bytes,
  type Clock,
  MAX_METADATA_BLOCKS,
  METADATA_BLOCK_SIZE,
  MIB,
  ThinfsError,
} from '../base/index.js'
import type { DataBlocks } from '../device/index.js'
import { MAX_DATA_BLOCKS, type ThinMetadata } from '../metadata/index.js'
import type { Store } from '../storage/index.js'
import type { CommitPipeline } from './commit-pipeline.js'
import type { Autoextend, AutoextendOptions, PoolEvents } from './options.js'
import type { PoolState } from './pool-state.js'
import { clearRange } from './recovery.js'
import { shrinkingError } from './shrinking-error.js'

/**
 * Data blocks by which a pool that is served grows in one turn of the thread: 64 bitmaps, which
 * take less than a millisecond. More come in the turns that follow.
 */
const PIECE = 64 * 16320

/** Sizes in bytes; what is left out stays as it is. */
export interface Extension {
  data?: number
  metadata?: number
}

export interface GrowthParts {
  metadata: ThinMetadata
  /** The store of the metadata. */
  store: Store
  blocks: DataBlocks
  commits: CommitPipeline
  state: PoolState
  clock: Clock
  events: Pick<PoolEvents, 'warning' | 'extended'>
  autoextend: AutoextendOptions
  /** Metadata blocks that have to be free when the data has grown. */
  reserve(): number
  /** Bytes that the host can still give to free data blocks, and to metadata; null: no question. */
  hostRoom(): { data: number | null; metadata: number | null }
  /** False while somebody makes the data smaller. */
  mayGrowData(): boolean
  /** The pool has grown. */
  grown(): void
}

type Part = 'data' | 'metadata'

/** How data or metadata are used, in blocks. */
interface Use {
  used: number
  nrBlocks: number
  /** Blocks that have their space on the host. */
  taken: number
  path: string
  isDevice: boolean
  blockSize: number
  /** Blocks that the format can have. */
  most: number
  /** Bytes that the host has for the rest; null: no question. */
  room: number | null
}

export class Growth {
  readonly #parts: GrowthParts
  /** Why the pool is smaller than its data file; null when it is not. */
  #refusal: string | null = null
  /** The turns in which a growth goes on; null when there is none. */
  #goingOn: Promise<void> | null = null
  /** The failure of what the last of these turns had to clear; null without one. */
  #notCleared: unknown = null
  /** More used blocks than these, and the rule is looked at. */
  #dataAt = 0
  #metadataAt = 0
  /** Why data or metadata do not follow their rules: sentences. */
  readonly #stopped = new Map<Part, string>()

  constructor(parts: GrowthParts) {
    this.#parts = parts
    this.rearm()
  }

  /** Why the pool is not as large as its data file, or as its rules want it: a sentence each. */
  get warnings(): string[] {
    return [...(this.#refusal === null ? [] : [this.#refusal]), ...this.#stopped.values()]
  }

  // --- by its own rule ---

  /**
   * Space is about to be taken: makes the pool larger where a rule says so. It costs two
   * comparisons while none does.
   * @param wanted data blocks, which are not counted as used yet
   */
  taking(wanted: number): void {
    const { metadata } = this.#parts
    const isOver =
      metadata.nrAllocatedDataBlocks + wanted > this.#dataAt ||
      metadata.nrAllocatedMetadataBlocks > this.#metadataAt
    if (isOver) this.#autoextend(wanted)
  }

  /** From now on the rules are looked at again: something has changed since one was in vain. */
  rearm(): void {
    const { metadata, autoextend } = this.#parts
    this.#dataAt = thresholdBlocks(autoextend.data, metadata.nrDataBlocks)
    // Blocks that are kept back for commits count as used, as in the kernel's status line.
    const at = thresholdBlocks(autoextend.metadata, metadata.nrMetadataBlocks)
    this.#metadataAt = at - this.#parts.reserve()
    if (metadata.nrAllocatedDataBlocks < this.#dataAt) this.#stopped.delete('data')
    if (metadata.nrAllocatedMetadataBlocks < this.#metadataAt) this.#stopped.delete('metadata')
  }

  #autoextend(wanted: number): void {
    const { metadata, blocks, store, autoextend, state, commits } = this.#parts
    this.#dataAt = Number.POSITIVE_INFINITY
    this.#metadataAt = Number.POSITIVE_INFINITY
    if (!state.writable || !state.isOpen || commits.stalled || this.#goingOn !== null) return
    // Somebody may have made a file or a device longer.
    if (this.toStores(false)) return
    const room = this.#parts.hostRoom()
    const { nrDataBlocks, nrAllocatedDataBlocks, nrMetadataBlocks } = metadata
    const dataBlocks = !this.#parts.mayGrowData()
      ? nrDataBlocks
      : this.#wanted('data', {
          ...{ used: nrAllocatedDataBlocks + wanted, nrBlocks: nrDataBlocks },
          ...{
            path: blocks.path,
            isDevice: blocks.hostRoom() === null,
            taken: nrAllocatedDataBlocks,
          },
          ...{ blockSize: blocks.blockSize, most: MAX_DATA_BLOCKS, room: room.data },
        })
    const metadataIsDevice = store.hostRoom?.() === null
    let metadataBlocks = this.#wanted('metadata', {
      used: metadata.nrAllocatedMetadataBlocks + this.#parts.reserve(),
      ...{ nrBlocks: nrMetadataBlocks, taken: nrMetadataBlocks },
      ...{ path: store.path, isDevice: metadataIsDevice },
      ...{ blockSize: METADATA_BLOCK_SIZE, most: MAX_METADATA_BLOCKS, room: room.metadata },
    })
    if (dataBlocks > nrDataBlocks) {
      let lacking = this.#lacking(dataBlocks, metadataBlocks - nrMetadataBlocks)
      if (!metadataIsDevice) {
        const rule = autoextend.metadata
        // The blocks kept back for commits grow with the metadata.
        const enough = rule === undefined ? 0 : metadataBlocks + 2 * Math.max(0, lacking)
        const wanted = Math.max(metadataBlocks, autoextend.metadataOf?.(dataBlocks) ?? 0, enough)
        metadataBlocks = Math.max(
          metadataBlocks,
          Math.min(wanted, maxBlocks(rule?.max, METADATA_BLOCK_SIZE, MAX_METADATA_BLOCKS)),
        )
        lacking = this.#lacking(dataBlocks, metadataBlocks - nrMetadataBlocks)
      }
      if (lacking > 0) {
        this.#stop('data', lackingDetail(store.path, lacking))
        return
      }
    }
    try {
      this.#grow(dataBlocks * blocks.blockSize, metadataBlocks * METADATA_BLOCK_SIZE)
    } catch (err) {
      // The file system refused it; change() fails the pool, and with it those who wait.
      this.#stop(dataBlocks > nrDataBlocks ? 'data' : 'metadata', (err as Error).message)
    }
  }

  /**
   * The blocks that data or metadata are to have by their rule; as many as now where it is none.
   */
  #wanted(part: Part, use: Use): number {
    const { used, nrBlocks, taken, path, isDevice, blockSize, most, room } = use
    const rule = this.#parts.autoextend[part]
    if (rule === undefined || used <= thresholdBlocks(rule, nrBlocks)) {
      this.#stopped.delete(part)
      return nrBlocks
    }
    const max = maxBlocks(rule.max, blockSize, most)
    const wanted = Math.min(extendedBlocks(rule, used, nrBlocks), max)
    const size = (wanted - taken) * blockSize
    if (wanted <= nrBlocks) this.#stop(part, `${path}: autoextend has come to its max`)
    else if (isDevice) {
      this.#stop(part, `${path}: is a block device: autoextend waits for it to be made larger`)
    } else if (room !== null && room < size) {
      const has = `the host's disk has ${room} bytes left, ${size} would have to be`
      this.#stop(part, `${path}: autoextend has stopped: ${has}`)
    } else {
      this.#stopped.delete(part)
      return wanted
    }
    return nrBlocks
  }

  /** Notes why a rule is not followed; told once, until it is or need not be. */
  #stop(part: Part, why: string): void {
    if (!this.#stopped.has(part)) this.#parts.events.warning(why)
    this.#stopped.set(part, why)
  }

  // --- whoever made it longer ---

  /**
   * Makes the pool as large as its stores have become.
   * @param atOnce all of it; otherwise what takes long goes on in later turns
   * @returns whether it grew
   */
  toStores(atOnce: boolean): boolean {
    const { metadata, store, blocks, commits, state, grown } = this.#parts
    if (!state.writable || !state.isOpen) return false
    blocks.measure()
    store.measure()
    const metadataWanted = Math.min(
      Math.floor(store.size / METADATA_BLOCK_SIZE),
      MAX_METADATA_BLOCKS,
    )
    const growsMetadata = metadataWanted > metadata.nrMetadataBlocks
    if (growsMetadata) commits.change(() => metadata.growMetadata(metadataWanted))
    const dataWanted = Math.min(Math.floor(blocks.size / blocks.blockSize), MAX_DATA_BLOCKS)
    const { nrDataBlocks } = metadata
    const mayGrow = dataWanted > nrDataBlocks && this.#parts.mayGrowData()
    const next = atOnce ? dataWanted : Math.min(dataWanted, nrDataBlocks + PIECE)
    const canGrow = mayGrow && this.#canGrowData(dataWanted)
    // A disk that has become larger may have anything there. Opening clears all that is free.
    const growsData = canGrow && (atOnce || this.#isClear(nrDataBlocks, next))
    if (canGrow && !growsData) this.#goOn()
    if (growsData) {
      blocks.hasGrown()
      commits.change(() => metadata.growData(next))
      if (next < dataWanted) this.#goOn()
    }
    if (!growsMetadata && !growsData) return false
    this.rearm()
    grown()
    return true
  }

  /**
   * Makes files longer, and the pool as large as they are then: also where they, or block devices,
   * were longer than the pool already. Either all of it is done or nothing.
   * @throws BAD_ARGUMENT for a smaller size, one that the format or the file system does not have,
   *   or that a block device does not have yet; NO_METADATA_SPACE where the metadata has no room
   *   for the bitmaps of more data; IO_ERROR
   */
  async extend(wanted: Extension): Promise<void> {
    const { metadata, store, blocks, state, commits } = this.#parts
    state.mustBeWritable()
    if (!this.#parts.mayGrowData()) throw shrinkingError()
    // If the host has no room for the changes so far, this fails.
    if (commits.stalled) await commits.commit()
    await allEnded([blocks.remeasure(), store.remeasure?.() ?? Promise.resolve()])
    state.mustBeWritable()
    if (!this.#parts.mayGrowData()) throw shrinkingError()
    blocks.measure()
    store.measure()
    const metadataSize = this.#metadataSize(wanted.metadata)
    const dataSize = this.#dataSize(wanted.data)
    this.#mustHoldBitmaps(dataSize, metadataSize)
    this.#grow(dataSize, metadataSize)
    while (this.#goingOn !== null) await this.#goingOn
    state.mustBeWritable()
    const isShort = metadata.nrDataBlocks * blocks.blockSize < (wanted.data ?? 0)
    if (isShort && this.#notCleared !== null) throw this.#notCleared
    await commits.commit()
  }

  /** Makes stores longer, and the pool. */
  #grow(dataSize: number, metadataSize: number): void {
    const { store, blocks, events } = this.#parts
    const growsData = dataSize > blocks.size
    const growsMetadata = metadataSize > store.size
    // The one that a file system may refuse comes first.
    if (growsData) blocks.grow(bytes(dataSize))
    if (growsMetadata) store.grow(bytes(metadataSize))
    this.toStores(false)
    if (growsData) events.extended('data', dataSize)
    if (growsMetadata) events.extended('metadata', metadataSize)
  }

  /** The size that the data store is to have, in whole blocks. */
  #dataSize(wanted: number | undefined): number {
    const { blocks, metadata } = this.#parts
    const has = metadata.nrDataBlocks * blocks.blockSize
    if (wanted === undefined) return Math.max(blocks.size, has)
    const size = wholeBlocks(wanted, blocks.blockSize)
    mustNotShrink(blocks.path, size, has)
    const most = MAX_DATA_BLOCKS * blocks.blockSize
    // A double is exact up to there.
    mustNotExceed(blocks.path, size, Math.min(most, Number.MAX_SAFE_INTEGER))
    // It says what it lacks: nothing grows there.
    if (blocks.hostRoom() === null && size > blocks.size) blocks.grow(bytes(size))
    return Math.max(size, blocks.size)
  }

  /** The same of the metadata. */
  #metadataSize(wanted: number | undefined): number {
    const { store, metadata } = this.#parts
    const has = metadata.nrMetadataBlocks * METADATA_BLOCK_SIZE
    if (wanted === undefined) return Math.max(store.size, has)
    const size = wholeBlocks(wanted, METADATA_BLOCK_SIZE)
    mustNotShrink(store.path, size, has)
    mustNotExceed(store.path, size, MAX_METADATA_BLOCKS * METADATA_BLOCK_SIZE)
    if (store.hostRoom?.() === null && size > store.size) store.grow(bytes(size))
    return Math.max(size, store.size)
  }

  /** @throws NO_METADATA_SPACE, before anything has grown */
  #mustHoldBitmaps(dataSize: number, metadataSize: number): void {
    const { metadata, blocks, store } = this.#parts
    const gained =
      Math.min(Math.floor(metadataSize / METADATA_BLOCK_SIZE), MAX_METADATA_BLOCKS) -
      metadata.nrMetadataBlocks
    const lacking = this.#lacking(Math.floor(dataSize / blocks.blockSize), gained)
    if (lacking <= 0) return
    throw new ThinfsError('NO_METADATA_SPACE', lackingDetail(store.path, lacking))
  }

  /** Metadata blocks that are missing for so many data blocks, when `gained` more are there. */
  #lacking(dataBlocks: number, gained: number): number {
    const { metadata, reserve } = this.#parts
    if (metadata.nrDataBlocks === 0 || dataBlocks <= metadata.nrDataBlocks) return 0
    const free = metadata.nrAllocatableMetadataBlocks + gained
    return metadata.growDataCost(dataBlocks) + reserve() - free
  }

  /**
   * Whether the metadata has room for the bitmaps of so many data blocks. Without it, a pool
   * reports that and keeps its size, and a new pool is refused.
   */
  #canGrowData(dataBlocks: number): boolean {
    const { metadata, blocks, commits, events, reserve } = this.#parts
    if (commits.stalled) return false
    if (this.#lacking(dataBlocks, 0) <= 0) {
      this.#refusal = null
      return true
    }
    const before = this.#refusal
    const free = Math.max(0, metadata.nrAllocatableMetadataBlocks - reserve())
    this.#refusal =
      `${blocks.path}: has ${dataBlocks} blocks, the pool stays at ${metadata.nrDataBlocks}: ` +
      `that takes ${metadata.growDataCost(dataBlocks)} metadata blocks, ${free} are free`
    if (before === null) events.warning(this.#refusal)
    return false
  }

  /** Goes on in turns of its own, until the pool is as large as its stores. */
  #goOn(): void {
    this.#goingOn ??= this.#pieces().finally(() => {
      this.#goingOn = null
    })
  }

  async #pieces(): Promise<void> {
    const { clock, blocks, metadata } = this.#parts
    try {
      do {
        await clock.yield()
        await this.#clearNext()
      } while (
        this.toStores(false) &&
        metadata.nrDataBlocks < Math.floor(blocks.size / blocks.blockSize)
      )
    } catch {} // change() has failed the pool, or it is being closed
  }

  /**
   * Whether data blocks [first, end) that the pool does not have yet are as free ones have to be.
   */
  #isClear(first: number, end: number): boolean {
    const { blocks } = this.#parts
    if (!blocks.freeMeansHole) return true
    return blocks.nextData(bytes(first * blocks.blockSize)) >= end * blocks.blockSize
  }

  /** Makes holes of the data blocks that come next, as all that are free are. */
  async #clearNext(): Promise<void> {
    const { blocks, metadata } = this.#parts
    const end = Math.floor(blocks.size / blocks.blockSize)
    const next = Math.min(end, metadata.nrDataBlocks + PIECE)
    if (!blocks.freeMeansHole || next <= metadata.nrDataBlocks) return
    try {
      const [from, to] = [metadata.nrDataBlocks, next].map(nr => nr * blocks.blockSize)
      await clearRange(blocks, from!, to!)
      this.#notCleared = null
    } catch (err) {
      this.#notCleared = err
      const what = `the pool stays as large as it is: ${(err as Error).message}`
      this.#stop('data', what)
      throw err
    }
  }
}

/** @param lacking metadata blocks */
function lackingDetail(path: string, lacking: number): string {
  const more = Math.ceil((2 * lacking * METADATA_BLOCK_SIZE) / MIB)
  const what = `the map of so much data takes ${lacking} blocks more than are free`
  return `${path}: ${what}: thinfs extend --metadata +${more}M`
}

/** Blocks in use above which a rule wants more; infinite without a rule. */
const thresholdBlocks = (rule: Autoextend | undefined, nrBlocks: number): number =>
  rule === undefined ? Number.POSITIVE_INFINITY : Math.floor((nrBlocks * rule.threshold) / 100)

/**
 * The blocks that a rule wants when so many are used: no less than brings it below the threshold.
 */
export function extendedBlocks(rule: Autoextend, used: number, nrBlocks: number): number {
  const more = nrBlocks + Math.ceil((nrBlocks * rule.percent) / 100)
  return Math.max(more, Math.ceil((used * 100) / rule.threshold))
}

/** The blocks that a rule stops at. @param most that the format can have */
const maxBlocks = (max: number | null | undefined, blockSize: number, most: number): number =>
  Math.min(most, Math.floor((max ?? Number.MAX_SAFE_INTEGER) / blockSize))

/** Rounded up to whole blocks. */
const wholeBlocks = (size: number, blockSize: number): number =>
  Math.ceil(size / blockSize) * blockSize

function mustNotShrink(path: string, size: number, has: number): void {
  if (size >= has) return
  const what = `${path}: ${size} bytes are less than the ${has} that the pool has`
  throw new ThinfsError('BAD_ARGUMENT', `${what}: thinfs shrink makes the data smaller`)
}

function mustNotExceed(path: string, size: number, most: number): void {
  if (size <= most) return
  throw new ThinfsError('BAD_ARGUMENT', `${path}: ${size} bytes, at most ${most} are possible`)
}
