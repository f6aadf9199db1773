import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { cancelled, errnoOf, exitStatusOf, ThinfsError } from '../base/index.js'
import type { PoolPlace } from '../config/index.js'
import type { DaemonClient } from '../control/index.js'
import type { Moment, RecordReader } from '../replay/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { placeOfPool, withDaemonOf } from './pool.js'
import { baseOf, openRecording, recordingOf, withSnapshot } from './scratch.js'

interface Options extends Output {
  to?: string
  eachFlush?: true
  dropUnflushed?: number | true
}

/** A state that was checked. */
interface Checked {
  /** Entries of the recording that had been acknowledged. */
  entry: number
  /** The last mark among them. */
  mark: string | null
  /** Of the command: 128 and the signal's number where a signal ended it. */
  status: number
  output: string
}

const MAX_SEED = 0xffff_ffff

export const replay = command(
  'replay',
  'Put a recorded volume into states that it had, or that a power cut could have left, and check each.',
  "thinfs replay /srv/pool web --each-flush --drop-unflushed -- sh -c 'e2fsck -p {}; e2fsck -fn {}'",
)
  .argument('<POOL>', POOL_HELP)
  .argument('<VOLUME>', 'that was recorded')
  .argument(
    '<COMMAND...>',
    'checks a state, and fails on damage: {} is the file that holds it, as $THINFS_VOLUME is',
  )
  .option('--to <entry>', 'the state after so many entries, or after the mark of this name')
  .option('--each-flush', 'the state after each flush, and the last one')
  .option(
    '--drop-unflushed [seed]',
    'what a power cut leaves then, before the flush ends: the rest dropped, torn, reordered',
    seedOf,
  )
  .action(async (pool: string, name: string, words: string[], options: Options) => {
    const { to, eachFlush = false, dropUnflushed } = options
    if ((to === undefined) !== eachFlush) {
      throw new ThinfsError('BAD_ARGUMENT', 'either --to or --each-flush says which states')
    }
    const seed = dropUnflushed === true ? Math.floor(Math.random() * MAX_SEED) : dropUnflushed
    const place = placeOfPool(pool)
    await withDaemonOf(place, async daemon => {
      const recording = await recordingOf(daemon, name)
      const reader = await openRecording(place, recording)
      try {
        const { flushMoments, momentAt } = await import('../replay/index.js')
        const moments =
          to === undefined ? flushMoments(reader, seed !== undefined) : [momentAt(reader, to)]
        const replay = { daemon, place, reader, name, words, seed: seed ?? null, quiet: eachFlush }
        const checked = await checkStates(replay, baseOf(recording), moments)
        const failed = checked.filter(({ status }) => status !== 0)
        const dropped = seed === undefined ? '' : ` --drop-unflushed ${seed}`
        const again = ({ entry }: Checked): string =>
          `thinfs replay ${quoted(pool)} ${quoted(name)} --to ${entry}${dropped} -- ${words.map(quoted).join(' ')}`
        const all = `${checked.length} states checked${seed === undefined ? '' : `, seed ${seed}`}`
        const lines = [...failed.map(state => describe(state, again(state))), all]
        const result = { states: checked.length, seed: seed ?? null, failed }
        print(options, result, lines.join('\n'))
        if (failed.length === 0) return
        const detail = `${words[0]}: failed on ${failed.length} of ${checked.length} states`
        throw new ThinfsError('TOOL_FAILED', detail)
      } finally {
        reader.close()
      }
    })
  })

interface Replay {
  daemon: DaemonClient
  place: PoolPlace
  reader: RecordReader
  name: string
  words: readonly string[]
  /** Of what is dropped; null: nothing is. */
  seed: number | null
  /** Output is kept for those that fail. */
  quiet: boolean
}

const SIGNALS = ['SIGINT', 'SIGTERM'] as const

/** Puts a snapshot of `base` into one state after the other, and checks a snapshot of each. */
async function checkStates(
  replay: Replay,
  base: string,
  moments: readonly Moment[],
): Promise<Checked[]> {
  const { daemon, place, reader, seed } = replay
  const { apply, applyUnflushed } = await import('../replay/index.js')
  const name = `${replay.name}@replay-${process.pid}`
  const interrupt = new AbortController()
  const onSignal = (): void => interrupt.abort(cancelled())
  for (const signal of SIGNALS) process.on(signal, onSignal)
  try {
    return await withSnapshot(daemon, place, { origin: base, name }, async content => {
      const checked: Checked[] = []
      let done = 0
      for (const moment of moments) {
        const whole = seed === null ? moment.entry : moment.durable
        apply(reader, done, whole, content)
        done = whole
        const copy = { origin: name, name: `${name}-check` }
        const state = await withSnapshot(daemon, place, copy, async (state, path) => {
          if (seed !== null) {
            applyUnflushed(reader, { from: whole, to: moment.entry, seed }, state)
          }
          return await check(replay, moment, path, interrupt.signal)
        })
        checked.push(state)
      }
      return checked
    })
  } finally {
    for (const signal of SIGNALS) process.off(signal, onSignal)
  }
}

/**
 * @throws CANCELLED when the command line was interrupted; TOOL_FAILED for a program that is not
 *   there
 */
async function check(
  { words, quiet }: Replay,
  { entry, mark }: Moment,
  path: string,
  interrupt: AbortSignal,
): Promise<Checked> {
  interrupt.throwIfAborted()
  const [program, ...args] = words.map(word => word.replaceAll('{}', path)) as [string, ...string[]]
  const env = {
    ...process.env,
    ...{ THINFS_VOLUME: path, THINFS_ENTRY: String(entry), THINFS_MARK: mark ?? '' },
  }
  const stdio = quiet ? (['ignore', 'pipe', 'pipe'] as const) : 'inherit'
  const child = spawn(program, args, { stdio: stdio as 'inherit', env })
  const output: Buffer[] = []
  for (const stream of [child.stdout, child.stderr]) {
    stream?.on('data', (chunk: Buffer) => output.push(chunk))
  }
  const kill = (): void => void child.kill()
  interrupt.addEventListener('abort', kill)
  try {
    const [code, signal] = (await once(child, 'close')) as [number | null, NodeJS.Signals | null]
    interrupt.throwIfAborted()
    const status = exitStatusOf(code, signal)
    return { entry, mark, status, output: Buffer.concat(output).toString() }
  } catch (err) {
    if (errnoOf(err) !== 'ENOENT') throw err
    throw new ThinfsError('TOOL_FAILED', `${program}: no such program`, { cause: err })
  } finally {
    interrupt.removeEventListener('abort', kill)
  }
}

/** The failure, and the command that makes this very state again. */
function describe({ entry, mark, status, output }: Checked, again: string): string {
  const after = mark === null ? '' : `, after mark ${mark}`
  const said = output === '' ? [] : output.trimEnd().split('\n')
  return [`entry ${entry}${after}: status ${status}`, ...said, again].join('\n  ')
}

/** As a shell takes it for one word. */
const quoted = (word: string): string =>
  /^[\w@%+=:,./{}-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`

function seedOf(text: string): number {
  if (/^\d{1,10}$/.test(text) && Number(text) <= MAX_SEED) return Number(text)
  throw new ThinfsError('BAD_ARGUMENT', `${text} is not a seed: 0 to ${MAX_SEED}`)
}
