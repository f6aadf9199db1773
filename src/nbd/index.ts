/** Disks that NBD servers have: the client's side of the protocol. */
export { type Extent, NbdDisk, type NbdOptions } from './nbd-disk.js'
