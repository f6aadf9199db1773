// Goal: the map says of each cell what is in use, what one volume has for itself and which has
// most. Method: thin_dump's mappings of the same metadata, counted one by one.
import t from 'tap'
import { MIB } from '../../src/base/index.js'
import { openPool } from '../../src/volumes/index.js'
import { makePool } from '../support/pool-files.js'
import { thinDump } from '../support/thin-tools.js'

const BLOCK = 64 * 1024

t.test('each cell is what thin_dump says', async t => {
  const config = await makePool(t.testdir({}))
  const { volumes, close } = await openPool(config)
  for (const name of ['one', 'two']) await volumes.create({ name, size: 64 * MIB })
  const write = async (name: string, begin: number, end: number): Promise<void> => {
    const { device } = volumes.find(name)!
    const data = Buffer.alloc(BLOCK, 1)
    for (let block = begin; block < end; block++) await device.write(block * BLOCK, BLOCK, data, 0)
  }
  await write('one', 0, 300)
  await write('two', 100, 180)
  await volumes.snapshot({ origin: 'one', name: 'snap' })
  await write('one', 250, 320)
  await volumes.find('two')!.device.discard(120 * BLOCK, 30 * BLOCK)
  await volumes.commit()
  await volumes.pool.space.allReleased()
  const maps = await Promise.all(
    [1, 7, 100, 1024, 4096].map(async cells => ({
      cells,
      map: await volumes.blockMap({ cells }),
    })),
  )
  const listed = await volumes.list({ exclusive: true })
  const [one] = listed
  t.same(await volumes.list({ exclusive: true, names: [one!.name, 'none'] }), [one])
  await t.rejects(volumes.blockMap({ cells: 0 }), { code: 'BAD_ARGUMENT' })
  await close()

  const { devices } = thinDump(config.metadata.path)
  const owners = new Map<number, number[]>()
  for (const [devId, { mappings }] of devices) {
    for (const { dataBlock } of mappings.values()) {
      owners.set(dataBlock, [...(owners.get(dataBlock) ?? []), devId])
    }
  }
  t.ok(owners.size > 300)
  for (const { cells, map } of maps) {
    t.equal(map.blocks, 1024)
    t.ok(map.used.length <= cells && map.used.length * map.blocksPerCell >= 1024)
    for (const [i, used] of map.used.entries()) {
      const here = [...owners].filter(([block]) => Math.floor(block / map.blocksPerCell) === i)
      const alone = here.filter(([, devIds]) => devIds.length === 1).map(([, [devId]]) => devId)
      const counts = map.volumes.map(({ devId }) => alone.filter(id => id === devId).length)
      const most = Math.max(...counts)
      const isRight =
        used === here.length &&
        map.exclusive[i] === alone.length &&
        (most === 0 ? map.owner[i] === -1 : counts[map.owner[i]!] === most)
      if (!isRight) t.fail(`cell ${i} of ${cells}`)
    }
    t.same(
      map.volumes.map(({ name, mapped, exclusive }) => [name, mapped, exclusive]).sort(),
      listed.map(({ name, mapped, exclusive }) => [name, mapped, exclusive]).sort(),
    )
  }
})
