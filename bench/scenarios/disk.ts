import { dirname, join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { GIB, KIB } from '../../src/base/index.js'
import { servingPid } from '../engine.js'
import { fill, type Load, measure } from '../fio.js'
import {
  atLeast,
  type Cell,
  type Place,
  paired,
  type Scenario,
  type Settings,
} from '../scenario.js'
import { dropCache, plainFile, readAll, type Server, thinfs, withServers } from '../servers.js'
import { withSlowDisk } from '../slow-disk.js'

/** More than is read within a round, so that every block is read from the disk. */
const SIZE = 2 * GIB
const COLD: Load = {
  name: 'cold-randread',
  rw: 'randread',
  blockSize: 4 * KIB,
  queueDepth: 16,
  once: true,
}
const CACHED: Load = { name: 'randread', rw: 'randread', blockSize: 4 * KIB, queueDepth: 1 }
const CACHED_SIZE = GIB / 4
/** How long the cold reads run before and after the others. */
const MARGIN_MS = 500
/** Reads a second of a disk that is slow beside one engine. */
const SLOW = 5000

/**
 * Reads of data that is in no cache of this machine, many at a time. The plain file is read past
 * the page cache, which is the most that the disk gives: as it is, and held to what slower ones
 * give. Then what such reads do to those who need no disk: a volume whose data is in the page
 * cache, read beside the cold one.
 */
export const disk: Scenario = {
  name: 'disk',
  about: "cold reads from this machine's disk, and what others notice of them",
  memory: 0,
  run({ disk: folder }: Place, settings: Settings) {
    const contender = thinfs(SIZE, { volumes: { cached: CACHED_SIZE } })
    return withServers([contender], folder, settings.signal, async ([server]) => {
      await fill(server!.file, settings.signal)
      const cells = await againstPlain(server!, folder, settings)
      const cell = await besideCold(server!, settings)
      return cell ? [...cells, cell] : cells
    })
  },
}

const dataOf = (server: Server): string => join(server.folder, 'pool', 'data')

async function againstPlain(server: Server, folder: string, settings: Settings): Promise<Cell[]> {
  const asItIs = 'disk/cold-randread-qd16'
  const slow = 'disk/slow-randread-qd16'
  const { signal, seconds, wants } = settings
  if (!wants(asItIs) && !wants(slow)) return []
  const plain = plainFile(folder, SIZE)
  await fill(plain.file, signal)
  const cellOf = async (name: string): Promise<Cell> => {
    const samples = await paired([plain, server], settings, async ({ file }) => {
      await dropCache(file === server.file ? dataOf(server) : file)
      return measure(file, COLD, seconds, signal)
    })
    return { name, unit: 'IOPS', samples, goals: [atLeast(0.9, 'thinfs', 'plain')] }
  }
  const cells: Cell[] = []
  if (wants(asItIs)) cells.push(await cellOf(asItIs))
  if (wants(slow)) {
    // What reads the plain file is started from here.
    const readers = [process.pid, await servingPid(server)]
    const cell = await withSlowDisk(folder, SLOW, readers, () => cellOf(slow))
    if (cell) cells.push(cell)
  }
  return cells
}

async function besideCold(server: Server, settings: Settings): Promise<Cell | null> {
  const name = 'disk/cached-randread-qd1'
  if (!settings.wants(name)) return null
  const { signal, seconds } = settings
  const cached = join(dirname(server.file), 'cached')
  await fill(cached, signal)
  const contenders = [{ name: 'alone' }, { name: 'thinfs' }]
  const samples = await paired(contenders, settings, async ({ name }) => {
    await dropCache(dataOf(server))
    await readAll(cached)
    if (name === 'alone') return measure(cached, CACHED, seconds, signal)
    const cold = measure(server.file, COLD, seconds + (2 * MARGIN_MS) / 1000, signal)
    await setTimeout(MARGIN_MS)
    const [rate] = await Promise.all([measure(cached, CACHED, seconds, signal), cold])
    return rate
  })
  return { name, unit: 'IOPS', samples, goals: [] }
}
