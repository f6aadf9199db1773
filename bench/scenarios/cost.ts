import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { GIB } from '../../src/base/index.js'
import { cpuSeconds, type Observation, observe, observed, servingPid } from '../engine.js'
import { fill, LOADS, type Load, measure } from '../fio.js'
import { atMost, type Cell, type Place, paired, type Scenario, type Settings } from '../scenario.js'
import { limitDev, type Server, thinfs, withServers } from '../servers.js'

const SIZE = GIB
const COST_LOADS = LOADS.filter(({ name }) => name.endsWith('-qd16'))
/** How long nobody asks for anything, once everything is settled. */
const IDLE_MS = 5000
const SETTLED_MS = 2000
/** A minute unless `--seconds` says otherwise, half of it for each load. */
const OBSERVED_SECONDS_PER_SECOND = 20
const NR_SITES = 5

/**
 * What a request takes: CPU time of the process that serves, the kernel's part of it included, and
 * bytes of the JavaScript heap. The profiler that counts those runs in an engine of its own, for
 * which no CPU time is told. It counts what is collected at once as well, and everything that the
 * engine does: also its timers, commits, and the turns of its loop. So the bound is one byte, not
 * none.
 */
export const cost: Scenario = {
  name: 'cost',
  about: 'CPU time and heap that a request of 4 KiB takes, and pauses to collect garbage',
  memory: 4 * SIZE,
  async run({ memory }: Place, settings: Settings) {
    return [...(await cpuTime(memory, settings)), ...(await heap(memory, settings))]
  },
}

function cpuTime(folder: string, settings: Settings): Promise<Cell[]> {
  const { signal, seconds } = settings
  const wanted = COST_LOADS.filter(({ name }) => settings.wants(`cost/cpu-${name}`))
  if (wanted.length === 0 && !settings.wants('cost/idle')) return Promise.resolve([])
  return withServers([limitDev(SIZE), thinfs(SIZE)], folder, signal, async servers => {
    for (const { file } of servers) await fill(file, signal)
    const cells: Cell[] = []
    for (const load of wanted) {
      const samples = await paired(servers, settings, async server => {
        const pid = await servingPid(server)
        const before = cpuSeconds(pid)
        const rate = await measure(server.file, load, seconds, signal)
        return ((cpuSeconds(pid) - before) / (rate * seconds)) * 1e6
      })
      cells.push({ name: `cost/cpu-${load.name}`, unit: 'µs/request', samples, goals: [] })
    }
    const idle = await idleTime(servers)
    if (settings.wants(idle.name)) cells.push(idle)
    return cells
  })
}

/**
 * After a load: who looked for requests then has to sleep now. The clock of CPU time ticks every 10
 * ms.
 */
async function idleTime(servers: readonly Server[]): Promise<Cell> {
  const pids = await Promise.all(servers.map(servingPid))
  await setTimeout(SETTLED_MS)
  const before = pids.map(cpuSeconds)
  await setTimeout(IDLE_MS)
  const taken = pids.map((pid, i) => (cpuSeconds(pid) - before[i]!) * 1000)
  const samples = Object.fromEntries(servers.map(({ name }, i) => [name, [taken[i]!]]))
  return {
    name: 'cost/idle',
    unit: `ms in ${IDLE_MS / 1000} s`,
    samples,
    goals: [atMost(0, 'thinfs')],
  }
}

function heap(folder: string, settings: Settings): Promise<Cell[]> {
  const wanted = (what: string): boolean => settings.wants(`cost/${what}`)
  const loads = COST_LOADS.filter(({ name }) => wanted(`heap-${name}`) || wanted('gc-pause'))
  if (loads.length === 0) return Promise.resolve([])
  const report = join(folder, 'observed')
  const contender = thinfs(SIZE, { name: 'thinfs-observed', env: observed(report) })
  return withServers([contender], folder, settings.signal, async ([server]) => {
    await fill(server!.file, settings.signal)
    const cells: Cell[] = []
    let longestMs = 0
    for (const load of loads) {
      const { bytes, pausesMs } = await observeLoad(server!, load, report, settings)
      longestMs = Math.max(longestMs, ...pausesMs)
      const name = `cost/heap-${load.name}`
      const samples = { thinfs: [bytes] }
      cells.push({ name, unit: 'B/request', samples, goals: [atMost(1, 'thinfs')] })
    }
    const samples = { thinfs: [longestMs] }
    cells.push({ name: 'cost/gc-pause', unit: 'ms', samples, goals: [atMost(5, 'thinfs')] })
    return cells.filter(({ name }) => settings.wants(name))
  })
}

/** Runs a load once everything is compiled. @returns bytes allocated per request, and all pauses */
async function observeLoad(
  server: Server,
  load: Load,
  report: string,
  { signal, seconds }: Settings,
): Promise<{ bytes: number; pausesMs: number[] }> {
  const pid = await servingPid(server)
  await measure(server.file, load, seconds, signal)
  await observe(pid, report)
  const total = (OBSERVED_SECONDS_PER_SECOND / COST_LOADS.length) * seconds
  const requests = total * (await measure(server.file, load, total, signal))
  const { allocated, pausesMs } = await observe(pid, report)
  const bytes = sum(allocated)
  const perRequest = (count: number): string => (count / requests).toFixed(3)
  console.log(
    `heap profile, ${load.name}: ${bytes} B in ${Math.round(requests)} requests, ` +
      `${perRequest(bytes)} B each; ${pausesMs.length} garbage collections`,
  )
  for (const site of allocated.slice(0, NR_SITES)) {
    console.log(`  ${perRequest(site.bytes).padStart(8)} B  ${site.site}`)
  }
  return { bytes: bytes / requests, pausesMs }
}

const sum = (allocated: Observation['allocated']): number =>
  allocated.reduce((total, { bytes }) => total + bytes, 0)
