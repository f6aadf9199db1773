/** The thin engine: provisions, shares, unmaps, commits. Knows nothing of FUSE or of files' names. */
export { MAX_IO, ThinDevice } from '../device/index.js'
export { type Message, metadataLowWater, parseMessage, poolStatus, thinStatus } from './dm.js'
export { Journal, type JournalFile, type JournalState } from './journal.js'
export type {
  Discards,
  OnFull,
  PoolEvents,
  PoolMode,
  PoolOptions,
} from './options.js'
export { olderError } from './recovery.js'
export { ThinPool } from './thin-pool.js'
