/**
 * Goal: long work is cut by time, others have their turn between the pieces, and what comes of it
 * is the same. Method: a clock that moves on with every look at it, so that each piece is a slice;
 * others write, remove and take snapshots in their turns; then the result is compared with a plain
 * model, and the metadata is checked.
 */
import t from 'tap'
import { bytes, type DevId, Slice, SYSTEM_CLOCK } from '../../src/base/index.js'
import type { ThinDevice } from '../../src/device/index.js'
import { checkMetadata } from '../../src/metadata/index.js'
import type { ThinPool } from '../../src/pool/index.js'
import { devId, formatted, openFiles } from '../support/memory-pool.js'
import { MemoryStore } from '../support/memory-store.js'
import { filled } from '../support/thin-devices.js'

const BLOCK = 4096
const NR_BLOCKS = 6000

const thin = (pool: ThinPool, id: number): ThinDevice =>
  pool.devices.get(devId(id), bytes(NR_BLOCKS * BLOCK))

t.test('several works take turns, one slice at a time', async t => {
  const order: string[] = []
  let done = false
  const work = async (name: string): Promise<void> => {
    for (let i = 0; i < 3; i++) {
      await SYSTEM_CLOCK.yield()
      order.push(name)
    }
  }
  const request = (): void => {
    order.push('-')
    if (!done) setImmediate(request)
  }
  setImmediate(request)
  await Promise.all([work('a'), work('b'), work('c')])
  done = true
  const without = order.filter(name => name !== '-')
  t.same(without, ['a', 'b', 'c', 'a', 'b', 'c', 'a', 'b', 'c'], 'in turn')
  const text = order.join('')
  t.notMatch(text, /[abc][abc]/, 'a request is served between any two')
})

t.test('work that a request waits for goes before other work', async t => {
  const order: string[] = []
  const work = async (name: string, urgent: boolean): Promise<void> => {
    for (let i = 0; i < 3; i++) {
      await SYSTEM_CLOCK.yield(urgent)
      order.push(name)
    }
  }
  await Promise.all([work('a', false), work('b', false), work('u', true), work('v', true)])
  t.equal(order.join(''), 'uvuvuvababab')
})

t.test('a slice is over by time alone', async t => {
  let now = 0
  let yields = 0
  const clock = { ...SYSTEM_CLOCK, now: () => now, yield: async () => void yields++ }
  const slice = new Slice(clock)
  t.equal(slice.isOver, false)
  now = 0.2
  t.equal(slice.isOver, false)
  now = 0.3
  t.equal(slice.isOver, true)
  await slice.yield()
  t.equal(yields, 1)
  t.equal(slice.isOver, false, 'the next one begins after the turn of others')
})

async function busy() {
  const memory = formatted({ blockSectors: 8, dataBlocks: 4 * NR_BLOCKS, metadataBlocks: 4096 })
  const opened = await openFiles(memory)
  for (const id of [0, 1, 2]) opened.pool.devices.createThin(devId(id))
  return { memory, ...opened }
}

t.test('holes and data of a long run are found across slices', async t => {
  const { pool, clock } = await busy()
  const device = thin(pool, 0)
  await device.preallocate(0, NR_BLOCKS * BLOCK)
  await device.discard(5000 * BLOCK, BLOCK)
  clock.lookMs = 1
  t.equal(await device.nextHole(3), 5000 * BLOCK)
  t.equal(await device.nextHole(5000 * BLOCK + 3), 5000 * BLOCK + 3)
  t.equal(await device.nextHole(5001 * BLOCK), NR_BLOCKS * BLOCK, 'the end')
  t.equal(device.nextData(5000 * BLOCK), 5001 * BLOCK)
  const gone = device.nextHole(0)
  pool.devices.delete(devId(0))
  await t.rejects(gone, { code: 'DEVICE_MISSING' })
  await pool.close()
})

t.test('a device that is emptied gives room back as it goes, and others go on', async t => {
  const { memory, pool, clock } = await busy()
  const device = thin(pool, 0)
  const other = thin(pool, 1)
  await device.preallocate(0, NR_BLOCKS * BLOCK)
  await pool.commit()
  clock.lookMs = 1
  let turns = 0
  clock.yield = async () => {
    await other.write(turns * BLOCK, 512, filled(512, 1), 0)
    if (turns === 1) pool.devices.createSnap(devId(3), devId(1))
    turns++
  }
  t.equal(await pool.devices.empty(device, () => false), true)
  t.ok(turns > 2, `others had ${turns} turns`)
  t.ok(pool.metadata.details(devId(0)).mappedBlocks < NR_BLOCKS / 4)
  clock.yield = async () => {}
  pool.devices.delete(devId(0))
  await pool.commit()
  t.equal(pool.metadata.details(devId(1)).mappedBlocks, turns)
  t.equal(pool.metadata.nrAllocatedDataBlocks, turns)
  t.same(checkMetadata(memory.metadata).problems, [])
  await pool.close()
})

const copyOf = ({ image }: MemoryStore): MemoryStore =>
  new MemoryStore(image.length, { image: Buffer.from(image) })

t.test('a removal does nothing while a commit writes metadata', async t => {
  const { memory, pool, clock } = await busy()
  const device = thin(pool, 0)
  await device.preallocate(0, NR_BLOCKS * BLOCK)
  // A block of metadata each: more than one write can take.
  for (let id = 3; id < 600; id++) pool.devices.createThin(devId(id))
  clock.lookMs = 1
  clock.yield = SYSTEM_CLOCK.yield
  let pieces = 0
  const emptied = pool.devices.empty(device, () => {
    pieces++
    return false
  })
  await clock.yield()
  const begun = pieces
  const during: number[] = []
  memory.metadata.onWrite = (op, offset) => {
    if (op === 'write' && offset !== 0) during.push(pieces)
  }
  await pool.commit()
  memory.metadata.onWrite = undefined
  t.ok(during.length > 5, `${during.length} writes of metadata`)
  t.same(new Set(during).size, 1, 'no piece in between')
  t.equal(await emptied, true)
  t.ok(begun > 0 && pieces > during[0]!, 'the removal was under way, and went on')
  await pool.close()
})

t.test('the metadata snapshot goes in slices; a death leaves a part of it', async t => {
  const { memory, pool, clock } = await busy()
  const device = thin(pool, 0)
  await device.preallocate(0, NR_BLOCKS * BLOCK)
  await pool.reserveMetadataSnap()
  await device.discard(0, NR_BLOCKS * BLOCK)
  await pool.commit()
  t.equal(pool.metadata.nrAllocatedDataBlocks, NR_BLOCKS, 'the snapshot has them')
  clock.lookMs = 1
  let turns = 0
  let left: Awaited<ReturnType<typeof openFiles>> | null = null
  clock.yield = async () => {
    if (++turns !== 4) return
    await pool.commit()
    t.same(checkMetadata(memory.metadata).problems, [])
    left = await openFiles({
      metadata: copyOf(memory.metadata),
      data: copyOf(memory.data),
      journal: memory.journal.copy('boot-2'),
    })
  }
  await pool.releaseMetadataSnap()
  t.ok(turns > 4, 'in slices')
  t.equal(pool.metadata.heldRoot, 0)
  t.equal(pool.metadata.nrAllocatedDataBlocks, 0)
  t.same(checkMetadata(memory.metadata).problems, [])
  const after = left!
  t.not(after.pool.metadata.heldRoot, 0, 'a part is held')
  t.ok(after.pool.metadata.nrAllocatedDataBlocks < NR_BLOCKS)
  await after.pool.releaseMetadataSnap()
  t.equal(after.pool.metadata.nrAllocatedDataBlocks, 0, 'and is released like any other')
  await after.pool.close()
  await pool.close()
})

t.test('a flush commits what was changed about its device, and nothing else', async t => {
  const { memory, pool } = await busy()
  const mine = thin(pool, 0)
  const other = thin(pool, 1)
  const id = (device: { devId: DevId }): DevId => device.devId
  let commits = 0
  let syncs = 0
  memory.metadata.onWrite = (op, offset) => {
    if (op === 'write' && offset === 0) commits++
  }
  const sync = memory.data.sync.bind(memory.data)
  memory.data.sync = () => {
    syncs++
    return sync()
  }
  const flush = async (device: { devId: DevId }): Promise<[commits: number, syncs: number]> => {
    const before = [commits, syncs] as const
    await pool.flush(id(device))
    return [commits - before[0], syncs - before[1]]
  }
  await mine.write(0, BLOCK, filled(BLOCK, 1), 0)
  t.same(await flush(mine), [1, 1], 'a first write')
  t.same(await flush(mine), [0, 0], 'nothing')
  await other.write(0, BLOCK, filled(BLOCK, 2), 0)
  await mine.write(0, 512, filled(512, 3), 0)
  t.same(await flush(mine), [0, 1], 'an overwrite, while others have changes')
  t.same(await flush(other), [1, 0], 'whose data that took along')
  pool.devices.createSnap(devId(3), id(mine))
  t.same(await flush(other), [0, 0])
  t.equal((await flush(mine))[0], 1, 'a snapshot of it')
  await mine.write(0, 512, filled(512, 4), 0)
  const flushing = pool.commit()
  await mine.write(0, 512, filled(512, 5), 0)
  t.equal(pool.metadata.isDurable(id(mine)), false, 'sealed is not durable')
  await flushing
  t.equal(pool.metadata.isDurable(id(mine)), true)
  memory.data.sync = () => Promise.reject(Object.assign(new Error('EIO'), { code: 'EIO' }))
  await t.rejects(pool.flush(id(mine)), /EIO/)
  t.equal(pool.mode, 'read_only', 'a flush that failed is told once: nothing may follow')
  await t.rejects(pool.flush(id(mine)), { code: 'POOL_READ_ONLY' })
  await t.rejects(pool.commit(), { code: 'POOL_READ_ONLY' })
})
