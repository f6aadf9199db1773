// What an orderly shutdown has left is trusted by the next opening. A power cut before the first
// commit of that opening must not let the one after it trust the same.
import t, { type Test } from 'tap'
import { bytes, type DevId } from '../../src/base/index.js'
import { ThinMetadata } from '../../src/metadata/index.js'
import type { ThinPool } from '../../src/pool/index.js'
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
  await pool.devices.get(DEV, bytes(16 * BLOCK)).write(0, BLOCK, Buffer.alloc(BLOCK, 'F'), 0)
  await pool.close()
  disk.reboot()
  return disk
}

/** What blocks [0, count) of a device hold: the letter of each byte, once. */
async function lettersIn(pool: ThinPool, devId: DevId, count: number): Promise<string> {
  const found = Buffer.alloc(count * BLOCK)
  const device = pool.devices.get(devId, bytes(16 * BLOCK))
  if (!device.read(0, found.length, found, 0)) await device.readLater(0, found.length, found, 0)
  return [...new Set(found)].map(byte => String.fromCharCode(byte)).join('')
}

t.test('what was written since and not flushed is in no block that is free', async t => {
  const disk = await closedPool()
  const { pool } = await openFiles(disk.open())
  await pool.devices.get(DEV, bytes(16 * BLOCK)).write(BLOCK, BLOCK, Buffer.alloc(BLOCK, 'S'), 0)
  const cuts = new PowerCuts(disk)
  const random = new Random(1)
  let dangerous = 0
  for (let i = 0; i < 200; i++) {
    const state = cuts.state(disk.events.length, random)
    const { luck } = state
    if (state.data.bytes.includes('SSSS')) dangerous++
    const { pool } = await openFiles(new PowerDisk(state, random).open())
    t.equal(pool.mode, 'write', luck)
    t.equal(await lettersIn(pool, DEV, 1), 'F', `what was flushed is there: ${luck}`)
    t.equal(pool.space.data.nrFree, 15, 'and nothing else')
    const other = 1 as DevId
    pool.devices.createThin(other)
    await pool.devices.get(other, bytes(16 * BLOCK)).preallocate(0, 15 * BLOCK)
    t.equal(await lettersIn(pool, other, 15), '\0', `another device shows zeros: ${luck}`)
  }
  t.ok(dangerous > 20, `what was not flushed had reached the disk in ${dangerous} states of 200`)
})

t.test('a data file that was made larger is as large before the pool counts on it', async t => {
  const disk = await closedPool()
  const begin = disk.events.length
  disk.grow('data', 24 * BLOCK)
  await openFiles(disk.open())
  await opensWhenever(t, disk, begin)

  await t.test('also when that is noticed while the pool is in use', async t => {
    const disk = await closedPool()
    const { pool } = await openFiles(disk.open())
    const device = pool.devices.get(DEV, bytes(32 * BLOCK))
    await device.preallocate(0, 16 * BLOCK)
    await pool.commit()
    const begin = disk.events.length
    disk.grow('data', 24 * BLOCK)
    // What is free waits for a commit, and that comes before anything is written to the data.
    await device.discard(0, BLOCK)
    await device.write(16 * BLOCK, 2 * BLOCK, Buffer.alloc(2 * BLOCK, 1), 0)
    t.equal(pool.metadata.nrDataBlocks, 24)
    await opensWhenever(t, disk, begin)
  })
})

/**
 * Cuts the power after each event from `begin` on: the file is never shorter than the pool, and the
 * pool opens.
 */
async function opensWhenever(t: Test, disk: PowerDisk, begin: number): Promise<void> {
  const cuts = new PowerCuts(disk)
  const random = new Random(1)
  /** Blocks that the file and the pool have on the disk. */
  const seen = new Set<string>()
  for (let events = begin; events <= disk.events.length; events++) {
    for (let i = 0; i < 20; i++) {
      const state = cuts.state(events, random)
      const fileBlocks = state.data.bytes.length / BLOCK
      const files = new PowerDisk(state, random).open()
      const { nrDataBlocks } = ThinMetadata.open(files.metadata)
      seen.add(`${fileBlocks} ${nrDataBlocks}`)
      const { pool } = await openFiles(files)
      t.equal(pool.mode, 'write', `after ${events} events: ${state.luck}`)
      t.equal(pool.metadata.nrDataBlocks, fileBlocks, 'it takes what there is')
    }
  }
  t.same([...seen].sort(), ['16 16', '24 16', '24 24'], 'all that may be, and nothing else')
}
