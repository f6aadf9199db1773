// Goal: what rules of space refuse, and what they must not refuse. Method: a pool in memory, filled
// block by block; the numbers are those of the metadata.
import fc from 'fast-check'
import t from 'tap'
import { ThinMetadata } from '../../src/metadata/index.js'
import { MemoryStore } from '../support/memory-store.js'
import { PowerDisk, SparseImage } from '../support/power-disk.js'
import { Random } from '../support/random.js'
import { openVolumes, reaped } from '../support/volumes-on-disk.js'

/** More of them take longer and find more: RUNS=1000. */
const RUNS = Number(process.env.RUNS ?? 40)
const BLOCK = 4096

function madePool(dataBlocks: number) {
  const metadata = new MemoryStore(256 * 4096)
  ThinMetadata.format(metadata, { dataBlockSectors: BLOCK / 512 })
  const disk = new PowerDisk(
    {
      metadata: new SparseImage(metadata.image),
      data: SparseImage.ofHoles(dataBlocks * BLOCK),
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

t.test('a volume may wait where others fail, and fail where others wait', async t => {
  const opened = await madePool(20)
  const { volumes } = opened
  await volumes.set({ onFull: 'queue' })
  const size = 40 * BLOCK
  for (const name of ['waits', 'fails', 'late', 'other']) await volumes.create({ name, size })
  const write = (name: string, blocks: number) => volumes.find(name)!.device.write(...fill(blocks))
  const { space } = volumes.pool
  await write('other', space.data.nrFree)
  const full = { code: 'NO_DATA_SPACE', errno: 'ENOSPC' }
  const bad = volumes.setVolume({ name: 'fails', onFull: 'wait' as 'queue' })
  await t.rejects(bad, {
    code: 'BAD_ARGUMENT',
    message: 'on_full wait: queue, error and none are allowed',
  })
  t.match(await volumes.setVolume({ name: 'fails', onFull: 'error' }), { onFull: 'error' })
  await t.rejects(Promise.resolve(write('fails', 1)), full, 'where the pool lets others wait')
  await volumes.setVolume({ name: 'waits', onFull: 'queue' })
  const ended: string[] = []
  const waits = (name: string) =>
    Promise.resolve(write(name, 1)).then(
      () => ended.push(`${name} was written`),
      ({ code }) => ended.push(`${name}: ${code}`),
    )
  const all = [waits('waits'), waits('late')]
  for (let turns = 0; space.writesWaiting < 2 && turns < 10_000; turns++) {
    await new Promise(resolve => setImmediate(resolve))
  }
  t.equal(space.writesWaiting, 2)
  await volumes.set({ onFull: 'error' })
  await all[1]
  t.same(ended, ['late: NO_DATA_SPACE'])
  await volumes.remove({ names: ['other'] })
  await all[0]
  t.same(ended.slice(1), ['waits was written'])
  t.match(await volumes.setVolume({ name: 'waits', onFull: 'pool' }), { onFull: null })
  for (const queueTimeout of [-2, 1.5, 1_000_001]) {
    await t.rejects(volumes.setVolume({ name: 'waits', queueTimeout }), { code: 'BAD_ARGUMENT' })
    await t.rejects(volumes.set({ queueTimeout }), { code: 'BAD_ARGUMENT' })
  }
  t.match(await volumes.setVolume({ name: 'waits', queueTimeout: 0 }), { queueTimeout: 0 })
  t.match(await volumes.setVolume({ name: 'waits', queueTimeout: -1 }), { queueTimeout: null })
})

t.test('no volume is made while less is free than is to be', async t => {
  const opened = await madePool(100)
  const { volumes } = opened
  const { space } = volumes.pool
  const size = 200 * BLOCK
  await volumes.create({ name: 'web', size })
  await volumes.find('web')!.device.write(...fill(90))
  await volumes.set({ minFreeSpace: 10 })
  await volumes.snapshot({ origin: 'web', name: 'old' })
  await volumes.create({ name: 'db', size: BLOCK })
  await volumes.find('db')!.device.write(...fill(1))
  t.equal(space.data.nrFree, 9)
  const refused = { code: 'MIN_FREE_SPACE', errno: 'ENOSPC', message: /^9\.00% of the pool's data/ }
  await t.rejects(volumes.create({ name: 'c', size }), refused)
  await t.rejects(volumes.newVolumes.make('c', 0), refused)
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
  t.equal(space.data.nrFree, 10)
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

t.test('what several volumes have together is what removing them gives back', async () => {
  const letters = ['a', 'b', 'c', 'd', 'e']
  const size = 4000 * BLOCK
  const step = fc.record({
    kind: fc.constantFrom('write', 'write', 'discard', 'snapshot', 'copy', 'remove'),
    one: fc.nat(4),
    other: fc.nat(4),
    // Few blocks near each other, and far ones: trees of one leaf, and of several.
    at: fc.oneof(fc.nat(40), fc.nat(3900)),
    count: fc.integer({ min: 1, max: 90 }),
  })
  const steps = fc.array(step, { minLength: 3, maxLength: 25 })
  const chosen = fc.subarray(letters, { minLength: 1 })
  await fc.assert(
    fc.asyncProperty(steps, chosen, fc.boolean(), async (steps, chosen, holds) => {
      const opened = await madePool(4000)
      const { volumes } = opened
      const { pool } = volumes
      await volumes.create({ name: 'a', size })
      await volumes.find('a')!.device.write(...fill(250))
      for (const { kind, one, other, at, count } of steps) {
        const volume = volumes.find(letters[one]!)
        const name = letters[other]!
        const target = volumes.find(name)
        if (volume === undefined) continue
        const place = [at * BLOCK, Math.min(count, 4000 - at) * BLOCK] as const
        if (kind === 'write') await volume.device.write(...place, Buffer.alloc(place[1], one), 0)
        if (kind === 'discard') await volume.device.discard(...place)
        if (kind === 'snapshot' && target === undefined) {
          await volumes.snapshot({ origin: volume.name, name })
        }
        if (kind === 'copy' && target !== undefined) {
          await target.device.share(volume.device, 0, place[0], Math.min(place[1], 64 * BLOCK))
        }
        if (kind === 'remove' && volumes.count > 1) await volumes.remove({ names: [volume.name] })
        await reaped(opened)
      }
      if (holds) await pool.reserveMetadataSnap()
      const names = chosen.filter(name => volumes.find(name) !== undefined)
      if (names.length === 0) return
      const { bytes } = await volumes.exclusive({ names })
      const before = pool.metadata.nrAllocatedDataBlocks
      await volumes.remove({ names })
      await reaped(opened)
      const freed = (before - pool.metadata.nrAllocatedDataBlocks) * BLOCK
      if (bytes !== freed) throw new Error(`${bytes} bytes were counted, ${freed} are free`)
      await volumes.close()
    }),
    { numRuns: RUNS },
  )
})
