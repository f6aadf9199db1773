/**
 * Block devices: what a disk of thinfs is, whoever serves it, and the one that a pool provisions.
 */
export type { BlockDevice } from './block-device.js'
export type { BlockCopy } from './block-moves.js'
export { DataBlocks } from './data-blocks.js'
export type { LookupTable } from './lookup-table.js'
export { PageCache } from './page-cache.js'
export type { Provisioner, ProvisionerSpace, SpaceOwner } from './provisioner.js'
export { goneError, ThinDevice } from './thin-device.js'
export { mustBeFillable, type Origin, WithOrigin } from './with-origin.js'
export { WritePlan } from './write-plan.js'
