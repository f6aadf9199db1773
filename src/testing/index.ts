/**
 * `thinfs/testing`: ephemeral pools for test suites. docs/TESTING.md has examples.
 */
export { type ErrorCode, ThinfsError } from '../base/index.js'
export type { PoolAdmin, PoolStatus, VolumeInfo } from '../volumes/index.js'
export { runCommand } from './run.js'
export { type PoolOptions, type Size, type TestPool, withPool } from './test-pool.js'
export type { TestVolume } from './test-volume.js'
