/**
 * The commits of a pool: what becomes of its changes once they are made.
 *
 * A change of the metadata goes into the running transaction. A commit seals that in memory at once,
 * and requests go on into the next one while the sealed one passes through the stages: the data is
 * flushed, the metadata is written and flushed, then the superblock; the blocks that it freed are
 * punched out of the data store and only then may be allocated again. One commit runs at a time, and
 * all who ask for one meanwhile share the next.
 *
 * What cannot be committed ends in one of two ways. Where the metadata's file system is full, the
 * sealed transaction stalls and is tried again. All else is the kernel's answer to a failed metadata
 * operation: back to the last commit, and read-only (metadata_operation_failed in drivers/md/dm-thin.c).
 */
import { type Bytes, bytes, type DataBlock, type DevId, ThinfsError } from '../base/index.js'
import type { SealedTransaction, ThinMetadata } from '../metadata/index.js'
import type { Store } from '../storage/index.js'
import type { Journal } from './journal.js'
import type { OpenHandles } from './open-handles.js'
import type { Clock, PoolEvents } from './options.js'
import type { PoolState } from './pool-state.js'
import { punchFree } from './recovery.js'
import { Slice } from './slice.js'

/** The kernel's COMMIT_PERIOD: changes are committed at least this often, in milliseconds. */
const COMMIT_PERIOD = 1000
/** A commit that takes longer is told of, in milliseconds. */
const SLOW_COMMIT = 2000

/** Errors that may leave a change of the metadata half done. */
const HALF_WAY: ReadonlySet<string> = new Set(['METADATA_CORRUPT', 'NO_METADATA_SPACE', 'IO_ERROR'])

/** What commits work on. */
export interface CommitParts {
  metadata: ThinMetadata
  data: Store
  journal: Journal
  state: PoolState
  /** What only the journal keeps, and so has to follow every BASE frame: sizes of devices. */
  extended: ReadonlyMap<DevId, Bytes>
  /** The same: the handles that have devices open. */
  handles: OpenHandles
  /** The 4096 bytes of the superblock that is durable. */
  superblock: Buffer
  /** Size of a data block in bytes. */
  blockSize: number
  freeMeansHole: boolean
  clock: Clock
  events: PoolEvents
}

/** What a pool does when a commit ends. */
export interface CommitListener {
  /**
   * A transaction became durable.
   * @param nrFreed data blocks that it freed, those included that the data store did not take
   */
  committed(nrFreed: number): void
  /** The pool became read-only: who waits for space waits in vain. */
  failed(err: ThinfsError): void
  /** The metadata is that of the last commit again: what was looked up since may be wrong. */
  rolledBack(): void
}

export class CommitPipeline {
  readonly #parts: CommitParts
  readonly #listener: CommitListener
  #superblock: Buffer
  /** Bumped by every write to the data store; a sync covers those before it. */
  #written = 0
  #synced = 0
  /** The flush of the data store under way; null when there is none. */
  #syncing: Promise<void> | null = null
  /** Reads of the data store that have not ended. */
  readonly #reads = new Set<Promise<void>>()
  /** Whether freed blocks wait for the data store to take them: the next commit tries again. */
  #refused = false
  /** A transaction that the metadata's file system had no room for; the next commit writes it. */
  #stalled: SealedTransaction | null = null
  #running: Promise<void> | null = null
  #next: Promise<void> | null = null
  /** The rollback under way, if there is one. */
  #failing: Promise<void> = Promise.resolve()
  #cancelTimer: (() => void) | null = null
  #closed = false

  constructor(parts: CommitParts, listener: CommitListener) {
    this.#parts = parts
    this.#listener = listener
    this.#superblock = parts.superblock
  }

  /** Whether changes wait for room on the host's disk. */
  get stalled(): boolean {
    return this.#stalled !== null
  }

  /** Resolves when no rollback is under way. */
  get failing(): Promise<void> {
    return this.#failing
  }

  // --- what is committed ---

  /** Runs a change of the metadata; a failure half-way undoes the transaction, as in the kernel. */
  change<T>(change: () => T): T {
    try {
      const result = change()
      this.#commitSoon()
      return result
    } catch (err) {
      // Other errors of ours come before anything is changed.
      const harmless = err instanceof ThinfsError && !HALF_WAY.has(err.code)
      if (!harmless) {
        this.#parts.state.halfWay = true
        void this.#fail('metadata', err, this.#running)
      }
      throw err
    }
  }

  /** Notes that the data store was written to. */
  wrote(): void {
    this.#written++
  }

  /** Has the blocks that `read` reads stay unpunched, and nobody else's, until it ends. */
  reading(read: Promise<void>): void {
    const ended = (): void => {
      this.#reads.delete(read)
    }
    this.#reads.add(read)
    read.then(ended, ended)
  }

  /** Sees to it that a commit follows within a second. */
  #commitSoon(): void {
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
    if (!this.#running) return this.#begin()
    this.#next ??= this.#running.then(
      () => this.#begin(),
      () => this.#begin(),
    )
    return this.#next
  }

  /** As `commit`, but where that would be tried again it goes back to the last one instead. */
  async commitOrUndo(): Promise<void> {
    try {
      await this.commit()
    } catch (err) {
      if (this.#parts.state.writable) await this.#fail('commit', err, this.#running)
      throw err
    }
  }

  /**
   * Resolves when what was written to the data store before the call is durable: a flush of a device
   * about which nothing has changed that is not. No commit is waited for.
   * @throws after a rollback, for good
   */
  async flushData(): Promise<void> {
    const { state } = this.#parts
    state.mustBeReadable()
    if (state.lost) throw state.lost
    try {
      await this.#syncData()
    } catch (err) {
      // The host tells of a failed flush once: no later one may be taken to have covered this.
      await this.#fail('flush', err, this.#running)
      throw err
    }
    if (state.lost) throw state.lost
  }

  /** Flushes what was written before the call. Those who come meanwhile share the next flush. */
  async #syncData(): Promise<void> {
    const written = this.#written
    while (this.#synced < written) {
      this.#syncing ??= this.#startSync()
      await this.#syncing
    }
  }

  #startSync(): Promise<void> {
    const covers = this.#written
    return this.#parts.data
      .sync()
      .then(() => {
        this.#synced = covers
      })
      .finally(() => {
        this.#syncing = null
      })
  }

  #begin(): Promise<void> {
    this.#next = null
    const running = this.#commit().finally(() => {
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
   * @throws IO_ERROR
   */
  async start(clean: boolean): Promise<void> {
    const { metadata, data, journal, freeMeansHole } = this.#parts
    journal.resume()
    const sealed = metadata.seal()
    if (sealed) {
      journal.sealed(sealed.superblock)
      this.#noteAgain()
      journal.settle()
      await sealed.write()
      sealed.releaseMetadata()
      sealed.releaseData()
      this.#superblock = sealed.superblock
    }
    if (freeMeansHole && !clean) punchFree(metadata, data)
    this.#noteAgain()
    journal.begin(this.#superblock)
    // From here on free blocks are written to: no power cut may bring the word back that all of
    // them are holes.
    if (clean) await journal.sync()
  }

  /** Commits and leaves the files as an orderly shutdown does. No change may follow. */
  async close(): Promise<void> {
    const { metadata, data, journal, state, extended, freeMeansHole } = this.#parts
    this.#closed = true
    this.#cancelTimer?.()
    this.#cancelTimer = null
    await this.#failing
    // The files are closed next.
    await Promise.allSettled(this.#reads)
    // Whoever flushed since the rollback knows.
    if (state.lost || state.mode === 'fail') return
    if (!state.writable) return this.commit()
    do await this.commit()
    while (metadata.changed || this.#running !== null)
    // A size that nobody could save stays in the journal as well.
    if (!freeMeansHole || this.#refused || extended.size > 0) {
      this.#noteAgain()
      journal.begin(this.#superblock)
      return
    }
    // Holes, too, are there after a power cut only when they were flushed.
    await data.sync()
    journal.end(this.#superblock)
  }

  // --- the stages ---

  async #commit(): Promise<void> {
    const { metadata, journal, state, clock, events } = this.#parts
    state.mustBeReadable()
    if (state.lost) throw state.lost
    const started = clock.now()
    try {
      if (this.#stalled !== null) await this.#write(this.#stalled)
      const writable = state.mode !== 'read_only'
      if (writable && this.#refused) metadata.touch()
      const sealed = writable && metadata.changed ? metadata.seal() : null
      if (sealed) {
        this.#cancelTimer?.()
        this.#cancelTimer = null
        journal.sealed(sealed.superblock)
        this.#noteAgain()
        this.trySettle()
      }
      await this.#syncData()
      if (sealed !== null) await this.#write(sealed)
    } catch (err) {
      // A rollback that waits for this commit undoes it: it is not tried again.
      if (this.#stalled !== null && state.writable) this.#stall(err)
      else await this.#fail('commit', err, null)
      throw err
    } finally {
      const took = clock.now() - started
      if (took > SLOW_COMMIT) events.slowCommit(took)
    }
  }

  /** Makes a sealed transaction durable, and passes down what it freed. */
  async #write(sealed: SealedTransaction): Promise<void> {
    this.#stalled = null
    try {
      await sealed.write(new Slice(this.#parts.clock))
    } catch (err) {
      if (sealed.waits) this.#stalled = sealed
      throw err
    }
    this.#superblock = sealed.superblock
    sealed.releaseMetadata()
    this.#parts.journal.durable()
    this.trySettle()
    // A read that began before a block was unmapped shall not see what the next owner writes to it.
    if (sealed.freed.length > 0) await Promise.allSettled(this.#reads)
    const refused = await this.#punch(sealed.freed)
    this.#refused = refused.length > 0
    sealed.releaseData(refused)
    if (this.#parts.metadata.changed || this.#refused) this.#commitSoon()
    this.#listener.committed(sealed.freed.length)
  }

  /**
   * Passes freed blocks, ascending, down to the data store.
   * @returns those that it did not take: not to be allocated, for whoever got one would read it
   */
  async #punch(freed: Float64Array): Promise<DataBlock[]> {
    const { data, blockSize, freeMeansHole, events } = this.#parts
    const refused: DataBlock[] = []
    if (!freeMeansHole) return refused
    for (let i = 0; i < freed.length; ) {
      let run = 1
      while (i + run < freed.length && freed[i + run] === freed[i]! + run) run++
      try {
        await data.punchLater(bytes(freed[i]! * blockSize), bytes(run * blockSize))
      } catch (err) {
        if (refused.length === 0) events.ioError('punch', err)
        for (let block = i; block < i + run; block++) refused.push(freed[block]! as DataBlock)
      }
      i += run
    }
    return refused
  }

  /** Puts into the journal what is nowhere else, and so has to follow every BASE frame. */
  #noteAgain(): void {
    const { journal, extended, handles } = this.#parts
    for (const [devId, size] of extended) journal.extend(devId, size)
    for (const [devId, handle] of handles.all()) journal.open(devId, handle)
  }

  /** Settles what no reply waits for yet; where that fails, the next reply that waits tells of it. */
  trySettle(): void {
    try {
      this.#parts.journal.settle()
    } catch {}
  }

  // --- what a failure leads to ---

  /** The metadata's file system is full. Nothing is lost: the commit is tried again every second. */
  #stall(err: unknown): void {
    const { state, events } = this.#parts
    if (state.mode !== 'out_of_metadata_space') events.ioError('commit', err)
    state.set('out_of_metadata_space', (err as Error).message)
    this.#commitSoon()
  }

  /**
   * The kernel's answer to a failed metadata operation: back to the last commit, and read-only.
   * @param commit one that is under way, to be awaited: it may yet become the last
   */
  async #fail(operation: string, error: unknown, commit: Promise<void> | null): Promise<void> {
    const { state, events } = this.#parts
    events.ioError(operation, error)
    const reason = `${operation}: ${error instanceof Error ? error.message : String(error)}`
    state.lost ??= new ThinfsError('POOL_READ_ONLY', reason, { cause: error, errno: 'EIO' })
    if (!state.writable) return
    state.set('read_only', reason)
    this.#listener.failed(state.lost)
    this.#failing = this.#rollback(reason, commit)
    await this.#failing
  }

  async #rollback(reason: string, commit: Promise<void> | null): Promise<void> {
    const { metadata, state, events } = this.#parts
    // Where there is none it happens at once: the next request may be a read.
    if (commit !== null) await commit.catch(() => {})
    this.#stalled = null
    try {
      metadata.rollback()
      this.#listener.rolledBack()
      state.halfWay = false
      metadata.setNeedsCheck()
      await metadata.seal()?.write()
    } catch (err) {
      events.ioError('needs_check', err)
      state.set('fail', reason)
    }
  }
}
