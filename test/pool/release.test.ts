// Blocks that a commit freed are released after it: no flush waits for reads that are under way,
// nor for punches, and nobody gets such a block before both have ended.
import t from 'tap'
import { bytes } from '../../src/base/index.js'
import { checkMetadata } from '../../src/metadata/index.js'
import { formatted, openFiles, staleFreeBlocks } from '../support/memory-pool.js'
import { MemoryStore } from '../support/memory-store.js'
import { SparseStore } from '../support/sparse-store.js'
import { BLOCK, failure, files, filled, thin, turn } from '../support/thin-devices.js'

async function turns(count = 20): Promise<void> {
  for (let i = 0; i < count; i++) await turn()
}

t.test('a punch that never ends', async t => {
  const full = async (onFull: 'error' | 'queue') => {
    const memory = files(4)
    const { pool, clock } = await openFiles(memory, { onFull })
    const device = thin(pool, 0)
    await device.write(0, 4 * BLOCK, filled(4 * BLOCK, 1), 0)
    await pool.commit()
    const { data } = memory
    const begun: number[] = []
    let end = (): void => {}
    const held = new Promise<void>(resolve => {
      end = resolve
    })
    const { punchLater } = MemoryStore.prototype
    data.punchLater = (offset, length) => {
      begun.push(offset / BLOCK)
      return offset === 0
        ? held.then(() => punchLater.call(data, offset, length))
        : punchLater.call(data, offset, length)
    }
    // Three runs: blocks 0, 2, and 3 later.
    await device.discard(0, BLOCK)
    await device.discard(2 * BLOCK, BLOCK)
    return { memory, pool, clock, device, begun, end: () => end() }
  }

  await t.test('holds no commit back, and no other block', async t => {
    const { pool, device, begun, end, memory } = await full('error')
    await pool.commit()
    t.same(begun, [0, 2], 'several at a time')
    await device.discard(3 * BLOCK, BLOCK)
    await pool.commit()
    await pool.commit()
    await device.write(8 * BLOCK, BLOCK, filled(BLOCK, 2), 0)
    t.equal(pool.metadata.isDataFree(0 as never), false)
    end()
    await turns()
    t.equal(pool.metadata.isDataFree(0 as never), true)
    t.same(staleFreeBlocks(pool, memory.data), [])
    await pool.close()
    t.same(checkMetadata(memory.metadata).problems, [])
  })

  await t.test('is waited for by who needs the block, and by the shutdown', async t => {
    const { pool, device, end, memory } = await full('error')
    await pool.commit()
    await turns()
    await device.write(8 * BLOCK, BLOCK, filled(BLOCK, 2), 0) // block 2
    let written = false
    const writing = Promise.resolve(device.write(9 * BLOCK, BLOCK, filled(BLOCK, 3), 0)).then(
      () => {
        written = true
      },
    )
    await turns()
    t.equal(written, false)
    t.equal(pool.mode, 'write', 'the pool is not full')
    end()
    await writing
    await device.discard(0, 10 * BLOCK)
    await pool.close()
    const again = await openFiles(memory)
    t.same(staleFreeBlocks(again.pool, memory.data), [])
  })

  await t.test('makes who needs the block fail after 60 s', async t => {
    const { pool, clock, device } = await full('error')
    await pool.commit()
    await turns()
    await device.write(8 * BLOCK, BLOCK, filled(BLOCK, 2), 0)
    const writing = Promise.resolve(device.write(9 * BLOCK, BLOCK, filled(BLOCK, 3), 0))
    await turns()
    clock.advance(60_000)
    await t.rejects(writing, { code: 'NO_DATA_SPACE' })
  })
})

t.test('a read that never ends keeps its own blocks, no commit and no other block', async t => {
  const memory = files(4)
  const { pool } = await openFiles(memory)
  const device = thin(pool, 0)
  await device.write(0, 4 * BLOCK, filled(4 * BLOCK, 1), 0)
  await pool.commit()
  const { data } = memory
  let arrive = (): void => {}
  const disk = new Promise<void>(resolve => {
    arrive = resolve
  })
  const { readLater } = MemoryStore.prototype
  data.readLater = (...range) => disk.then(() => readLater.apply(data, range))
  const found = Buffer.alloc(BLOCK)
  const read = device.readLater(BLOCK, BLOCK, found, 0)
  await device.discard(0, 4 * BLOCK)
  await pool.commit()
  await device.write(8 * BLOCK, 3 * BLOCK, filled(3 * BLOCK, 2), 0)
  await pool.commit()
  t.equal(data.nextData(bytes(BLOCK)), BLOCK, 'what is being read is there')
  arrive()
  await read
  t.ok(found.equals(filled(BLOCK, 1)))
  await turns()
  t.equal(data.nextData(bytes(BLOCK)), 2 * BLOCK, 'and is passed down afterwards')
  await device.write(11 * BLOCK, BLOCK, filled(BLOCK, 3), 0)
  await pool.close()
  t.same(checkMetadata(memory.metadata).problems, [])
})

t.test('closing', async t => {
  await t.test('ends all requests: nothing is written after the shutdown was orderly', async t => {
    const memory = files(4)
    const { pool } = await openFiles(memory)
    const device = thin(pool, 0)
    await device.write(0, BLOCK, filled(BLOCK, 1), 0)
    const { data } = memory
    const { sync } = MemoryStore.prototype
    const late: unknown[] = []
    data.sync = async () => {
      await sync.call(data)
      // A copy that wakes up from a slow read now would do this.
      for (const request of [
        () => device.write(2 * BLOCK, 512, filled(512, 2), 0),
        () => device.write(0, 512, filled(512, 2), 0),
        () => device.discard(0, BLOCK),
        () => pool.map(device.devId, 5 as never, 3 as never, 0),
        () => pool.devices.createThin(7 as never),
      ]) {
        try {
          await request()
          late.push(String(request))
        } catch (err) {
          if ((err as { code: string }).code !== 'POOL_FAILED') late.push(err)
        }
      }
    }
    await pool.close()
    t.same(late, [], 'every request is an error')
    await t.rejects(pool.commit(), { code: 'POOL_FAILED' })
    const again = await openFiles(memory)
    t.same(staleFreeBlocks(again.pool, data), [])
  })

  await t.test('waits for the punches of a pool that has failed, too', async t => {
    const memory = files(4)
    const { pool } = await openFiles(memory)
    const device = thin(pool, 0)
    await device.write(0, BLOCK, filled(BLOCK, 1), 0)
    await pool.commit()
    const { data } = memory
    let end = (): void => {}
    const held = new Promise<void>(resolve => {
      end = resolve
    })
    data.punchLater = () => held
    await device.discard(0, BLOCK)
    await pool.commit()
    data.sync = () => Promise.reject(failure('EIO'))
    await device.write(0, BLOCK, filled(BLOCK, 1), 0)
    await t.rejects(pool.commit(), /EIO/)
    let closed = false
    const closing = pool.close().then(() => {
      closed = true
    })
    await turns()
    t.equal(closed, false)
    end()
    await closing
  })
})

t.test('more blocks than a call has arguments', async t => {
  const COUNT = 300_000
  const SMALL = 4096
  const { metadata, journal } = formatted({
    blockSectors: SMALL / 512,
    dataBlocks: 1,
    metadataBlocks: 16384,
  })
  // Some more, for a pool keeps a few back.
  const data = new SparseStore('data', Buffer.alloc(0), (COUNT + 1024) * SMALL)
  const { pool } = await openFiles({ metadata, data, journal })
  const device = thin(pool, 0)
  device.size = bytes(COUNT * SMALL)
  await device.preallocate(0, COUNT * SMALL)
  await pool.commit()
  // The store refuses all of them once.
  const { punchLater } = data
  let refuses = true
  let refused = 0
  data.punchLater = async (offset, length) => {
    if (!refuses) return await punchLater.call(data, offset, length)
    refused += length
    throw failure('EIO')
  }
  // One long discard would be cut into several commits; many short ones are not.
  const PIECE = 1000 * SMALL
  for (let at = 0; at < COUNT * SMALL; at += PIECE) await device.discard(at, PIECE)
  await t.resolves(pool.commit(), 'are freed by one commit')
  await turns(1000)
  t.equal(refused, COUNT * SMALL)
  refuses = false
  await t.resolves(pool.commit(), 'are refused, and tried again')
  await turns(1000)
  t.equal(pool.mode, 'write')
  t.equal(pool.metadata.nrAllocatableDataBlocks, COUNT + 1024)
  await pool.close()
  t.same(checkMetadata(metadata).problems, [])
})
