import { ThinfsError } from '../base/index.js'
import type { PoolEvents, PoolMode } from './options.js'

/** The mode of a pool, why it is in it, and what may be done meanwhile. */
export class PoolState {
  readonly #events: PoolEvents
  #mode: PoolMode = 'write'
  #reason: string | null = null
  /** What flushes are answered with after a rollback: what came before it may be gone. */
  lost: ThinfsError | null = null
  /** Whether the pool is being closed, or was: no request may do anything any more. */
  #closed = false
  /** Whether a change of the metadata was left half done, and the rollback is yet to come. */
  halfWay = false

  constructor(events: PoolEvents) {
    this.#events = events
  }

  get mode(): PoolMode {
    return this.#mode
  }

  /** Why the mode is not `write`; null when it is. */
  get reason(): string | null {
    return this.#reason
  }

  /** Changes the mode, and tells whoever listens. A new reason for the same mode is only kept. */
  set(mode: PoolMode, reason: string | null): void {
    if (mode === this.#mode) {
      if (this.writable) this.#reason = reason
      return
    }
    this.#mode = mode
    this.#reason = reason
    this.#events.mode(mode, reason)
  }

  /** From now on requests are errors; what closes the pool goes on. */
  close(): void {
    this.#closed = true
  }

  /** Whether metadata may change. */
  get writable(): boolean {
    return this.#mode !== 'read_only' && this.#mode !== 'fail'
  }

  /** @throws POOL_FAILED when the metadata cannot be relied on, or the pool is closed */
  mustBeReadable(): void {
    this.mustBeOpen()
    this.mustBeSound()
  }

  /** @throws POOL_FAILED when the pool is closed */
  mustBeOpen(): void {
    if (this.#closed) throw new ThinfsError('POOL_FAILED', 'the pool is closed')
  }

  /** @throws POOL_FAILED when the metadata cannot be relied on; closing a pool needs no more */
  mustBeSound(): void {
    if (this.#mode === 'fail' || this.halfWay) {
      throw new ThinfsError('POOL_FAILED', this.#reason ?? 'failed')
    }
  }

  /** @throws POOL_READ_ONLY, POOL_FAILED when no metadata may change */
  mustBeWritable(): void {
    if (this.#mode === 'read_only') {
      throw new ThinfsError('POOL_READ_ONLY', this.#reason ?? 'opened read-only')
    }
    this.mustBeReadable()
  }
}
