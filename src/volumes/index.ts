/**
 * Names and sizes: what dm-thin leaves to its user. Volumes of an open pool, and how it is opened.
 */
export type {
  BlockMap,
  CheckProblem,
  CheckProgress,
  CheckReport,
  DataReport,
  Held,
  HeldVolume,
  Injection,
  LabAdmin,
  MountedAdmin,
  NewVolume,
  PartialVolume,
  PoolAdmin,
  PoolSettings,
  PoolStatistics,
  PoolStatus,
  PrunedSnapshot,
  PruneRequest,
  Recording,
  TenancyInfo,
  TenancyStatistics,
  VolumeInfo,
  VolumeRules,
  VolumeStatistics,
} from './admin.js'
export { type ExistingPool, readExistingPool } from './existing-pool.js'
export { IdMap } from './id-map.js'
export { initPool, type PlannedFile, planPool } from './init-pool.js'
export { type Mended, mendPool } from './mend-pool.js'
export type { Ownership } from './new-volumes.js'
export { checkPool, type OpenOptions, type OpenPool, openPool } from './open-pool.js'
export { makeTenantFile, provenByLocks, servedElsewhere, tenantInTheWay } from './other-tenant.js'
export {
  addressesOf,
  asMounted,
  isElsewhere,
  lockedPathsOf,
  nrMoreDescriptors,
  type OnLoad,
  type PoolDescriptors,
  PoolFiles,
} from './pool-files.js'
export {
  endTenant,
  FENCED_MS,
  type MountTenancy,
  newMountId,
  type TakeOver,
  whoHasIt,
} from './pool-tenancy.js'
export { type Change, changePoolYaml, mustTake } from './pool-yaml.js'
export {
  devicesIn,
  type PoolTraces,
  replaceMetadata,
  tracesOf,
} from './replace-metadata.js'
export { type RescuedPool, rescuePool } from './rescue-pool.js'
export { RULES, type Rule } from './retention.js'
export type { StatisticsBefore } from './statistics.js'
export type { Volume } from './volume.js'
export { Volumes } from './volumes.js'
