import { ThinfsError } from '../base/index.js'
import type { PoolEvents, PoolMode } from './options.js'

/**
 * The modes that may follow each mode, and when. A mode that may not follow is not taken: what
 * failed for good stays so, whatever a call that was in flight says of space afterwards. The
 * kernel's rules (dm-thin.c, set_pool_mode), but that a pool leaves `read_only` by being opened
 * again alone.
 */
export const MODE_CHANGES: Readonly<Record<PoolMode, Partial<Record<PoolMode, string>>>> = {
  write: {
    out_of_data_space: 'a write found no free data block, or no room on the host',
    out_of_metadata_space: 'a change or a commit found no room for metadata',
    read_only: 'opened so; needs_check is set; or a commit failed: back to the last one',
  },
  out_of_data_space: {
    write: 'blocks were freed, the data grew, or the host has room',
    out_of_metadata_space: 'a commit found no room for metadata',
    read_only: 'a commit failed: back to the last one',
  },
  out_of_metadata_space: {
    write: 'a commit gave metadata blocks back, the metadata grew, or the host has room',
    out_of_data_space: 'there is room for metadata again, and no free data block',
    read_only: 'a commit failed: back to the last one',
  },
  read_only: {
    fail: 'going back to the last commit failed too: nothing in memory can be relied on',
  },
  fail: {},
}

/** The mode of a pool, why it is in it, and what may be done meanwhile. */
export class PoolState {
  readonly #events: Pick<PoolEvents, 'mode'>
  #mode: PoolMode = 'write'
  #reason: string | null = null
  /** The answer to every flush after a rollback: changes from before it may be gone. */
  lost: ThinfsError | null = null
  /** Whether the pool is being closed, or was: no request may do anything any more. */
  #closed = false
  /** Whether a change of the metadata was left half done, and the rollback is yet to come. */
  halfWay = false

  constructor(events: Pick<PoolEvents, 'mode'>) {
    this.#events = events
  }

  get mode(): PoolMode {
    return this.#mode
  }

  /** Why the mode is not `write`; null when it is. */
  get reason(): string | null {
    return this.#reason
  }

  /**
   * Changes the mode where `MODE_CHANGES` has that, and tells whoever listens. A new reason for the
   * same mode is only kept.
   */
  set(mode: PoolMode, reason: string | null): void {
    if (mode === this.#mode) {
      if (this.writable) this.#reason = reason
      return
    }
    if (MODE_CHANGES[this.#mode][mode] === undefined) return
    this.#mode = mode
    this.#reason = reason
    this.#events.mode(mode, reason)
  }

  /** From now on requests are errors; what closes the pool goes on. */
  close(): void {
    this.#closed = true
  }

  /** Whether requests may still do something: not once the pool is being closed. */
  get isOpen(): boolean {
    return !this.#closed
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
