/**
 * Loads on a mounted pool: programs that know what they have written, and run until told to stop.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { type MountedPool, runWithin, until } from './mounted-pool.js'

/** Seconds that a load may take: it ends when it is told to, unless something hangs. */
const LONGEST = 24 * 3600
const PROGRAMS = resolve(import.meta.dirname, 'load')

export interface Load<Result> {
  /** Ends it; rejects when anything was not as it has to be. */
  stop(): Promise<Result>
  /** Rejects as soon as that is known; never resolves otherwise before `stop`. */
  readonly ended: Promise<unknown>
}

/** Stands for the file whose appearance ends a load. */
export const STOP = Symbol('stop')

let nrLoads = 0
const newStopFile = (pool: MountedPool): string => join(pool.base, `stop-${++nrLoads}`)

function loadOf<Result>(
  stop: string,
  ended: Promise<string>,
  result: (stdout: string) => Result,
): Load<Result> {
  // What goes wrong meanwhile is for stop() to tell.
  ended.catch(() => {})
  return {
    ended,
    async stop() {
      writeFileSync(stop, '')
      return result(await ended)
    },
  }
}

/**
 * A program of the folder `load`, with its arguments; what it prints is its result. Resolves when
 * it has done its first step.
 */
export async function load<Result>(
  pool: MountedPool,
  name: string,
  ...args: (string | number | typeof STOP)[]
): Promise<Load<Result>> {
  const stop = newStopFile(pool)
  const strings = args.map(arg => (arg === STOP ? stop : String(arg)))
  const ended = runWithin(LONGEST, 'python3', join(PROGRAMS, `${name}.py`), ...strings)
  await Promise.race([ended, until(() => existsSync(`${stop}.begun`))])
  return loadOf(stop, ended, JSON.parse)
}

/** Waits for a program of the folder `load` that ends by itself. */
export async function runLoad<Result>(name: string, ...args: string[]): Promise<Result> {
  return JSON.parse(await runWithin(LONGEST, 'python3', join(PROGRAMS, `${name}.py`), ...args))
}

export interface Tree {
  steps: number
  bytes: number
  longestFlushMs: number
}

const script = (cwd: string, commands: string): Promise<string> =>
  runWithin(LONGEST, 'env', '-C', cwd, 'bash', '-euo', 'pipefail', '-c', commands)

/** fio that writes all of a file again and again and verifies it; stops with the bytes verified. */
export function fio(pool: MountedPool, file: string, options: string): Load<number> {
  const stop = newStopFile(pool)
  const rounds = script(
    pool.base,
    `for ((round = 1; ; round++)); do
       fio --name=verify --filename=${file} --ioengine=libaio --direct=1 --rw=randwrite \
         --verify=crc32c --verify_fatal=1 --verify_state_save=0 --randseed=$round ${options} \
         --output-format=json --output=${stop}.$round || { cat ${stop}.$round >&2; exit 1; }
       [ ! -e ${stop} ] || exit 0
     done`,
  )
  return loadOf(stop, rounds, () => {
    let bytes = 0
    for (let round = 1; existsSync(`${stop}.${round}`); round++) {
      const report = JSON.parse(readFileSync(`${stop}.${round}`, 'utf8'))
      bytes += report.jobs[0].read.io_bytes
    }
    return bytes
  })
}

/**
 * A script that is run in `cwd` again and again, and has to succeed; stops with how often it was.
 */
export function repeat(pool: MountedPool, cwd: string, commands: string): Load<number> {
  const stop = newStopFile(pool)
  const rounds = script(
    cwd,
    `for ((round = 1; ; round++)); do (${commands}); [ ! -e ${stop} ] || { echo $round >&3; exit 0; }; done 3>&1 >/dev/null`,
  )
  return loadOf(stop, rounds, Number)
}
