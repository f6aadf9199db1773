/** What only our own mistake can make false. Stops the caller before it can write. */
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
 * Whether what takes long to look at is asserted as well: preconditions and postconditions of trees,
 * space maps and block ownership. `THINFS_VERIFY=all` says so, which the tests set.
 */
export const VERIFY_ALL = process.env.THINFS_VERIFY === 'all'
