/** What the tests of test/dist have shown, added up and printed at the end by scripts/dist. */
import { appendFileSync } from 'node:fs'
import type { Test } from 'tap'

export interface Shown {
  failovers: number
  /** Acknowledged blocks that were looked for. */
  blocks: number
  /** Those of them that were not there. */
  lost: number
  /** Seconds from the last flush on one machine to the first on the next, or while it went on. */
  pause: number
}

export function shown(t: Test, what: Shown): void {
  t.comment(JSON.stringify(what))
  const file = process.env.THINFS_DIST
  if (file !== undefined) appendFileSync(file, `${JSON.stringify(what)}\n`)
}
