/** fio: the loads, and one run of them on a file. */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { KIB, MIB } from '../src/base/index.js'

/** Beyond the run time that was asked for. A server that hangs is not waited for. */
const GRACE_MS = 30_000

export interface Load {
  name: string
  rw: 'randread' | 'randwrite' | 'read' | 'write'
  /** Bytes of a request. */
  blockSize: number
  /** Requests under way at a time, of each writer or reader. */
  queueDepth: number
  /** Bytes left out after each request of a sequential load. */
  skip?: number
  /** fsync after every write. */
  fsync?: boolean
  /** Every block at most once: none comes from a cache that the load itself has filled. */
  once?: boolean
  /** Writers or readers, each a thread with an equal part of `range` for itself. Default: 1. */
  jobs?: number
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
 * Writes all of the file, one request at a time, and reads it back.
 * @throws WrongData
 */
export async function fill(file: string, signal: AbortSignal): Promise<void> {
  await verify(file, { name: 'fill', rw: 'write', blockSize: MIB, queueDepth: 1 }, [], signal)
}

/**
 * Writes to a part of the file, many requests at a time, and reads it back.
 * @throws WrongData
 */
export async function verifyConcurrent(file: string, signal: AbortSignal): Promise<void> {
  for (const blockSize of [4 * KIB, 64 * KIB, MIB]) {
    const load: Load = { name: 'verify', rw: 'randwrite', blockSize, queueDepth: 16 }
    await verify(file, load, ['--size=64m'], signal)
  }
}

async function verify(file: string, load: Load, extra: string[], signal: AbortSignal) {
  const checks = ['--verify=crc32c', '--verify_fatal=1', '--verify_state_save=0']
  await fio(file, load, [...checks, ...extra], 0, signal)
}

/** Runs a load. Returns its rate, in `unitOf(load)`. */
export async function measure(
  file: string,
  load: Load,
  seconds: number,
  signal: AbortSignal,
): Promise<number> {
  const timed = ['--time_based', `--runtime=${seconds}`]
  if (!load.once) timed.push('--norandommap')
  const job = await fio(file, load, timed, seconds, signal)
  const { iops, bw_bytes: bytesPerSecond } = load.rw.endsWith('read') ? job.read : job.write
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
  file: string,
  load: Load,
  extra: string[],
  seconds: number,
  signal: AbortSignal,
): Promise<JobResult> {
  const args = [
    `--name=${load.name}`,
    `--filename=${file}`,
    `--rw=${load.rw}${load.skip ? `:${load.skip}` : ''}`,
    `--bs=${load.blockSize}`,
    `--iodepth=${load.queueDepth}`,
    ...['--ioengine=libaio', '--direct=1', '--allow_file_create=0', '--fallocate=none'],
    ...['--output-format=json', ...options(load), ...extra],
  ]
  const limit = AbortSignal.timeout(seconds * 1000 + GRACE_MS)
  try {
    const { stdout } = await promisify(execFile)('fio', args, {
      signal: AbortSignal.any([signal, limit]),
      maxBuffer: 16 * MIB,
    })
    const { jobs } = JSON.parse(stdout) as { jobs: JobResult[] }
    return jobs[0]!
  } catch (err) {
    signal.throwIfAborted()
    const { stderr = '', message } = err as { stderr?: string; message: string }
    const what = `fio ${load.name} on ${file}: ${limit.aborted ? 'hangs' : stderr || message}`
    throw stderr.startsWith('verify:') ? new WrongData(what) : new Error(what, { cause: err })
  }
}

/** What not every load has. */
function options({ fsync, jobs = 1, range }: Load): string[] {
  const args = fsync ? ['--fsync=1'] : []
  if (range) {
    const part = range.size / jobs
    args.push(`--offset=${range.offset}`, `--size=${part}`, `--offset_increment=${part}`)
  }
  return jobs > 1 ? [...args, `--numjobs=${jobs}`, '--thread', '--group_reporting'] : args
}
