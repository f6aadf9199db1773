// Goal: metadata that is full is emptied by removals, however many at a time. Method: snapshots
// that diverge until none has room, then all devices emptied and discarded at once; the metadata is
// checked.
import t from 'tap'
import { bytes, type ThinfsError } from '../../src/base/index.js'
import { checkMetadata } from '../../src/metadata/index.js'
import { devId, formatted, openFiles } from '../support/memory-pool.js'
import { Random } from '../support/random.js'

const BLOCK = 4096
const NR_BLOCKS = 60_000
const CHANGES = 20

/** A pool whose metadata has no room for another snapshot or change. @returns its device ids */
async function fullOfSnapshots() {
  const memory = formatted({ blockSectors: 8, dataBlocks: NR_BLOCKS, metadataBlocks: 512 })
  const { pool, recorded } = await openFiles(memory)
  const random = new Random(1)
  const ids = [devId(0)]
  const device = () => pool.devices.get(devId(0), bytes(NR_BLOCKS * BLOCK))
  pool.devices.createThin(devId(0))
  try {
    for (;;) {
      for (let i = 0; i < CHANGES; i++) {
        await device().write(random.below(NR_BLOCKS) * BLOCK, BLOCK, Buffer.alloc(BLOCK, 1), 0)
      }
      await pool.commit()
      const next = devId(ids.length)
      pool.devices.createSnap(next, devId(0))
      ids.push(next)
    }
  } catch (err) {
    t.equal((err as ThinfsError).code, 'NO_METADATA_SPACE')
  }
  await pool.commit()
  return { memory, pool, recorded, ids }
}

t.test('all devices are removed at once', async t => {
  const { memory, pool, recorded, ids } = await fullOfSnapshots()
  t.ok(ids.length > 40)
  await Promise.all(
    ids.map(async id => {
      const device = pool.devices.get(id, bytes(NR_BLOCKS * BLOCK))
      t.ok(await pool.devices.empty(device, () => false))
    }),
  )
  t.match(recorded.errors, [], 'the pool is as it was')
  t.equal(pool.mode, 'write')
  t.same(checkMetadata(memory.metadata).problems, [])
  await pool.close()
})

t.test('all devices are discarded at once', async t => {
  const { memory, pool, recorded, ids } = await fullOfSnapshots()
  await Promise.all(
    ids.map(id => pool.devices.get(id, bytes(NR_BLOCKS * BLOCK)).discard(0, NR_BLOCKS * BLOCK)),
  )
  await pool.commit()
  t.match(recorded.errors, [])
  t.equal(pool.mode, 'write')
  t.equal(pool.metadata.nrAllocatedDataBlocks, 0)
  t.same(checkMetadata(memory.metadata).problems, [])
  await pool.close()
})
