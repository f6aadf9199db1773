/** Volumes, or devices by number, as a file system. Knows nothing of the protocol. */
export { type NumberedDevices, TableFs } from './table-fs.js'
export { inodeOf } from './volume-attributes.js'
export { VolumeFs } from './volume-fs.js'
