import { dirname, join } from 'node:path'
import { GIB, KIB, MIB } from '../../src/base/index.js'
import { fill, type Load, measure } from '../fio.js'
import {
  atLeast,
  type Cell,
  type Place,
  paired,
  type Scenario,
  type Settings,
} from '../scenario.js'
import { limitDev, sparseFile, thinfs, withServers } from '../servers.js'

const NR_WRITERS = 16
const NAMES = Array.from({ length: NR_WRITERS }, (_, i) => (i === 0 ? 'volume' : `volume-${i}`))
/** Of a volume: each round's first writes have a part of their own, larger than they can fill. */
const SIZE = 16 * GIB
/** The part of each that is written before, for overwrites. */
const WRITTEN = 64 * MIB
const BLOCK_SIZE = 64 * KIB

const WRITE = { blockSize: 4 * KIB, queueDepth: 1, direct: false, fsync: true }
const OVERWRITE: Load = {
  ...WRITE,
  name: 'overwrite',
  rw: 'randwrite',
  range: { offset: 0, size: WRITTEN },
}
/** One write to each data block. */
const FIRST_WRITE: Load = {
  ...WRITE,
  name: 'first-write',
  rw: 'write',
  skip: BLOCK_SIZE - WRITE.blockSize,
}

interface Files {
  name: string
  files: string[]
}

/**
 * Programs that call write(2) and fsync(2) for every 4 KiB, as databases do, each with a file of
 * its own: the kernel lets only one fsync at a time into a file in FUSE, so a single one has
 * nothing to share. Overwrites change no metadata, and the host has the same to do for a plain
 * file. First writes need a commit for every fsync, and those that come together are to share it.
 */
export const fsync: Scenario = {
  name: 'fsync',
  about: "writes of 4 KiB, each followed by fsync, on this machine's disk",
  memory: 0,
  run({ disk }: Place, settings: Settings) {
    const { signal } = settings
    const volumes = Object.fromEntries(NAMES.map(name => [name, SIZE]))
    const contender = thinfs(SIZE, { volumes, dataSize: 4 * SIZE })
    return withServers([contender, limitDev(SIZE)], disk, signal, async ([server, limit]) => {
      const folder = dirname(server!.file)
      const ours = { name: 'thinfs', files: NAMES.map(name => join(folder, name)) }
      const plain = { name: 'plain', files: NAMES.map(name => sparseFile(join(disk, name), SIZE)) }
      const c = { name: limit!.name, files: [limit!.file] }
      for (const { files } of [ours, plain, c]) {
        for (const file of files) await fill(file, signal, WRITTEN)
      }
      return [
        ...(await overwrites([plain, c, ours], settings)),
        ...(await firstWrites(ours.files, settings)),
      ]
    })
  },
}

async function overwrites(contenders: Files[], settings: Settings): Promise<Cell[]> {
  const cells: Cell[] = []
  for (const nrWriters of [1, NR_WRITERS]) {
    const name = `fsync/overwrite-${nrWriters}`
    if (!settings.wants(name)) continue
    const able = contenders.filter(({ files }) => files.length >= nrWriters)
    const samples = await paired(able, settings, ({ files }) =>
      measure(files.slice(0, nrWriters), OVERWRITE, settings.seconds, settings.signal),
    )
    cells.push({ name, unit: 'IOPS', samples, goals: [atLeast(0.8, 'thinfs', 'plain')] })
  }
  return cells
}

async function firstWrites(files: string[], settings: Settings): Promise<Cell[]> {
  const name = 'fsync/first-write'
  if (!settings.wants(name)) return []
  const one = { name: '1 writer', files: files.slice(0, 1) }
  const all = { name: `${NR_WRITERS} writers`, files }
  const size = Math.floor((SIZE - WRITTEN) / settings.rounds / 2 / BLOCK_SIZE) * BLOCK_SIZE
  const samples = await paired([one, all], settings, (writers, round) => {
    const offset = WRITTEN + (2 * round + (writers === one ? 0 : 1)) * size
    const load = { ...FIRST_WRITE, range: { offset, size } }
    return measure(writers.files, load, settings.seconds, settings.signal)
  })
  return [{ name, unit: 'IOPS', samples, goals: [atLeast(5, all.name, one.name)] }]
}
