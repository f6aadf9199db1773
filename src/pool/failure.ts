/**
 * The consequences of a failure.
 *
 * A pool does as the kernel after a failed metadata operation (metadata_operation_failed in
 * drivers/md/dm-thin.c): it goes back to the last commit, and is read-only. If somebody has cut off
 * a store there may be nothing to go back to, and if somebody else may have the pool nothing is
 * written at all.
 */
import { isLost, type Later, ThinfsError } from '../base/index.js'
import type { DataBlocks } from '../device/index.js'
import type { ThinMetadata } from '../metadata/index.js'
import type { PoolEvents } from './options.js'
import type { PoolState } from './pool-state.js'

export interface FailureParts {
  metadata: ThinMetadata
  blocks: DataBlocks
  state: PoolState
  events: PoolEvents
  /** @throws LOCK_LOST, FENCED when somebody else may have the pool */
  mayWrite(): Later<void>
}

/** The pool, and its commits. */
export interface FailureListener {
  /** The pool became read-only: callers that wait for space get the error. */
  failed(err: ThinfsError): void
  /** Nothing that waits to be written will be. */
  dropped(): void
  /** The metadata is that of the last commit again: what was looked up since may be wrong. */
  rolledBack(): void
}

export class Failure {
  readonly #parts: FailureParts
  readonly #listener: FailureListener
  /** The rollback under way, if there is one. */
  #failing: Promise<void> = Promise.resolve()
  /** Whether somebody else may have the pool. */
  #isGivenUp = false

  constructor(parts: FailureParts, listener: FailureListener) {
    this.#parts = parts
    this.#listener = listener
  }

  /** Resolves when no rollback is under way. */
  get failing(): Promise<void> {
    return this.#failing
  }

  /**
   * Ends all changes of the pool.
   * @param operation that failed
   * @param commit one that is under way, to be awaited: it may yet become the last
   */
  async fail(operation: string, error: unknown, commit: Promise<void> | null): Promise<void> {
    const { state, events } = this.#parts
    if (isLost(error)) return this.#giveUp(error)
    events.ioError(operation, error)
    const reason = `${operation}: ${error instanceof Error ? error.message : String(error)}`
    state.lost ??= new ThinfsError('POOL_READ_ONLY', reason, { cause: error, errno: 'EIO' })
    if (!state.writable) return
    state.set('read_only', reason)
    this.#listener.failed(state.lost)
    const isCutOff = error instanceof ThinfsError && error.code === 'POOL_MISMATCH'
    // The metadata in memory is still right, and there may be no file to go back to.
    if (isCutOff && !state.halfWay) return
    this.#failing = this.#rollback(reason, commit)
    await this.#failing
  }

  async #rollback(reason: string, commit: Promise<void> | null): Promise<void> {
    const { metadata, state, events, mayWrite } = this.#parts
    // Without a commit under way roll back at once: the next request may be a read.
    if (commit !== null) await commit.catch(() => {})
    this.#listener.dropped()
    try {
      metadata.rollback()
      this.#listener.rolledBack()
      state.halfWay = false
      metadata.setNeedsCheck()
      const asked = mayWrite()
      if (asked !== undefined) await asked
      await metadata.seal()?.write(undefined, mayWrite)
    } catch (err) {
      if (isLost(err)) return this.#giveUp(err)
      events.ioError('needs_check', err)
      state.set('fail', reason)
    }
  }

  /** Somebody else may have the pool: nothing is written any more, and nothing can be read. */
  #giveUp(why: ThinfsError): void {
    const { state, blocks, events } = this.#parts
    if (this.#isGivenUp) return
    this.#isGivenUp = true
    const { message: reason } = why
    state.lost ??= new ThinfsError('POOL_READ_ONLY', reason, { cause: why, errno: 'EIO' })
    state.set('read_only', reason)
    state.set('fail', reason)
    this.#listener.failed(state.lost)
    blocks.freed.keep()
    this.#listener.dropped()
    events.lost(why)
  }
}
