// What an orderly shutdown has left is trusted by the next opening. A power cut before the first
// commit of that opening must not let the one after it trust the same.
import t, { type Test } from 'tap'
import { bytes, type DevId } from '../../src/base/index.js'
import { formatted, openFiles } from '../support/memory-pool.js'
import { PowerDisk, SparseImage } from '../support/power-disk.js'
import { PowerCuts } from '../support/power-states.js'
import { Random } from '../support/random.js'

const BLOCK = 4096
const DEV = 0 as DevId

/** A disk with a pool of 16 blocks, one of which device 0 maps, as an orderly shutdown left it. */
async function closedPool(): Promise<PowerDisk> {
  const { metadata } = formatted({ blockSectors: 8, dataBlocks: 0, metadataBlocks: 64 })
  const start = {
    metadata: new SparseImage(metadata.image),
    data: SparseImage.ofHoles(16 * BLOCK),
    journal: Buffer.alloc(0),
    table: null,
    label: null,
    boot: 1,
  }
  const disk = new PowerDisk(start, new Random(1))
  const { pool } = await openFiles(disk.open())
  pool.devices.createThin(DEV)
  await pool.devices.get(DEV, bytes(16 * BLOCK)).write(0, BLOCK, Buffer.alloc(BLOCK, 'flushed'), 0)
  await pool.close()
  disk.reboot()
  return disk
}

t.test('what was written since and not flushed is in no block that is free', async t => {
  const disk = await closedPool()
  const { pool } = await openFiles(disk.open())
  await pool.devices
    .get(DEV, bytes(16 * BLOCK))
    .write(BLOCK, BLOCK, Buffer.alloc(BLOCK, 'secret'), 0)
  const cuts = new PowerCuts(disk)
  const random = new Random(1)
  for (let i = 0; i < 200; i++) {
    const next = new PowerDisk(cuts.state(disk.events.length, random), random)
    const { pool } = await openFiles(next.open())
    const other = 1 as DevId
    pool.devices.createThin(other)
    const device = pool.devices.get(other, bytes(15 * BLOCK))
    await device.preallocate(0, 15 * BLOCK)
    const found = Buffer.alloc(15 * BLOCK)
    device.read(0, found.length, found, 0)
    if (found.includes('secret')) return t.fail(`state ${i}: another device shows it`)
  }
  t.pass('200 states')
})

t.test('a data file that was made larger is as large before the pool counts on it', async t => {
  const disk = await closedPool()
  disk.grow('data', 24 * BLOCK)
  await openFiles(disk.open())
  await opensWhenever(t, disk)

  await t.test('also when that is noticed while the pool is in use', async t => {
    const disk = await closedPool()
    const { pool } = await openFiles(disk.open())
    const device = pool.devices.get(DEV, bytes(32 * BLOCK))
    await device.preallocate(0, 16 * BLOCK)
    await pool.commit()
    disk.grow('data', 24 * BLOCK)
    // What is free waits for a commit, and that comes before anything is written to the data.
    await device.discard(0, BLOCK)
    await device.write(16 * BLOCK, 2 * BLOCK, Buffer.alloc(2 * BLOCK, 1), 0)
    t.equal(pool.metadata.nrDataBlocks, 24)
    await opensWhenever(t, disk)
  })
})

/** Cuts the power after each event. */
async function opensWhenever(t: Test, disk: PowerDisk): Promise<void> {
  const cuts = new PowerCuts(disk)
  const random = new Random(1)
  for (let events = 0; events <= disk.events.length; events++) {
    for (let i = 0; i < 20; i++) {
      const next = new PowerDisk(cuts.state(events, random), random)
      const { pool } = await openFiles(next.open())
      const { nrDataBlocks } = pool.metadata
      if (nrDataBlocks !== 16 && nrDataBlocks !== 24) t.fail(`${nrDataBlocks} data blocks`)
    }
  }
  t.pass(`${disk.events.length} events`)
}
