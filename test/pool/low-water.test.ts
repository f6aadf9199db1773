// Goal: a low water mark that is crossed is told once, and again only when space has come back.
// Method: random walks of free space against what a reader of the whole walk would tell; a pool in
// memory.
import t from 'tap'
import { LowWater } from '../../src/pool/low-water.js'
import { devId, openFiles } from '../support/memory-pool.js'
import { Random } from '../support/random.js'
import { BLOCK, files, filled, thin } from '../support/thin-devices.js'

/**
 * The places of a walk at which a mark is crossed downwards: between two, more than 17/16 were
 * free.
 */
function crossings(walk: readonly number[], mark: number): number[] {
  const found: number[] = []
  walk.forEach((free, i) => {
    const last = found.at(-1)
    const isArmed = last === undefined || walk.slice(last, i).some(n => n > (mark * 17) / 16)
    if (free <= mark && isArmed) found.push(i)
  })
  return found
}

t.test('random walks', async t => {
  for (let seed = 1; seed <= 20; seed++) {
    const random = new Random(seed)
    const mark = random.of([0, 1, 16, 50])
    const walk: number[] = []
    let free = 60
    for (let i = 0; i < 200; i++) {
      free = Math.max(0, Math.min(100, free + random.between(-8, 8)))
      walk.push(free)
    }
    const told: number[] = []
    let at = 0
    const lowWater = new LowWater(() => told.push(at))
    for (; at < walk.length; at++) lowWater.note(walk[at]!, mark)
    t.same(told, crossings(walk, mark), `seed ${seed}, mark ${mark}`)
  }
})

t.test('a limit that is met is told of once, and again when less was mapped meanwhile', async t => {
  const { pool, recorded } = await openFiles(files(16))
  const device = thin(pool, 0)
  device.limit = 4
  const block = filled(BLOCK, 1)
  const write = async (vblock: number) => device.write(vblock * BLOCK, BLOCK, block, 0)
  for (const vblock of [0, 1, 2, 3]) await write(vblock)
  t.same(recorded.limits, [])
  for (let i = 0; i < 3; i++) await t.rejects(write(4), { code: 'VOLUME_FULL' })
  t.same(recorded.limits, [0])
  await device.discard(0, BLOCK)
  await write(0)
  await t.rejects(write(4), { code: 'VOLUME_FULL' })
  t.same(recorded.limits, [0], 'one block that comes and goes is not news')
  await device.discard(0, 2 * BLOCK)
  await write(0)
  await write(1)
  await t.rejects(write(4), { code: 'VOLUME_FULL' })
  t.same(recorded.limits, [0, 0])
  await pool.close()
})

t.test('a pool tells of data that falls to its mark again, and of metadata', async t => {
  const memory = files(16)
  const { pool, recorded } = await openFiles(memory, { lowWaterMark: nr => nr / 4 })
  const device = thin(pool, 0)
  const take = (from: number, to: number) =>
    device.write(from * BLOCK, (to - from) * BLOCK, filled((to - from) * BLOCK, 1), 0)
  await take(0, 12)
  t.same(recorded.lowWater, [])
  await take(12, 13)
  await take(13, 14)
  t.same(recorded.lowWater, [4])
  await device.discard(0, 4 * BLOCK)
  await pool.commit()
  await take(0, 2)
  t.same(recorded.lowWater, [4], 'six were free')
  await take(2, 3)
  t.same(recorded.lowWater, [4, 4])
  await pool.space.extend({ data: 32 * BLOCK })
  t.equal(pool.space.data.lowWaterMark, 8)

  t.same(recorded.lowWaterMetadata, [])
  for (let i = 1; pool.metadata.nrAllocatedMetadataBlocks < 800; i++) {
    pool.devices.createThin(devId(i))
    if (i % 30 === 0) await pool.commit()
  }
  await pool.commit()
  t.equal(recorded.lowWaterMetadata.length, 1)
  t.ok(recorded.lowWaterMetadata[0]! <= 256)
  await pool.close()
})
