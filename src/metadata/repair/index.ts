/** What can be saved of damaged metadata. */
export {
  type LostMappings,
  type OnRepairProgress,
  type PoolFacts,
  type RepairReport,
  repairMetadata,
} from './repair.js'
