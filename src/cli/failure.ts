/** What a person is told when a command fails: one line, and an exit code. */
import { errnoOf, ThinfsError } from '../base/index.js'

export const EXIT_FAILED = 1
export const EXIT_USAGE = 2

/** Codes of arguments that no pool would take. With another errno than theirs it is the pool's state. */
const USAGE_CODES = new Set(['BAD_ARGUMENT', 'BAD_NAME', 'BAD_MESSAGE'])

export function exitCodeOf(err: unknown): number {
  const isUsage = err instanceof ThinfsError && USAGE_CODES.has(err.code) && err.errno === 'EINVAL'
  return isUsage ? EXIT_USAGE : EXIT_FAILED
}

/** `thinfs: web: no volume has the name (ENOENT)` */
export function lineOf(err: unknown): string {
  const message = err instanceof Error ? err.message : String(err)
  // A system call's message begins with its errno's name.
  const text = message.replace(/^E[A-Z0-9]+: /, '').replace(/\s*\n\s*/g, ' ')
  return `thinfs: ${text} (${errnoOf(err)})`
}
