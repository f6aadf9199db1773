/** The checker of dm-thin's metadata, which trusts nobody. */
export type { OnCheckProgress } from './block-map.js'
export {
  checkMetadata,
  checkMetadataInSteps,
  checkRoots,
  type MetadataReport,
} from './checker.js'
export type { MetadataProblem } from './problems.js'
