// A pool that has no room, or whose host has none: who waits, who fails, and how it goes on.
import t from 'tap'
import { bytes, interrupted } from '../../src/base/index.js'
import type { ThinDevice } from '../../src/device/index.js'
import { checkMetadata, ThinMetadata } from '../../src/metadata/index.js'
import { devId, formatted, openFiles } from '../support/memory-pool.js'
import { MemoryStore } from '../support/memory-store.js'
import { SparseStore } from '../support/sparse-store.js'
import { BLOCK, byteAt, failure, files, filled, thin, turn } from '../support/thin-devices.js'

async function turns(count = 20): Promise<void> {
  for (let i = 0; i < count; i++) await turn()
}

/** Follows a request, which may wait. */
function follow(request: () => void | Promise<void>): { state: string } {
  const followed = { state: 'waits' }
  const done = (async () => request())()
  done.then(
    () => {
      followed.state = 'done'
    },
    err => {
      followed.state = err.code
    },
  )
  return followed
}

t.test('growth that a write notices', async t => {
  await t.test('wakes those who wait', async t => {
    const memory = files(4)
    const { pool } = await openFiles(memory, { onFull: 'queue' })
    await thin(pool, 0).write(0, 4 * BLOCK, filled(4 * BLOCK, 1), 0)
    const waiting = follow(() => thin(pool, 0).write(8 * BLOCK, 512, filled(512, 2), 0))
    await turns()
    t.equal(waiting.state, 'waits')
    memory.data.grow(bytes(8 * BLOCK))
    await thin(pool, 1).write(0, 512, filled(512, 3), 0)
    await turns()
    t.equal(waiting.state, 'done')
    t.equal(pool.mode, 'write')
  })

  await t.test('ends the time in which full pools fail at once', async t => {
    const memory = files(4)
    const { pool, clock } = await openFiles(memory, { onFull: 'queue' })
    await thin(pool, 0).write(0, 4 * BLOCK, filled(4 * BLOCK, 1), 0)
    const vain = follow(() => thin(pool, 0).write(8 * BLOCK, 512, filled(512, 2), 0))
    await turns()
    clock.advance(60_000)
    await turns()
    t.equal(vain.state, 'NO_DATA_SPACE')
    t.equal(pool.space.onFull, 'error')
    memory.data.grow(bytes(5 * BLOCK))
    await thin(pool, 0).write(8 * BLOCK, 512, filled(512, 2), 0)
    t.equal(pool.space.onFull, 'queue')
    t.equal(pool.mode, 'write')
    const next = follow(() => thin(pool, 0).write(9 * BLOCK, 512, filled(512, 2), 0))
    await turns()
    t.equal(next.state, 'waits')
  })

  await t.test('outlives a death before it is committed, with what was written to it', async t => {
    const memory = files(4)
    const { pool } = await openFiles(memory, { onFull: 'queue' })
    await thin(pool, 0).write(0, 4 * BLOCK, filled(4 * BLOCK, 1), 0)
    await pool.commit()
    memory.data.grow(bytes(8 * BLOCK))
    await thin(pool, 0).write(8 * BLOCK, BLOCK, filled(BLOCK, 2), 0)
    await pool.settle()
    const { pool: next } = await openFiles(memory)
    t.equal(next.metadata.nrDataBlocks, 8)
    const found = Buffer.alloc(BLOCK)
    t.ok(thin(next, 0).read(8 * BLOCK, BLOCK, found, 0))
    t.ok(found.equals(filled(BLOCK, 2)))
  })
})

t.test('what a full pool does is switched while writes wait', async t => {
  const full = async () => {
    const memory = files(4)
    const { pool, clock } = await openFiles(memory, { onFull: 'queue' })
    await thin(pool, 0).write(0, 4 * BLOCK, filled(4 * BLOCK, 1), 0)
    const write = () => follow(() => thin(pool, 0).write(8 * BLOCK, 512, filled(512, 2), 0))
    return { pool, clock, write }
  }

  await t.test('error: they fail at once, and so do others', async t => {
    const { pool, write } = await full()
    const waiting = write()
    await turns()
    t.equal(waiting.state, 'waits')
    pool.space.setOnFull('error')
    await turns()
    const next = write()
    await turns()
    t.same([waiting.state, next.state], ['NO_DATA_SPACE', 'NO_DATA_SPACE'])
    pool.space.setOnFull('queue')
    const last = write()
    await turns()
    t.equal(last.state, 'waits')
    await pool.close()
  })

  await t.test('error: also one that tries again just then', async t => {
    const { pool, write, clock } = await full()
    const waiting = write()
    await turns()
    // The host may have room: each second who waits for it tries again.
    pool.space.hostRefused(failure('ENOSPC'))
    clock.advance(1000)
    pool.space.setOnFull('error')
    await turns()
    t.equal(waiting.state, 'NO_DATA_SPACE')
    await pool.close()
  })

  await t.test('queue_timeout: 0 is for ever, less is from now on', async t => {
    const { pool, write, clock } = await full()
    const waiting = write()
    await turns()
    pool.space.queueTimeout = 0
    clock.advance(1e9)
    await turns()
    t.equal(waiting.state, 'waits')
    pool.space.queueTimeout = 5
    clock.advance(4999)
    await turns()
    t.equal(waiting.state, 'waits')
    clock.advance(1)
    await turns()
    t.equal(waiting.state, 'NO_DATA_SPACE')
    t.equal(pool.space.onFull, 'error')
    pool.space.setOnFull('queue')
    t.equal(pool.space.onFull, 'queue', 'as the reload of a table')
    await pool.close()
  })
})

t.test('a discard whose edges are shared, in a full pool', async t => {
  for (const onFull of ['error', 'queue'] as const) {
    const full = async (exclusive: number) => {
      const memory = files(8)
      const { pool, clock } = await openFiles(memory, { onFull })
      const device = thin(pool, 0)
      await device.write(0, 4 * BLOCK, filled(4 * BLOCK, 1), 0)
      pool.devices.createSnap(devId(1), devId(0))
      // The device's alone, from block 1 on; the others are shared.
      await device.write(BLOCK, exclusive * BLOCK, filled(exclusive * BLOCK, 2), 0)
      const fill = pool.space.data.nrFree
      await thin(pool, 2).write(0, fill * BLOCK, filled(fill * BLOCK, 3), 0)
      await pool.commit()
      t.equal(pool.space.data.nrFree, 0)
      return { memory, pool, clock, device }
    }

    await t.test(`${onFull}: whole blocks pay for them`, async t => {
      const { pool, device, memory } = await full(2)
      await device.discard(512, 4 * BLOCK - 1024, false)
      t.same(
        [0, 512, BLOCK, 3 * BLOCK, 4 * BLOCK - 513, 4 * BLOCK - 1].map(at => byteAt(device, at)),
        [1, 0, 0, 0, 0, 1],
      )
      t.equal(byteAt(thin(pool, 1), 512), 1, 'the snapshot has what it had')
      await pool.close()
      t.same(checkMetadata(memory.metadata).problems, [])
    })

    await t.test(`${onFull}: what they find no room for fails when the rest is free`, async t => {
      const { pool, device } = await full(1)
      const discard = async (): Promise<void> => device.discard(512, 4 * BLOCK - 1024, false)
      await t.rejects(discard(), { code: 'NO_DATA_SPACE' })
      t.same(
        [0, 512, BLOCK, 2 * BLOCK, 3 * BLOCK, 4 * BLOCK - 1].map(at => byteAt(device, at)),
        [1, 0, 0, 0, 1, 1],
      )
      await pool.close()
    })

    await t.test(`${onFull}: edges alone fail at once`, async t => {
      const { pool, device } = await full(1)
      await t.rejects(async () => device.discard(512, 512, false), { code: 'NO_DATA_SPACE' })
      t.equal(byteAt(device, 512), 1)
      await pool.close()
    })
  }

  await t.test('queue: a cut waits for its edge', async t => {
    const memory = files(2)
    const { pool } = await openFiles(memory, { onFull: 'queue' })
    const device = thin(pool, 0)
    await device.write(0, BLOCK, filled(BLOCK, 1), 0)
    pool.devices.createSnap(devId(1), devId(0))
    await thin(pool, 2).write(0, BLOCK, filled(BLOCK, 3), 0)
    const cut = follow(() => device.discard(512, 512))
    await turns()
    t.equal(cut.state, 'waits')
    await thin(pool, 2).discard(0, BLOCK)
    await pool.commit()
    await turns()
    t.equal(cut.state, 'done')
    t.equal(byteAt(device, 512), 0)
  })
})

t.test('a signal ends the wait of who has got it', async t => {
  const waiting = async () => {
    const memory = files(4)
    const { pool } = await openFiles(memory, { onFull: 'queue' })
    const device = thin(pool, 0)
    await device.write(0, 4 * BLOCK, filled(4 * BLOCK, 1), 0)
    pool.devices.createSnap(devId(1), devId(0))
    await pool.commit()
    const killed = new AbortController()
    return { memory, pool, device, killed, signal: killed.signal }
  }
  const WAITS: Record<string, (device: ThinDevice, signal: AbortSignal) => void | Promise<void>> = {
    'a write': (device, signal) =>
      device.write(7 * BLOCK, 512, filled(512, 2), 0, { signal: () => signal }),
    'a write of a shared block': (device, signal) =>
      device.write(BLOCK, 512, filled(512, 2), 0, { signal: () => signal }),
    zeroing: (device, signal) => device.discard(512, 512, true, signal),
  }
  for (const [what, wait] of Object.entries(WAITS)) {
    await t.test(what, async t => {
      const { memory, pool, device, killed, signal } = await waiting()
      const one = follow(() => wait(device, signal))
      const other = follow(() => device.write(8 * BLOCK, 512, filled(512, 3), 0))
      await turns()
      t.equal(pool.space.writesWaiting, 2)
      killed.abort(interrupted())
      await turns()
      t.same([one.state, other.state], ['CANCELLED', 'waits'])
      t.equal(pool.space.writesWaiting, 1)
      pool.devices.delete(devId(1))
      await device.discard(2 * BLOCK, 2 * BLOCK)
      await pool.commit()
      await turns()
      t.equal(other.state, 'done')
      t.same(
        [0, 512, BLOCK, 7 * BLOCK, 8 * BLOCK].map(at => byteAt(device, at)),
        [1, 1, 1, 0, 3],
      )
      await pool.close()
      t.same(checkMetadata(memory.metadata).problems, [])
    })
  }

  await t.test('before it waits: a signal that came while its blocks were read', async t => {
    const { memory, pool, device, killed, signal } = await waiting()
    memory.data.inMemory = false
    await device.discard(3 * BLOCK, BLOCK)
    pool.devices.delete(devId(1))
    await pool.commit()
    pool.devices.createSnap(devId(1), devId(0))
    const write = follow(() =>
      device.write(BLOCK + 512, 512, filled(512, 2), 0, { signal: () => signal }),
    )
    // While it is read somebody else takes the last block.
    const other = follow(() => thin(pool, 2).write(0, BLOCK, filled(BLOCK, 3), 0))
    killed.abort(interrupted())
    await turns()
    t.same([write.state, other.state], ['CANCELLED', 'done'])
    t.equal(pool.space.writesWaiting, 0)
    await pool.close()
  })
})

t.test('a data file that grew further than the metadata has room for', async t => {
  const small = async () => {
    const metadata = new MemoryStore(80 * 4096, { path: 'metadata' })
    ThinMetadata.format(metadata, { dataBlockSectors: 8 })
    const data = new SparseStore('data', Buffer.alloc(0), 1000 * 4096)
    const { journal } = formatted({ blockSectors: 8, dataBlocks: 0 })
    const memory = { metadata, data, journal }
    const opened = await openFiles(memory)
    opened.pool.devices.createThin(devId(0))
    const device = opened.pool.devices.get(devId(0), bytes(1000 * 4096))
    await device.write(0, 4096, filled(4096, 7), 0)
    return { memory, device, ...opened }
  }
  const LARGE = bytes(2_000_000 * 4096)

  await t.test('leaves the pool as large as it is, and all that was acknowledged', async t => {
    const { memory, pool, device, recorded } = await small()
    await device.preallocate(0, 1000 * 4096)
    await pool.commit()
    memory.data.grow(LARGE)
    pool.devices.createThin(devId(1))
    const other = pool.devices.get(devId(1), bytes(4096))
    await t.rejects(async () => other.write(0, 512, filled(512, 1), 0), { code: 'NO_DATA_SPACE' })
    t.equal(pool.mode, 'out_of_data_space')
    t.equal(pool.metadata.nrDataBlocks, 1000)
    t.match(recorded.warnings, [/2000000 blocks, the pool stays at 1000/])
    t.match(pool.space.warnings, [/stays at 1000/])
    t.same(recorded.errors, [])
    await device.discard(4096, 4096)
    await other.write(0, 512, filled(512, 1), 0)
    t.equal(pool.mode, 'write')
    await pool.close()

    const again = await openFiles(memory)
    t.equal(again.pool.mode, 'write', 'and it can be opened')
    t.match(again.recorded.warnings, [/stays at 1000/])
    t.equal(byteAt(again.pool.devices.get(devId(0), bytes(4096)), 0), 7)
    await again.pool.close()
    memory.metadata.grow(bytes(1024 * 4096))
    const larger = await openFiles(memory)
    t.equal(larger.pool.metadata.nrDataBlocks, 2_000_000, 'it grows when there is room')
    t.same(larger.pool.space.warnings, [])
    await larger.pool.close()
    t.same(checkMetadata(memory.metadata).problems, [])
  })
})

t.test("a host's full disk", async t => {
  for (const errno of ['ENOSPC', 'EDQUOT']) {
    const refusing = async (onFull: 'error' | 'queue') => {
      const memory = files(16)
      const opened = await openFiles(memory, { onFull })
      const device = thin(opened.pool, 0)
      await device.write(0, BLOCK, filled(BLOCK, 1), 0)
      await opened.pool.commit()
      const refuse = (): void => {
        memory.data.onWrite = op => {
          if (op === 'write') throw failure(errno)
        }
      }
      refuse()
      return { memory, device, ...opened }
    }

    await t.test(`${errno}, error: is a full pool that says what is full`, async t => {
      const { memory, pool, device, recorded } = await refusing('error')
      const write = async (at: number): Promise<void> => device.write(at, 512, filled(512, 2), 0)
      await t.rejects(write(BLOCK), { code: 'NO_DATA_SPACE', errno: 'ENOSPC' })
      await t.rejects(write(0), { code: 'NO_DATA_SPACE' }, 'in place, too')
      t.equal(pool.mode, 'out_of_data_space')
      t.match(pool.reason, /host's disk/)
      t.match(pool.reason, errno)
      t.equal(pool.space.data.nrFree, 15, 'no block is lost')
      t.same(recorded.errors, [])
      memory.data.onWrite = undefined
      await write(BLOCK)
      t.equal(pool.mode, 'write')
      await pool.close()
      t.same(checkMetadata(memory.metadata).problems, [])
    })

    await t.test(`${errno}, queue: writes wait until the host has room`, async t => {
      const { memory, pool, device, clock, recorded } = await refusing('queue')
      const fresh = follow(() => device.write(BLOCK, 512, filled(512, 2), 0))
      const inPlace = follow(() => device.write(0, 512, filled(512, 3), 0))
      await turns()
      for (let second = 0; second < 10; second++) {
        clock.advance(1000)
        await turns()
      }
      t.same([fresh.state, inPlace.state], ['waits', 'waits'])
      t.equal(pool.space.writesWaiting, 2)
      t.same(recorded.modes, ['out_of_data_space'], 'told once')
      memory.data.onWrite = undefined
      clock.advance(1000)
      await turns()
      t.same([fresh.state, inPlace.state], ['done', 'done'])
      t.same(recorded.modes, ['out_of_data_space', 'write'])
      t.same([byteAt(device, 0), byteAt(device, BLOCK)], [3, 2])
    })

    await t.test(`${errno}, queue: for 60 s in all`, async t => {
      const { pool, device, clock } = await refusing('queue')
      const vain = follow(() => device.write(BLOCK, 512, filled(512, 2), 0))
      await turns()
      for (let second = 0; second < 61; second++) {
        clock.advance(1000)
        await turns()
      }
      t.equal(vain.state, 'NO_DATA_SPACE')
      t.equal(pool.space.onFull, 'error')
    })
  }

  await t.test('is told of before it is used up, and again when it was better', async t => {
    const memory = files(16)
    let available = 10 * BLOCK
    Object.assign(memory.data, { hostRoom: () => ({ available, allocated: 0 }) })
    const { pool, recorded } = await openFiles(memory, { lowWaterMark: 4 })
    const write = async (at: number): Promise<void> => {
      await thin(pool, 0).write(at * BLOCK, 512, filled(512, 2), 0)
      await pool.commit()
    }
    await write(0)
    t.same(recorded.warnings, [])
    available = 3 * BLOCK
    await write(1)
    await write(2)
    t.equal(recorded.warnings.length, 1)
    t.match(pool.space.warnings, [/the host's disk has/])
    t.equal(pool.space.data.hostRoom, 3 * BLOCK)
    available = 10 * BLOCK
    await write(3)
    t.same(pool.space.warnings, [])
    available = 3 * BLOCK
    await write(4)
    t.equal(recorded.warnings.length, 2)
  })
})

t.test('metadata that came while the data is full is not what is missing', async t => {
  const memory = files(4)
  const { pool } = await openFiles(memory)
  await thin(pool, 0).write(0, 4 * BLOCK, filled(4 * BLOCK, 1), 0)
  memory.metadata.onWrite = op => {
    if (op === 'write') throw failure('ENOSPC')
  }
  await t.rejects(pool.commit(), /ENOSPC/)
  t.equal(pool.mode, 'out_of_metadata_space')
  memory.metadata.onWrite = undefined
  await pool.commit()
  t.equal(pool.mode, 'out_of_data_space')
  await thin(pool, 0).discard(0, BLOCK)
  await pool.commit()
  t.equal(pool.mode, 'write')
})
