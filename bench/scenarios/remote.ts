import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { GIB, KIB, MIB } from '../../src/base/index.js'
import { fill, fillEngine, type Load, measure, measureEngine, unitOf } from '../fio.js'
import { NBD_KINDS } from '../nbd.js'
import { cephDisks, type DiskKind, nbdDisks, type RemoteDisk } from '../remote-disks.js'
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
  thinfs,
  withServers,
} from '../servers.js'

/** Far more than the small cache has, so that reads come from the server. */
const SIZE = GIB / 2
/** The same of a cluster that keeps three copies of all on one disk. */
const CEPH_SIZE = GIB / 4
const SMALL_CACHE = 16 * MIB
/** The large cache has all of this range. */
const CACHED = { offset: 0, size: GIB / 4 }
const LARGE_CACHE = GIB / 2

const PAGES = { blockSize: 4 * KIB, queueDepth: 16 }

/** A load, and what thinfs has to reach of fio on the disk itself. */
interface Wanted {
  load: Load
  least: number
}

const READS: Wanted[] = [
  { load: { ...PAGES, name: 'cold-randread-qd16', rw: 'randread', once: true }, least: 0.6 },
  { load: { name: 'cold-read-1m', rw: 'read', blockSize: MIB, queueDepth: 4 }, least: 0.8 },
]
const WRITES: Wanted[] = [
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
 * A pool whose data an NBD server or a Ceph cluster has, against fio on the export or the image
 * itself, by libnbd and librbd. Both sides pay what the storage costs: three OSDs on this machine's
 * disk, and for writes with fsync NBD servers whose files are on the disk. A file in memory flushes
 * in no time, and nobody who keeps data has that. For reads their files are in memory: what is
 * compared is the way there. Then reads of what the cache has, against a pool whose data is a file
 * of this machine.
 */
export const remote: Scenario = {
  name: 'remote',
  about: 'data on NBD servers and on Ceph, against fio on the same server; fsync reaches a disk',
  memory: 8 * SIZE,
  async run({ memory, disk }: Place, settings: Settings) {
    const cells: Cell[] = []
    const compare = async (kind: DiskKind, size: number, folder: string, all: Wanted[]) => {
      const loads = all.filter(({ load }) => settings.wants(cellOf(kind, load)))
      if (loads.length === 0) return
      mkdirSync(folder)
      cells.push(...(await againstRaw(kind, size, folder, loads, settings)))
      rmSync(folder, { recursive: true })
    }
    for (const kind of NBD_KINDS.map(nbdDisks)) {
      await compare(kind, SIZE, join(memory, kind.name), READS)
      await compare(kind, SIZE, join(disk, kind.name), WRITES)
    }
    await compare(cephDisks, CEPH_SIZE, join(disk, 'ceph'), [...READS, ...WRITES])
    const cached = await againstLocal(memory, settings)
    return cached === null ? cells : [...cells, cached]
  },
}

const cellOf = ({ name }: DiskKind, load: Load): string => `remote/${name}-${load.name}`

function againstRaw(
  kind: DiskKind,
  size: number,
  folder: string,
  loads: readonly Wanted[],
  settings: Settings,
): Promise<Cell[]> {
  const { signal, seconds } = settings
  return kind.withDisks(folder, [size, 2 * size], async ([raw, disk]) => {
    await fillEngine(raw!.engine, size, signal)
    return withServers([over(disk!, SMALL_CACHE, size)], folder, signal, async ([server]) => {
      await fill(server!.file, signal)
      const contenders = [
        { name: 'raw', run: (load: Load) => measureEngine(raw!.engine, load, seconds, signal) },
        { name: 'thinfs', run: (load: Load) => measure(server!.file, load, seconds, signal) },
      ]
      const cells: Cell[] = []
      for (const { load, least } of loads) {
        const samples = await paired(contenders, settings, ({ run }) =>
          run({ ...load, range: { offset: 0, size } }),
        )
        const goals = [atLeast(least, 'thinfs', 'raw')]
        cells.push({ name: cellOf(kind, load), unit: unitOf(load), samples, goals })
      }
      return cells
    })
  })
}

function againstLocal(folder: string, settings: Settings): Promise<Cell | null> {
  const name = `remote/${CACHED_READ.name}`
  if (!settings.wants(name)) return Promise.resolve(null)
  const { signal, seconds } = settings
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
  return nbdDisks(NBD_KINDS[0]!).withDisks(folder, [SIZE], ([disk]) => {
    const contenders = [
      over(disk!, LARGE_CACHE, CACHED.size),
      thinfs(CACHED.size, { name: 'local' }),
    ]
    return withServers(contenders, folder, signal, measureAll)
  })
}

/** thinfs on a disk, with a cache of so many bytes. */
const over = ({ config }: RemoteDisk, cache: number, size: number): Contender => ({
  name: 'thinfs',
  async prepare(folder) {
    const pool = join(folder, 'pool')
    mkdirSync(pool)
    writeFileSync(
      join(pool, 'pool.yaml'),
      `pool: far\n${config}\ncache: { size: ${cache} }\nvolumes: { volume: { size: ${size} } }\n`,
    )
    await runThinfs('init', pool)
    return mountPlan(folder)
  },
})
