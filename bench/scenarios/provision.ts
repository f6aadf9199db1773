import { rmSync } from 'node:fs'
import { GIB, KIB, MIB } from '../../src/base/index.js'
import { type Load, measure, measureOnce, unitOf } from '../fio.js'
import { haveMemoryAtHand } from '../memory.js'
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
  limitDev,
  plainFile,
  qemu,
  thinfs,
  withFreshServer,
  withServers,
} from '../servers.js'

/**
 * Of the volume, in bytes: so large that 49 of 50 random writes meet a block that is not there yet.
 */
const SIZE = 256 * GIB
const SEQUENTIAL: Load = {
  name: 'write-1m',
  rw: 'write',
  blockSize: MIB,
  queueDepth: 4,
  range: { offset: 0, size: 512 * MIB },
}
/**
 * What every server has been written to before, elsewhere: one that was just started is slow to
 * begin.
 */
const WARM_UP: Load = { ...SEQUENTIAL, range: { offset: SIZE / 2, size: 128 * MIB } }
const RANDOM: Load = { name: 'randwrite-qd16', rw: 'randwrite', blockSize: 4 * KIB, queueDepth: 16 }
/**
 * Bytes that a run takes at most: qemu-storage-daemon's whole clusters at 30,000 a second for 3 s.
 */
const WRITTEN_MAX = 6 * GIB

const FRESH = [limitDev(SIZE), qemu(SIZE), thinfs(SIZE)]
const OVERWRITE = thinfs(SIZE, { name: 'thinfs-overwrite' })

/**
 * Every run has a volume of its own, which has nothing where it is written to. In memory, where the
 * host's part of it, new pages of the file behind it, is much of the time: a plain file has that
 * alone, and limit-dev that and FUSE. What is overwritten has its pages.
 */
export const provision: Scenario = {
  name: 'provision',
  about: 'first writes to an empty volume',
  memory: WRITTEN_MAX + 2 * GIB,
  async run(place, settings) {
    const cells = [await sequential(place, settings), await random(place, settings)]
    return cells.filter(cell => cell !== null)
  },
}

async function sequential({ memory }: Place, settings: Settings): Promise<Cell | null> {
  const name = `provision/${SEQUENTIAL.name}`
  if (!settings.wants(name)) return null
  const { signal } = settings
  return withServers([OVERWRITE], memory, signal, async ([overwritten]) => {
    await measureOnce(overwritten!.file, SEQUENTIAL, signal)
    const write = ({ file }: { file: string }): Promise<number> => {
      haveMemoryAtHand(memory)
      return measureOnce(file, SEQUENTIAL, signal)
    }
    const writePlain = async (): Promise<number> => {
      const plain = plainFile(memory, SIZE)
      try {
        return await write(plain)
      } finally {
        rmSync(plain.file)
      }
    }
    const writeFresh = (contender: Contender): Promise<number> =>
      withFreshServer(contender, memory, signal, async server => {
        await measureOnce(server.file, WARM_UP, signal)
        return write(server)
      })
    const contenders = [
      { name: 'plain', measure: writePlain },
      ...FRESH.map(fresh => ({ name: fresh.name, measure: () => writeFresh(fresh) })),
      { name: OVERWRITE.name, measure: () => write(overwritten!) },
    ]
    const samples = await paired(contenders, settings, contender => contender.measure())
    const goals = [atLeast(2, 'thinfs', 'qemu'), atLeast(0.7, 'thinfs', OVERWRITE.name)]
    return { name, unit: unitOf(SEQUENTIAL), samples, goals }
  })
}

async function random({ memory }: Place, settings: Settings): Promise<Cell | null> {
  const name = `provision/${RANDOM.name}`
  if (!settings.wants(name)) return null
  const { signal, seconds } = settings
  const samples = await paired(FRESH, settings, contender =>
    withFreshServer(contender, memory, signal, ({ file }) => {
      haveMemoryAtHand(memory)
      return measure(file, RANDOM, seconds, signal)
    }),
  )
  return { name, unit: unitOf(RANDOM), samples, goals: [atLeast(2, 'thinfs', 'qemu')] }
}
