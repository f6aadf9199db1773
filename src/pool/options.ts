import type { Bytes } from '../base/index.js'
import type { Store } from '../storage/index.js'
import type { JournalFile } from './journal.js'

/** dm-thin's pool modes, in the kernel's words. */
export type PoolMode =
  | 'write'
  | 'out_of_data_space'
  | 'out_of_metadata_space'
  | 'read_only'
  | 'fail'

/** What happens to discards: unmap and punch the data file, unmap only, or refuse. */
export type Discards = 'passdown' | 'nopassdown' | 'ignore'

/** What a write that needs a block does when there is none: wait up to 60 s, or fail at once. */
export type OnFull = 'queue' | 'error'

/** Time, injected so that tests own it. */
export interface Clock {
  /** Milliseconds, monotonic. */
  now(): number
  /** Calls `fn` once after `ms`. @returns cancels it */
  after(ms: number, fn: () => void): () => void
  /**
   * Resolves after waiting requests had their turn, and one at a time: between the slices of long
   * work, of which there may be several. See `Slice`.
   */
  yield(): Promise<void>
}

/** What a pool tells whoever runs it. Each is called at most once per occurrence. */
export interface PoolEvents {
  mode(mode: PoolMode, reason: string | null): void
  /** Free data blocks fell to the low water mark. Once per opening. */
  lowWater(free: number): void
  /** Something that whoever runs the pool should know before it becomes a failure: a sentence. */
  warning(what: string): void
  /** needs_check was set, a full check found nothing wrong: it is cleared. */
  needsCheckCleared(): void
  /** A commit took long. */
  slowCommit(milliseconds: number): void
  /** A read, write or flush of the pool's files failed. `block` is a data block. */
  ioError(operation: string, error: unknown, where?: { devId: number; block: number }): void
}

export interface PoolOptions {
  metadata: Store
  data: Store
  journal: JournalFile
  /** No change reaches either file. */
  readOnly: boolean
  /** Whether what a dead process of this boot had open is open still: its mount goes on. */
  takesOver?: boolean
  /** Opens metadata that may be an older copy, and punches what is free according to it. */
  acceptMetadata?: boolean
  /** Bytes that the data store is grown to when it is smaller; default: it stays as it is. */
  dataSize?: Bytes
  discards: Discards
  onFull: OnFull
  /** In data blocks. */
  lowWaterMark: number
  clock: Clock
  events: PoolEvents
}

/** Long works that wait for their next slice: all of a process share its thread. */
const waiting: (() => void)[] = []

/** Lets one of them go on; requests have their turn before the next. */
function nextTurn(): void {
  waiting.shift()!()
  if (waiting.length > 0) setImmediate(nextTurn)
}

/** The clock of the running process. Timers do not keep it alive. */
export const SYSTEM_CLOCK: Clock = {
  now: () => performance.now(),
  after(ms, fn) {
    const timer = setTimeout(fn, ms)
    timer.unref()
    return () => clearTimeout(timer)
  },
  yield: () =>
    new Promise(resolve => {
      if (waiting.push(resolve) === 1) setImmediate(nextTurn)
    }),
}
