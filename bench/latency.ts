/** Latency of requests for as long as something else goes on: fio runs until it is told to stop. */
import { spawn } from 'node:child_process'
import { KIB } from '../src/base/index.js'

/** Between two requests, in microseconds: whoever waits for nothing leaves a CPU to the others. */
const THINK_US = 200

export interface ReadLatency {
  p999Ms: number
  worstMs: number
}

interface Percentiles {
  mean: number
  max: number
  percentile?: Record<string, number>
}

interface JobResult {
  read: { clat_ns: Percentiles }
  write: { clat_ns: Percentiles }
  sync: { lat_ns: Percentiles }
}

/** Reads 4 KiB at random places of `file`, past the page cache, one at a time, while `act` runs. */
export async function readLatencyDuring<T>(
  file: string,
  signal: AbortSignal,
  act: () => Promise<T>,
): Promise<[ReadLatency, T]> {
  const fio = start(['--name=read', '--rw=randread', '--direct=1', `--filename=${file}`], signal)
  const result = await act().finally(() => fio.stop())
  const { clat_ns: latency } = (await fio.result).read
  const p999 = latency.percentile?.['99.900000'] ?? Number.NaN
  return [{ p999Ms: p999 / 1e6, worstMs: latency.max / 1e6 }, result]
}

/**
 * Writes 4 KiB and calls fsync, again and again, while `act` runs. @returns the mean of both, in ms
 */
export async function fsyncLatencyDuring<T>(
  file: string,
  signal: AbortSignal,
  act: () => Promise<T>,
): Promise<[number, T]> {
  const fio = start(['--name=write', '--rw=randwrite', '--fsync=1', `--filename=${file}`], signal)
  const result = await act().finally(() => fio.stop())
  const { write, sync } = await fio.result
  return [(write.clat_ns.mean + sync.lat_ns.mean) / 1e6, result]
}

function start(args: string[], signal: AbortSignal): { stop(): void; result: Promise<JobResult> } {
  const child = spawn(
    'fio',
    [
      ...[`--bs=${4 * KIB}`, '--ioengine=psync', '--thread', `--thinktime=${THINK_US}`],
      ...['--time_based', '--runtime=1d', '--norandommap', '--percentile_list=99.9'],
      ...['--allow_file_create=0', '--fallocate=none', '--output-format=json', ...args],
    ],
    { stdio: ['ignore', 'pipe', 'inherit'], signal },
  )
  const chunks: Buffer[] = []
  child.stdout.on('data', (chunk: Buffer) => chunks.push(chunk))
  const result = new Promise<JobResult>((resolve, reject) => {
    child.on('error', reject)
    child.on('close', () => {
      const text = Buffer.concat(chunks).toString()
      try {
        // It says first that it was told to stop.
        const { jobs } = JSON.parse(text.slice(text.indexOf('{\n'))) as { jobs: JobResult[] }
        resolve(jobs[0]!)
      } catch (err) {
        reject(new Error(`fio said: ${text}`, { cause: err }))
      }
    })
  })
  // Whoever waits for it may still be busy.
  result.catch(() => {})
  return { stop: () => child.kill('SIGINT'), result }
}
