/** Block devices: what a disk of thinfs is, whoever serves it. */
export type { BlockDevice } from './block-device.js'
