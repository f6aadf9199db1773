/**
 * Moves data blocks out of the part that a shrink is to cut off, in pieces between which others
 * have their turn.
 *
 * A block is copied to a free one. In the turn in which both hold the same, everything that maps it
 * is made to map the other (src/metadata/relocation.ts), with a change in the journal.
 */
import {
  allEnded,
  type Clock,
  type DataBlock,
  isNoSpace,
  MIB,
  type ThinfsError,
} from '../base/index.js'
import type { BlockCopy, DataBlocks } from '../device/index.js'
import type { Survey, ThinMetadata } from '../metadata/index.js'
import type { CommitPipeline } from './commit-pipeline.js'
import type { Journal } from './journal.js'
import type { Space } from './space.js'
import type { ThinDevices } from './thin-devices.js'

/** Data blocks that are moved in one turn, and the bytes in them. */
const BATCH_BLOCKS = 32
const BATCH_SIZE = MIB
/** Bytes that are copied before they are flushed: others' flushes have to write them too. */
const UNFLUSHED_SIZE = 8 * MIB
/** Times that a block is tried to be moved, before it is left to the next pass. */
const ATTEMPTS = 4

export interface BlockMoverParts {
  metadata: ThinMetadata
  blocks: DataBlocks
  journal: Journal
  commits: CommitPipeline
  space: Space
  devices: ThinDevices
  clock: Clock
}

/** The shrink, which says how long blocks are moved. */
export interface BlockMoverGuard {
  /** Lets others have their turn, and waits for what keeps blocks from being moved. */
  turn(): Promise<void>
  /** @throws when the shrink has to end */
  mustGoOn(): void
  /** Whether blocks may be moved in this turn. */
  mayMove(): boolean
  /** The error of a shrink that finds no free block below the new end. */
  noRoom(): ThinfsError
}

/** The outcome of an attempt to move blocks. */
interface Attempt {
  /** Blocks whose content has to be waited for. */
  waiting: DataBlock[]
  /** Blocks of which not all mappings were found. */
  partial: DataBlock[]
}

export class BlockMover {
  readonly #parts: BlockMoverParts
  readonly #guard: BlockMoverGuard
  /** Bytes copied since the last flush. */
  #unflushed = 0
  /** Blocks that were moved. */
  moved = 0

  constructor(parts: BlockMoverParts, guard: BlockMoverGuard) {
    this.#parts = parts
    this.#guard = guard
  }

  /** Flushes what was copied, when that is much. */
  async flushMuch(): Promise<void> {
    if (this.#unflushed < UNFLUSHED_SIZE) return
    this.#unflushed = 0
    await this.#parts.blocks.flush()
  }

  /**
   * Moves the blocks of some mappings.
   * @param high the data block of each of `vblocks`
   */
  async move(vblocks: readonly number[], high: readonly DataBlock[]): Promise<void> {
    const size = Math.max(1, Math.min(BATCH_BLOCKS, Math.floor(BATCH_SIZE / this.#blockSize)))
    const partial = new Map<DataBlock, Set<number>>()
    for (let i = 0; i < vblocks.length; ) {
      let end = i + 1
      // Those of one device, near to each other: they are in one leaf, or in two.
      while (end < vblocks.length && end - i < size && vblocks[end]! > vblocks[end - 1]!) end++
      for (const block of await this.#moveBatch(vblocks.slice(i, end))) {
        partial.set(block, new Set())
      }
      i = end
    }
    // A block that is shared by copy is mapped by several virtual blocks, all of which must be
    // known.
    if (partial.size === 0) return
    for (let i = 0; i < high.length; i++) partial.get(high[i]!)?.add(vblocks[i]!)
    for (const [block, where] of partial) {
      if (where.size > 1)
        await this.#moveBatch(
          [...where].sort((a, b) => a - b),
          block,
        )
    }
  }

  /**
   * Moves the blocks that virtual blocks are mapped to.
   * @param vblocks ascending
   * @param only this block
   * @returns those of which it has not found all mappings
   */
  async #moveBatch(vblocks: readonly number[], only?: DataBlock): Promise<DataBlock[]> {
    const { commits, blocks, space } = this.#parts
    let hasCommitted = false
    let left: Attempt = { waiting: [], partial: [] }
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      await this.#guard.turn()
      let tried: Attempt | null
      try {
        tried = blocks.moves.canBegin
          ? await this.#moveTogether(vblocks, only)
          : this.#moveNow(vblocks, only)
      } catch (err) {
        if (!isNoSpace(err) || hasCommitted) throw err
        tried = null
      }
      if (tried === null && hasCommitted) return await this.#moveHalves(vblocks, only)
      if (tried === null) {
        // The room may come of a commit: in the metadata, below the new end, on the host's disk.
        await commits.commit()
        await space.allReleased()
        await blocks.freed.punched
        hasCommitted = true
        continue
      }
      left = tried
      if (left.waiting.length === 0) break
      await this.#fetch(left.waiting)
    }
    for (const block of left.waiting) await this.#moveLater(vblocks, block)
    return left.partial
  }

  /** The metadata has no room to move all of them together. */
  async #moveHalves(vblocks: readonly number[], only?: DataBlock): Promise<DataBlock[]> {
    const { space } = this.#parts
    // A block that several virtual blocks are mapped to takes all of them.
    if (vblocks.length === 1 || only !== undefined) space.metadata.mustHaveRoom(false)
    const half = vblocks.length >> 1
    const partial = await this.#moveBatch(vblocks.slice(0, half))
    return [...partial, ...(await this.#moveBatch(vblocks.slice(half)))]
  }

  /**
   * Moves what can be moved in this turn.
   * @returns null when the metadata has no room
   */
  #moveNow(vblocks: readonly number[], only: DataBlock | undefined): Attempt | null {
    const { metadata, blocks } = this.#parts
    const survey = metadata.relocation.survey(vblocks)
    const attempt: Attempt = { waiting: [], partial: [] }
    if (!this.#guard.mayMove()) return attempt
    if (!this.#hasRoom(survey)) return null
    const moves = new Map<DataBlock, DataBlock>()
    try {
      for (const from of this.#movable(survey, only, attempt)) {
        const to = this.#reserve()
        const outcome = this.#copyNow(from, to)
        if (outcome === 'moved') moves.set(from, to)
        else attempt.waiting.push(from)
        if (outcome === 'waits') metadata.relocation.unreserve(to)
        else if (outcome === 'begun') blocks.freed.release([to])
      }
    } finally {
      if (moves.size > 0) this.#switch(survey, moves)
    }
    return attempt
  }

  /**
   * Copies blocks off the thread, and moves those that nobody has written to meanwhile.
   * @returns null when the metadata has no room
   */
  async #moveTogether(
    vblocks: readonly number[],
    only: DataBlock | undefined,
  ): Promise<Attempt | null> {
    const { metadata, blocks } = this.#parts
    const survey = metadata.relocation.survey(vblocks)
    const attempt: Attempt = { waiting: [], partial: [] }
    if (!this.#guard.mayMove()) return attempt
    if (!this.#hasRoom(survey)) return null
    const copies = new Map<DataBlock, { to: DataBlock; copy: BlockCopy }>()
    const moves = new Map<DataBlock, DataBlock>()
    try {
      for (const from of this.#movable(survey, only, attempt)) {
        const to = this.#reserve()
        copies.set(from, { to, copy: blocks.moves.begin(from, to) })
      }
      await allEnded([...copies.values()].map(({ copy }) => copy.copied))
      this.#guard.mustGoOn()
      if (!this.#guard.mayMove()) return attempt
      const now = metadata.relocation.survey(vblocks)
      if (!this.#hasRoom(now)) return null
      for (const [from, { to, copy }] of copies) {
        const found = now.found.get(from)
        const isWhole = found !== undefined && metadata.relocation.isWhole(now, from)
        if (isWhole && copy.isSame() && !this.#isBusy(found.vblocks)) moves.set(from, to)
        else if (isWhole) attempt.waiting.push(from)
      }
      if (moves.size > 0) this.#switch(now, moves)
      return attempt
    } finally {
      for (const [from, { to, copy }] of copies) {
        copy.end()
        if (!moves.has(from)) blocks.freed.release([to])
      }
    }
  }

  /** The blocks of a survey that can be moved in this turn; `attempt` notes the others. */
  *#movable(
    survey: Survey,
    only: DataBlock | undefined,
    attempt: Attempt,
  ): Generator<DataBlock, void> {
    for (const [from, { vblocks }] of survey.found) {
      if (only !== undefined && from !== only) continue
      if (!this.#parts.metadata.relocation.isWhole(survey, from)) attempt.partial.push(from)
      else if (this.#isBusy(vblocks)) attempt.waiting.push(from)
      else yield from
    }
  }

  /** Whether a write is under way that may change a mapping of the block. */
  #isBusy(where: readonly number[]): boolean {
    return where.some(vblock => this.#parts.devices.isWriting(vblock))
  }

  #copyNow(from: DataBlock, to: DataBlock): 'moved' | 'waits' | 'begun' {
    const { blocks } = this.#parts
    try {
      return blocks.moves.now(from, to)
    } catch (err) {
      blocks.freed.release([to])
      throw err
    }
  }

  /** Brings blocks into memory, and waits for writes to them. */
  async #fetch(waiting: readonly DataBlock[]): Promise<void> {
    const { blocks, clock } = this.#parts
    if (blocks.moves.canBegin) return await clock.yield()
    const size = Math.min(this.#blockSize, BATCH_SIZE)
    const reads = waiting.map(block =>
      blocks.readLater(Buffer.allocUnsafe(size), 0, size, block * this.#blockSize),
    )
    await allEnded(reads)
    await clock.yield()
  }

  /** Moves a block that is large, or that is written to all the time. */
  async #moveLater(vblocks: readonly number[], from: DataBlock): Promise<void> {
    const { blocks, metadata } = this.#parts
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      await this.#guard.turn()
      const to = this.#reserve()
      let isMoved = false
      try {
        isMoved = await blocks.moves.later(from, to, () => {
          this.#guard.mustGoOn()
          if (!this.#guard.mayMove()) return false
          const survey = metadata.relocation.survey(vblocks)
          if (!metadata.relocation.isWhole(survey, from) || !this.#hasRoom(survey)) return false
          if (this.#isBusy(survey.found.get(from)!.vblocks)) return false
          this.#switch(survey, new Map([[from, to]]))
          return true
        })
      } finally {
        if (!isMoved) blocks.freed.release([to])
      }
      if (isMoved) return
    }
  }

  /** Changes the mappings of blocks whose content was copied in this turn. */
  #switch(survey: Survey, moves: Map<DataBlock, DataBlock>): void {
    const { metadata, commits, journal, devices } = this.#parts
    commits.change(() => metadata.relocation.move(survey, moves))
    for (const [from, to] of moves) {
      for (const vblock of survey.found.get(from)!.vblocks) {
        journal.pending.move(vblock, from, to)
        devices.moved(vblock, from, to)
      }
    }
    // A write to the new place is acknowledged without a change of its own.
    commits.trySettle()
    this.moved += moves.size
    // A copy off the thread waits for the disk itself.
    if (!this.#parts.blocks.moves.canBegin) this.#unflushed += moves.size * this.#blockSize
  }

  #hasRoom(survey: Survey): boolean {
    const { metadata, space } = this.#parts
    const free = metadata.nrAllocatableMetadataBlocks - space.metadata.reserve
    return space.metadata.hasRoom && free > metadata.relocation.cost(survey)
  }

  #reserve(): DataBlock {
    const { metadata, space } = this.#parts
    // Space that is kept for volumes is as good as in use.
    const to =
      metadata.nrAllocatableDataBlocks > space.reserves.kept ? metadata.relocation.reserve() : -1
    if (to < 0) throw this.#guard.noRoom()
    return to as DataBlock
  }

  get #blockSize(): number {
    return this.#parts.blocks.blockSize
  }
}
