// Goal: metadata can be checked while it changes. Method: many commits between two steps, in a
// store so small that the blocks they give up are soon wanted again.
import t from 'tap'
import { bytes } from '../../src/base/index.js'
import { checkMetadata, checkMetadataInSteps } from '../../src/metadata/index.js'
import { devId, formatted, openFiles } from '../support/memory-pool.js'

t.test(
  'in steps, while transactions go on: what the superblock led to stays as it was',
  async t => {
    // Without the hold, blocks that were given up are taken again, and the checker finds others'
    // content.
    for (const holds of [true, false]) {
      const files = formatted({ blockSectors: 8, dataBlocks: 4096, metadataBlocks: 512 })
      const { pool } = await openFiles(files)
      for (let id = 0; id < 200; id++) pool.devices.createThin(devId(id))
      await pool.commit()
      const { metadata } = pool
      const held = holds ? metadata.holdBlocks() : null
      const steps = checkMetadataInSteps(files.metadata)
      let step = steps.next()
      for (let id = 0; !step.done; step = steps.next()) {
        for (let n = 0; n < 40 && pool.space.metadata.hasRoom; n++, id = (id + 7) % 200) {
          await pool.devices.get(devId(id), bytes(1 << 20)).write(0, 512, Buffer.alloc(512), 0)
          await pool.commit()
        }
      }
      held?.release()
      t.equal(step.value.problems.length === 0, holds, holds ? 'held' : 'not held')
      t.same(checkMetadata(files.metadata).problems, [])
      t.ok(metadata.nrAllocatableMetadataBlocks > 100, 'all is given back')
    }
  },
)
