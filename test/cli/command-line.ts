import { execFile } from 'node:child_process'
import { resolve } from 'node:path'
import type { Test } from 'tap'

export const PROGRAM = resolve(import.meta.dirname, '../../bin/thinfs.js')

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

export const thinfs = (...args: string[]): Promise<Outcome> =>
  run(process.execPath, PROGRAM, ...args)

/** The output of a command that has to succeed in silence. */
export async function done(t: Test, ...args: string[]): Promise<string> {
  const { status, stdout, stderr } = await thinfs(...args)
  t.strictSame({ status, stderr }, { status: 0, stderr: '' }, args.join(' '))
  return stdout
}

/** A command that has to fail with one line on stderr and nothing on stdout. */
export async function refused(t: Test, status: number, line: string | RegExp, ...args: string[]) {
  const outcome = await thinfs(...args)
  t.match(outcome, { status, stdout: /^$/, stderr: /^thinfs: [^\n]+\n$/ }, args.join(' '))
  t.match(outcome.stderr, line, args.join(' '))
}
