// Goal: a pool with `autoextend` grows as LVM's thin pools do by threshold and percent, before any
// write would wait, up to its max, and no further than the host's disk can hold. Method: the
// example of lvm.conf; random fillings of pools in memory against the rule in plain numbers;
// thin_check.
import t from 'tap'
import { bytes } from '../../src/base/index.js'
import type { Autoextend } from '../../src/pool/index.js'
import { devId, openFiles } from '../support/memory-pool.js'
import { Random } from '../support/random.js'
import { BLOCK, files, filled, thin, turn } from '../support/thin-devices.js'
import { thinCheck } from '../support/thin-tools.js'

const rule = (threshold: number, percent: number, max: number | null = null): Autoextend => ({
  threshold,
  percent,
  max,
})

/** A pool in memory, a way to take one block after the other, and the host's room. */
async function pooled(
  dataBlocks: number,
  autoextend: { data?: Autoextend; metadata?: Autoextend },
) {
  const memory = files(dataBlocks)
  const host = { available: 1e12, allocated: 0 }
  for (const store of [memory.data, memory.metadata]) {
    Object.assign(store, { hostRoom: () => host })
  }
  const opened = await openFiles(memory, { autoextend, lowWaterMark: 1 })
  const { pool } = opened
  pool.devices.createThin(devId(0))
  const device = pool.devices.get(devId(0), bytes(4096 * BLOCK))
  let next = 0
  const take = async (count = 1): Promise<void> => {
    for (let i = 0; i < count; i++) {
      await device.write(next++ * BLOCK, 512, filled(512, 1), 0)
    }
  }
  return { memory, host, device, take, ...opened }
}

t.test('the example of lvm.conf: 70 and 20 take 1000 to 1200 to 1440', async t => {
  const { pool, take, recorded } = await pooled(1000, { data: rule(70, 20) })
  const sizes: number[][] = []
  for (let used = 1; used <= 1009; used++) {
    const before = pool.metadata.nrDataBlocks
    await take()
    const { nrDataBlocks } = pool.metadata
    if (nrDataBlocks !== before) sizes.push([used, nrDataBlocks])
  }
  t.same(sizes, [
    [701, 1200],
    [841, 1440],
    [1009, 1728],
  ])
  t.same(recorded.lowWater, [], 'it grew before the mark')
  t.same(recorded.modes, [])
  t.same(
    recorded.extended,
    sizes.map(([, blocks]) => ['data', blocks! * BLOCK]),
  )
  await pool.close()
})

t.test('a request that takes more than the percent at once has room, too', async t => {
  const { pool, take, device } = await pooled(8, { data: rule(80, 1) })
  await take(2)
  await device.write(100 * BLOCK, 14 * BLOCK, filled(14 * BLOCK, 2), 0)
  t.equal(pool.metadata.nrDataBlocks, 20, '16 are 80% of 20')
  await pool.close()
})

t.test('it stops at its max, says so once, and the pool is full then', async t => {
  const { pool, take, recorded, clock } = await pooled(10, { data: rule(80, 50, 19 * BLOCK) })
  await take(9)
  t.equal(pool.metadata.nrDataBlocks, 15)
  await take(4)
  t.equal(pool.metadata.nrDataBlocks, 19)
  await take(6)
  clock.advance(1000)
  await turn()
  await t.rejects(take(), { code: 'NO_DATA_SPACE' })
  t.equal(pool.metadata.nrDataBlocks, 19)
  t.match(recorded.warnings, [/data: autoextend has come to its max/])
  t.match(pool.space.warnings, [/come to its max/])
  await pool.space.extend({ data: 40 * BLOCK })
  t.same(pool.space.warnings, [], 'a command may go further')
  await take()
  await pool.close()
})

t.test("it stops where the host's disk could not hold it, until that can", async t => {
  const { pool, take, host, recorded } = await pooled(10, { data: rule(80, 50) })
  await take(8)
  host.available = 3 * BLOCK
  await take()
  await take()
  t.equal(pool.metadata.nrDataBlocks, 10)
  t.match(recorded.warnings, [/the host's disk has 196608 bytes left/])
  await t.rejects(take(), { code: 'NO_DATA_SPACE' })
  t.equal(recorded.warnings.length, 1)
  host.available = 100 * BLOCK
  await take()
  t.equal(pool.metadata.nrDataBlocks, 15)
  t.same(pool.space.warnings, [])
  await pool.close()
})

t.test('who waits for the host goes on when that has room', async t => {
  const memory = files(4)
  const host = { available: 0, allocated: 0 }
  Object.assign(memory.data, { hostRoom: () => host })
  const autoextend = { data: rule(80, 50) }
  const { pool, clock } = await openFiles(memory, { autoextend, onFull: 'queue' })
  const device = thin(pool, 0)
  await device.write(0, 4 * BLOCK, filled(4 * BLOCK, 1), 0)
  const waiting = (async () => device.write(8 * BLOCK, 512, filled(512, 2), 0))()
  for (let i = 0; i < 20; i++) await turn()
  t.equal(pool.space.writesWaiting, 1)
  host.available = 100 * BLOCK
  clock.advance(1000)
  await waiting
  t.equal(pool.metadata.nrDataBlocks, 7)
  await pool.close()
})

t.test('a commit that closes the pool extends nothing, and does not fail', async t => {
  const { pool, take, host, memory, recorded } = await pooled(10, { data: rule(80, 50) })
  host.available = 3 * BLOCK
  await take(9)
  t.equal(recorded.warnings.length, 1)
  host.available = 100 * BLOCK
  // Nor does it take what somebody has made longer just now: the next opening does.
  memory.metadata.grow(bytes(2000 * 4096))
  await pool.close()
  t.same([recorded.modes, recorded.errors], [[], []])
  t.equal(memory.data.size, 10 * BLOCK)
  const again = await openFiles(memory)
  t.same([again.pool.mode, again.pool.metadata.nrMetadataBlocks], ['write', 2000])
  await again.pool.close()
})

t.test('metadata grows by its own rule', async t => {
  const { pool, take, memory } = await pooled(16, {
    data: rule(80, 100),
    metadata: rule(50, 20),
  })
  memory.metadata // 1024 blocks, of which 102 are kept back
  let snapshots = 0
  while (pool.metadata.nrMetadataBlocks === 1024 && snapshots < 1000) {
    pool.devices.createSnap(devId(++snapshots), devId(0))
    await take()
    if (snapshots % 20 === 0) await pool.commit()
  }
  const { nrMetadataBlocks, nrAllocatedMetadataBlocks } = pool.metadata
  t.equal(nrMetadataBlocks, 1024 + 205)
  t.ok(nrAllocatedMetadataBlocks + 102 > 512, `${nrAllocatedMetadataBlocks}`)
  t.equal(pool.mode, 'write')
  await pool.close()
  t.equal(thinCheck(memory.metadata.image).status, 0)
})

t.test('random fillings agree with the rule', async t => {
  for (let seed = 1; seed <= 10; seed++) {
    const random = new Random(seed)
    const data = rule(random.between(50, 95), random.between(1, 60), 300 * BLOCK)
    const nrBlocks = random.between(4, 40)
    const { pool, device, take } = await pooled(nrBlocks, { data })
    let size = nrBlocks
    for (let i = 0; i < 60 && pool.metadata.nrAllocatedDataBlocks < 280; i++) {
      if (random.chance(0.2)) {
        await device.discard(random.below(64) * BLOCK, random.between(1, 8) * BLOCK)
        await pool.commit()
        continue
      }
      await take()
      const used = pool.metadata.nrAllocatedDataBlocks
      if (used > Math.floor((size * data.threshold) / 100)) {
        const more = size + Math.ceil((size * data.percent) / 100)
        size = Math.min(300, Math.max(more, Math.ceil((used * 100) / data.threshold)))
      }
      t.equal(pool.metadata.nrDataBlocks, size, `seed ${seed}, ${used} used`)
    }
    await pool.close()
  }
})
