import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { GIB, KIB, MIB } from '../../src/base/index.js'
import { fill, type Load, measure, measureEngine, unitOf } from '../fio.js'
import { NBD_KINDS, type NbdKind, withNbd } from '../nbd.js'
import {
  atLeast,
  type Cell,
  type Place,
  paired,
  type Scenario,
  type Settings,
} from '../scenario.js'
import {
  type Contender,
  mountPlan,
  readAll,
  runThinfs,
  type Server,
  sparseFile,
  thinfs,
  withServers,
} from '../servers.js'

/** Far more than the small cache has, so that reads come from the server. */
const SIZE = GIB / 2
const SMALL_CACHE = 16 * MIB
/** The large cache has all of this range. */
const CACHED = { offset: 0, size: GIB / 4 }
const LARGE_CACHE = GIB / 2

const PAGES = { blockSize: 4 * KIB, queueDepth: 16 }
const LOADS: readonly { load: Load; least: number }[] = [
  { load: { ...PAGES, name: 'cold-randread-qd16', rw: 'randread', once: true }, least: 0.6 },
  { load: { name: 'cold-read-1m', rw: 'read', blockSize: MIB, queueDepth: 4 }, least: 0.8 },
  {
    load: { name: 'write-1m-fsync', rw: 'write', blockSize: MIB, queueDepth: 1, fsync: true },
    least: 0.8,
  },
  {
    load: { ...PAGES, name: 'write-fsync', rw: 'randwrite', queueDepth: 1, fsync: true },
    least: 1,
  },
]
const CACHED_READ: Load = { ...PAGES, name: 'cached-randread-qd16', rw: 'randread', range: CACHED }

/**
 * A pool whose data an NBD server has, against fio on the server itself (libnbd). The servers have
 * their files in memory: what is compared is the way there. Then reads of what the cache has, against
 * a pool whose data is a file of this machine.
 */
export const remote: Scenario = {
  name: 'remote',
  about: 'data on an NBD server, against fio on the export itself',
  memory: 8 * SIZE,
  async run({ memory }: Place, settings: Settings) {
    const cells: Cell[] = []
    for (const kind of NBD_KINDS) {
      if (!LOADS.some(({ load }) => settings.wants(cellOf(kind, load)))) continue
      const folder = join(memory, kind.name)
      mkdirSync(folder)
      cells.push(...(await againstRaw(kind, folder, settings)))
    }
    const cached = await againstLocal(memory, settings)
    return cached === null ? cells : [...cells, cached]
  },
}

const cellOf = ({ name }: NbdKind, load: Load): string => `remote/${name}-${load.name}`

async function againstRaw(kind: NbdKind, folder: string, settings: Settings): Promise<Cell[]> {
  const { signal, seconds, wants } = settings
  const raw = sparseFile(join(folder, 'raw'), SIZE)
  const image = sparseFile(join(folder, 'image'), 2 * SIZE)
  await fill(raw, signal)
  return withNbd(kind, raw, rawAddress =>
    withNbd(kind, image, address =>
      withServers([over(address, SMALL_CACHE)], folder, signal, async ([server]) => {
        await fill(server!.file, signal)
        const contenders = [
          {
            name: 'raw',
            run: (load: Load) => measureEngine(nbd(rawAddress), load, seconds, signal),
          },
          { name: 'thinfs', run: (load: Load) => measure(server!.file, load, seconds, signal) },
        ]
        const cells: Cell[] = []
        for (const { load, least } of LOADS) {
          const name = cellOf(kind, load)
          if (!wants(name)) continue
          const samples = await paired(contenders, settings, ({ run }) =>
            run({ ...load, range: { offset: 0, size: SIZE } }),
          )
          cells.push({
            name,
            unit: unitOf(load),
            samples,
            goals: [atLeast(least, 'thinfs', 'raw')],
          })
        }
        return cells
      }),
    ),
  )
}

const nbd = (address: string): string[] => ['--ioengine=nbd', `--uri=${address}`]

async function againstLocal(folder: string, settings: Settings): Promise<Cell | null> {
  const name = `remote/${CACHED_READ.name}`
  if (!settings.wants(name)) return null
  const { signal, seconds } = settings
  const image = sparseFile(join(folder, 'image'), SIZE)
  const measureAll = async (servers: readonly Server[]): Promise<Cell> => {
    for (const { file } of servers) {
      await fill(file, signal)
      await readAll(file)
    }
    const samples = await paired(servers, settings, ({ file }) =>
      measure(file, CACHED_READ, seconds, signal),
    )
    return { name, unit: 'IOPS', samples, goals: [atLeast(0.9, 'thinfs', 'local')] }
  }
  return withNbd(NBD_KINDS[0]!, image, address => {
    const contenders = [
      over(address, LARGE_CACHE, CACHED.size),
      thinfs(CACHED.size, { name: 'local' }),
    ]
    return withServers(contenders, folder, signal, measureAll)
  })
}

/** thinfs on an export, with a cache of so many bytes. */
const over = (address: string, cache: number, size = SIZE): Contender => ({
  name: 'thinfs',
  async prepare(folder) {
    const pool = join(folder, 'pool')
    mkdirSync(pool)
    writeFileSync(
      join(pool, 'pool.yaml'),
      `pool: far\ndata: { nbd: "${address}" }\ncache: { size: ${cache} }\nvolumes: { volume: { size: ${size} } }\n`,
    )
    await runThinfs('init', pool)
    return mountPlan(folder)
  },
})
