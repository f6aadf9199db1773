/** What may be left of an ephemeral pool, seen from outside: by /proc and /sys alone. */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import type { Test } from 'tap'
import { loopsWithin, readIfThere } from './mounted-pool.js'

/** How long what was killed may take to be cleaned up, on a machine that has other work. */
const PATIENCE_MS = 60_000

/** The folder that has all of a pool, by where it is mounted. */
export const baseOf = (mountPoint: string): string => dirname(mountPoint)

/** Processes that have the folder in their arguments, or their environment. */
export const processesOf = (base: string): number[] =>
  readdirSync('/proc')
    .filter(
      name =>
        /^\d+$/.test(name) &&
        Number(name) !== process.pid &&
        ['cmdline', 'environ'].some(file => readIfThere(`/proc/${name}/${file}`).includes(base)),
    )
    .map(Number)

/**
 * Everything that is still there of the pool in a folder: the folder, mounts, loop devices,
 * processes.
 */
export function leftOf(base: string): string[] {
  const mounts = readFileSync('/proc/self/mounts', 'utf8').split('\n')
  return [
    ...(existsSync(base) ? [base] : []),
    ...mounts.filter(line => line.includes(base)),
    ...loopsWithin(base),
    ...processesOf(base).map(pid => `${pid} ${readIfThere(`/proc/${pid}/cmdline`)}`),
  ]
}

/** Waits until nothing is left. */
export async function untilGone(t: Test, base: string): Promise<void> {
  const deadline = Date.now() + PATIENCE_MS
  // The folder goes last, and to look for it is no work.
  while ((existsSync(base) || leftOf(base).length > 0) && Date.now() < deadline) await delay(20)
  t.same(leftOf(base), [], 'nothing is left')
}
