import { setTimeout } from 'node:timers/promises'

/**
 * Waits for an act no longer than `ms`; the act goes on, and its later failure harms nobody.
 * @returns what the act gives; `otherwise` when it has not ended by then
 * @throws what the act throws by then
 */
export async function inTime<T>(ms: number, act: Promise<T>, otherwise: T): Promise<T> {
  const ended = new AbortController()
  const late = setTimeout(ms, otherwise, { signal: ended.signal })
  try {
    return await Promise.race([act, late])
  } finally {
    ended.abort()
    late.catch(() => {})
    act.catch(() => {})
  }
}
