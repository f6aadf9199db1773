/** Volumes, or devices by number, as a file system. Knows nothing of the protocol. */
export { type NumberedDevices, TableFs } from './table-fs.js'
export { inodeOf, VolumeFs } from './volume-fs.js'
