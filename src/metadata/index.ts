/** dm-thin's metadata: the engine that changes it, and the checker, which trusts nothing. */
export { type MappingWriter, MetadataBuilder, type WrittenLeaf } from './build/index.js'
export {
  checkMetadata,
  checkMetadataInSteps,
  checkRoots,
  type MetadataProblem,
  type MetadataReport,
  type OnCheckProgress,
} from './check/index.js'
export type { DeviceDetails } from './device.js'
export * from './format.js'
export type { Mapping } from './mapping.js'
export type { Mappings } from './mappings.js'
export { type MappedRun, MetadataView, type ViewedDevice } from './metadata-view.js'
export type { Survey } from './relocation.js'
export {
  type LostMappings,
  type OnRepairProgress,
  type PoolFacts,
  type RepairReport,
  type RescueReport,
  repairMetadata,
  rescueMetadata,
} from './repair/index.js'
export type { SealedTransaction } from './sealed-transaction.js'
export { ThinMetadata } from './thin-metadata.js'
