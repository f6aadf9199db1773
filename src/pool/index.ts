/** The thin engine: provisions, shares, unmaps, commits. Knows nothing of FUSE or of files' names. */
export { type Message, metadataLowWater, parseMessage, poolStatus, thinStatus } from './dm.js'
export { Journal, type JournalFile } from './journal.js'
export {
  type Clock,
  type Discards,
  type OnFull,
  type PoolEvents,
  type PoolMode,
  type PoolOptions,
  SYSTEM_CLOCK,
} from './options.js'
export { MAX_IO, ThinDevice } from './thin-device.js'
export { ThinPool } from './thin-pool.js'
