/** A value now, or later: what need not wait makes no promise. */
export type Later<T> = T | Promise<T>

/** Resolves when all calls have ended. @throws what the first of them that failed did */
export async function allEnded(calls: readonly Later<void>[]): Promise<void> {
  for (const ended of await Promise.allSettled(calls)) {
    if (ended.status === 'rejected') throw ended.reason
  }
}
