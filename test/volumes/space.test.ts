// Goal: what rules of space refuse, and what they must not refuse. Method: a pool in memory, filled block by
// block; the numbers are those of the metadata.
import t from 'tap'
import { ThinMetadata } from '../../src/metadata/index.js'
import { MemoryStore } from '../support/memory-store.js'
import { PowerDisk, SparseImage } from '../support/power-disk.js'
import { Random } from '../support/random.js'
import { openVolumes, reaped } from '../support/volumes-on-disk.js'

const BLOCK = 4096
const DATA_BLOCKS = 100

function madePool() {
  const metadata = new MemoryStore(256 * 4096)
  ThinMetadata.format(metadata, { dataBlockSectors: BLOCK / 512 })
  const disk = new PowerDisk(
    {
      metadata: new SparseImage(metadata.image),
      data: SparseImage.ofHoles(DATA_BLOCKS * BLOCK),
      journal: Buffer.alloc(0),
      table: null,
      label: null,
      boot: 1,
    },
    new Random(1),
  )
  return openVolumes(disk.open())
}

const fill = (blocks: number): [number, number, Buffer, number] => [
  0,
  blocks * BLOCK,
  Buffer.alloc(blocks * BLOCK, 1),
  0,
]

t.test('no volume is made while less is free than is to be', async t => {
  const opened = await madePool()
  const { volumes } = opened
  const { space } = volumes.pool
  const size = 200 * BLOCK
  await volumes.create({ name: 'web', size })
  await volumes.find('web')!.device.write(...fill(90))
  await volumes.set({ minFreeSpace: 10 })
  await volumes.snapshot({ origin: 'web', name: 'old' })
  await volumes.create({ name: 'db', size: BLOCK })
  await volumes.find('db')!.device.write(...fill(1))
  t.equal(space.nrFreeDataBlocks, 9)
  const refused = { code: 'MIN_FREE_SPACE', errno: 'ENOSPC', message: /^9\.00% of the pool's data/ }
  await t.rejects(volumes.create({ name: 'c', size }), refused)
  await t.rejects(volumes.make('c', 0), refused)
  await t.rejects(volumes.snapshot({ origin: 'web', name: 'c' }), refused)
  await t.rejects(volumes.snapshotAll({ origins: ['web'], suffix: '@c' }), refused)
  await t.rejects(volumes.beginVolume({ name: 'c', size }), refused)
  t.same([...volumes.all()].map(({ name }) => name).sort(), ['db', 'old', 'web'])

  await volumes.find('web')!.device.write(...fill(2))
  await volumes.rollback({ name: 'web', snapshot: 'old', keep: 'what web was' })
  const held = await volumes.hold({ names: ['web'] })
  await volumes.hidden.drop(Number(held.volumes[0]!.file!.replace('.thinfs-', '')))
  await volumes.remove({ names: ['what web was', 'db'] })
  await reaped(opened)
  await volumes.commit()
  t.equal(space.nrFreeDataBlocks, 10)
  await volumes.snapshot({ origin: 'web', name: 'c' })
  await volumes.set({ minFreeSpace: 99 })
  const both = { code: 'MIN_FREE_SPACE', message: /data is free, min_free_space is 99%/ }
  await t.rejects(volumes.create({ name: 'd', size }), both)
  await volumes.remove({ names: ['web', 'old', 'c'] })
  await reaped(opened)
  await volumes.commit()
  const metadata = { code: 'MIN_FREE_SPACE', message: /% of the pool's metadata is free/ }
  await t.rejects(volumes.create({ name: 'd', size }), metadata)
  await volumes.set({ minFreeSpace: 0 })
  await volumes.create({ name: 'd', size })
  await volumes.close()
})
