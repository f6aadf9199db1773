/** Files and devices as ranges of bytes, and the small files beside them. */
export { FileStore } from './file-store.js'
export { JournalFile } from './journal-file.js'
export { lockFile } from './lock.js'
export { replaceFile } from './replace-file.js'
export type { Store } from './store.js'
