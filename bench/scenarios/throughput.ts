import { GIB } from '../../src/base/index.js'
import { fill, LOADS, measure, unitOf, verifyConcurrent, WrongData } from '../fio.js'
import { atLeast, type Cell, type Goal, paired, type Scenario, type Settings } from '../scenario.js'
import {
  limitDev,
  limitFuseNative,
  limitSpin,
  limitUring,
  qemu,
  type Server,
  thinfs,
  withServers,
  withUring,
} from '../servers.js'

const SIZE = GIB
const QEMU = qemu(SIZE, { preallocation: 'metadata' })
const CONTENDERS = [
  limitDev(SIZE),
  limitSpin(SIZE),
  QEMU,
  thinfs(SIZE),
  limitFuseNative(SIZE),
  thinfs(SIZE, { name: 'thinfs-fuse-native', mount: ['-o', 'transport=fuse-native'] }),
]
const URING = [
  limitUring(SIZE),
  thinfs(SIZE, { name: 'thinfs-uring', mount: ['-o', 'transport=uring'] }),
]

const goal = (least: number, to: string): Goal => atLeast(least, 'thinfs', to)
const GOALS: Record<string, Goal[]> = {
  'randread-qd1': [goal(0.9, 'limit-spin'), goal(2.5, 'qemu')],
  'randread-qd16': [goal(0.8, 'limit-dev'), goal(3, 'qemu')],
  'randwrite-qd1': [goal(0.9, 'limit-spin'), goal(2.5, 'qemu')],
  'randwrite-qd16': [goal(0.8, 'limit-dev'), goal(3, 'qemu')],
  'read-1m': [goal(0.8, 'limit-dev'), goal(3, 'qemu')],
  'write-1m': [goal(0.8, 'limit-dev'), goal(1, 'qemu')],
}

/** Of the other transport, in every cell. */
const URING_GOAL = atLeast(0.8, 'thinfs-uring', 'limit-uring')

/**
 * The data of all is in memory: what is compared is the way there. limit-dev, limit-spin and
 * limit-uring are C that does nothing else, limit-fuse-native that package; see limit/.
 */
export const throughput: Scenario = {
  name: 'throughput',
  about: 'a fully mapped volume, on the FUSE file',
  memory: (CONTENDERS.length + URING.length + 1) * SIZE,
  run({ memory }, settings) {
    return withUring(offered => {
      if (!offered) console.log('the kernel has no FUSE over io_uring: that is left out')
      const contenders = offered ? [...CONTENDERS, ...URING] : CONTENDERS
      return withServers(contenders, memory, settings.signal, async servers => {
        for (const server of servers) await checkServer(server, settings.signal)
        return measureAll(servers, settings, offered)
      })
    })
  },
}

async function measureAll(
  servers: readonly Server[],
  settings: Settings,
  offered: boolean,
): Promise<Cell[]> {
  const { signal, seconds } = settings
  const cells: Cell[] = []
  for (const load of LOADS) {
    const name = `throughput/${load.name}`
    if (!settings.wants(name)) continue
    const samples = await paired(servers, settings, ({ file }) =>
      measure(file, load, seconds, signal),
    )
    const goals = [...(GOALS[load.name] ?? []), ...(offered ? [URING_GOAL] : [])]
    cells.push({ name, unit: unitOf(load), samples, goals })
  }
  return cells
}

/**
 * Writes the whole volume, so that it is fully mapped, and makes sure that a server does not win by
 * losing data. qemu-storage-daemon 7.2 does with concurrent writes; there is no other to compare
 * with.
 * @throws WrongData
 */
export async function checkServer({ name, file }: Server, signal: AbortSignal): Promise<void> {
  await fill(file, signal)
  try {
    await verifyConcurrent(file, signal)
  } catch (err) {
    if (!(err instanceof WrongData) || name !== 'qemu') throw err
    console.log(`${name}: does NOT read back what was written by concurrent requests`)
  }
}
