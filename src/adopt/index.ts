/**
 * Pools that another program made, described so that thinfs can serve them where they are: the
 * folder of Docker's devicemapper driver, physical volumes and disk images of LVM. Nothing is
 * written to them.
 */
export { choosePool } from './choose-pool.js'
export { findPools } from './find-pools.js'
export type { FoundPool, Place } from './found-pool.js'
