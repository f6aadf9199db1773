/** A value, or a promise of it where the callee has to wait. */
export type Later<T> = T | Promise<T>

/** Resolves when all calls have ended. @throws the error of the first that failed */
export async function allEnded(calls: readonly Later<void>[]): Promise<void> {
  if (calls.length === 1) return calls[0]
  for (const ended of await Promise.allSettled(calls)) {
    if (ended.status === 'rejected') throw ended.reason
  }
}
