/** The volume namespace as a file system. Knows nothing of the protocol. */
export { inodeOf, VolumeFs } from './volume-fs.js'
