/** The process that mounts a pool, keeps an engine serving it, and answers commands. */
export { findPool, type Server, serverOf, strayMountAt } from './find-pool.js'
export { mountOptionsOf } from './mount-options.js'
export { lockPool, PoolHeld, serversOf } from './pool-lock.js'
export { type StartOptions, startDaemon } from './start.js'
export { whoIsStopped } from './stopped.js'
