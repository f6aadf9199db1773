// The host has no room for metadata, or for the journal: at opening, in use, and at the shutdown.
import t from 'tap'
import { bytes } from '../../src/base/index.js'
import { checkMetadata } from '../../src/metadata/index.js'
import {
  devId,
  killed,
  type MemoryFiles,
  openFiles,
  staleFreeBlocks,
} from '../support/memory-pool.js'
import { BLOCK, byteAt, failure, files, filled, thin, turn } from '../support/thin-devices.js'

const ERRNOS = ['ENOSPC', 'EDQUOT']

function noJournal(memory: MemoryFiles, errno: string, which: string[]): () => void {
  const { journal } = memory
  const refuse = (): never => {
    throw failure(errno)
  }
  if (which.includes('append')) journal.append = refuse
  if (which.includes('replace')) journal.replace = refuse
  return () => {
    const { append, replace } = Object.getPrototypeOf(journal)
    Object.assign(journal, { append, replace })
  }
}

for (const errno of ERRNOS) {
  t.test(`${errno}: a pool is opened`, async t => {
    await t.test('though a commit finds no room, and goes on when there is some', async t => {
      const memory = files()
      const first = await openFiles(memory)
      await thin(first.pool, 0).write(0, 2 * BLOCK, filled(2 * BLOCK, 1), 0)
      await first.pool.commit()
      await thin(first.pool, 0).discard(0, BLOCK)
      await thin(first.pool, 0).write(5 * BLOCK, BLOCK, filled(BLOCK, 2), 0)
      await first.pool.settle()

      const left = killed(memory)
      left.metadata.onWrite = op => {
        if (op === 'write') throw failure(errno)
      }
      const { pool, clock, recorded } = await openFiles(left)
      t.same(recorded.modes, ['out_of_metadata_space'])
      const device = thin(pool, 0)
      t.same(
        [0, BLOCK, 5 * BLOCK].map(at => byteAt(device, at)),
        [0, 1, 2],
      )
      await t.rejects(async () => device.write(9 * BLOCK, 512, filled(512, 3), 0), {
        code: 'NO_METADATA_SPACE',
      })
      left.metadata.onWrite = undefined
      for (let second = 0; second < 3; second++) {
        clock.advance(1000)
        for (let i = 0; i < 20; i++) await turn()
      }
      t.equal(pool.mode, 'write')
      t.same(staleFreeBlocks(pool, left.data), [])
      await device.write(9 * BLOCK, 512, filled(512, 3), 0)
      t.equal(byteAt(device, 9 * BLOCK + 512), 0)
      await pool.close()
      t.same(checkMetadata(left.metadata).problems, [])
    })

    for (const which of [['replace'], ['append', 'replace']]) {
      await t.test(`though the journal finds none: ${which}`, async t => {
        const memory = files()
        const first = await openFiles(memory)
        await thin(first.pool, 0).write(0, BLOCK, filled(BLOCK, 1), 0)
        await first.pool.close()

        noJournal(memory, errno, which)
        const { pool } = await openFiles(memory)
        t.equal(pool.mode, 'write')
        const device = thin(pool, 0)
        await device.write(BLOCK, BLOCK, filled(BLOCK, 2), 0)
        await pool.settle()
        // The power goes: what was written to free blocks must not be taken for holes.
        const { metadata, data, journal } = memory
        const cut = {
          metadata: metadata.crash(() => false),
          data: data.crash(() => true),
          journal: journal.copy('boot-2'),
        }
        const after = await openFiles(cut)
        t.same(staleFreeBlocks(after.pool, cut.data), [])
        // Or the process dies.
        const next = await openFiles(killed(memory))
        t.equal(byteAt(thin(next.pool, 0), BLOCK), 2)
        await pool.close()
        const again = await openFiles(memory)
        t.equal(byteAt(thin(again.pool, 0), BLOCK), 2)
        t.same(staleFreeBlocks(again.pool, memory.data), [])
      })
    }
  })

  t.test(`${errno}: a size that a write gave outlasts the process`, async t => {
    const extended = async () => {
      const memory = files()
      const { pool } = await openFiles(memory)
      const device = thin(pool, 0)
      await device.write(0, BLOCK, filled(BLOCK, 1), 0)
      await pool.commit()
      const heal = noJournal(memory, errno, ['append', 'replace'])
      await device.write(80 * BLOCK, BLOCK, filled(BLOCK, 2), 0)
      device.extend(81 * BLOCK)
      return { memory, pool, device, heal }
    }

    await t.test('or is not acknowledged', async t => {
      const { pool } = await extended()
      // Of MemoryJournal, as of a file, all can be cut off; to append to it fails all the same.
      await t.rejects(async () => pool.settle(), new RegExp(errno))
      t.equal(pool.unsettled, false, 'other replies do not wait')
      t.equal(pool.mode, 'write')
    })

    await t.test('when somebody saves it', async t => {
      const { pool } = await extended()
      const saved: number[] = []
      await pool.settle(async () => {
        for (const [id, size] of pool.devices.unsavedSizes) {
          saved.push(size)
          pool.devices.sizeSaved(id)
        }
        await pool.commit()
      })
      t.same(saved, [81 * BLOCK])
    })

    await t.test('when the commit has mended the journal', async t => {
      const { memory, pool, heal } = await extended()
      await pool.settle(async () => {
        heal()
        await pool.commit()
      })
      const next = await openFiles(killed(memory))
      t.equal(next.pool.devices.unsavedSizes.get(devId(0)), 81 * BLOCK)
    })
  })

  t.test(`${errno}: a journal without room for another goes on in its own`, async t => {
    const memory = files()
    const { pool } = await openFiles(memory)
    const device = thin(pool, 0)
    await device.write(0, BLOCK, filled(BLOCK, 1), 0)
    await pool.commit()
    const heal = noJournal(memory, errno, ['append', 'replace'])
    await device.write(BLOCK, BLOCK, filled(BLOCK, 2), 0)
    await pool.settle()
    heal()
    noJournal(memory, errno, ['replace'])
    await pool.commit()
    await device.write(2 * BLOCK, BLOCK, filled(BLOCK, 3), 0)
    await pool.settle()
    await device.write(3 * BLOCK, BLOCK, filled(BLOCK, 4), 0)
    await pool.settle()
    const next = await openFiles(killed(memory))
    t.same(
      [0, 1, 2, 3].map(i => byteAt(thin(next.pool, 0), i * BLOCK)),
      [1, 2, 3, 4],
    )
    await pool.close()
    const after = await openFiles(memory)
    t.equal(byteAt(thin(after.pool, 0), 3 * BLOCK), 4)
    t.same(staleFreeBlocks(after.pool, memory.data), [])
  })
}

t.test('what is to be undone is undone before another commit begins', async t => {
  const memory = files()
  const { pool } = await openFiles(memory)
  await thin(pool, 0).write(0, BLOCK, filled(BLOCK, 1), 0)
  await pool.commit()
  pool.devices.createThin(devId(5))
  let tries = 0
  memory.metadata.onWrite = op => {
    if (op === 'write' && tries++ === 0) throw failure('ENOSPC')
  }
  await Promise.all([
    t.rejects(pool.commitOrUndo(), /ENOSPC/),
    t.rejects(pool.commit(), { code: 'POOL_READ_ONLY' }),
  ])
  t.equal(pool.metadata.hasDevice(devId(5)), false)
  await pool.close()
  const again = await openFiles(memory)
  t.equal(again.pool.metadata.hasDevice(devId(5)), false)
  t.equal(byteAt(thin(again.pool, 0), 0), 1)
})

t.test(
  'what a change throws fails the pool, but for what comes before it changes anything',
  async t => {
    const codes = {
      DEVICE_EXISTS: 'write',
      DEVICE_MISSING: 'write',
      METADATA_LIMIT: 'write',
      METADATA_CORRUPT: 'read_only',
      NO_DATA_SPACE: 'read_only',
      POOL_MISMATCH: 'read_only',
    } as const
    const { ThinfsError } = await import('../../src/base/index.js')
    for (const [code, mode] of Object.entries(codes)) {
      const { pool } = await openFiles(files())
      pool.metadata.createThin = () => {
        throw new ThinfsError(code as keyof typeof codes, 'as told')
      }
      t.throws(() => pool.devices.createThin(devId(3)), { code })
      t.equal(pool.mode, mode, code)
    }

    await t.test('sharing with a device that is gone changes no count', async t => {
      const memory = files()
      const { pool } = await openFiles(memory)
      await thin(pool, 0).write(0, BLOCK, filled(BLOCK, 1), 0)
      t.throws(() => pool.mapShared(devId(9), 0 as never, 0 as never, 0), {
        code: 'DEVICE_MISSING',
      })
      t.equal(pool.mode, 'write')
      await pool.close()
      t.same(checkMetadata(memory.metadata).problems, [])
    })
  },
)

t.test('metadata blocks are taken where the host has set space aside', async t => {
  const memory = files()
  const reserved = new Set<number>()
  let room = 2048
  Object.assign(memory.metadata, {
    reserve(offset: number, length: number): boolean {
      for (let at = offset; at < offset + length; at += 4096) {
        if (reserved.has(at)) continue
        if (room === 0) throw failure('ENOSPC')
        room--
        reserved.add(at)
      }
      return true
    },
  })
  memory.metadata.grow(bytes(8192 * 4096))
  const { pool } = await openFiles(memory, { onFull: 'queue' })
  const device = thin(pool, 0)
  await device.write(0, BLOCK, filled(BLOCK, 1), 0)
  room = 0
  memory.metadata.onWrite = (op, offset, length) => {
    for (let at = offset; op === 'write' && at < offset + length; at += 4096) {
      if (!reserved.has(at)) throw failure('ENOSPC')
    }
  }
  for (let i = 0; i < 2000; i++) {
    pool.devices.createSnap(devId(1), devId(0))
    await device.discard(0, BLOCK)
    await pool.commit()
    pool.devices.delete(devId(1))
    await device.write(0, BLOCK, filled(BLOCK, 1), 0)
    await pool.commit()
  }
  t.equal(pool.mode, 'write')
  await pool.close()
  t.same(checkMetadata(memory.metadata).problems, [])
})
