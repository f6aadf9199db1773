/**
 * The crash lab of a mounted pool: recording what changes a volume, and faults in what its users
 * see.
 */
export { Lab, type LabOptions } from './lab.js'
