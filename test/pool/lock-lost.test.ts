// Goal: once a pool may be another host's it writes nothing, and answers nothing. Method: its lock,
// or its tenancy, is lost at each stage of a commit, or while nothing happens; every write and
// punch that reaches the files afterwards is noted.
import t from 'tap'
import { ThinfsError } from '../../src/base/index.js'
import { checkMetadata } from '../../src/metadata/index.js'
import { devId, openFiles } from '../support/memory-pool.js'
import { BLOCK, files, filled, thin, turn } from '../support/thin-devices.js'

/** A pool with two blocks in use, one of them freed and not committed yet, and its lock. */
async function servedPool(code: 'LOCK_LOST' | 'FENCED') {
  const memory = files(8)
  const lock = { held: true, looksLeft: Number.POSITIVE_INFINITY }
  const written: string[] = []
  for (const name of ['data', 'metadata'] as const) {
    memory[name].onWrite = (op, offset) => {
      if (!lock.held && op !== 'sync') written.push(`${name}: ${op} at ${offset}`)
    }
  }
  /** A lock is looked at, a record has to be read. */
  const look = (): void => {
    if (lock.looksLeft-- <= 0) lock.held = false
    if (!lock.held) throw new ThinfsError(code, 'it is lost')
  }
  const { pool, clock, recorded } = await openFiles(memory, {
    mayWrite: () => (code === 'LOCK_LOST' ? look() : turn().then(look)),
  })
  const device = thin(pool, 0)
  await device.write(0, 2 * BLOCK, filled(2 * BLOCK, 1), 0)
  await pool.commit()
  await device.discard(0, BLOCK)
  await device.write(3 * BLOCK, BLOCK, filled(BLOCK, 2), 0)
  return { memory, lock, written, pool, clock, recorded, device, code }
}

const LOSSES: Record<string, (of: Awaited<ReturnType<typeof servedPool>>) => Promise<void>> = {
  async 'before a commit'({ lock, pool, code }) {
    lock.held = false
    await t.rejects(pool.commit(), { code })
  },
  async 'during the flush of the data'({ lock, pool, code }) {
    lock.looksLeft = 1
    await t.rejects(pool.commit(), { code })
  },
  async 'between metadata and superblock'({ lock, pool, code }) {
    lock.looksLeft = 2
    await t.rejects(pool.commit(), { code })
  },
  async 'before a commit that fails is undone'({ memory, lock, pool }) {
    const note = memory.metadata.onWrite!
    memory.metadata.onWrite = (op, offset, length) => {
      note(op, offset, length)
      lock.held = false
      throw new ThinfsError('IO_ERROR', 'metadata: write', { errno: 'EIO' })
    }
    await t.rejects(pool.commit(), { code: 'IO_ERROR' })
    memory.metadata.onWrite = note
  },
  async 'while nothing happens'({ lock, clock }) {
    lock.held = false
    clock.advance(1000)
  },
}

const CASES = Object.entries(LOSSES).flatMap(([when, lose]) =>
  (['LOCK_LOST', 'FENCED'] as const).map(code => ({ when, lose, code })),
)

for (const { when, lose, code } of CASES) {
  t.test(`${code} ${when}: nothing is written any more`, async t => {
    const of = await servedPool(code)
    const { memory, pool, clock, recorded, device, written } = of
    await lose(of)
    for (let turns = 0; turns < 3; turns++) await turn()
    t.equal(pool.mode, 'fail')
    t.same(recorded.lost, [code], 'whoever runs the pool hears of it, once')
    t.equal(recorded.modes.at(-1), 'fail')
    const found = Buffer.alloc(512)
    const failed = { code: 'POOL_FAILED', errno: 'EIO' }
    t.throws(() => device.read(0, 512, found, 0), failed, 'what is here may be old')
    t.throws(() => device.write(BLOCK, 512, found, 0), failed)
    await t.rejects(pool.commit(), failed, 'and no flush succeeds')
    clock.advance(10_000)
    await turn()
    await pool.close().catch(() => {})
    t.same(written, [], 'nothing reached the files')
    const { pool: next } = await openFiles({ ...memory, journal: memory.journal.copy('boot-2') })
    t.same(checkMetadata(memory.metadata).problems, [])
    t.equal(next.metadata.needsCheck, false)
    thin(next, 0).read(0, 512, found, 0)
    t.ok(found.equals(filled(512, 1)), 'whoever has the pool next finds the last commit')
  })
}

t.test('a lock that is held costs nothing', async t => {
  const { pool, device } = await servedPool('FENCED')
  pool.devices.createSnap(devId(1), devId(0))
  await device.write(BLOCK, 512, filled(512, 9), 0)
  await pool.commit()
  t.equal(pool.mode, 'write')
  await pool.close()
})
