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
export type { Negotiated } from './init.js'
export { later } from './later.js'
export { flagsAmong, MOUNT_FLAGS, type MountOptions } from './mount.js'
export { RESENDS_SINCE } from './own-descriptor.js'
export { Refusal } from './refusal.js'
export type { Capabilities, Session, SessionOptions, Transport } from './transport.js'
export { DEV, FUSE_NATIVE, TRANSPORTS, transportOf, URING } from './transports.js'
