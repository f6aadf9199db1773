/**
 * The thin engine: provisions, shares, unmaps, commits. Knows nothing of FUSE or of files' names.
 */
export {
  type BlockDevice,
  mustBeFillable,
  type Origin,
  ThinDevice,
  WithOrigin,
} from '../device/index.js'
export { type Message, parseMessage, poolStatus, thinStatus } from './dm.js'
export { Journal, type JournalFile } from './journal.js'
export type { JournalState } from './journal-state.js'
export {
  type Autoextend,
  type AutoextendOptions,
  type Discards,
  NO_EVENTS,
  type OnFull,
  type PoolEvents,
  type PoolMode,
  type PoolOptions,
  type PoolWork,
} from './options.js'
export { isBehind, mayBeNewer, mustBeLabelled, mustHaveHoles, olderError } from './recovery.js'
export { ThinPool } from './thin-pool.js'
