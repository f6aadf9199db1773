/**
 * Programs that write to a pool's volume, what they were told is flushed, and whether it is there.
 */
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { appendFileSync, readFileSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import type { Test } from 'tap'
import { until } from '../../support/mounted-pool.js'
import type { Host } from './machine.js'
import type { PoolOn } from './pool-on.js'

const PROGRAMS = import.meta.dirname
/** Numbers of who has lost the pool begin here. */
export const STALE = 2 ** 40
/** More numbers than any writer gets to. */
const NUMBERS_OF_ONE = 2 ** 30

export interface Written {
  acknowledged: number
  next: number
  /** Seconds between two flushes that succeeded. */
  longestPause: number
  error: { what: string; errno: string; seconds: number } | null
}

export class Writer {
  readonly acks: string
  readonly #stop: string
  readonly #child: ChildProcess
  readonly #ended: Promise<Written>

  constructor(child: ChildProcess, acks: string, stop: string) {
    this.#child = child
    this.acks = acks
    this.#stop = stop
    this.#ended = outcomeOf(child)
    this.#ended.catch(() => {})
  }

  /** Resolves when it ended by an error, or was told to stop. */
  get ended(): Promise<Written> {
    return this.#ended
  }

  stop(): Promise<Written> {
    writeFileSync(this.#stop, '')
    return this.#ended
  }

  /** Resolves when `nr` more blocks are acknowledged. */
  async progress(nr = 100): Promise<void> {
    const before = this.nrAcknowledged
    await until(() => this.nrAcknowledged >= before + nr || this.#child.exitCode !== null)
  }

  get nrAcknowledged(): number {
    return linesOf(this.acks).length
  }
}

/** All that was acknowledged of one pool, by whichever machine had it. */
export class Ledger {
  readonly #folder: string
  readonly #acks: string[] = []
  #nrStale = 0

  /** @param folder on a disk that all machines see */
  constructor(folder: string) {
    this.#folder = folder
  }

  /** Starts a writer, whose numbers are larger than those of all before it. */
  write(pool: PoolOn<Host>): Writer {
    const { acks, first } = this.#next()
    const stop = `${acks}.stop`
    const program = [resolve(PROGRAMS, 'writer.py'), pool.volume, acks, first, stop]
    return new Writer(pool.machine.spawn('python3', ...program), acks, stop)
  }

  /**
   * Writes every block, with numbers larger than those of all before.
   * @param as what has to be there later: what was `flushed`, or also what was `settled`, which
   *   only this host can have; of what is `lost` nothing is known
   */
  async fill(pool: PoolOn<Host>, as: 'flushed' | 'settled' | 'lost'): Promise<void> {
    const { acks, first } = this.#next()
    await pool.machine.run('python3', resolve(PROGRAMS, 'fill.py'), pool.volume, acks, first, as)
  }

  #next(): { acks: string; first: string } {
    const nr = this.#acks.length
    const acks = join(this.#folder, `acks-${nr}`)
    appendFileSync(acks, '')
    this.#acks.push(acks)
    return { acks, first: String(1 + nr * NUMBERS_OF_ONE) }
  }

  /** A number for who has lost the pool: it must not get to the disk. */
  staleNumber(): number {
    return STALE + this.#nrStale++
  }

  /** Seconds between the last flush of one writer that succeeded and the first of the next. */
  static pauseBetween(one: Writer, next: Writer): number {
    const timeOf = (line: string | undefined): number => Number(line?.split(' ')[2])
    return timeOf(linesOf(next.acks)[0]) - timeOf(linesOf(one.acks).at(-1))
  }

  /** Looks, where the pool is mounted, for every block that was acknowledged. */
  async verify(t: Test, pool: PoolOn<Host>): Promise<{ blocks: number; lost: number }> {
    const program = resolve(PROGRAMS, 'verify.py')
    const args = [program, pool.volume, String(STALE), ...this.#acks]
    const { blocks, lost, stale } = JSON.parse(await pool.machine.run('python3', ...args))
    t.ok(blocks > 0, `${blocks} acknowledged blocks checked`)
    t.same(lost.slice(0, 10), [], 'none is lost')
    t.same(stale.slice(0, 10), [], 'nothing is there of who had lost the pool')
    return { blocks, lost: lost.length }
  }
}

const linesOf = (file: string): string[] => readFileSync(file, 'utf8').split('\n').slice(0, -1)

async function outcomeOf(child: ChildProcess): Promise<Written> {
  const said = { stdout: '', stderr: '' }
  for (const name of ['stdout', 'stderr'] as const) {
    child[name]!.setEncoding('utf8').on('data', text => {
      said[name] += text
    })
  }
  await once(child, 'close')
  try {
    return JSON.parse(said.stdout)
  } catch {
    throw new Error(`the writer: ${said.stderr || said.stdout}`)
  }
}
