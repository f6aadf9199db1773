/** Disks of other machines as stores: what is kept of them in memory, and what is written back. */
export { CacheMemory } from './cache-memory.js'
export { lockDisk, lockPathOf } from './disk-lock.js'
export type { Extent, RemoteDisk } from './remote-disk.js'
export { RemoteStore } from './remote-store.js'
export { ResidentMemory } from './resident-memory.js'
export { type OnLoad, ResidentStore } from './resident-store.js'
export { STATE_JOURNAL, STATE_SIZE_MIN, STATE_SLOT, StateDisk } from './state-disk.js'
