/**
 * The messages between a keeper and its owner, the process that it keeps a pool for: each message
 * once, over the child's IPC channel. The end of the channel is the end of the owner.
 */
import type { WireError } from '../control/index.js'

/** The parameters of a keeper, as JSON in its first argument. */
export interface KeeperStart {
  /** The folder that has all of the pool; the keeper makes it. */
  base: string
  /** Bytes. */
  dataSize: number
  dataBlockSize: number
}

/**
 * Keeper to owner. `made`: the pool is mounted, or why not. `ended`: nothing is left, or what is.
 */
export type KeeperSays = { made: WireError | null } | { ended: WireError | null }

/** Owner to keeper: the pool is not needed any more. */
export const END = 'end'
