import { closeSync, openSync, readSync, writeSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { GIB, KIB, MIB } from '../../src/base/index.js'
import { connectDaemon, findPool, loadConfig, type PoolAdmin } from '../../src/index.js'
import { fill, LOADS, type Load, measure, unitOf } from '../fio.js'
import { atLeast, type Cell, paired, type Scenario, type Settings } from '../scenario.js'
import { type Server, thinfs, withServers } from '../servers.js'

const SIZE = GIB
const COUNT = 1000
const NUMBERS = Array.from({ length: COUNT }, (_, i) => i + 1)
const PIECE = Buffer.alloc(4 * KIB, 1)

/** Of one measurement: there are many. */
const SECONDS_MAX = 1
const CHAIN = thinfs(SIZE, { name: 'chain', dataSize: 4 * SIZE })
const MANY = thinfs(SIZE, { name: 'many', dataSize: 4 * SIZE })
const DEEP = LOADS.filter(({ name }) => name.endsWith('-qd16'))

/**
 * Each snapshot of the chain is one of the last, and has a block of its own, so that no two have
 * one tree. Reads of the newest meet blocks that it shares; it is written, as the first is, when
 * all its blocks are its own: what is compared is the way through the pool, not how much is copied.
 * Of the volumes that are open each was read from, so that whatever is kept for an open volume is
 * there.
 */
export const depth: Scenario = {
  name: 'depth',
  about: `the newest of ${COUNT} snapshots, and ${COUNT} volumes open`,
  memory: 8 * SIZE,
  run({ memory }, settings) {
    return withServers([CHAIN, MANY], memory, settings.signal, async ([chain, many]) => [
      ...(await measureChain(chain!, settings)),
      ...(await measureOpen(many!, settings)),
    ])
  },
}

async function measureChain(server: Server, settings: Settings): Promise<Cell[]> {
  const { signal } = settings
  const seconds = Math.min(settings.seconds, SECONDS_MAX)
  const first = { name: 'first', file: server.file }
  const newest = { name: 'newest', file: pathOf(server, `volume-${COUNT}`) }
  const goals = [atLeast(0.95, 'newest', 'first')]
  const cellOf = async (load: Load): Promise<Cell> => {
    const samples = await paired([first, newest], settings, ({ file }) =>
      measure(file, load, seconds, signal),
    )
    return { name: `depth/chain-${load.name}`, unit: unitOf(load), samples, goals }
  }
  const loads = DEEP.filter(({ name }) => settings.wants(`depth/chain-${name}`))
  if (loads.length === 0) return []
  await fill(first.file, signal)
  await withAdmin(server, async admin => {
    for (const i of NUMBERS) {
      signal.throwIfAborted()
      const name = `volume-${i}`
      await admin.snapshot({ origin: i === 1 ? 'volume' : `volume-${i - 1}`, name })
      await withFiles([pathOf(server, name)], 'r+', ([fd]) =>
        writeSync(fd!, PIECE, 0, PIECE.length, i * MIB),
      )
    }
  })
  const cells: Cell[] = []
  for (const load of loads.filter(({ rw }) => rw === 'randread')) cells.push(await cellOf(load))
  for (const { file } of [first, newest]) await fill(file, signal)
  for (const load of loads.filter(({ rw }) => rw === 'randwrite')) cells.push(await cellOf(load))
  return cells
}

async function measureOpen(server: Server, settings: Settings): Promise<Cell[]> {
  const { signal } = settings
  const seconds = Math.min(settings.seconds, SECONDS_MAX)
  const loads = DEEP.filter(({ name }) => settings.wants(`depth/open-${name}`))
  if (loads.length === 0) return []
  await fill(server.file, signal)
  const paths = NUMBERS.map(i => pathOf(server, `volume-${i}`))
  await withAdmin(server, async admin => {
    for (const i of NUMBERS) {
      signal.throwIfAborted()
      await admin.create({ name: `volume-${i}`, size: MIB })
    }
  })
  await withFiles(paths, 'r+', fds => {
    for (const fd of fds) writeSync(fd, PIECE)
  })
  const contenders = [
    { name: 'one-open', others: [] },
    { name: 'many-open', others: paths },
  ]
  const cells: Cell[] = []
  for (const load of loads) {
    const samples = await paired(contenders, settings, ({ others }) =>
      withFiles(others, 'r', fds => {
        for (const fd of fds) readSync(fd, PIECE)
        return measure(server.file, load, seconds, signal)
      }),
    )
    const goals = [atLeast(0.95, 'many-open', 'one-open')]
    cells.push({ name: `depth/open-${load.name}`, unit: unitOf(load), samples, goals })
  }
  return cells
}

const pathOf = ({ file }: Server, volume: string): string => join(dirname(file), volume)

/** Runs `use` with the pool's daemon: a command of its own takes half a second to start. */
async function withAdmin(
  { folder }: Server,
  use: (admin: PoolAdmin) => Promise<void>,
): Promise<void> {
  const daemon = await connectDaemon(loadConfig(findPool(join(folder, 'pool'))))
  if (!daemon) throw new Error(`${folder}: no daemon`)
  try {
    await use(daemon)
  } finally {
    daemon.close()
  }
}

/** Runs `use` with files open. */
async function withFiles<T>(
  paths: readonly string[],
  flags: string,
  use: (fds: number[]) => T | Promise<T>,
): Promise<T> {
  const fds: number[] = []
  try {
    for (const path of paths) fds.push(openSync(path, flags))
    return await use(fds)
  } finally {
    for (const fd of fds) closeSync(fd)
  }
}
