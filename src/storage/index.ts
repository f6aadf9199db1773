/** Files and devices as ranges of bytes, and the small files beside them. */
export { AtomicFile } from './atomic-file.js'
export { FileStore } from './file-store.js'
export { JournalFile } from './journal-file.js'
export type { DataStore, HostRoom, Store } from './store.js'
