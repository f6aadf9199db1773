/** The thin engine: provisions, shares, unmaps, commits. Knows nothing of FUSE or of files' names. */
export { MAX_IO, ThinDevice } from '../device/index.js'
export { Journal, type JournalFile } from './journal.js'
export type {
  Discards,
  OnFull,
  PoolEvents,
  PoolMode,
  PoolOptions,
} from './options.js'
export { ThinPool } from './thin-pool.js'
