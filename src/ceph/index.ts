/** Disks that are images of a Ceph cluster, and who may write to them. */
export { CephClient, type CephOptions } from './ceph-client.js'
export { RbdDisk, type RbdName, type RbdOptions } from './rbd-disk.js'
export { RbdLocks, REFUSED_FOR } from './rbd-locks.js'
