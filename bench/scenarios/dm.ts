import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { GIB, MIB } from '../../src/base/index.js'
import { DmService } from '../dm-service.js'
import { cpuSeconds, servingPid } from '../engine.js'
import { fill, LOADS, measure, unitOf } from '../fio.js'
import { atLeast, atMost, type Cell, paired, type Scenario, type Settings } from '../scenario.js'
import { runThinfs, thinfs, withServers } from '../servers.js'

const SIZE = GIB
const COUNT = 1000
const CALLS = 2000
/** Of one measurement: there are many. */
const SECONDS_MAX = 1
const CALL_MS_MAX = 0.3
/**
 * Ioctls of device-mapper that LVM 2.03.16 sends for one more volume of a pool that is active, on
 * Linux 6.1 with its own device-mapper. Here it looks at loop devices as well.
 */
const KERNEL_IOCTLS = 88

/**
 * A thin volume of LVM on `thinfs dm`, beside one of a mounted pool that is attached to a loop
 * device: both are loop devices on files of an engine. Then what calls take, and many devices.
 */
export const dm: Scenario = {
  name: 'dm',
  about: `thinfs dm: a volume of LVM beside an attached one, calls, and ${COUNT} devices`,
  memory: 6 * SIZE,
  async run({ memory }, settings) {
    const folder = join(memory, 'dm')
    mkdirSync(folder)
    const service = await DmService.start(folder)
    try {
      await service.group('thinfs_bench', await service.loop('pv', 2 * SIZE))
      await service.run('lvcreate', '-L', '1500M', '-V', '1G', '-T', 'thinfs_bench/pool', '-n', 'a')
      try {
        return [
          ...(await speed(service, memory, settings)),
          ...(await calls(service, settings)),
          ...(await many(service, settings)),
        ]
      } finally {
        await service.run('lvremove', '-f', 'thinfs_bench')
      }
    } finally {
      await service.stop()
    }
  },
}

async function speed(service: DmService, memory: string, settings: Settings): Promise<Cell[]> {
  const wanted = LOADS.filter(({ name }) => settings.wants(`dm/${name}`))
  const weighed = LOADS.filter(({ name }) => /16$/.test(name) && settings.wants(`dm/cpu-${name}`))
  if (wanted.length + weighed.length === 0) return []
  const { signal } = settings
  const seconds = Math.min(settings.seconds, SECONDS_MAX)
  const mapped = (await service.run('readlink', '-f', '/dev/thinfs_bench/a')).trim()
  const { devices, enginePid } = await service.status()
  const own = devices.find(({ name }) => mapped.endsWith(`/${name}`))!.loop
  return withServers([thinfs(SIZE, { name: 'attached' })], memory, signal, async ([server]) => {
    const pool = join(server!.folder, 'pool')
    const attached = (await runThinfs('attach', pool, 'volume')).trim()
    try {
      const targets = [
        { name: 'thinfs', file: own, pid: enginePid },
        { name: 'attached', file: attached, pid: await servingPid(server!) },
      ]
      for (const { file } of targets) await fill(file, signal)
      const cells: Cell[] = []
      for (const load of wanted) {
        const samples = await paired(targets, settings, ({ file }) =>
          measure(file, load, seconds, signal),
        )
        const goals = [atLeast(0.95, 'thinfs', 'attached')]
        cells.push({ name: `dm/${load.name}`, unit: unitOf(load), samples, goals })
      }
      for (const load of weighed) {
        const samples = await paired(targets, settings, async ({ file, pid }) => {
          const before = cpuSeconds(pid)
          const rate = await measure(file, load, seconds, signal)
          return ((cpuSeconds(pid) - before) / (rate * seconds)) * 1e6
        })
        const goals = [atMost(1.1, 'thinfs', 'attached')]
        cells.push({ name: `dm/cpu-${load.name}`, unit: 'µs/request', samples, goals })
      }
      return cells
    } finally {
      await runThinfs('detach', pool, attached)
    }
  })
}

async function calls(service: DmService, settings: Settings): Promise<Cell[]> {
  const cells: Cell[] = []
  if (settings.wants('dm/ioctl')) {
    const rounds: Record<string, number>[] = []
    for (let round = 0; round < settings.rounds; round++) {
      settings.signal.throwIfAborted()
      rounds.push(await service.client('ioctls', 'thinfs_bench-a', String(CALLS)))
    }
    for (const what of Object.keys(rounds[0]!)) {
      const samples = { thinfs: rounds.map(figures => figures[what]!) }
      const goals = [atMost(CALL_MS_MAX, 'thinfs')]
      cells.push({ name: `dm/ioctl-${what}`, unit: 'ms', samples, goals })
    }
  }
  if (settings.wants('dm/lvcreate')) {
    const trace = join(service.folder, 'trace')
    const strace = ['strace', '-f', '-e', 'trace=ioctl', '-o', trace]
    await service.run(...strace, 'lvcreate', '-V', '64M', '-T', 'thinfs_bench/pool', '-n', 'b')
    const sent = Number(await service.run('grep', '-c', 'ioctl([0-9]*, DM_', trace))
    cells.push({
      name: 'dm/lvcreate',
      unit: 'ioctls',
      samples: { thinfs: [sent], kernel: [KERNEL_IOCTLS] },
      goals: [atMost(1.5, 'thinfs', 'kernel')],
    })
  }
  return cells
}

/** Thin devices one after the other, of a pool of their own: the last must not take longer. */
async function many(service: DmService, settings: Settings): Promise<Cell[]> {
  if (!settings.wants('dm/devices')) return []
  const [data, metadata] = [await service.loop('data', SIZE), await service.loop('meta', 64 * MIB)]
  const sectors = SIZE / 512
  const table = `0 ${sectors} thin-pool ${metadata} ${data} 128 0`
  await service.run('dmsetup', 'create', 'bench', '--table', table)
  const before = await service.memory()
  const made = await service.client('create', 'bench', String(COUNT))
  const taken = (await service.memory()) - before
  const { list, ...removed } = await service.client('remove', 'bench', String(COUNT))
  await service.run('dmsetup', 'remove', 'bench')
  const cell = (what: string, figures: Record<string, number>, unit: string): Cell => {
    const samples = Object.fromEntries(Object.entries(figures).map(([name, n]) => [name, [n]]))
    return { name: `dm/devices-${what}`, unit, samples, goals: [] }
  }
  const even = [atMost(1.5, 'last', 'first')]
  return [
    { ...cell('create', made, 'ms each'), goals: even },
    { ...cell('remove', removed, 'ms each'), goals: even },
    cell('list', { thinfs: list! }, 'ms'),
    { ...cell('memory', { thinfs: taken / MIB }, 'MiB'), goals: [atMost(100, 'thinfs')] },
  ]
}
