// Goal: what waits on behalf of a device ends when the device is deleted, and never reaches the
// device that gets its id next. Method: each operation waits for space in a full pool; the device
// is deleted and its id given to a snapshot of another; then space comes.
import t from 'tap'
import { bytes } from '../../src/base/index.js'
import { checkMetadata } from '../../src/metadata/index.js'
import type { ThinDevice, ThinPool } from '../../src/pool/index.js'
import { devId, openFiles } from '../support/memory-pool.js'
import { BLOCK, files, filled, thin, turn } from '../support/thin-devices.js'

const BLOCKS = 8

/** A full pool: device 0 shares two blocks with device 1, and device 2 has the others. */
async function fullPool() {
  const memory = files(BLOCKS)
  const { pool, clock } = await openFiles(memory, { onFull: 'queue' })
  const device = thin(pool, 0)
  await device.write(0, 2 * BLOCK, filled(2 * BLOCK, 1), 0)
  pool.devices.createSnap(devId(1), devId(0))
  const rest = (BLOCKS - 2) * BLOCK
  await thin(pool, 2).write(0, rest, filled(rest, 3), 0)
  await pool.commit()
  return { memory, pool, clock, device }
}

/** What waits for a block, and for what. */
const OPERATIONS: [string, (device: ThinDevice, pool: ThinPool) => Promise<void>][] = [
  ['a write to an unmapped block', async device => device.write(9 * BLOCK, 512, filled(512, 9), 0)],
  ['a write to a shared block', async device => device.write(512, 512, filled(512, 9), 0)],
  ['the edge of a discard', async device => device.discard(512, 4 * BLOCK)],
  ['a preallocation', device => device.preallocate(4 * BLOCK, 2 * BLOCK)],
]

for (const [what, operate] of OPERATIONS) {
  t.test(`${what} does not reach the next device of the id`, async t => {
    const { memory, pool, clock, device } = await fullPool()
    // The preallocation is refused at once where not even the first block is to be had.
    Object.defineProperty(pool.space.data, 'nrFree', { value: BLOCKS, configurable: true })
    const waiting = operate(device, pool)
    const ended = waiting.then(
      () => 'done',
      err => `${err.code} ${err.errno}`,
    )
    await turn()
    Reflect.deleteProperty(pool.space.data, 'nrFree')
    await pool.devices.empty(device, () => false)
    pool.devices.delete(devId(0))
    t.equal(await ended, 'DEVICE_MISSING ESTALE', 'the wait ends with the device')
    pool.devices.createSnap(devId(0), devId(2))
    const next = pool.devices.get(devId(0), bytes(64 * BLOCK))
    memory.data.grow(bytes(2 * BLOCKS * BLOCK))
    clock.advance(1000)
    await pool.commit()
    await turn()
    const rest = (BLOCKS - 2) * BLOCK
    const found = Buffer.alloc(rest)
    next.read(0, rest, found, 0)
    t.ok(found.equals(filled(rest, 3)), 'the next device has what its origin has')
    t.same(checkMetadata(memory.metadata).problems, [], 'and no block is lost')
    t.throws(() => device.read(0, 512, found, 0), { code: 'DEVICE_MISSING', errno: 'ESTALE' })
    t.throws(() => device.discard(0, BLOCK), { code: 'DEVICE_MISSING' })
  })
}

t.test('a long operation ends between two slices', async t => {
  const memory = files(BLOCKS)
  const { pool, clock } = await openFiles(memory)
  const source = thin(pool, 0)
  const target = thin(pool, 1)
  await source.write(0, 4 * BLOCK, filled(4 * BLOCK, 1), 0)
  // Whoever yields finds the device gone, and another with its id.
  let deleted = devId(1)
  clock.yield = async () => {
    if (!pool.metadata.hasDevice(deleted)) return
    pool.devices.delete(deleted)
    pool.devices.createThin(deleted)
  }
  clock.lookMs = 1
  const slices = 16
  await t.rejects(target.share(source, 0, 0, slices * BLOCK), { code: 'DEVICE_MISSING' }, 'target')
  deleted = devId(0)
  const again = thin(pool, 1)
  await t.rejects(again.share(source, 0, 0, slices * BLOCK), { code: 'DEVICE_MISSING' }, 'source')
  t.equal(pool.metadata.details(devId(0)).mappedBlocks, 0)
  t.same(checkMetadata(memory.metadata).problems, [])
})
