/**
 * The commits of a pool, which make its changes durable.
 *
 * A change of the metadata goes into the running transaction. A commit seals that in memory at
 * once, and requests go on into the next one while the sealed one passes through the stages: the
 * data is flushed, the metadata is written and flushed, then the superblock. One commit runs at a
 * time, and all callers that ask for one meanwhile share the next.
 *
 * DataBlocks releases the blocks that a durable transaction freed afterwards; no flush waits for
 * that.
 *
 * A commit fails in one of two ways. If the metadata's file system is full, the sealed transaction
 * stalls and is tried again. After any other failure the pool goes back to the last commit,
 * read-only (failure.ts).
 */
import {
  assert,
  type Bytes,
  type Clock,
  type DevId,
  type ErrorCode,
  isNoSpace,
  type Later,
  Slice,
  ThinfsError,
} from '../base/index.js'
import type { SealedTransaction } from '../metadata/index.js'
import { Failure, type FailureListener, type FailureParts } from './failure.js'
import type { Journal } from './journal.js'
import type { OpenHandles } from './open-handles.js'
import { clearFree } from './recovery.js'
import { UnmappedBlocks } from './unmapped-blocks.js'

/** The kernel's COMMIT_PERIOD: changes are committed at least this often, in milliseconds. */
const COMMIT_PERIOD = 1000
/** Milliseconds after which a commit raises the event `slowCommit`. */
const SLOW_COMMIT = 2000

/** Errors that a change of the metadata throws before it changes anything. */
const HARMLESS: ReadonlySet<string> = new Set<ErrorCode>([
  'BAD_ARGUMENT',
  'DEVICE_EXISTS',
  'DEVICE_MISSING',
  'METADATA_LIMIT',
  'SNAPSHOT_HELD',
  'SNAPSHOT_NOT_HELD',
  'TRANSACTION_MISMATCH',
])

/** The parts of a pool that commits work on. */
export interface CommitParts extends FailureParts {
  journal: Journal
  /** Sizes of devices that only the journal keeps: they have to follow every BASE frame. */
  extended: ReadonlyMap<DevId, Bytes>
  /** The same: the handles that have devices open. */
  handles: OpenHandles
  /** The 4096 bytes of the superblock that is durable. */
  superblock: Buffer
  /** @throws POOL_MISMATCH when somebody cut off a store, or wrote over the metadata */
  mustBeOurs(): void
  clock: Clock
}

/** The pool, which hears of the end of commits. */
export interface CommitListener extends Omit<FailureListener, 'dropped'> {
  /** A transaction became durable: the metadata blocks that it freed can be allocated. */
  committed(): void
}

export class CommitPipeline {
  readonly #parts: CommitParts
  readonly #listener: CommitListener
  #superblock: Buffer
  /** Requests that have taken blocks: the next commit waits for them before it seals. */
  readonly unmapped = new UnmappedBlocks()
  /**
   * Whether free blocks may hold something that an earlier process left, until they were punched.
   */
  #punchesFree = false
  /** Whether the commit that begins next is to be undone where it would be tried again. */
  #undoes = false
  /** A transaction that the metadata's file system had no room for; the next commit writes it. */
  #stalled: SealedTransaction | null = null
  #running: Promise<void> | null = null
  #next: Promise<void> | null = null
  readonly #failure: Failure
  #cancelTimer: (() => void) | null = null
  #closed = false
  /** Transactions that became durable, and milliseconds that writing their metadata took. */
  readonly counts = { commits: 0, ms: 0 }

  constructor(parts: CommitParts, listener: CommitListener) {
    this.#parts = parts
    this.#listener = listener
    this.#superblock = parts.superblock
    this.#failure = new Failure(parts, {
      ...listener,
      dropped: () => {
        this.#stalled = null
      },
    })
  }

  /** Whether changes wait for room on the host's disk. */
  get stalled(): boolean {
    return this.#stalled !== null || this.#punchesFree
  }

  /**
   * Whether a superblock is that of the last commit, or one that a commit may have left half-way.
   */
  isOurs(superblock: Buffer): boolean {
    if (this.#stalled?.superblock.equals(superblock)) return true
    return this.#superblock.equals(superblock)
  }

  /** Whether a commit is under way, which may be writing the superblock. */
  get running(): boolean {
    return this.#running !== null
  }

  /** Resolves when no rollback is under way. */
  get failing(): Promise<void> {
    return this.#failure.failing
  }

  // --- what is committed ---

  /** Runs a change of the metadata; a failure half-way undoes the transaction, as in the kernel. */
  change<T>(change: () => T): T {
    this.#parts.state.mustBeReadable()
    return this.#change(change)
  }

  /**
   * As `change`, also while the pool is being closed: for what a request took and does not need.
   */
  giveBack(change: () => void): void {
    this.#parts.state.mustBeSound()
    this.#change(change)
  }

  #change<T>(change: () => T): T {
    try {
      const result = change()
      this.commitSoon()
      return result
    } catch (err) {
      if (!(err instanceof ThinfsError && HARMLESS.has(err.code))) {
        this.#parts.state.halfWay = true
        void this.#failure.fail('metadata', err, this.#running)
      }
      throw err
    }
  }

  /** Sees to it that a commit follows within a second. */
  commitSoon(): void {
    if (this.#cancelTimer || this.#closed) return
    this.#cancelTimer = this.#parts.clock.after(COMMIT_PERIOD, () => {
      this.#cancelTimer = null
      this.commit().catch(() => {}) // #fail() has told whoever listens
    })
  }

  // --- who waits for a commit ---

  /**
   * Resolves when all that was changed and written before the call is durable: with the commit that
   * begins now, or with the next one when one is under way.
   * @throws after a rollback, for good
   */
  commit(): Promise<void> {
    try {
      this.#parts.state.mustBeOpen()
    } catch (err) {
      return Promise.reject(err)
    }
    return this.#commitNext()
  }

  #commitNext(): Promise<void> {
    if (!this.#running) return this.#begin()
    this.#next ??= this.#running.then(
      () => this.#begin(),
      () => this.#begin(),
    )
    return this.#next
  }

  /** As `commit`, but where that would be tried again it goes back to the last one instead. */
  commitOrUndo(): Promise<void> {
    this.#undoes = true
    return this.commit()
  }

  /**
   * Resolves when everything that was written to the data store before the call is durable: the
   * flush of a device whose other changes are all durable. It waits for no commit.
   * @throws after a rollback, for good
   */
  async flushData(): Promise<void> {
    const { state } = this.#parts
    state.mustBeReadable()
    if (state.lost) throw state.lost
    try {
      await this.#parts.blocks.flush()
    } catch (err) {
      // The host reports a failed flush once: a later one that succeeds would not cover these
      // writes.
      await this.#failure.fail('flush', err, this.#running)
    }
    if (state.lost) throw state.lost
  }

  #begin(): Promise<void> {
    this.#next = null
    const undoes = this.#undoes
    this.#undoes = false
    const running = this.#commit(undoes).finally(() => {
      // The next commit is about to begin: no other may come before it.
      if (this.#running === running && this.#next === null) this.#running = null
    })
    this.#running = running
    return running
  }

  // --- the first and the last ---

  /**
   * Commits what was replayed, before the first request, and starts the journal afresh.
   * @param clean whether every free data block is a hole, as an orderly shutdown leaves them
   * @param saysClean whether the journal says so, of this superblock or of another
   * @param generation commits up to now, as far as the journal and the data know
   * @throws IO_ERROR
   */
  async start(clean: boolean, saysClean: boolean, generation: number): Promise<void> {
    const { metadata, journal, blocks } = this.#parts
    journal.resume()
    journal.goOnFrom(generation)
    this.#punchesFree = blocks.freeMeansHole && !clean
    const sealed = metadata.seal()
    if (sealed) {
      journal.sealed(sealed.superblock)
      this.#noteAgain()
      this.trySettle()
      try {
        await this.#writeSealed(sealed)
      } catch (err) {
        if (!sealed.waits) throw err
        // A host without room must not keep the pool from being opened: nothing is lost.
        this.#stall(err)
        return
      }
    }
    await this.#clearFree()
    if (sealed) metadata.releaseData(sealed.freed)
    this.#noteAgain()
    this.#label()
    journal.begin(this.#superblock)
    // From here on free blocks are written to. A power cut must not bring a journal back that says
    // that all of them are holes, or that does not know this superblock.
    if (saysClean) await journal.sync()
  }

  /** Commits and leaves the files as an orderly shutdown does. No change may follow. */
  async close(): Promise<void> {
    const { metadata, blocks, journal, state, extended } = this.#parts
    this.#closed = true
    this.#cancelTimer?.()
    this.#cancelTimer = null
    await this.#failure.failing
    try {
      // Every flush since the rollback has reported it.
      if (state.lost || state.mode === 'fail') return
      if (!state.writable) return await this.#commitNext()
      do await this.#commitNext()
      while (metadata.changed || this.#running !== null)
    } finally {
      // The files are closed next.
      await blocks.quiesce()
    }
    // Only holes that were flushed are there after a power cut.
    if (blocks.freeMeansHole) await blocks.flushLabel()
    assert(!metadata.changed, 'no change follows close()')
    const clean = blocks.freeMeansHole && !blocks.freed.hasRefused && !this.#punchesFree
    try {
      if (clean && extended.size === 0) return this.#endJournal()
      // A size that could not be saved in volumes.json stays in the journal.
      this.#noteAgain()
      journal.begin(this.#superblock)
    } catch (err) {
      if (extended.size > 0 || !(err instanceof ThinfsError)) throw err
      const { code, errno, message } = err
      throw new ThinfsError(code, `all is committed, but ${message}`, { cause: err, errno })
    }
  }

  /** If the host has no room for that, the next opening punches holes that are there already. */
  #endJournal(): void {
    try {
      this.#parts.journal.end(this.#superblock)
    } catch (err) {
      if (!isNoSpace(err)) throw err
      this.#parts.events.ioError('journal', err)
    }
  }

  // --- the stages ---

  async #commit(undoes: boolean): Promise<void> {
    const { metadata, blocks, journal, state, clock, events } = this.#parts
    state.mustBeSound()
    if (state.lost) throw state.lost
    const started = clock.now()
    try {
      if (state.writable) {
        const asked = this.#parts.mayWrite()
        if (asked !== undefined) await asked
        this.#parts.mustBeOurs()
      }
    } catch (err) {
      await this.cutOff(err)
      throw err
    }
    // The pool may have failed while it was asked.
    state.mustBeSound()
    if (state.lost) throw state.lost
    try {
      if (this.#stalled !== null) await this.#write(this.#stalled)
      if (this.unmapped.count > 0) await this.unmapped.drain()
      const writable = state.mode !== 'read_only'
      const sealed = writable && metadata.changed ? metadata.seal() : null
      this.unmapped.endDrain()
      if (sealed) {
        this.#cancelTimer?.()
        this.#cancelTimer = null
        journal.sealed(sealed.superblock)
        this.#noteAgain()
        this.trySettle()
      }
      // A snapshot may have blocks by now that a write is under way on: it lasts with that write.
      const writes = blocks.writesEnd()
      if (writes !== null) await writes
      await blocks.flush()
      if (sealed !== null) await this.#write(sealed)
      else if (writable && this.#punchesFree) {
        await this.#clearFree()
        this.#listener.committed()
      }
      if (writable) blocks.freed.retry()
    } catch (err) {
      if (this.#stalled !== null && state.writable && !undoes) {
        this.#stall(err)
        throw err
      }
      const { lost } = state
      await this.#failure.fail('commit', err, null)
      // A host without room for the pages of a flush has lost them: that is more than a full pool.
      throw isNoSpace(err) && !undoes && lost === null ? (state.lost ?? err) : err
    } finally {
      this.unmapped.endDrain()
      const took = clock.now() - started
      if (took > SLOW_COMMIT) events.slowCommit(took)
    }
  }

  /** Makes a sealed transaction durable. */
  async #write(sealed: SealedTransaction): Promise<void> {
    const { clock } = this.#parts
    const begun = clock.now()
    await this.#writeSealed(sealed)
    this.counts.commits++
    this.counts.ms += clock.now() - begun
    this.#label()
    this.#parts.journal.durable()
    this.trySettle()
    const clearing = this.#clearFree()
    if (clearing !== undefined) await clearing
    this.#parts.blocks.freed.release(sealed.freed)
    if (this.#parts.metadata.changed) this.commitSoon()
    this.#listener.committed()
  }

  async #writeSealed(sealed: SealedTransaction): Promise<void> {
    this.#stalled = null
    // The flush of the data may have taken long.
    const asked = this.#parts.mayWrite()
    if (asked !== undefined) await asked
    try {
      // Flushes wait for it, and so it does not take turns with a removal.
      const slice = new Slice(this.#parts.clock, true)
      await sealed.write(slice, () => this.#parts.mayWrite())
    } catch (err) {
      if (sealed.waits) this.#stalled = sealed
      throw err
    }
    this.#superblock = sealed.superblock
    sealed.end()
  }

  /** Writes on the data which commit it goes with: an older copy of either then shows. */
  #label(): void {
    const { metadata, blocks, journal } = this.#parts
    const { generation } = journal
    if (blocks.setLabel({ pool: metadata.uuid, generation })) journal.wasLabelled()
  }

  /**
   * Clears free blocks in which an earlier process left something, once no block is free that the
   * disk still maps. No block is given out before.
   */
  #clearFree(): Later<void> {
    if (!this.#punchesFree) return
    const { metadata, blocks } = this.#parts
    if (this.#stalled !== null || metadata.changed) return
    const clearing = clearFree(metadata, blocks)
    if (clearing === null) {
      this.#punchesFree = false
      return
    }
    return clearing.then(() => {
      this.#punchesFree = false
    })
  }

  /** Puts into the journal what is nowhere else, and so has to follow every BASE frame. */
  #noteAgain(): void {
    const { journal, extended, handles } = this.#parts
    for (const [devId, size] of extended) journal.pending.extend(devId, size)
    for (const [devId, handle] of handles.all()) journal.pending.open(devId, handle)
  }

  /**
   * Settles what no reply waits for yet; where that fails, the next reply that waits tells of it.
   */
  trySettle(): void {
    try {
      this.#parts.journal.settle()
    } catch {}
  }

  // --- what a failure leads to ---

  /**
   * Ends all writing because somebody cut off a store: writes would make it long again, with a hole
   * for the missing part. The journal keeps uncommitted changes until the file is whole again. Or
   * because somebody else may have the pool.
   */
  cutOff(err: unknown): Promise<void> {
    return this.#failure.fail('size', err, null)
  }

  /**
   * The metadata's file system is full. Nothing is lost: the commit is tried again every second.
   */
  #stall(err: unknown): void {
    const { state, events } = this.#parts
    if (state.mode !== 'out_of_metadata_space') events.ioError('commit', err)
    state.set('out_of_metadata_space', (err as Error).message)
    this.commitSoon()
  }
}
