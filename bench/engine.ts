/** Measures the engine: its CPU time, its allocations, its pauses for garbage collection. */
import { existsSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { runThinfs, type Server } from './servers.js'

/** Of the kernel, for /proc: USER_HZ is 100 on every Linux of today. */
const TICKS_PER_SECOND = 100
const POLL_MS = 20
const OBSERVER = fileURLToPath(new URL('./observe.mjs', import.meta.url))

/** What was observed since the last time. */
export interface Observation {
  /** Of every garbage collection. */
  pausesMs: number[]
  /** Of the JavaScript heap, by function, file and line, most first. Estimated from samples. */
  allocated: { site: string; bytes: number }[]
}

/** What a server of thinfs is started with to be observed; see observe.mjs. */
export const observed = (file: string): NodeJS.ProcessEnv => ({
  NODE_OPTIONS: `--import=${OBSERVER}`,
  THINFS_BENCH_OBSERVED: file,
})

/** Has an engine that is `observed` write what there was since the last time. */
export async function observe(pid: number, file: string): Promise<Observation> {
  rmSync(file, { force: true })
  process.kill(pid, 'SIGUSR2')
  while (!existsSync(file)) await setTimeout(POLL_MS)
  return JSON.parse(readFileSync(file, 'utf8')) as Observation
}

/** The process that answers requests: of thinfs the engine. */
export async function servingPid(server: Server): Promise<number> {
  const pool = join(server.folder, 'pool')
  if (!existsSync(pool)) return server.pid
  const status = await runThinfs('status', pool, '--json')
  return (JSON.parse(status) as { mount: { enginePid: number } }).mount.enginePid
}

/** Seconds of CPU time that a process has taken, in user space and in the kernel. */
export function cpuSeconds(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
  // Behind the program's name, which may have spaces: from the state, the third field.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND
}
