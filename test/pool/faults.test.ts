// The moments around a failure: what is read while a rollback waits for a commit, which flushes go
// well afterwards, what a journal that cannot be written keeps.
import t from 'tap'
import type { ThinPool } from '../../src/pool/index.js'
import { devId, type MemoryFiles, openFiles } from '../support/memory-pool.js'
import { BLOCK, byteAt, failure, files, filled, thin, turn } from '../support/thin-devices.js'

/** Makes the next insertion of a mapping fail when it is half done. */
function breakInsert(pool: ThinPool): void {
  const { mappings } = pool.metadata
  const { insert } = mappings
  mappings.insert = (...args) => {
    mappings.insert = insert
    // The old mapping is gone, the new one not there yet.
    mappings.removeRange(args[0], args[1], args[1] + 1)
    throw failure('EIO')
  }
}

t.test('no half-changed tree is read', async t => {
  const broken = async (): Promise<{ memory: MemoryFiles; pool: ThinPool }> => {
    const memory = files()
    const { pool } = await openFiles(memory)
    await thin(pool, 0).write(0, 2 * BLOCK, filled(2 * BLOCK, 1), 0)
    pool.devices.createSnap(devId(1), devId(0))
    await pool.commit()
    thin(pool, 0).table.clear() // as when it was never read
    return { memory, pool }
  }

  await t.test('by the request that comes next', async t => {
    const { pool } = await broken()
    breakInsert(pool)
    t.throws(() => thin(pool, 0).write(0, 512, filled(512, 2), 0))
    t.equal(pool.mode, 'read_only')
    t.equal(byteAt(thin(pool, 0), 0), 1)
    t.equal(byteAt(thin(pool, 0), BLOCK), 1)
  })

  await t.test('while the rollback waits for a commit that finds no room', async t => {
    const { memory, pool } = await broken()
    await thin(pool, 2).write(0, 512, filled(512, 3), 0)
    memory.metadata.onWrite = (op, offset) => {
      if (op === 'write' && offset > 0) throw failure('ENOSPC')
    }
    const committing = pool.commit()
    breakInsert(pool)
    t.throws(() => thin(pool, 0).write(0, 512, filled(512, 2), 0))
    await t.rejects(committing, /ENOSPC/)
    memory.metadata.onWrite = undefined
    await turn()
    t.equal(pool.mode, 'read_only')
    t.equal(byteAt(thin(pool, 0), 0), 1)
    t.equal(pool.metadata.hasDevice(devId(2)), false, 'what was not committed is gone')
  })

  await t.test('while the rollback waits for a commit', async t => {
    const { pool } = await broken()
    await thin(pool, 2).write(0, 512, filled(512, 3), 0)
    const committing = pool.commit()
    const device = thin(pool, 0)
    breakInsert(pool)
    t.throws(() => device.write(0, 512, filled(512, 2), 0))
    device.table.clear()
    t.throws(() => byteAt(device, 0), { code: 'POOL_FAILED', errno: 'EIO' })
    t.throws(() => device.nextData(0), { code: 'POOL_FAILED' })
    await t.rejects(device.nextHole(0), { code: 'POOL_FAILED' })
    await committing
    await turn()
    t.equal(pool.mode, 'read_only')
    t.equal(byteAt(device, 0), 1)
    t.equal(byteAt(thin(pool, 2), 0), 3, 'what the commit had is there')
  })
})

t.test('a flush that failed', async t => {
  await t.test('of a read-only pool is not tried again either', async t => {
    const memory = files()
    const { pool } = await openFiles(memory)
    await thin(pool, 0).write(0, BLOCK, filled(BLOCK, 1), 0)
    pool.metadata.setNeedsCheck()
    await pool.commit()
    pool.metadata.allocateData() // a leak: opening does not clear the flag
    await pool.close()
    const again = await openFiles(memory)
    t.equal(again.pool.mode, 'read_only')
    await thin(again.pool, 0).write(0, 512, filled(512, 2), 0)
    memory.data.sync = () => Promise.reject(failure('EIO'))
    await t.rejects(again.pool.commit(), /EIO/)
    memory.data.sync = () => Promise.resolve()
    await t.rejects(again.pool.commit(), { code: 'POOL_READ_ONLY', errno: 'EIO' })
  })

  await t.test('tells those who wait for the journal, once', async t => {
    const memory = files()
    const { pool } = await openFiles(memory)
    const device = thin(pool, 0)
    await pool.commit()
    memory.journal.append = () => {
      throw failure('ENOSPC')
    }
    memory.metadata.onWrite = op => {
      if (op === 'sync') throw failure('EIO')
    }
    await device.write(0, BLOCK, filled(BLOCK, 1), 0)
    t.equal(pool.unsettled, true)
    await t.rejects(async () => pool.settle(), /EIO/)
    await t.rejects(async () => pool.settle(), { code: 'POOL_READ_ONLY', errno: 'EIO' })
    t.equal(pool.unsettled, false, 'replies to reads do not wait for ever')
  })
})

t.test('a device can be opened and read though the journal has no room', async t => {
  const memory = files()
  const { pool } = await openFiles(memory)
  await thin(pool, 0).write(0, BLOCK, filled(BLOCK, 1), 0)
  await pool.commit()
  memory.journal.append = () => {
    throw failure('ENOSPC')
  }
  memory.metadata.onWrite = () => {
    throw failure('ENOSPC')
  }
  pool.devices.opened(devId(0), 1)
  await pool.settle()
  t.equal(pool.unsettled, false)
  t.equal(pool.mode, 'write')
  t.equal(byteAt(thin(pool, 0), 0), 1)
})

t.test('closing', async t => {
  await t.test('flushes what was written to a read-only pool', async t => {
    const memory = files()
    const { pool } = await openFiles(memory)
    await thin(pool, 0).write(0, BLOCK, filled(BLOCK, 1), 0)
    pool.metadata.allocateData()
    pool.metadata.setNeedsCheck()
    await pool.close()
    const again = await openFiles(memory)
    await thin(again.pool, 0).write(0, 512, filled(512, 2), 0)
    await again.pool.close()
    const { metadata, data, journal } = memory
    const left = { metadata, data: data.crash(() => false), journal }
    t.equal(byteAt(thin((await openFiles(left)).pool, 0), 0), 2)
  })

  await t.test('keeps sizes that nobody saved', async t => {
    const memory = files()
    const { pool } = await openFiles(memory)
    const device = thin(pool, 0)
    await device.write(0, BLOCK, filled(BLOCK, 1), 0)
    device.extend(100 * BLOCK)
    await pool.close()
    const again = await openFiles(memory)
    t.equal(again.pool.devices.unsavedSizes.get(devId(0)), 100 * BLOCK)
  })
})

t.test('a metadata file without room on its disk', async t => {
  const full = async (): Promise<{ memory: MemoryFiles; pool: ThinPool; modes: string[] }> => {
    const memory = files()
    const { pool, recorded } = await openFiles(memory)
    await thin(pool, 0).write(0, BLOCK, filled(BLOCK, 1), 0)
    await pool.commit()
    await thin(pool, 0).write(BLOCK, BLOCK, filled(BLOCK, 2), 0)
    memory.metadata.onWrite = (op, offset) => {
      if (op === 'write' && offset > 0) throw failure('ENOSPC')
    }
    await t.rejects(pool.commit(), /ENOSPC/)
    return { memory, pool, modes: recorded.modes }
  }

  await t.test('loses nothing, and goes on when there is some', async t => {
    const { memory, pool, modes } = await full()
    t.same(modes, ['out_of_metadata_space'])
    const device = thin(pool, 0)
    t.equal(byteAt(device, BLOCK), 2)
    await device.write(0, 512, filled(512, 3), 0)
    const provision = async (): Promise<void> => device.write(5 * BLOCK, 512, filled(512, 4), 0)
    await t.rejects(provision(), /ENOSPC/)
    await t.rejects(pool.commit(), /ENOSPC/, 'also when it is asked for again')
    memory.metadata.onWrite = undefined
    await provision()
    await pool.commit()
    t.same(modes, ['out_of_metadata_space', 'write'])
    const { metadata, data, journal } = memory
    const left = { metadata: metadata.crash(() => false), data: data.crash(() => false), journal }
    const again = thin((await openFiles(left)).pool, 0)
    t.same(
      [0, BLOCK, 5 * BLOCK].map(at => byteAt(again, at)),
      [3, 2, 4],
    )
  })

  await t.test('undoes what is told to have failed', async t => {
    const { memory, pool } = await full()
    await t.rejects(pool.commitOrUndo(), /ENOSPC/)
    t.equal(pool.mode, 'read_only')
    t.equal(byteAt(thin(pool, 0), BLOCK), 0)
    await pool.close()
    memory.metadata.onWrite = undefined
    const again = await openFiles(memory)
    t.equal(again.pool.mode, 'write')
    t.equal(byteAt(thin(again.pool, 0), 0), 1)
  })

  await t.test('keeps what was acknowledged in the journal when it is closed', async t => {
    const { memory, pool } = await full()
    await t.rejects(pool.close(), /ENOSPC/)
    memory.metadata.onWrite = undefined
    const again = await openFiles(memory)
    t.equal(byteAt(thin(again.pool, 0), BLOCK), 2)
  })
})
