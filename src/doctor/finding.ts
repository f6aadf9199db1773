import { existsSync, readFileSync } from 'node:fs'
import { errnoOf } from '../base/index.js'
import { isInUserNamespace } from '../host/index.js'

/**
 * `fail` keeps every pool from being mounted; `warn` is something that will not work, or not as
 * well.
 */
export type State = 'ok' | 'warn' | 'fail'

export interface Finding {
  /** The subject of the look. */
  check: string
  state: State
  /** The finding, and its meaning where that is not good. */
  found: string
  /** The command that mends it, for a shell; null where nothing is to mend, or no command does. */
  mend: string | null
}

export const ok = (check: string, found: string): Finding => ({
  check,
  state: 'ok',
  found,
  mend: null,
})

export const warn = (check: string, found: string, mend: string | null = null): Finding => ({
  check,
  state: 'warn',
  found,
  mend,
})

export const fail = (check: string, found: string, mend: string | null = null): Finding => ({
  check,
  state: 'fail',
  found,
  mend,
})

/** Whether this process is root, of the machine or of a user namespace. */
export const isRoot = (): boolean => process.geteuid!() === 0

/** Whether Docker or Podman have made this root: devices and modules are the machine's to give. */
export const isContainer = (): boolean =>
  ['/.dockerenv', '/run/.containerenv'].some(path => existsSync(path))

/** A command that takes the machine's root. */
export const asRoot = (command: string): string =>
  isRoot() && !isInUserNamespace() ? command : `sudo ${command}`

/** A command that makes `text` a line of a file, for the machine's root. */
export const writeAsRoot = (text: string, path: string, { append = false } = {}): string =>
  isRoot() && !isInUserNamespace()
    ? `echo ${text} ${append ? '>>' : '>'} ${path}`
    : `echo ${text} | sudo tee ${append ? '-a ' : ''}${path}`

/** A file's text, null where it cannot be read. */
export function readText(path: string): string | null {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return null
  }
}

/** For people: what the system says of an error, without the names of calls. */
export function reasonOf(err: unknown): string {
  const { message } = err as Error
  const said = /\bE[A-Z0-9]+: ([a-z][^,]*)/.exec(message)?.[1]
  return said ?? (message || errnoOf(err))
}
