import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { resolve } from 'node:path'
import { text } from 'node:stream/consumers'
import type { Test } from 'tap'

export const PROGRAM = resolve(import.meta.dirname, '../../bin/thinfs.js')
const MANY_LINES = resolve(import.meta.dirname, 'many-lines.mjs')

export interface Outcome {
  status: number
  stdout: string
  stderr: string
}

/** Runs a program; its exit status, whatever it is, is part of the outcome. */
export function run(program: string, ...args: string[]): Promise<Outcome> {
  return new Promise((resolve, reject) => {
    const env = { ...process.env, THINFS_DEBUG: '', NO_COLOR: '1' }
    execFile(program, args, { env, timeout: 60_000 }, (err, stdout, stderr) => {
      const status = err ? err.code : 0
      if (typeof status === 'number') resolve({ status, stdout, stderr })
      else reject(err)
    })
  })
}

/** Runs many command lines in one process, one after the other. */
export async function thinfsAll(lines: readonly string[][]): Promise<Outcome[]> {
  const child = execFile(process.execPath, [MANY_LINES], { timeout: 120_000 })
  child.stdin!.end(JSON.stringify(lines))
  const [outcomes, status] = await Promise.all([text(child.stdout!), once(child, 'exit')])
  if (status[0] !== 0) throw new Error(`many-lines ended with ${status}`)
  return JSON.parse(outcomes) as Outcome[]
}

export const thinfs = (...args: string[]): Promise<Outcome> =>
  run(process.execPath, PROGRAM, ...args)

/** The output of a command that has to succeed in silence. */
export async function done(t: Test, ...args: string[]): Promise<string> {
  return mustBeDone(t, await thinfs(...args), args)
}

/** @returns the output */
export function mustBeDone(t: Test, { status, stdout, stderr }: Outcome, args: string[]): string {
  t.strictSame({ status, stderr }, { status: 0, stderr: '' }, args.join(' '))
  return stdout
}

/** A command that has to fail with one line on stderr and nothing on stdout. */
export async function refused(t: Test, status: number, line: string | RegExp, ...args: string[]) {
  mustBeRefused(t, await thinfs(...args), status, line, args)
}

export function mustBeRefused(
  t: Test,
  outcome: Outcome,
  status: number,
  line: string | RegExp,
  args: string[],
): void {
  t.match(outcome, { status, stdout: /^$/, stderr: /^thinfs: [^\n]+\n$/ }, args.join(' '))
  t.match(outcome.stderr, line, args.join(' '))
}
