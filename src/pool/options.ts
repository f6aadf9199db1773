import type { Bytes, Clock, Later, ThinfsError } from '../base/index.js'
import type { DataStore, Store } from '../storage/index.js'
import type { JournalFile } from './journal.js'

/** dm-thin's pool modes, in the kernel's words. */
export type PoolMode =
  | 'write'
  | 'out_of_data_space'
  | 'out_of_metadata_space'
  | 'read_only'
  | 'fail'

/** Whether discards unmap and punch the data file, only unmap, or are refused. */
export type Discards = 'passdown' | 'nopassdown' | 'ignore'

/** Whether a write that finds no free block waits, for `queueTimeout` at most, or fails at once. */
export type OnFull = 'queue' | 'error'

/** Counters of the work that a pool does by itself. */
export interface PoolWork {
  /** Transactions that became durable. */
  commits: number
  /** Milliseconds that writing their metadata took, all together. */
  commitMs: number
  /** Runs of freed blocks that were passed down. */
  punches: number
  punchedBytes: number
  /** How often a write has waited for space. */
  spaceWaits: number
}

/** Events of a pool, for the process that runs it. Each is called at most once per occurrence. */
export interface PoolEvents {
  mode(mode: PoolMode, reason: string | null): void
  /** Free data blocks fell to the low water mark; again when more were free meanwhile. */
  lowWater(free: number): void
  /** The same of free metadata blocks, at the kernel's mark. */
  lowWaterMetadata(free: number): void
  /** A write was refused for the limit of its device; again when it mapped less meanwhile. */
  limitReached(devId: number): void
  /** Data or metadata was made longer, by a command or by its rule: to so many bytes. */
  extended(part: 'data' | 'metadata', size: number): void
  /**
   * Something that whoever runs the pool should know before it becomes a failure: a sentence.
   * `host_low`: the host's disk has less room than the pool is going to want.
   */
  warning(what: string, kind?: 'host_low'): void
  /** needs_check was set, a full check found nothing wrong: it is cleared. */
  needsCheckCleared(): void
  /**
   * Somebody else may have the pool, which has failed by that: nothing is written or answered any
   * more.
   */
  lost(why: ThinfsError): void
  /** A commit took long. */
  slowCommit(milliseconds: number): void
  /** A read, write or flush of the pool's files failed. `block` is a data block. */
  ioError(operation: string, error: unknown, where?: { devId: number; block: number }): void
}

/** For a caller that needs no events: failures are thrown as well. */
export const NO_EVENTS: PoolEvents = {
  mode() {},
  lowWater() {},
  lowWaterMetadata() {},
  limitReached() {},
  extended() {},
  warning() {},
  needsCheckCleared() {},
  lost() {},
  slowCommit() {},
  ioError() {},
}

/** The rule by which data or metadata grow by themselves: LVM's for thin pools. */
export interface Autoextend {
  /** Percent of its blocks in use above which it grows: thin_pool_autoextend_threshold. */
  threshold: number
  /** Percent of its size by which it grows at least: thin_pool_autoextend_percent. */
  percent: number
  /** Bytes beyond which it does not grow; null: the format's limit. */
  max: number | null
}

/** The parts of a pool that grow by themselves. */
export interface AutoextendOptions {
  data?: Autoextend
  metadata?: Autoextend
  /** Metadata blocks that so many data blocks want, where the metadata follows the data. */
  metadataOf?: (dataBlocks: number) => number
}

export interface PoolOptions {
  metadata: Store
  data: DataStore
  journal: JournalFile
  /** No change reaches either file. */
  readOnly: boolean
  /** Whether what a dead process of this boot had open is open still: its mount goes on. */
  takesOver?: boolean
  /** Opens metadata that may be an older copy, and punches what is free according to it. */
  acceptMetadata?: boolean
  /** Leaks do not keep needs_check from being cleared: the caller mends them. */
  mendsLeaks?: boolean
  /**
   * Nothing says that the metadata is that of the data: it is opened only where nothing is punched
   * by it.
   */
  doubtful?: boolean
  /** Bytes that the data store is grown to when it is smaller; default: it stays as it is. */
  dataSize?: Bytes
  discards: Discards
  onFull: OnFull
  /** Seconds that writes wait for space at most; 0: for ever. Default: 60, as the kernel's. */
  queueTimeout?: number
  /** In data blocks, of a pool that has so many. */
  lowWaterMark: number | ((nrDataBlocks: number) => number)
  /** Default: nothing grows by itself. */
  autoextend?: AutoextendOptions
  /**
   * Called before anything is written that would harm a pool which is somebody else's by now:
   * before a commit, and before its superblock. Default: nobody else can have it.
   * @throws LOCK_LOST, FENCED: from then on nothing is written
   */
  mayWrite?: () => Later<void>
  /** Called with how much of metadata that is checked before the pool is open has been. */
  onCheck?: (done: number, all: number) => void
  clock: Clock
  events: PoolEvents
}
