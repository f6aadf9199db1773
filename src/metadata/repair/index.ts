/** The part of damaged metadata that can be saved. */
export type {
  LostMappings,
  OnRepairProgress,
  PoolFacts,
  RepairReport,
} from './damaged.js'
export { type RescueReport, repairMetadata, rescueMetadata } from './repair.js'
