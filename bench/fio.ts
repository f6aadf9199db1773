/** fio: the loads, and one run of them on a file. */
import { execFile } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { KIB, MIB } from '../src/base/index.js'

/** Beyond the run time that was asked for. A server that hangs is not waited for. */
const GRACE_MS = 30_000
/** Seconds that filling a file, or writing it and reading it back, may take. */
const FILL_SECONDS = 60

export interface Load {
  name: string
  rw: 'randread' | 'randwrite' | 'read' | 'write'
  /** Bytes of a request. */
  blockSize: number
  /** Requests under way at a time, of each file. */
  queueDepth: number
  /** Whether past the caller's page cache. Default: true. */
  direct?: boolean
  /** Bytes left out after each request of a sequential load. */
  skip?: number
  /** fsync after every write. */
  fsync?: boolean
  /** Every block at most once: none comes from a cache that the load itself has filled. */
  once?: boolean
  /** Where it stays. Default: the whole file. */
  range?: { offset: number; size: number }
}

export const LOADS: readonly Load[] = [
  { name: 'randread-qd1', rw: 'randread', blockSize: 4 * KIB, queueDepth: 1 },
  { name: 'randread-qd16', rw: 'randread', blockSize: 4 * KIB, queueDepth: 16 },
  { name: 'randwrite-qd1', rw: 'randwrite', blockSize: 4 * KIB, queueDepth: 1 },
  { name: 'randwrite-qd16', rw: 'randwrite', blockSize: 4 * KIB, queueDepth: 16 },
  { name: 'read-1m', rw: 'read', blockSize: MIB, queueDepth: 4 },
  { name: 'write-1m', rw: 'write', blockSize: MIB, queueDepth: 4 },
]

/** What a load is measured in: large requests are counted by their bytes. */
export function unitOf(load: Load): 'IOPS' | 'MB/s' {
  return load.blockSize >= MIB ? 'MB/s' : 'IOPS'
}

/** What was read back is not what was written. */
export class WrongData extends Error {}

/**
 * Writes all of the file, or its first `size` bytes, one request at a time, reads it back, and has
 * it on the disk.
 * @throws WrongData
 */
export async function fill(file: string, signal: AbortSignal, size?: number): Promise<void> {
  const load: Load = { name: 'fill', rw: 'write', blockSize: MIB, queueDepth: 1 }
  await verify(file, size === undefined ? load : { ...load, range: { offset: 0, size } }, signal)
}

/**
 * Writes to a part of the file, many requests at a time, and reads it back.
 * @throws WrongData
 */
export async function verifyConcurrent(file: string, signal: AbortSignal): Promise<void> {
  for (const blockSize of [4 * KIB, 64 * KIB, MIB]) {
    const range = { offset: 0, size: 64 * MIB }
    await verify(
      file,
      { name: 'verify', rw: 'randwrite', blockSize, queueDepth: 16, range },
      signal,
    )
  }
}

async function verify(file: string, load: Load, signal: AbortSignal): Promise<void> {
  const checks = ['--verify=crc32c', '--verify_fatal=1', '--verify_state_save=0', '--end_fsync=1']
  await fio([file], load, checks, FILL_SECONDS, signal)
}

/**
 * Runs a load on a file, or on several at once, each by a thread of its own.
 * @returns its rate, of all files together, in `unitOf(load)`
 */
export async function measure(
  files: string | readonly string[],
  load: Load,
  seconds: number,
  signal: AbortSignal,
): Promise<number> {
  const timed = ['--time_based', `--runtime=${seconds}`]
  if (!load.once) timed.push('--norandommap')
  return rateOf(load, await fio([files].flat(), load, timed, seconds, signal))
}

/** An engine of fio that needs no file. */
export interface Engine {
  options: readonly string[]
  /** Added to the environment. */
  env?: NodeJS.ProcessEnv
}

/** As `measure`, by an engine. */
export async function measureEngine(
  { options, env }: Engine,
  load: Load,
  seconds: number,
  signal: AbortSignal,
): Promise<number> {
  const timed = ['--time_based', `--runtime=${seconds}`]
  if (!load.once) timed.push('--norandommap')
  const target = [...options, `--name=${load.name}`]
  return rateOf(load, await run(target, load, timed, seconds, signal, { env }))
}

/** Writes `size` bytes by an engine, and has them on the disk. */
export async function fillEngine(
  { options, env }: Engine,
  size: number,
  signal: AbortSignal,
): Promise<void> {
  const range = { offset: 0, size }
  const load: Load = { name: 'fill', rw: 'write', blockSize: MIB, queueDepth: 4, range }
  await run([...options, '--name=fill'], load, ['--end_fsync=1'], FILL_SECONDS, signal, { env })
}

/**
 * Runs a load to its end, each byte once. Returns its rate, in `unitOf(load)`.
 * @param offsets where the requests go, in this order; left out: everywhere
 */
export async function measureOnce(
  file: string,
  load: Load,
  signal: AbortSignal,
  offsets?: readonly number[],
): Promise<number> {
  if (!offsets) return rateOf(load, await fio([file], load, [], 0, signal))
  const folder = mkdtempSync(join(tmpdir(), 'thinfs-bench-fio-'))
  try {
    const direction = load.rw.replace('rand', '')
    const log = join(folder, 'log')
    const requests = offsets.map(offset => `it ${direction} ${offset} ${load.blockSize}`)
    writeFileSync(
      log,
      ['fio version 2 iolog', 'it add', 'it open', ...requests, 'it close\n'].join('\n'),
    )
    const replay = [`--read_iolog=${log}`, `--replay_redirect=${file}`]
    return rateOf(load, await fio([file], load, replay, 0, signal))
  } finally {
    rmSync(folder, { recursive: true })
  }
}

function rateOf(load: Load, { read, write }: JobResult): number {
  const { iops, bw_bytes: bytesPerSecond } = load.rw.endsWith('read') ? read : write
  return unitOf(load) === 'IOPS' ? iops : bytesPerSecond / 1e6
}

interface Direction {
  iops: number
  bw_bytes: number
}

interface JobResult {
  read: Direction
  write: Direction
}

async function fio(
  files: readonly string[],
  load: Load,
  extra: string[],
  seconds: number,
  signal: AbortSignal,
): Promise<JobResult> {
  const { direct = true } = load
  const target = [
    `--direct=${Number(direct)}`,
    // libaio waits within the submission for what goes through the page cache.
    `--ioengine=${direct ? 'libaio' : 'psync'}`,
    ...['--allow_file_create=0', '--fallocate=none'],
  ]
  const jobs = files.flatMap(file => [`--name=${load.name}`, `--filename=${file}`])
  return run([...target, ...extra, ...jobs], load, [], seconds, signal, { on: files[0] })
}

/**
 * @param target where to, and the jobs
 * @param on names it in messages
 * @param env added to the environment
 */
async function run(
  target: readonly string[],
  load: Load,
  extra: readonly string[],
  seconds: number,
  signal: AbortSignal,
  { on = target[0], env }: { on?: string | undefined; env?: NodeJS.ProcessEnv | undefined } = {},
): Promise<JobResult> {
  const { rw, skip = 0, blockSize, queueDepth, fsync, range } = load
  const args = [
    `--rw=${rw}${skip > 0 ? `:${skip}` : ''}`,
    `--bs=${blockSize}`,
    `--iodepth=${queueDepth}`,
    ...(fsync ? ['--fsync=1'] : []),
    ...(range ? [`--offset=${range.offset}`, `--size=${range.size}`] : []),
    ...['--thread', '--group_reporting', '--output-format=json'],
    ...[...extra, ...target],
  ]
  const limit = AbortSignal.timeout(seconds * 1000 + GRACE_MS)
  try {
    const { stdout } = await promisify(execFile)('fio', args, {
      signal: AbortSignal.any([signal, limit]),
      maxBuffer: 16 * MIB,
      env: { ...process.env, ...env },
    })
    const { jobs } = JSON.parse(stdout.slice(stdout.indexOf('{'))) as { jobs: JobResult[] }
    return jobs[0]!
  } catch (err) {
    signal.throwIfAborted()
    const { stderr = '', message } = err as { stderr?: string; message: string }
    const what = `fio ${load.name} on ${on}: ${limit.aborted ? 'hangs' : stderr || message}`
    throw stderr.startsWith('verify:') ? new WrongData(what) : new Error(what, { cause: err })
  }
}
