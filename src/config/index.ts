/** pool.yaml: its keys, sizes with units, errors that name line and column. Knows no other room. */
export { type Setting, withValues } from './edit.js'
export * from './load.js'
export { checkVolumeName, UNNAMED_PREFIX, whyNotAName } from './names.js'
export { newConfig, poolNameOf } from './new-config.js'
export { placeOf } from './place.js'
export {
  type Autoextend,
  autoMetadataSize,
  DEFAULTS,
  type Extent,
  type FenceConfig,
  type LowWaterMark,
  lowWaterMarkBlocks,
  type PoolConfig,
  type PoolPlace,
  type TenancyConfig,
  type VolumeConfig,
} from './pool-config.js'
export * from './render.js'
export { exactSize, formatSize, formatSizes, parseSize } from './size.js'
