import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { GIB, MIB } from '../../src/base/index.js'
import { fill, LOADS, measure, unitOf } from '../fio.js'
import { atLeast, type Cell, type Goal, paired, type Scenario } from '../scenario.js'
import { limitSpin, qemu, sparseFile, thinfs, withLoop, withServers } from '../servers.js'
import { checkServer } from './throughput.js'

const SIZE = GIB
/** Of one measurement: there are many. */
const SECONDS_MAX = 1
const CONTENDERS = [
  limitSpin(SIZE),
  qemu(SIZE, { preallocation: 'metadata' }),
  thinfs(SIZE),
  thinfs(SIZE, { name: 'thinfs-sleeps', spin: 0 }),
]

const goal = (least: number, to = 'qemu'): Goal => atLeast(least, 'thinfs', to)
/** Of one request at a time. */
const ALONE = [goal(0.8, 'limit-spin'), goal(1, 'plain'), goal(2.5)]
const GOALS: Record<string, Goal[]> = {
  'randread-qd1': ALONE,
  'randread-qd16': [goal(2), goal(0.95, 'thinfs-sleeps')],
  'randwrite-qd1': ALONE,
  'randwrite-qd16': [goal(2), goal(0.95, 'thinfs-sleeps')],
  'read-1m': [goal(3)],
  'write-1m': [goal(1)],
}
/** Beside a process that always computes, looking for requests must not cost any. */
const BUSY_GOALS = [goal(0.95, 'thinfs-sleeps')]
const BUSY_LOADS = LOADS.filter(({ blockSize }) => blockSize < MIB)

/** A volume as a block device, or a plain file. */
interface Target {
  name: string
  file: string
}

/**
 * As filesystems use a volume: by way of a loop device, which keeps its own queue of requests and
 * hands them to the FUSE file past the page cache. `plain` is a loop device on a file without a
 * server: what loop itself allows. `thinfs-sleeps` is thinfs that never looks for requests.
 */
export const loop: Scenario = {
  name: 'loop',
  about: 'a fully mapped volume, through losetup --direct-io=on',
  memory: (CONTENDERS.length + 2) * SIZE,
  run({ memory }, settings) {
    const { signal } = settings
    const seconds = Math.min(settings.seconds, SECONDS_MAX)
    return withServers(CONTENDERS, memory, signal, async servers => {
      for (const server of servers) await checkServer(server, signal)
      const plain = sparseFile(join(memory, 'plain'), SIZE)
      await fill(plain, signal)
      const targets = [...servers, { name: 'plain', file: plain }]
      return withLoops(targets, async devices => {
        const cells: Cell[] = []
        for (const load of LOADS) {
          const name = `loop/${load.name}`
          if (!settings.wants(name)) continue
          const samples = await paired(devices, settings, ({ file }) =>
            measure(file, load, seconds, signal),
          )
          cells.push({ name, unit: unitOf(load), samples, goals: GOALS[load.name] ?? [] })
        }
        for (const load of BUSY_LOADS) {
          const name = `loop/busy-${load.name}`
          if (!settings.wants(name)) continue
          const samples = await besideBusyProcess(() =>
            paired(devices, settings, ({ file }) => measure(file, load, seconds, signal)),
          )
          cells.push({ name, unit: unitOf(load), samples, goals: BUSY_GOALS })
        }
        return cells
      })
    })
  },
}

/** Runs `use` while a process computes all the time. */
async function besideBusyProcess<T>(use: () => Promise<T>): Promise<T> {
  const busy = spawn('sh', ['-c', 'while :; do :; done'], { stdio: 'ignore' })
  try {
    return await use()
  } finally {
    busy.kill('SIGKILL')
  }
}

/** Runs `use` with a loop device on every target. */
function withLoops<T>(
  targets: readonly Target[],
  use: (devices: Target[]) => Promise<T>,
  devices: Target[] = [],
): Promise<T> {
  const [next, ...rest] = targets
  if (!next) return use(devices)
  const { name } = next
  return withLoop(next.file, file => withLoops(rest, use, [...devices, { name, file }]))
}
