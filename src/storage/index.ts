/** Files and devices as ranges of bytes, and the small files beside them. */
export { AtomicFile, type FileOwner, replaceFile, syncFolder } from './atomic-file.js'
export { DataMap } from './data-map.js'
export { ExtentStore, type StorePart } from './extent-store.js'
export { FileExtents } from './file-extents.js'
export { FileStore } from './file-store.js'
export { HeldFolder } from './held-folder.js'
export { bootId, JournalFile } from './journal-file.js'
export { MemoryJournal } from './memory-journal.js'
export { ReservedDisk } from './reserved-disk.js'
export { idOf, SharedFiles } from './shared-files.js'
export {
  type CacheCounts,
  type DataStore,
  type HostRoom,
  ioError,
  type Label,
  mustCopy,
  mustHaveRange,
  removedFile,
  type Store,
} from './store.js'
export { StripedStore } from './striped-store.js'
