/** What can be saved of damaged metadata. */
export type {
  LostMappings,
  OnRepairProgress,
  PoolFacts,
  RepairReport,
} from './damaged.js'
export { type RescueReport, repairMetadata, rescueMetadata } from './repair.js'
