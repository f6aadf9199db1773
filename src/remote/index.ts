/** Disks of other machines as stores: what is kept of them in memory, and what is written back. */
export { CacheMemory } from './cache-memory.js'
export type { RemoteDisk } from './remote-disk.js'
export { RemoteStore } from './remote-store.js'
