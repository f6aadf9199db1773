// What holds between the moments that the other tests look at: while a commit is under way, while
// the journal cannot be written, while metadata runs short, and when a process dies while it opens
// what an earlier one left. Each is told by what a later opening, or a power cut, brings back.
import t from 'tap'
import { bytes } from '../../src/base/index.js'
import { checkMetadata } from '../../src/metadata/index.js'
import type { ThinPool } from '../../src/pool/index.js'
import {
  devId,
  formatted,
  type MemoryFiles,
  MemoryJournal,
  openFiles,
  staleFreeBlocks,
} from '../support/memory-pool.js'
import { BLOCK, byteAt, failure, files, filled, SIZE, thin, turn } from '../support/thin-devices.js'
import { thinCheck, thinDump } from '../support/thin-tools.js'

/** What the disks hold after a power cut that lost all that was not flushed. */
const powerCut = ({ metadata, data, journal }: MemoryFiles): MemoryFiles => ({
  metadata: metadata.crash(() => false),
  data: data.crash(() => false),
  journal: journal.copy('another boot'),
})

/** The same files for the next process of the same boot: what was not flushed still is not. */
const killed = ({ metadata, data, journal }: MemoryFiles): MemoryFiles => ({
  metadata,
  data,
  journal: journal.copy(),
})

t.test('commits', async t => {
  await t.test('never overlap, at whatever moment one is asked for', async t => {
    const memory = files()
    const { pool } = await openFiles(memory)
    const asked: Promise<void>[] = []
    // Each asks for a commit of its own change, in every microtask around the ends of others.
    const { sync } = memory.metadata
    memory.metadata.sync = async () => {
      await sync.call(memory.metadata)
      if (asked.length < 200) void ask()
    }
    const ask = async (): Promise<void> => {
      for (let ticks = 0; ticks < 20; ticks++) {
        await null
        pool.setTransactionId(0, 0)
        asked.push(pool.commit())
      }
    }
    await ask()
    await t.resolves(Promise.all(asked))
    t.equal(pool.mode, 'write')
    t.same(checkMetadata(memory.metadata).problems, [])
  })

  await t.test('after a rollback tell that something is gone', async t => {
    const memory = files()
    const { pool } = await openFiles(memory)
    const device = thin(pool, 0)
    await pool.commit()
    await device.write(0, BLOCK, filled(BLOCK, 1), 0)
    memory.metadata.onWrite = op => {
      if (op !== 'sync') return
      memory.metadata.onWrite = undefined
      throw failure('EIO')
    }
    const first = pool.commit()
    await device.write(BLOCK, BLOCK, filled(BLOCK, 2), 0) // acknowledged, and then rolled back
    const second = pool.commit()
    await t.rejects(first)
    await t.rejects(
      second,
      { code: 'POOL_READ_ONLY', errno: 'EIO' },
      'the flush of a write that is gone',
    )
    await t.rejects(pool.commit(), { code: 'POOL_READ_ONLY', errno: 'EIO' })
  })

  await t.test('of a pool that was opened read-only have nothing to tell', async t => {
    const memory = files()
    await (await openFiles(memory)).pool.close()
    const { pool } = await openFiles(memory, { readOnly: true })
    await t.resolves(pool.commit())
  })
})

t.test('a failure in the middle of a change of the metadata rolls it back', async t => {
  const cases: [string, (pool: ThinPool) => unknown][] = [
    ['taking a data block', pool => thin(pool, 0).write(0, BLOCK, filled(BLOCK, 1), 0)],
    ['reserving a metadata snapshot', pool => pool.reserveMetadataSnap()],
    ['releasing a metadata snapshot', pool => pool.releaseMetadataSnap()],
  ]
  for (const [what, change] of cases) {
    const memory = files()
    const { pool } = await openFiles(memory)
    thin(pool, 0)
    if (what.startsWith('releasing')) await pool.reserveMetadataSnap()
    await pool.commit()
    const { metadata } = pool
    const broken = (): never => {
      throw Object.assign(new Error('a bug'), { code: 'ERR_ASSERTION' })
    }
    metadata.allocateData = broken
    metadata.reserveMetadataSnap = broken
    metadata.releaseMetadataSnap = broken
    await t.rejects(async () => change(pool), what)
    await pool.close()
    t.equal(pool.mode, 'read_only', what)
    memory.metadata.onWrite = op => t.fail(`${what}: a ${op} after the pool was closed`)
    await turn()
    memory.metadata.onWrite = undefined
    t.same(checkMetadata(memory.metadata).problems, [], what)
    t.equal((await openFiles(memory)).recorded.cleared, true, what)
  }
})

t.test('the journal', async t => {
  await t.test('has the sizes that writes made after a commit that was the last event', async t => {
    const memory = files()
    const { pool } = await openFiles(memory)
    const device = thin(pool, 0)
    await pool.commit()
    await device.write(0, BLOCK, filled(BLOCK, 1), 0)
    device.extend(100 * BLOCK)
    await pool.settle()
    await pool.commit()
    const again = await openFiles(killed(memory))
    t.equal(again.pool.devices.unsavedSizes.get(devId(0)), 100 * BLOCK)
  })

  await t.test(
    'that takes no more: replies wait for the commit that has their changes',
    async t => {
      const memory = files()
      const { pool } = await openFiles(memory)
      const device = thin(pool, 0)
      await pool.commit()
      memory.journal.append = () => {
        throw failure('ENOSPC')
      }
      await device.write(0, BLOCK, filled(BLOCK, 1), 0)
      const flush = pool.commit() // of the same batch: the transaction is sealed with the write in it
      t.equal(pool.unsettled, true, 'the reply to the write has to wait')
      await pool.settle()
      t.equal(thinDump(memory.metadata.image).devices.get(0)?.mappings.size, 1)
      await flush
      t.equal(pool.unsettled, false)
    },
  )

  await t.test('keeps sizes while an opening commits what it replayed', async t => {
    const memory = files()
    const { pool } = await openFiles(memory)
    const device = thin(pool, 0)
    await pool.commit()
    await device.write(0, BLOCK, filled(BLOCK, 1), 0)
    device.extend(100 * BLOCK)
    await pool.settle()

    class DyingJournal extends MemoryJournal {
      override replace(): void {
        throw failure('EIO')
      }
    }
    const dying = { ...memory, journal: new DyingJournal(undefined, memory.journal.content) }
    await t.rejects(openFiles(dying), { code: 'IO_ERROR' }, 'dies when all is committed')
    const journal = new MemoryJournal(undefined, dying.journal.content)
    const again = await openFiles({ ...memory, journal })
    t.equal(again.pool.devices.unsavedSizes.get(devId(0)), 100 * BLOCK)
    t.equal(byteAt(again.pool.devices.get(devId(0), SIZE), 0), 1)
  })

  await t.test('a snapshot that is lost takes no sharing with it', async t => {
    const memory = files()
    const { pool } = await openFiles(memory)
    const source = thin(pool, 0)
    await source.write(0, BLOCK, filled(BLOCK, 1), 0)
    await pool.commit()
    // The snapshot is not durable yet, but its time makes the block look shared.
    pool.devices.createSnap(devId(1), devId(0))
    await source.share(source, 0, 4 * BLOCK, BLOCK)
    await pool.settle()
    const again = await openFiles(killed(memory))
    t.equal(again.pool.metadata.hasDevice(devId(1)), false)
    const device = again.pool.devices.get(devId(0), SIZE)
    await device.write(0, BLOCK, filled(BLOCK, 2), 0)
    t.equal(byteAt(device, 4 * BLOCK), 1)
    await again.pool.commit()
    t.same(checkMetadata(memory.metadata).problems, [])
  })

  await t.test('knows which handles have a device open, for whoever takes over', async t => {
    const memory = files()
    const { pool } = await openFiles(memory)
    thin(pool, 0)
    thin(pool, 1)
    await pool.commit()
    pool.devices.opened(devId(0), 11)
    pool.devices.opened(devId(0), 12)
    pool.devices.opened(devId(1), 13)
    pool.devices.closed(devId(1), 13)
    await pool.settle()
    thin(pool, 2)
    await pool.commit()
    const take = async (takesOver: boolean) => (await openFiles(killed(memory), { takesOver })).pool
    const counts = (pool: ThinPool) => [0, 1, 2].map(id => pool.devices.openCount(devId(id)))
    const next = await take(true)
    t.same(counts(next), [2, 0, 0])
    next.devices.opened(devId(0), 12)
    t.same(counts(next), [2, 0, 0], 'the same handle once only')
    next.devices.closed(devId(0), 12)
    next.devices.closed(devId(0), 12)
    t.same(counts(next), [1, 0, 0])
    t.same(counts(await take(false)), [0, 0, 0], 'a new mount has nothing open')
  })

  await t.test('of opens alone does not grow without end', async t => {
    const memory = files()
    const { pool, clock } = await openFiles(memory)
    thin(pool, 0)
    await pool.commit()
    let largest = 0
    memory.journal.append = (_bytes, length) => {
      largest = Math.max(largest, length)
    }
    const replaced: number[] = []
    memory.journal.replace = content => {
      replaced.push(content.length)
    }
    for (let i = 0; i < 300_000; i++) {
      pool.devices[i % 2 ? 'closed' : 'opened'](devId(0), i >> 1)
      if (i % 1000 === 999) await pool.settle()
    }
    clock.advance(1000)
    await pool.commit()
    t.equal(replaced.length, 1)
    t.ok(replaced[0]! < 4096)
  })
})

t.test('opening after a process has died', async t => {
  await t.test('a flush covers what the dead process wrote', async t => {
    const memory = files()
    const { pool } = await openFiles(memory)
    await thin(pool, 0).write(0, BLOCK, filled(BLOCK, 1), 0)
    await pool.commit()
    await thin(pool, 0).write(0, 512, filled(512, 2), 0) // in place: nothing for the journal
    const again = await openFiles(killed(memory))
    await again.pool.commit()
    const after = await openFiles(powerCut(memory))
    t.equal(byteAt(thin(after.pool, 0), 0), 2)
  })

  await t.test('nothing is punched that a power cut would bring back', async t => {
    const memory = files()
    const { pool } = await openFiles(memory)
    const origin = thin(pool, 0)
    await origin.write(0, BLOCK, filled(BLOCK, 1), 0)
    pool.devices.createSnap(devId(1), devId(0))
    await pool.commit()
    const snap = pool.devices.get(devId(1), SIZE)
    await origin.write(0, BLOCK, filled(BLOCK, 2), 0)
    await snap.write(0, BLOCK, filled(BLOCK, 3), 0)
    await pool.settle()

    // The shared block is free now in the journal's eyes, but the last commit has it twice.
    const cuts: MemoryFiles[] = []
    const cut = (): void => {
      const { metadata, data, journal } = memory
      cuts.push({
        metadata: metadata.crash(() => false),
        data: data.crash(() => true),
        journal: journal.copy('another boot'),
      })
    }
    memory.data.onWrite = cut
    memory.metadata.onWrite = cut
    await openFiles(killed(memory))
    t.ok(cuts.length > 3)
    for (const left of cuts) {
      const after = await openFiles(left)
      const found = [0, 1].map(id => byteAt(after.pool.devices.get(devId(id), SIZE), 0))
      t.ok(found.join() === '1,1' || found.join() === '2,3', `found ${found}`)
    }
  })

  await t.test('free blocks are holes although they were not meant to be before', async t => {
    const memory = files()
    const first = await openFiles(memory, { discards: 'nopassdown' })
    await thin(first.pool, 0).write(0, 4 * BLOCK, filled(4 * BLOCK, 0xee), 0)
    await thin(first.pool, 0).discard(0, 4 * BLOCK)
    await first.pool.close()
    const { pool } = await openFiles(memory)
    t.same(staleFreeBlocks(pool, memory.data), [])
    const device = thin(pool, 1)
    await device.write(512, 512, filled(512, 1), 0)
    t.equal(byteAt(device, 0), 0, 'nothing of the other device shows')
  })

  await t.test('an orderly shutdown is one when its holes are durable', async t => {
    const memory = files()
    const { pool } = await openFiles(memory)
    await thin(pool, 0).write(0, 4 * BLOCK, filled(4 * BLOCK, 0xee), 0)
    await pool.commit()
    await thin(pool, 0).discard(0, 4 * BLOCK)
    await pool.close()
    const left = powerCut(memory) // the journal is in another file, and got to its disk
    const again = await openFiles(left)
    t.same(staleFreeBlocks(again.pool, left.data), [])
  })
})

t.test('space', async t => {
  await t.test('discards of a pool short of metadata commit, and never fail it', async t => {
    const memory = formatted({ blockSectors: 8, dataBlocks: 20_000, metadataBlocks: 124 })
    const { pool, recorded } = await openFiles(memory)
    pool.devices.createThin(devId(0))
    const device = pool.devices.get(devId(0), bytes(2 ** 40))
    const written: number[] = []
    for (let i = 0, full = false; !full; i++) {
      const offset = ((i * 7919) % 1_000_003) * 4096
      try {
        await device.write(offset, 4096, filled(4096, 1), 0)
        written.push(offset)
      } catch (err) {
        t.equal((err as { code: string }).code, 'NO_METADATA_SPACE')
        full = true
      }
    }
    await pool.commit()
    pool.metadata.incData(0 as never) // an owner besides: its bitmap is shadowed in any case
    pool.metadata.decData(0 as never)
    // The first of each leaf: all leaves are changed, none gets empty.
    written.sort((a, b) => a - b)
    for (let i = 0; i < written.length; i += 60) await device.discard(written[i]!, 4096)
    for (const offset of written) await device.discard(offset, 4096)
    t.notOk(recorded.modes.includes('read_only'), recorded.errors.join())
    await pool.commit()
    t.equal(pool.mode, 'write', 'what was freed is there to be used')
    t.equal(pool.metadata.nrAllocatedDataBlocks, 0)
    t.equal(thinCheck(memory.metadata.image).status, 0)
  })

  await t.test('devices are not made of the metadata that is kept back', async t => {
    const memory = formatted({ blockSectors: 8, dataBlocks: 1000, metadataBlocks: 80 })
    const { pool, recorded } = await openFiles(memory)
    let made = 0
    await t.rejects(
      async () => {
        for (; made < 500; made++) {
          pool.devices.createThin(devId(made))
          await pool.commit()
        }
      },
      { code: 'NO_METADATA_SPACE' },
    )
    t.ok(made > 10)
    t.same(recorded.modes, [])
    t.equal(thinCheck(memory.metadata.image).status, 0)
  })

  await t.test('a pool that failed while a request waited stays failed', async t => {
    const memory = files()
    const { pool, recorded } = await openFiles(memory)
    const device = thin(pool, 0)
    await device.write(0, BLOCK, filled(BLOCK, 1), 0)
    await pool.commit()
    await device.discard(0, BLOCK)
    // What waits shares a commit that goes well; a change of the metadata goes wrong meanwhile.
    const waiting = pool.space.withSpace(device, 0, () => null)
    pool.metadata.incData = () => {
      throw failure('EIO')
    }
    t.throws(() => pool.mapShared(devId(0), 0 as never, 0 as never, 0))
    await t.rejects(waiting, { code: 'POOL_READ_ONLY' })
    await pool.close()
    t.same(recorded.modes, ['read_only'])
  })

  await t.test(
    'a write that does not fit fails after 60 s, though some blocks are free',
    async t => {
      const { pool, clock } = await openFiles(files(4), { onFull: 'queue' })
      const device = thin(pool, 0)
      await device.write(0, 2 * BLOCK, filled(2 * BLOCK, 1), 0)
      await pool.commit()
      let error: { code?: string } | null = null
      const waiting = (
        device.write(8 * BLOCK, 3 * BLOCK, filled(3 * BLOCK, 2), 0) as Promise<void>
      ).catch(err => {
        error = err
      })
      for (let second = 0; second < 70 && error === null; second++) {
        await turn()
        clock.advance(1000)
      }
      t.match(error, { code: 'NO_DATA_SPACE' })
      await waiting
    },
  )
})

t.test('a read of a pool that failed for good is an error, not zeros', async t => {
  const memory = files()
  const { pool, recorded } = await openFiles(memory)
  const device = thin(pool, 0)
  await device.write(0, BLOCK, filled(BLOCK, 1), 0)
  memory.metadata.onWrite = () => {
    throw failure('EIO')
  }
  await t.rejects(pool.commit())
  t.same(recorded.modes, ['read_only', 'fail'])
  t.throws(() => byteAt(device, 0), { code: 'POOL_FAILED', errno: 'EIO' })
  t.throws(() => device.write(0, 512, filled(512, 1), 0), { code: 'POOL_FAILED', errno: 'EIO' })
})

t.test('a block that could not be cleared after a failed write is given to nobody', async t => {
  const memory = files(1)
  const { pool } = await openFiles(memory)
  const device = thin(pool, 0)
  await pool.commit()
  memory.data.onWrite = () => {
    throw failure('EIO')
  }
  t.throws(() => device.write(0, 512, filled(512, 0xee), 0), { message: /EIO/ })
  memory.data.onWrite = op => {
    if (op === 'punch') throw failure('EIO')
  }
  t.equal(pool.metadata.nrAllocatableDataBlocks, 0)
  await pool.commit()
  t.equal(pool.metadata.nrAllocatableDataBlocks, 0, 'nor while it still cannot be')
  t.equal(thinCheck(memory.metadata.image).status, 0)
  memory.data.onWrite = undefined
  await device.write(0, 512, filled(512, 0xdd), 0)
  t.equal(byteAt(device, 512), 0, 'until it was')
  t.equal(pool.mode, 'write')
})

t.test('a freed block that the data file refuses to punch', async t => {
  const refusing = async (): Promise<{ memory: MemoryFiles; pool: ThinPool }> => {
    const memory = files(2)
    const { pool } = await openFiles(memory)
    await thin(pool, 0).write(0, 2 * BLOCK, filled(2 * BLOCK, 0xee), 0)
    await pool.commit()
    await thin(pool, 0).discard(0, BLOCK)
    memory.data.onWrite = op => {
      if (op === 'punch') throw failure('ENOSPC')
    }
    await t.resolves(pool.commit(), 'what was asked to be durable is')
    t.equal(pool.mode, 'write')
    return { memory, pool }
  }

  await t.test('is not allocated before it was punched', async t => {
    const { memory, pool } = await refusing()
    const write = async (): Promise<void> => thin(pool, 0).write(5 * BLOCK, 512, filled(512, 1), 0)
    await t.rejects(write(), { code: 'NO_DATA_SPACE' })
    memory.data.onWrite = undefined
    await write()
    t.equal(byteAt(thin(pool, 0), 5 * BLOCK + 512), 0)
    t.equal(byteAt(thin(pool, 0), BLOCK), 0xee)
  })

  await t.test('is punched when the pool is opened again', async t => {
    const { memory, pool } = await refusing()
    await pool.close()
    memory.data.onWrite = undefined
    const again = await openFiles(memory)
    t.same(staleFreeBlocks(again.pool, memory.data), [])
  })
})
