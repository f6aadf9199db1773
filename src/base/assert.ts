/**
 * Throws when `condition` is false, which only a bug of ours can cause: the caller stops before it
 * writes.
 */
export function assert(condition: boolean, message: string): asserts condition {
  if (!condition) throw new AssertionError(message)
}

/** A bug in thinfs: never caught except to stop the process cleanly. */
export class AssertionError extends Error {
  constructor(message: string) {
    super(`thinfs bug: ${message}`)
    this.name = 'AssertionError'
  }
}

/**
 * Whether costly assertions run as well: preconditions and postconditions of trees, space maps and
 * block ownership. The tests turn them on with `THINFS_VERIFY=all`.
 */
export const VERIFY_ALL = process.env.THINFS_VERIFY === 'all'
