/** The failure of a command, for people and programs: one line, and an exit code. */
import { constants } from 'node:os'
import { EndedBySignal, errnoOf, isRemoteAddress, ThinfsError } from '../base/index.js'
import { visible } from './visible.js'

export const EXIT_FAILED = 1
export const EXIT_USAGE = 2

/**
 * Codes of arguments that no pool would take. With another errno than theirs it is the pool's
 * state.
 */
const USAGE_CODES = new Set(['BAD_ARGUMENT', 'BAD_NAME', 'BAD_MESSAGE'])

/** As a shell has it for a program that a signal ended. */
const SIGNALLED = 128

export function exitCodeOf(err: unknown): number {
  if (err instanceof EndedBySignal) return SIGNALLED + constants.signals[err.signal]
  const isUsage = err instanceof ThinfsError && USAGE_CODES.has(err.code) && err.errno === 'EINVAL'
  return isUsage ? EXIT_USAGE : EXIT_FAILED
}

/**
 * `thinfs: web: no volume has the name (VOLUME_MISSING)`: the code has a heading in
 * docs/OPERATIONS.md. An error of the system that has no code ends with its errno. As JSON, one
 * object with both.
 */
export function lineOf(err: unknown, asJson: boolean): string {
  const code = err instanceof ThinfsError ? err.code : null
  const errno = errnoOf(err)
  const said = messageOf(err)
  const message = `${said}${adviceOn(errno, code, said)}`
  return asJson
    ? jsonOf({ code, errno, message })
    : `thinfs: ${visible(message)} (${code ?? errno})`
}

/**
 * A command line that cannot be right, in the words of the parser, and whose help says what can.
 * @param program as one types it, `thinfs list`
 */
export function usageLineOf(text: string, program: string, asJson: boolean): string {
  const what = text
    .trim()
    .replace(/^error: /, '')
    .replace(/\s*\n\s*/g, ' ')
    // The text of an argument's own check is a sentence.
    .replace(/\.$/, '')
  return lineOf(new ThinfsError('BAD_ARGUMENT', `${what}; see ${program} --help`), asJson)
}

const jsonOf = (error: { code: string | null; errno: string; message: string }): string =>
  JSON.stringify({ error })

/** Node's text for an error of a system call: `ENOENT: no such file or directory, open '/x'`. */
const SYSTEM_ERROR = /\bE[A-Z0-9]+: ([a-z][^,]*), [a-z_0-9]+(?: '.*')?/g

/** In one line, without the names of system calls. */
function messageOf(err: unknown): string {
  const message = err instanceof Error ? err.message : String(err)
  const { path } = err as { path?: unknown }
  const where = typeof path === 'string' && message.startsWith('E') ? `${path}: ` : ''
  return `${where}${message.replace(SYSTEM_ERROR, '$1')}`.replace(/\s*\n\s*/g, ' ')
}

/**
 * Advice for an errno whose message names a file that is not the cause, or does not say what it is.
 */
function adviceOn(errno: string, code: string | null, said: string): string {
  if (errno === 'EMFILE') return '; raise the limit of open files, as with ulimit -n 1024'
  // A disk of another machine is no file here.
  if (code !== 'IO_ERROR' || isRemoteAddress(said)) return ''
  if (errno === 'EPERM')
    return '; where lsattr shows an i or an a for it, chattr -ia takes that away'
  return errno === 'EACCES' ? '; see its owner and its mode' : ''
}
