/**
 * How much the tests of test/crash try, and the counts of what they tried.
 *
 * `npm test` runs a short seed of each; `npm run test:crash` the same files with more effort, and
 * prints the counts of all of them in one table.
 */
import { appendFileSync } from 'node:fs'
import type { Test } from 'tap'

/** Factor on the number of cases that a test tries: 1 in `npm test`. */
export const EFFORT = Number(process.env.THINFS_EFFORT ?? 1)

/** What is counted, in the order of the table. */
export const COUNTED = [
  'kills survived',
  'power-cut states checked',
  'faults injected',
  'inputs fuzzed',
  'bytes verified',
] as const
export type Counts = Partial<Record<(typeof COUNTED)[number], number>>

/** Adds what a test has tried to the table, when it is over and nothing failed. */
export function tally(t: Test, counts: Counts): void {
  t.comment(JSON.stringify(counts))
  const file = process.env.THINFS_TALLY
  if (file !== undefined) appendFileSync(file, `${JSON.stringify(counts)}\n`)
}

/** Says something that was measured, where the scripts print it: file THINFS_FIGURES. */
export function figure(t: Test, line: string): void {
  t.comment(line)
  const file = process.env.THINFS_FIGURES
  if (file !== undefined) appendFileSync(file, `${line}\n`)
}
