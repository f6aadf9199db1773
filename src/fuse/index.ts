/** The kernel's FUSE protocol: mounting, and serving a FileSystem to the kernel. */
export type { FuseDevice } from './device.js'
export type {
  AttributeChange,
  Attributes,
  Caller,
  DirectoryEntry,
  FileSystem,
  FileSystemStatistics,
  IoctlAnswer,
  IoctlRequest,
} from './file-system.js'
export { WAITS } from './file-system.js'
export { MAX_IO, type Negotiated, type Transport, transportOf } from './init.js'
export { later } from './later.js'
export { type MountOptions, mountFuse } from './mount.js'
export { Refusal } from './refusal.js'
export { FuseSession, type FuseSessionOptions } from './session.js'
