import { dirname, join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { GIB, KIB } from '../../src/base/index.js'
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

/**
 * Reads of data that is in no cache of this machine, many at a time. The plain file is read past the
 * page cache, which is the most that the disk gives. Then what such reads do to those who need no
 * disk: a volume whose data is in the page cache, read beside the cold one.
 */
export const disk: Scenario = {
  name: 'disk',
  about: "cold reads from this machine's disk, and what others notice of them",
  memory: 0,
  run({ disk: folder }: Place, settings: Settings) {
    const contender = thinfs(SIZE, { volumes: { cached: CACHED_SIZE } })
    return withServers([contender], folder, settings.signal, async ([server]) => {
      await fill(server!.file, settings.signal)
      const cells: Cell[] = []
      for (const measureCell of [againstPlain, besideCold]) {
        const cell = await measureCell(server!, folder, settings)
        if (cell) cells.push(cell)
      }
      return cells
    })
  },
}

const dataOf = (server: Server): string => join(server.folder, 'pool', 'data')

async function againstPlain(
  server: Server,
  folder: string,
  settings: Settings,
): Promise<Cell | null> {
  const name = 'disk/cold-randread-qd16'
  if (!settings.wants(name)) return null
  const { signal, seconds } = settings
  const plain = plainFile(folder, SIZE)
  await fill(plain.file, signal)
  const samples = await paired([plain, server], settings, async ({ file }) => {
    await dropCache(file === server.file ? dataOf(server) : file)
    return measure(file, COLD, seconds, signal)
  })
  return { name, unit: 'IOPS', samples, goals: [atLeast(0.9, 'thinfs', 'plain')] }
}

async function besideCold(
  server: Server,
  _folder: string,
  settings: Settings,
): Promise<Cell | null> {
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
