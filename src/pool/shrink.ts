/**
 * Making a pool smaller: data blocks above the new end are moved to free ones below it.
 *
 * From the start no block above the new end is given out. All mappings are gone through in slices,
 * for those of high blocks. Such a block is copied and everything that maps it is changed in one
 * turn of the thread (block-mover.ts), with a change in the journal, so that there is no moment at
 * which a write could be lost, or at which a kill or a power cut leaves anything but a pool with
 * some blocks lower than before. The next commit releases a block that was moved away, as every
 * freed block. When nothing above the end is in use any more, the space map gets its new end; when
 * that is durable, the data store is cut off.
 *
 * Nothing is kept for the next time: who does it again goes through the mappings again, and finds
 * fewer high blocks. Writes come first: where one finds no free block below the new end, the shrink
 * is given up.
 */
import { assert, bytes, type DataBlock, MIB, Slice, ThinfsError } from '../base/index.js'
import { BlockMover, type BlockMoverParts } from './block-mover.js'
import type { PoolState } from './pool-state.js'
import { shrinkingError } from './shrinking-error.js'

/** Data blocks whose bitmaps are looked at in one turn: see growth.ts. */
const PIECE = 64 * 16320
/** Mappings of high blocks that are collected before their blocks are moved. */
const WINDOW = 65_536
/** Leaves of mapping trees that are looked at between two looks at the clock. */
const PIECE_LEAVES = 4
/** Bytes that are freed before a commit gives them back to the host. */
const FREED_SIZE = 128 * MIB
/** Passes in a row that move nothing, before there must be something that no mapping explains. */
const VAIN_PASSES = 8
/** Commits after which what was freed has to be released. */
const RELEASE_COMMITS = 8
/** Milliseconds between looks at whether blocks may be moved again. */
const HELD_MS = 50

export interface ShrinkParts extends BlockMoverParts {
  state: PoolState
}

export interface ShrinkOptions {
  signal?: AbortSignal | undefined
  /** Whether blocks may be moved now: nobody reads the pool's files by himself. */
  mayMove(): boolean
}

/** How far a shrink has come, in data blocks. */
export interface ShrinkProgress {
  /** Data blocks that the pool is to have. */
  blocks: number
  /** Data blocks above that are in use still. */
  left: number
  /** Whether it waits until nobody reads the pool's files by himself. */
  waits: boolean
}

export class Shrink {
  readonly #parts: ShrinkParts
  #mayMove: () => boolean = () => true
  #signal: AbortSignal | undefined
  /** Data blocks that the pool is to have; null while nobody makes it smaller. */
  #end: number | null = null
  #slice: Slice
  #waits = false
  readonly #mover: BlockMover

  constructor(parts: ShrinkParts) {
    this.#parts = parts
    this.#slice = new Slice(parts.clock)
    this.#mover = new BlockMover(parts, {
      turn: () => this.#turn(),
      mustGoOn: () => this.#mustGoOn(),
      mayMove: () => this.#mayMove(),
      noRoom: () => this.#noRoom(),
    })
  }

  /** Null while nobody makes the pool smaller. */
  get progress(): ShrinkProgress | null {
    if (this.#end === null) return null
    const { nrTakenAboveEnd, dataEnd } = this.#parts.metadata
    const left = dataEnd === this.#end ? nrTakenAboveEnd : 0
    return { blocks: this.#end, left, waits: this.#waits }
  }

  /**
   * How many data blocks would be moved, as of now.
   * @param size bytes that the data is to have
   * @throws as `run`
   */
  async plan(size: number): Promise<{ blocks: number; moves: number }> {
    const { metadata, clock, state } = this.#parts
    const blocks = this.#mustFit(size)
    const slice = new Slice(clock)
    let moves = 0
    for (let at = blocks; at < metadata.nrDataBlocks; at += PIECE) {
      if (slice.isOver) await slice.yield()
      state.mustBeReadable()
      moves += metadata.countOwnedData(at, Math.min(at + PIECE, metadata.nrDataBlocks))
    }
    return { blocks, moves }
  }

  /**
   * Makes the data of the pool smaller. Ended early, by whatever, it leaves what it has moved where
   * that is.
   * @param size bytes, rounded up to whole blocks
   * @returns data blocks that were moved
   * @throws NO_DATA_SPACE where what is mapped does not fit, or no more when writes have taken the
   *   room; SNAPSHOT_HELD; POOL_SHRINKING; BAD_ARGUMENT; NOT_SUPPORTED; NO_METADATA_SPACE; IO_ERROR
   */
  async run(size: number, { signal, mayMove }: ShrinkOptions): Promise<number> {
    const { metadata, commits, state, space } = this.#parts
    state.mustBeWritable()
    const blocks = this.#mustFit(size)
    this.#end = blocks
    this.#signal = signal
    this.#mayMove = mayMove
    this.#mover.moved = 0
    space.mayGrowData = false
    try {
      if (commits.stalled) await commits.commit()
      state.mustBeWritable()
      await this.#lower(blocks)
      await this.#empty()
      await this.#release()
      // A write may have taken the end away in the last moment, or something be kept by now.
      this.#mustGoOn()
      if (metadata.nrFreeDataBlocks < space.reserves.kept) throw this.#noRoom()
      commits.change(() => metadata.shrinkData(blocks))
      await commits.commit()
      await this.#cutOff(blocks)
      return this.#mover.moved
    } finally {
      this.#giveUp()
    }
  }

  // --- the steps ---

  /** @returns whole blocks */
  #mustFit(size: number): number {
    const { metadata, blocks, state, space } = this.#parts
    const { blockSize, path } = blocks
    state.mustBeReadable()
    if (this.#end !== null) throw shrinkingError()
    if (metadata.heldRoot !== 0) {
      const cure = 'thinfs message POOL release_metadata_snap ends it'
      const why = 'its readers would find other data in the blocks that it names'
      throw new ThinfsError('SNAPSHOT_HELD', `a metadata snapshot is held: ${why}; ${cure}`)
    }
    if (!blocks.canBeCut) {
      const what = `${path}: only a pool whose data is a file of its own becomes smaller`
      const how = 'thinfs send and receive bring its volumes to a smaller pool'
      throw new ThinfsError('NOT_SUPPORTED', `${what}; ${how}`)
    }
    const wanted = Math.ceil(size / blockSize)
    const has = metadata.nrDataBlocks
    if (!(wanted > 0) || wanted > has) {
      const than = wanted > has ? `${has * blockSize} that the pool has` : 'one block'
      const which = wanted > has ? 'more than the' : 'less than'
      throw new ThinfsError('BAD_ARGUMENT', `${path}: ${size} bytes are ${which} ${than}`)
    }
    const used = metadata.nrAllocatedDataBlocks
    if (used > wanted) {
      const both = `${used} data blocks are in use, ${used * blockSize} bytes`
      const room = `${wanted} blocks, ${wanted * blockSize} bytes, have no room for them`
      throw new ThinfsError('NO_DATA_SPACE', `${path}: ${both}; ${room}`)
    }
    const { kept } = space.reserves
    if (used + kept > wanted) {
      const both = `${used * blockSize} bytes are in use, ${kept * blockSize} more are reserved`
      throw new ThinfsError('NO_DATA_SPACE', `${path}: ${both}: ${wanted * blockSize} are too few`)
    }
    return wanted
  }

  /** Sees to it that no block above the end is given out. */
  async #lower(end: number): Promise<void> {
    const { metadata, state } = this.#parts
    this.#slice = new Slice(this.#parts.clock)
    for (let at = metadata.nrDataBlocks; at > end; ) {
      at = Math.max(end, at - PIECE)
      metadata.allocateDataBelow(at)
      if (this.#slice.isOver) await this.#slice.yield()
      state.mustBeWritable()
      if (metadata.dataEnd !== at) throw this.#noRoom()
    }
  }

  /** Moves blocks until none above the end has an owner. */
  async #empty(): Promise<void> {
    const { metadata, commits } = this.#parts
    for (let vain = 0; metadata.nrOwnedAboveEnd > 0; ) {
      const before = this.#mover.moved
      const left = metadata.nrOwnedAboveEnd
      await this.#pass()
      const isVain = this.#mover.moved === before && metadata.nrOwnedAboveEnd >= left
      vain = isVain ? vain + 1 : 0
      // A block that a write has taken has no mapping until it is filled: a commit waits for that.
      if (isVain) await commits.commit()
      if (vain < VAIN_PASSES) continue
      const what = `${left} data blocks above the new end have owners that no mapping explains`
      throw new ThinfsError('METADATA_CORRUPT', `${what}: thinfs check`)
    }
  }

  /** Goes through all mappings of all devices. */
  async #pass(): Promise<void> {
    const { metadata } = this.#parts
    metadata.relocation.startOver()
    let vblocks: number[] = []
    let high: DataBlock[] = []
    for (const devId of [...metadata.deviceIds()]) {
      for (let at = 0; at < Number.POSITIVE_INFINITY; ) {
        await this.#turn()
        // It may have been deleted meanwhile.
        if (!metadata.hasDevice(devId)) break
        at = metadata.relocation.find(devId, at, PIECE_LEAVES, (vblock, dataBlock) => {
          vblocks.push(vblock)
          high.push(dataBlock)
        })
        if (vblocks.length < WINDOW) continue
        await this.#mover.move(vblocks, high)
        vblocks = []
        high = []
      }
    }
    await this.#mover.move(vblocks, high)
  }

  /** Waits until everything above the end can be cut off. */
  async #release(): Promise<void> {
    const { metadata, commits, blocks, space } = this.#parts
    for (let n = 0; metadata.nrTakenAboveEnd > 0; n++) {
      if (n === RELEASE_COMMITS) {
        const what = `${blocks.path}: ${metadata.nrTakenAboveEnd} blocks that were moved away`
        throw new ThinfsError('IO_ERROR', `${what} are not released: the log has why`)
      }
      await commits.commit()
      await space.allReleased()
      await blocks.freed.punched
      this.#mustGoOn()
      if (metadata.nrOwnedAboveEnd > 0) await this.#empty()
    }
  }

  async #cutOff(nrBlocks: number): Promise<void> {
    const { blocks } = this.#parts
    const size = nrBlocks * this.#blockSize
    assert(this.#parts.metadata.nrDataBlocks === nrBlocks, 'no block of the pool is cut off')
    blocks.measure()
    if (blocks.size > size) blocks.cut(bytes(size))
    await blocks.flushAll()
  }

  /** Everything as it was, but for what was moved. */
  #giveUp(): void {
    const { metadata, space } = this.#parts
    metadata.allocateDataBelow(metadata.nrDataBlocks)
    this.#end = null
    this.#waits = false
    space.mayGrowData = true
  }

  // --- between two pieces ---

  /** Lets others have their turn, and waits for what keeps blocks from being moved. */
  async #turn(): Promise<void> {
    const { metadata, blocks, commits, clock } = this.#parts
    await this.#mover.flushMuch()
    for (let rest = blocks.pace.turn(); rest !== null; rest = blocks.pace.turn()) await rest
    if (metadata.nrFreedDataBlocks * this.#blockSize >= FREED_SIZE) {
      await commits.commit()
      while (metadata.nrUnreleasedDataBlocks > 0 && blocks.freed.punching)
        await blocks.freed.punched
    }
    if (this.#slice.isOver) await this.#slice.yield()
    this.#mustGoOn()
    while (!this.#mayMove()) {
      this.#waits = true
      await new Promise<void>(resolve => clock.after(HELD_MS, resolve))
      this.#mustGoOn()
    }
    this.#waits = false
  }

  /** @throws when the shrink has to end */
  #mustGoOn(): void {
    const { metadata, state } = this.#parts
    this.#signal?.throwIfAborted()
    state.mustBeWritable()
    if (metadata.dataEnd !== this.#end) throw this.#noRoom()
  }

  #noRoom(): ThinfsError {
    const { metadata, blocks } = this.#parts
    const { kept } = this.#parts.space.reserves
    const reserved = kept > 0 ? `, ${kept} more are reserved` : ''
    const used = `${metadata.nrAllocatedDataBlocks} data blocks are in use${reserved}`
    const what = `${blocks.path}: writes have taken the room below the new end: ${used}`
    return new ThinfsError('NO_DATA_SPACE', `${what}; what was moved stays where it is`)
  }

  get #blockSize(): number {
    return this.#parts.blocks.blockSize
  }
}
