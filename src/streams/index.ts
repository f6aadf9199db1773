/** Metadata as text, differences of volumes, and volumes as streams of bytes. */

export type { MappedRun } from '../metadata/index.js'
export { type Change, type ChangeKind, changesBetween } from './changes.js'
export { deltaXml } from './delta-xml.js'
export { dumpJson, dumpXml, heldRootOf, mappedRuns } from './dump.js'
export type { StreamHeader } from './format.js'
export { type ReceiveTarget, receiveInto, StreamReader } from './receive.js'
export { isSound, type LostMappings, type RepairReport, repairMetadata } from './repair.js'
export { type Restored, type RestoreOptions, restoreXml } from './restore.js'
export { type ReverseRun, reverseMap } from './rmap.js'
export { type SendSource, sendTo } from './send.js'
export { openServed, type ServedFiles } from './served-files.js'
export { FileTarget } from './targets.js'
