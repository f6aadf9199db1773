import { spawn } from 'node:child_process'
import { ThinfsError } from '../base/index.js'

/** How a host is kept from writing. */
export interface FenceRule {
  /** A program and its arguments; in each, {host}, {address} and {pool} are replaced. */
  command: readonly string[]
  /** Seconds that it may take. */
  timeout: number
}

/** Bytes of what the command says that a message quotes. */
const SAID_MAX = 500

/**
 * Runs the command that fences a host. Its status 0 says that the host cannot write any more.
 * @param signal gives it up
 * @throws TOOL_FAILED when it says anything else, has not ended in time, or could not be run;
 *   CANCELLED
 */
export async function fence(
  { command, timeout }: FenceRule,
  of: { host: string; address: string; pool: string },
  signal?: AbortSignal,
): Promise<void> {
  const argv = command.map(word =>
    word.replace(/\{(host|address|pool)\}/g, (_, name: keyof typeof of) => of[name]),
  )
  for (const name of ['host', 'address', 'pool'] as const) {
    if (!command.some(word => word.includes(`{${name}}`))) continue
    // The record may be anybody's who can write to the storage.
    if (/^[A-Za-z0-9[][A-Za-z0-9.:/[\]_-]*$/.test(of[name])) continue
    if (of[name] === '') {
      const cure = `use a command without {${name}}, such as one that keeps all other hosts out of the server, or --old-host-is-off`
      throw failed(argv, `${UNKNOWN_BECAUSE[name]}; ${cure}`)
    }
    const what = `its ${name} is ${JSON.stringify(of[name])}, which is no argument for a command`
    throw failed(argv, what)
  }
  const [program, ...args] = argv
  const ended = new AbortController()
  const said: Buffer[] = []
  // A group of its own, so that what it starts ends with it.
  const child = spawn(program!, args, { stdio: ['ignore', 'pipe', 'pipe'], detached: true })
  for (const stream of [child.stdout, child.stderr]) {
    stream.on('data', (chunk: Buffer) => {
      if (said.length < SAID_MAX) said.push(chunk)
    })
  }
  const kill = (): void => {
    try {
      process.kill(-child.pid!, 'SIGKILL')
    } catch {}
  }
  let isLate = false
  const timer = setTimeout(() => {
    isLate = true
    kill()
  }, 1000 * timeout)
  signal?.addEventListener('abort', kill, { signal: ended.signal })
  try {
    const how = await new Promise<string | null>(resolve => {
      child.once('error', err => resolve(err.message))
      child.once('exit', (code, by) => {
        const status = by === null ? `it ended with status ${code}` : `it was ended by ${by}`
        resolve(code === 0 ? null : status)
      })
    })
    signal?.throwIfAborted()
    if (isLate) throw failed(argv, `it has not ended after ${timeout} s`)
    if (how === null) return
    const text = Buffer.concat(said).toString('utf8').trim().slice(-SAID_MAX)
    throw failed(argv, text === '' ? how : `${how}: ${text}`)
  } finally {
    clearTimeout(timer)
    ended.abort()
    // Processes that it has left running do not keep this one waiting.
    child.stdout.destroy()
    child.stderr.destroy()
  }
}

/** Why a word of a command cannot be replaced. */
const UNKNOWN_BECAUSE = {
  host: '{host} is not known: as long as a server lets in that host alone, nobody else reads its record',
  address: '{address} is not known: clients of Ceph alone have one',
  pool: '{pool} is not known',
} as const

const failed = (argv: readonly string[], why: string): ThinfsError => {
  const what = `tenancy.fence.command ${argv.join(' ')}: ${why}`
  return new ThinfsError('TOOL_FAILED', `${what}; the pool was not taken over, nothing is changed`)
}
