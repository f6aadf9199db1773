/** What an operator does things with: programs, and one that is his in the mount (files.py). */
import { type ChildProcess, spawn } from 'node:child_process'
import { join, resolve } from 'node:path'
import { createInterface } from 'node:readline'
import { ERRORS } from '../../../src/base/index.js'
import type { Outcome } from '../mounted-pool.js'
import type { Tag } from './model.js'
import { patiently } from './patience.js'

const PROGRAM = resolve(import.meta.dirname, '../../../bin/thinfs.js')
const FILES = join(import.meta.dirname, 'files.py')

/** What a command has come to: `signal` ended it, or it ended with a status. */
export interface Ended extends Outcome {
  signal: NodeJS.Signals | null
}

/** A signal for a command that is under way. */
export interface Interruption {
  signal: NodeJS.Signals
  afterMs: number
}

/** Runs a program in a process group of its own. @throws Hang when it does not end */
export async function runProgram(
  program: string,
  args: readonly string[],
  interruption?: Interruption,
): Promise<Ended> {
  const env = { ...process.env, LC_ALL: 'C.UTF-8', NO_COLOR: '1', THINFS_DEBUG: '' }
  const child = spawn(program, args, { env, detached: true, stdio: ['ignore', 'pipe', 'pipe'] })
  let [stdout, stderr] = ['', '']
  child.stdout.on('data', data => {
    stdout += data
  })
  child.stderr.on('data', data => {
    stderr += data
  })
  const ended = new Promise<Ended>((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (status, signal) => resolve({ status: status ?? -1, signal, stdout, stderr }))
  })
  if (interruption) setTimeout(() => child.kill(interruption.signal), interruption.afterMs)
  try {
    return await patiently(`${program} ${args.join(' ')}`, ended)
  } catch (err) {
    endGroup(child)
    throw err
  }
}

/** The command line of thinfs. */
export const runThinfs = (args: readonly string[], interruption?: Interruption): Promise<Ended> =>
  runProgram(process.execPath, [PROGRAM, ...args], interruption)

function endGroup(child: ChildProcess): void {
  try {
    process.kill(-child.pid!, 'SIGKILL')
  } catch {
    // It has ended meanwhile.
  }
}

/**
 * The errno of the one line that a command says when it fails, by name.
 * @returns null when it is not such a line, or has no code of thinfs's own
 */
export function errnoOfLine(stderr: string): string | null {
  if (stderr.startsWith('{')) {
    const { code, errno } = JSON.parse(stderr).error
    return code in ERRORS ? errno : null
  }
  const code = /^thinfs: [^\n]+ \(([A-Z_]+)\)\n$/.exec(stderr)?.[1] ?? ''
  return Object.hasOwn(ERRORS, code) ? ERRORS[code as keyof typeof ERRORS].errno : null
}

/** What is asked of files.py. */
export interface FileRequest {
  do: string
  name: string
  to?: string
  block?: number
  toBlock?: number
  count?: number
  size?: number
  tags?: readonly Tag[]
  flush?: boolean
  create?: boolean
}

/** What files.py answers; the fields are those of what was asked. */
export interface FileAnswer {
  errno?: string
  /** Blocks. */
  written?: number
  copied?: number
  /** `ok` or an errno. */
  flushed?: string
  size?: number
  tags?: Tag[]
}

/** A process that does things in a mount, one after the other. */
export class FileHands {
  readonly #child: ChildProcess
  readonly #answers: AsyncIterator<string>

  constructor(folder: string) {
    this.#child = spawn('python3', [FILES, folder], { stdio: ['pipe', 'pipe', 'inherit'] })
    this.#answers = createInterface({ input: this.#child.stdout! })[Symbol.asyncIterator]()
  }

  /** @throws Hang when there is no answer */
  async ask(request: FileRequest): Promise<FileAnswer> {
    this.#child.stdin!.write(`${JSON.stringify(request)}\n`)
    const { do: what, name } = request
    const answer = await patiently(`${what} ${name}`, this.#answers.next())
    if (answer.done) throw new Error(`${what} ${name}: files.py has ended`)
    return JSON.parse(answer.value)
  }

  end(): void {
    this.#child.kill('SIGKILL')
  }
}
