import { statSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { GIB, KIB, MIB, Random } from '../../src/base/index.js'
import type { PoolStatus } from '../../src/volumes/index.js'
import { fill, type Load, measureOnce, unitOf } from '../fio.js'
import { haveMemoryAtHand } from '../memory.js'
import { atLeast, atMost, paired, type Scenario } from '../scenario.js'
import { qemu, runThinfs, type Server, thinfs, withFreshServer, withServers } from '../servers.js'

/** Half of what haveMemoryAtHand leaves, for whole blocks are copied. */
const SIZE = 512 * MIB
const BLOCK = 64 * KIB
const WRITE: Load = { name: 'randwrite-qd16', rw: 'randwrite', blockSize: 4 * KIB, queueDepth: 16 }

const BASE = { ...qemu(SIZE), name: 'base' }
const POOLS = [thinfs(SIZE), thinfs(SIZE, { name: 'thinfs-4k', blockSize: '4K' })]
const POLL_MS = 20

/**
 * A snapshot of a volume that is all data, made for the run; for qemu-storage-daemon a new overlay
 * over an image that is all data. The data blocks of `thinfs-4k` are as small as the writes:
 * nothing is copied, and its data file takes no byte more than was written.
 */
export const snapshot: Scenario = {
  name: 'snapshot',
  about: 'writes that break sharing, to a snapshot of a full volume',
  memory: 8 * GIB,
  async run({ memory }, settings) {
    const { signal } = settings
    const offsets = oneInEachBlock()
    const amplification: Record<string, number[]> = {}
    /** Writes to `file`, whose new blocks are in `data`. */
    const write = async (name: string, file: string, data: string): Promise<number> => {
      haveMemoryAtHand(memory)
      const before = allocatedBytes(data)
      const rate = await measureOnce(file, WRITE, signal, offsets)
      const grown = allocatedBytes(data) - before
      amplification[name] ??= []
      amplification[name].push(grown / (offsets.length * WRITE.blockSize))
      return rate
    }
    await withServers([BASE], memory, signal, ([base]) => fill(base!.file, signal))
    const overlay = qemu(SIZE, { backing: join(memory, BASE.name, 'image.qcow2') })
    return withServers(POOLS, memory, signal, async servers => {
      for (const { file } of servers) await fill(file, signal)
      const samples = await paired([overlay, ...servers], settings, contender =>
        contender === overlay
          ? withFreshServer(overlay, memory, signal, ({ name, file, folder }) =>
              write(name, file, join(folder, 'image.qcow2')),
            )
          : withSnapshot(contender as Server, file =>
              write(contender.name, file, join((contender as Server).folder, 'pool/data')),
            ),
      )
      return [
        {
          name: `snapshot/${WRITE.name}`,
          unit: unitOf(WRITE),
          samples,
          goals: [atLeast(2, 'thinfs', 'qemu')],
        },
        {
          name: 'snapshot/amplification',
          unit: 'bytes a byte',
          samples: amplification,
          goals: [atMost(1.02, 'thinfs-4k')],
        },
      ].filter(({ name }) => settings.wants(name))
    })
  },
}

/** Runs `use` with a new snapshot of the volume, and waits until the space that it took is free. */
async function withSnapshot<T>(
  { file, folder }: Server,
  use: (file: string) => Promise<T>,
): Promise<T> {
  const pool = join(folder, 'pool')
  const before = await usedBlocks(pool)
  await runThinfs('snapshot', pool, 'volume', 'snapshot')
  const result = await use(join(dirname(file), 'snapshot'))
  await runThinfs('remove', pool, 'snapshot', '--yes')
  while ((await usedBlocks(pool)) > before) await setTimeout(POLL_MS)
  return result
}

async function usedBlocks(pool: string): Promise<number> {
  const status = JSON.parse(await runThinfs('status', pool, '--json')) as PoolStatus
  return status.data.usedBlocks
}

/**
 * A request in every 64 KiB of the volume, in a random order: each meets a block that is shared.
 */
function oneInEachBlock(): number[] {
  const random = new Random(1)
  const offsets = Array.from(
    { length: SIZE / BLOCK },
    (_, block) => block * BLOCK + random.below(BLOCK / WRITE.blockSize) * WRITE.blockSize,
  )
  random.shuffle(offsets)
  return offsets
}

const allocatedBytes = (path: string): number => statSync(path).blocks * 512
