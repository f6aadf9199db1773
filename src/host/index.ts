/** The machine below a pool: its mounts, its loop devices, who holds them, and freezing. */
export {
  clearAbove,
  mustBeClearable,
  mustBeHeldByLoopsAlone,
  mustBeTakeable,
  takeAway,
} from './above.js'
export { type AttachedVolume, attachedVolumes, detachStale } from './attached.js'
export { connectionAborter, hasEnded } from './connection.js'
export {
  type AttachedLoop,
  attachedLoops,
  isStillAttached,
  kernelPathOf,
  mountsOn,
  usersOf,
} from './device-users.js'
export { findFilesystems } from './filesystems.js'
export { whileFrozen } from './freeze.js'
export { findFileHolders, isOn, loopsOnFile, processesWithin } from './holders.js'
export {
  attachLoop,
  detachLoop,
  errnoOfLoops,
  type LoopDevice,
  type LoopOptions,
  listLoops,
  reattachLoop,
} from './loop.js'
export { nameLoop } from './loop-names.js'
export {
  canonicalMountPoint,
  mustNotBeHidden,
  mustNotCover,
  nameHolders,
  prepareMountPoint,
  unmount,
  unmountDead,
  unmountLazily,
} from './mount-point.js'
export {
  isWithin,
  MOUNT_TYPE,
  type Mount,
  mountOf,
  parseMountInfo,
  readMounts,
  readNamespaces,
  thinfsMountAt,
} from './mount-table.js'
export {
  list,
  nameOf,
  openFiles,
  otherProcesses,
  read,
  removedFiles,
  writersOf,
} from './proc.js'
export { copyIn, copyOut, type ImageLayer, imageChain, rangesOf } from './qemu-img.js'
export { runTool } from './tool.js'
export { trimFilesystem } from './trim.js'
export { isInUserNamespace, isUserUnknown } from './user-namespace.js'
