import { checkMetadata } from '../metadata/index.js'
import type { Store } from '../storage/index.js'

export {
  type LostMappings,
  type OnRepairProgress,
  type PoolFacts,
  type RepairReport,
  repairMetadata,
} from '../metadata/index.js'

/** Whether nothing is wrong with metadata but leaks and statistics, and needs_check is not set. */
export const isSound = (metadata: Store): boolean =>
  !checkMetadata(metadata).problems.some(({ severity }) => severity === 'error')
