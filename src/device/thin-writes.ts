/**
 * The writes of a thin device: attempts, made until one succeeds.
 *
 * An attempt that lacks something (space, what a shared block holds, the end of another write of
 * the same block) has taken no block and changed nothing. The next one is made when that is there.
 */
import {
  allEnded,
  assert,
  isNoSpace,
  type Later,
  MAX_IO,
  type Requester,
  ThinfsError,
} from '../base/index.js'
import { dataBlockOf, isShared, UNMAPPED } from './lookup-table.js'
import type { Provisioner } from './provisioner.js'
import { UnfinishedWrites } from './unfinished-writes.js'
import type { Fetched, PlanOwner, WritePlan } from './write-plan.js'

/** A range of bytes [from, to). */
export type Edge = readonly [from: number, to: number]

/** Whether the edges of a discard wait for space as writes do, and what ends that wait. */
export interface Patience {
  readonly waits: boolean
  readonly signal: AbortSignal | undefined
}
export const PATIENT: Patience = { waits: true, signal: undefined }

/** The device, which may go while an attempt waits. */
export interface WritesOwner extends PlanOwner {
  /** @throws when it was deleted, or the metadata cannot be relied on */
  mustBeReadable(): void
  /** @throws when it was deleted, or no metadata may change */
  mustBeWritable(): void
  /** Virtual blocks that it may map at most; Infinity: no limit of its own. */
  readonly limit: number
  /** Notes how many it would have mapped beside its limit, when some of them are wanted. */
  noteWanted(blocks: number): void
  /** See `SpaceOwner`. */
  readonly onFull: 'queue' | 'error' | null
}

/**
 * The outcome of an attempt to write: 'written', or what it has to wait for; then no block was
 * taken. 'not in memory': the content of a shared block. 'in use': another write of the same
 * virtual block.
 */
type Outcome = 'written' | 'no space' | 'not in memory' | 'in use'

const orNull = (outcome: Outcome): Outcome | null => (outcome === 'no space' ? null : outcome)

export class ThinWrites {
  /** Those in flight that may change mappings. */
  readonly unfinished = new UnfinishedWrites()
  readonly #pool: Provisioner
  readonly #device: WritesOwner
  readonly #plan: WritePlan
  readonly #blockSize: number
  /** Virtual blocks that writes under way are going to map. */
  #nrMapping = 0

  /** @param plan the pool's, which all of its devices share */
  constructor(pool: Provisioner, device: WritesOwner, plan: WritePlan) {
    this.#pool = pool
    this.#device = device
    this.#plan = plan
    this.#blockSize = pool.blocks.blockSize
  }

  /** See `ThinDevice.write`. */
  write(
    offset: number,
    size: number,
    buffer: Uint8Array,
    at: number,
    requester?: Requester,
  ): Later<void> {
    this.#device.mustBeReadable()
    const blockSize = this.#blockSize
    const vblock = Math.floor(offset / blockSize)
    const skip = offset - vblock * blockSize
    if (skip + size <= blockSize) {
      const entry = this.#device.table.get(vblock)
      if (entry !== UNMAPPED && !isShared(entry)) {
        const inPlace = this.#writeInPlace(buffer, at, size, dataBlockOf(entry) * blockSize + skip)
        if (inPlace === 'written') return
        if (inPlace !== 'no space') {
          return this.#writeLater(offset, size, buffer, at, inPlace, requester)
        }
      }
    }
    const outcome = this.#tryWrite(offset, size, buffer, at, null)
    if (outcome !== 'written') {
      return this.#writeLater(offset, size, buffer, at, outcome, requester)
    }
  }

  /**
   * Gives a virtual block that is not mapped a data block, which reads as zeros.
   * @param signal ends a wait for space with its reason
   */
  provision(vblock: number, signal?: AbortSignal): Later<void> {
    const attempt = (): Later<Outcome> => this.#tryProvision(vblock)
    const outcome = attempt()
    if (outcome !== 'written') return this.#insist(outcome, vblock, vblock, attempt, signal)
  }

  /** Zeroes ranges that lie within one block each, where that is mapped. */
  zero(edges: Edge[], patience: Patience): Later<void> {
    const left: { edge: Edge; outcome: Later<Outcome> }[] = []
    for (const edge of edges) {
      if (edge[0] >= edge[1]) continue
      const outcome = this.#tryZero(edge[0], edge[1], null)
      if (outcome !== 'written') left.push({ edge, outcome })
    }
    if (left.length > 0) return this.#zeroLater(left, patience)
  }

  /**
   * @param more virtual blocks to be mapped
   * @throws VOLUME_FULL when the device may not map so many more
   */
  mustBeWithinLimit(more: number): void {
    const { limit, devId } = this.#device
    if (limit === Number.POSITIVE_INFINITY) return
    const { mappedBlocks } = this.#pool.metadata.details(devId)
    this.#device.noteWanted(mappedBlocks + this.#nrMapping + more)
    if (mappedBlocks + this.#nrMapping + more <= limit) return
    const mapped = mappedBlocks * this.#blockSize
    const what = `${mapped} bytes are mapped, the limit is ${limit * this.#blockSize}`
    throw new ThinfsError('VOLUME_FULL', `device ${devId}: ${what}`)
  }

  // --- inside ---

  /** Copies the bytes before it waits for anything. */
  #writeLater(
    offset: number,
    size: number,
    buffer: Uint8Array,
    at: number,
    outcome: Later<Outcome>,
    requester: Requester | undefined,
  ): Promise<void> {
    const signal = requester?.signal()
    const held = Buffer.from(buffer.subarray(at, at + size))
    const first = Math.floor(offset / this.#blockSize)
    const last = Math.floor((offset + size - 1) / this.#blockSize)
    const attempt = (fetched: Fetched | null): Later<Outcome> =>
      this.#tryWrite(offset, size, held, 0, fetched)
    return this.#insist(outcome, first, last, attempt, signal, again =>
      this.#pool.space.withSpace(this.#device, size, again, signal),
    )
  }

  /**
   * Repeats attempts at a change of virtual blocks `first` to `last` until one succeeds. Between
   * two it waits for whatever the last one lacked.
   * @param outcome of the first attempt
   * @param signal ends a wait for space with its reason
   * @param withSpace waits for space, until an attempt finds some
   */
  async #insist(
    outcome: Later<Outcome>,
    first: number,
    last: number,
    attempt: (fetched: Fetched | null) => Later<Outcome>,
    signal?: AbortSignal,
    withSpace = (again: () => Later<Outcome | null>): Promise<Outcome> =>
      this.#pool.space.withSpace(this.#device, 0, again, signal),
  ): Promise<void> {
    const again = (): Later<Outcome | null> => {
      const tried = attempt(null)
      return tried instanceof Promise ? tried.then(orNull) : orNull(tried)
    }
    for (let result = await outcome; result !== 'written'; ) {
      if (result === 'no space') result = await withSpace(again)
      else if (this.unfinished.has(first, last)) {
        await this.unfinished.ended(first, last)
        result = await attempt(null)
      } else if (result === 'in use') result = await attempt(null)
      else result = await this.#fetchFor(first, last, attempt)
    }
  }

  /** Reads the shared blocks, then makes an attempt. No other write of them begins meanwhile. */
  async #fetchFor(
    first: number,
    last: number,
    attempt: (fetched: Fetched) => Later<Outcome>,
  ): Promise<Outcome> {
    this.#device.mustBeReadable()
    this.#plan.resolve(this.#device, first, last)
    const fetching = this.#plan.fetchKept()
    const end = this.unfinished.begin(first, last, fetching)
    let fetched: Fetched
    try {
      fetched = await fetching
    } finally {
      end()
    }
    // Nothing comes between: others that wait for these blocks would begin to read them anew.
    return attempt(fetched)
  }

  #tryWrite(
    offset: number,
    size: number,
    buffer: Uint8Array,
    at: number,
    fetched: Fetched | null,
  ): Later<Outcome> {
    assert(size <= MAX_IO, 'writes are split before they come here')
    // The call may be the continuation of a wait.
    this.#device.mustBeReadable()
    const plan = this.#plan
    const end = offset + size
    const first = Math.floor(offset / this.#blockSize)
    const last = Math.floor((end - 1) / this.#blockSize)
    if (this.unfinished.has(first, last)) return 'in use'
    plan.resolve(this.#device, first, last)
    if (plan.nrNew > 0) this.mustBeWithinLimit(plan.nrNew)
    // Space comes first: blocks fetched for a write that finds none are fetched anew.
    if (!plan.hasSpace()) return 'no space'
    if (!plan.readKept(offset, end, fetched)) return 'not in memory'
    plan.take()
    let written: Later<void>
    try {
      written = plan.write(offset, size, buffer, at)
    } catch (err) {
      return this.#giveUp(plan, 'write', err)
    }
    return this.#finish(plan, 'write', written)
  }

  #tryProvision(vblock: number): Later<Outcome> {
    this.#device.mustBeWritable()
    if (this.unfinished.has(vblock, vblock)) return 'in use'
    const plan = this.#plan
    plan.resolve(this.#device, vblock, vblock)
    if (!plan.startsUnmapped) return 'written'
    this.mustBeWithinLimit(plan.nrNew)
    if (!plan.hasSpace()) return 'no space'
    plan.take()
    const end = (vblock + 1) * this.#blockSize
    return this.#zero(plan, end, end)
  }

  /** @param from it and `to` are within one block */
  #tryZero(from: number, to: number, fetched: Fetched | null): Later<Outcome> {
    this.#device.mustBeWritable()
    const vblock = Math.floor(from / this.#blockSize)
    if (this.unfinished.has(vblock, vblock)) return 'in use'
    const plan = this.#plan
    plan.resolve(this.#device, vblock, vblock)
    if (plan.startsUnmapped) return 'written'
    if (!plan.hasSpace(true)) return 'no space'
    if (!plan.readKept(from, to, fetched)) return 'not in memory'
    const target = plan.firstInPlace
    // One that is a hole already was preallocated: somebody wants it to stay.
    const mayEmpty = target >= 0 && !this.#pool.blocks.isHole(target)
    plan.take()
    const zeroed = this.#zero(plan, from, to)
    if (!mayEmpty) return zeroed
    if (zeroed instanceof Promise) {
      return zeroed.then(outcome => {
        this.#unmapIfHole(vblock, target)
        return outcome
      })
    }
    this.#unmapIfHole(vblock, target)
    return zeroed
  }

  /**
   * Unmaps a block of which parts were discarded, one after the other, when no part is left that
   * has its space on the host. Nothing is noted of parts: the host's file has the holes.
   */
  #unmapIfHole(vblock: number, target: number): void {
    const { blocks, space, writable } = this.#pool
    if (!writable || this.#device.gone || this.unfinished.has(vblock, vblock)) return
    const entry = this.#device.table.get(vblock)
    if (entry === UNMAPPED || isShared(entry) || dataBlockOf(entry) !== target) return
    if (!blocks.isHole(target) || !space.metadata.hasRoomToUnmap) return
    this.#pool.unmap(this.#device.devId, vblock, vblock + 1)
  }

  /** Makes [from, to) zeros, in a block that the plan has taken. */
  #zero(plan: WritePlan, from: number, to: number): Later<Outcome> {
    let zeroed: Later<void>
    try {
      zeroed = plan.zero(from, to)
    } catch (err) {
      return this.#giveUp(plan, 'zero', err)
    }
    return this.#finish(plan, 'zero', zeroed)
  }

  /** Puts the mappings of a plan in place when its bytes are. */
  #finish(plan: WritePlan, operation: string, written: Later<void>): Later<Outcome> {
    if (written !== undefined) return this.#finishLater(plan.keep(), operation, written)
    plan.remap()
    if (plan.nrWanted > 0) this.#pool.space.provisioned()
    return 'written'
  }

  #finishLater(plan: WritePlan, operation: string, written: Promise<void>): Promise<Outcome> {
    const finish = async (): Promise<Outcome> => {
      try {
        await written
      } catch (err) {
        return await this.#giveUp(plan, operation, err)
      }
      // The device may have gone meanwhile, and the pool may be read-only.
      if (plan.nrWanted > 0) {
        try {
          this.#device.mustBeWritable()
        } catch (err) {
          await plan.giveBack()
          throw err
        }
      }
      plan.recheck()
      plan.remap()
      if (plan.nrWanted > 0) this.#pool.space.provisioned()
      return 'written'
    }
    this.#nrMapping += plan.nrNew
    const finished = finish()
    const unfinished = this.unfinished.begin(plan.first, plan.end - 1, finished)
    if (plan.nrWanted > 0) this.#pool.awaitMapping(finished)
    return finished.finally(() => {
      this.#nrMapping -= plan.nrNew
      unfinished()
    })
  }

  /**
   * Takes back a plan whose bytes could not be written.
   * @returns that there is no space, or throws
   */
  #giveUp(plan: WritePlan, operation: string, err: unknown): Later<Outcome> {
    const target = plan.firstTarget
    const given = plan.giveBack()
    const refused = (): Outcome => {
      this.#refused(operation, err, target)
      return 'no space'
    }
    return given === undefined ? refused() : given.then(refused)
  }

  async #zeroLater(
    edges: { edge: Edge; outcome: Later<Outcome> }[],
    { waits, signal }: Patience,
  ): Promise<void> {
    const withSpace = (again: () => Later<Outcome | null>): Promise<Outcome> =>
      waits
        ? this.#pool.space.withSpace(this.#device, 0, again, signal)
        : this.#pool.space.withSpaceNow(this.#device, again)
    // All are tried: the second one may find room where the first did not.
    await allEnded(
      edges.map(({ edge: [from, to], outcome }) => {
        const vblock = Math.floor(from / this.#blockSize)
        const attempt = (fetched: Fetched | null): Later<Outcome> =>
          this.#tryZero(from, to, fetched)
        return this.#insist(outcome, vblock, vblock, attempt, signal, withSpace)
      }),
    )
  }

  /** Writes into a block that only this device maps. */
  #writeInPlace(buffer: Uint8Array, at: number, length: number, offset: number): Later<Outcome> {
    let written: Later<void>
    try {
      written = this.#pool.blocks.write(buffer, at, length, offset)
    } catch (err) {
      this.#refused('write', err, Math.floor(offset / this.#blockSize))
      return 'no space'
    }
    return written === undefined ? 'written' : this.#writtenInPlace(written, offset)
  }

  async #writtenInPlace(written: Promise<void>, offset: number): Promise<Outcome> {
    try {
      await written
      return 'written'
    } catch (err) {
      this.#refused('write', err, Math.floor(offset / this.#blockSize))
      return 'no space'
    }
  }

  /**
   * Handles an error of a write to the data store. A host without room counts as a pool without
   * room; any other error is reported and thrown.
   */
  #refused(operation: string, err: unknown, block: number): void {
    if (!isNoSpace(err)) throw this.#pool.ioError(operation, err, this.#device.devId, block)
    this.#pool.space.hostRefused(err)
  }
}
