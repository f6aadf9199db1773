/**
 * thinfs as a library: pools and volumes without a mount.
 *
 * A pool that a process has open must not be open anywhere else: take `lockPool` first, as the
 * commands do. For a pool that is mounted `connectDaemon` gives the same `PoolAdmin`.
 */
export { ERRORS, type ErrorCode, errnoOf, ThinfsError } from './base/index.js'
export { loadConfig, type PoolConfig, parseConfig } from './config/index.js'
export { connectDaemon } from './control/index.js'
export { findPool, lockPool, startDaemon } from './daemon/index.js'
export {
  type CheckReport,
  checkPool,
  type DataReport,
  type Injection,
  initPool,
  type OpenOptions,
  type OpenPool,
  openPool,
  type PoolAdmin,
  type PoolStatus,
  type Recording,
  type VolumeInfo,
} from './volumes/index.js'
