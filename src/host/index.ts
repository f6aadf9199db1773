/** The machine below a pool: its mounts, its loop devices, who holds them, and freezing. */
export { whileFrozen } from './freeze.js'
export { findHolders } from './holders.js'
export { attachLoop, detachLoop, loopsOn, mountsOf } from './loop.js'
export { canonicalMountPoint, prepareMountPoint, unmount } from './mount-point.js'
export { type Mount, parseMountInfo, readMounts, thinfsMountAt } from './mount-table.js'
