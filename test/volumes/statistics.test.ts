// Goal: the counters of a pool only grow, whatever becomes of its volumes and of its engine.
// Method: what was asked for is counted by hand; a volume is removed, and the counts are handed to
// the volumes of another engine.
import t from 'tap'
import { VolumeFs } from '../../src/fs/index.js'
import type { CacheCounts } from '../../src/storage/index.js'
import type { PoolStatistics } from '../../src/volumes/index.js'
import { openFiles } from '../support/memory-pool.js'
import { BLOCK, files, filled } from '../support/thin-devices.js'
import { openTable } from '../support/volumes-on-disk.js'

async function engine() {
  const memory = files(16)
  const { pool } = await openFiles(memory)
  const volumes = openTable(pool, memory.metadata, {
    path: 'volumes.json',
    read: () => null,
    replace: async () => {},
  })
  const fs = new VolumeFs(volumes, { uid: 0, gid: 0 }, 0)
  const make = async (name: string): Promise<number> => {
    const { devId } = await volumes.newVolumes.make(name, 2 * BLOCK)
    return devId + 2
  }
  const write = (ino: number): void => {
    t.equal(fs.write(ino, 0, BLOCK, filled(BLOCK, 1), 0), BLOCK)
  }
  const read = (ino: number): void => {
    t.equal(fs.read(ino, 0, 512, Buffer.alloc(512), 0), 512)
  }
  return { volumes, make, write, read }
}

const bytesOf = ({ io, volumes }: PoolStatistics) => ({
  all: [io.read.bytes, io.write.bytes],
  volumes: volumes.map(({ name, io }) => [name, io?.read.bytes ?? 0, io?.write.bytes ?? 0]),
})

t.test('a removed volume, and another engine', async t => {
  const one = await engine()
  const [a, b] = [await one.make('a'), await one.make('b')]
  for (const ino of [a, b]) one.write(ino)
  one.read(b)
  const web = {
    all: [512, 2 * BLOCK],
    volumes: [
      ['a', 0, BLOCK],
      ['b', 512, BLOCK],
    ],
  }
  t.same(bytesOf(await one.volumes.statistics()), web)
  await one.volumes.remove({ names: ['a'] })
  const removed = { all: [512, 2 * BLOCK], volumes: [['b', 512, BLOCK]] }
  const before = await one.volumes.statistics()
  t.same(bytesOf(before), removed)

  const two = await engine()
  await two.make('other')
  const ino = await two.make('b')
  two.volumes.resumeStatistics({ before, engineRestarts: 1 })
  t.same(bytesOf(await two.volumes.statistics()), {
    all: [512, 2 * BLOCK],
    volumes: [
      ['b', 512, BLOCK],
      ['other', 0, 0],
    ],
  })
  two.read(ino)
  const { io, volumes } = await two.volumes.statistics()
  t.match(io, { read: { count: 2, bytes: 1024 }, write: { count: 2 } })
  t.match(volumes[0], { name: 'b', io: { read: { count: 2, bytes: 1024 }, write: { count: 1 } } })
})

t.test(
  'the cache before data on another machine: its counters go on, its state is as of now',
  async t => {
    const { volumes } = await engine()
    t.equal((await volumes.statistics()).cache, null, 'data that is here has none')
    const counts: CacheCounts = {
      ...{
        hits: 1,
        misses: 2,
        aheadUsedBytes: 3,
        aheadWastedBytes: 4,
        sentBytes: 5,
        sentRequests: 6,
      },
      ...{ flushes: 7, reconnects: 8, dirtyBytes: 9, dirtyLimit: 10, drainBytesPerSecond: 11 },
      writersWaiting: 12,
    }
    Object.defineProperty(volumes.pool.blocks, 'cacheCounts', { value: counts })
    const before = await volumes.statistics()
    t.same(before.cache, counts)
    volumes.resumeStatistics({ before, engineRestarts: 1 })
    t.same((await volumes.status()).cache, {
      ...{
        hits: 2,
        misses: 4,
        aheadUsedBytes: 6,
        aheadWastedBytes: 8,
        sentBytes: 10,
        sentRequests: 12,
      },
      ...{ flushes: 14, reconnects: 16, dirtyBytes: 9, dirtyLimit: 10, drainBytesPerSecond: 11 },
      writersWaiting: 12,
    })
  },
)
