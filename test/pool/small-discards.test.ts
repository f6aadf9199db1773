// Goal: a block whose last piece is discarded goes back to the pool, whatever the order of the
// pieces and whoever was killed in between; and nothing else does. Method: pieces of 4 KiB of
// blocks of 64 KiB, on a store that keeps track of its pages, beside a model: the set of pieces
// that hold something.
import fc from 'fast-check'
import t from 'tap'
import { checkMetadata } from '../../src/metadata/index.js'
import type { ThinPool } from '../../src/pool/index.js'
import { devId, killed, openFiles, staleFreeBlocks } from '../support/memory-pool.js'
import { BLOCK, byteAt, files, filled, thin } from '../support/thin-devices.js'

/** More of them take longer and find more: RUNS=1000. */
const RUNS = Number(process.env.RUNS ?? 40)
const PIECE = 4096
const PIECES = BLOCK / PIECE
const BLOCKS = 3

const mapped = (pool: ThinPool, id = 0): number => pool.metadata.details(devId(id)).mappedBlocks

async function each(pieces: readonly number[], act: (piece: number) => unknown): Promise<void> {
  for (const piece of pieces) await act(piece)
}

const all = Array.from({ length: PIECES }, (_, i) => i)

t.test('discards smaller than a block add up', async t => {
  const memory = files()
  const { pool } = await openFiles(memory)
  const device = thin(pool, 0)
  await device.write(0, 2 * BLOCK, filled(2 * BLOCK, 1), 0)
  await pool.commit()
  const order = all.map(i => (i * 7) % PIECES)
  await each(order.slice(0, -1), i => device.discard(i * PIECE, PIECE))
  t.equal(mapped(pool), 2)
  t.equal(byteAt(device, order.at(-1)! * PIECE), 1)
  await pool.settle()

  // What was discarded before is found again.
  const left = killed(memory)
  const { pool: next } = await openFiles(left)
  const again = thin(next, 0)
  await again.discard(order.at(-1)! * PIECE, PIECE)
  t.equal(mapped(next), 1)
  t.equal(byteAt(again, 0), 0)
  t.equal(byteAt(again, BLOCK), 1, 'the neighbour is there')
  await next.commit()
  await next.space.allReleased()
  t.equal(next.space.data.nrFree, 15)
  t.same(staleFreeBlocks(next, left.data), [])
  await next.close()
})

t.test('what has to stay stays', async t => {
  const discardAll = async (pool: ThinPool): Promise<void> => {
    await each(all, i => thin(pool, 0).discard(i * PIECE, PIECE))
  }

  await t.test('a block that a snapshot shares', async t => {
    const { pool } = await openFiles(files())
    await thin(pool, 0).write(0, BLOCK, filled(BLOCK, 1), 0)
    pool.devices.createSnap(devId(1), devId(0))
    await discardAll(pool)
    t.equal(byteAt(thin(pool, 1), 0), 1)
    t.equal(byteAt(thin(pool, 0), 0), 0)
    t.equal(mapped(pool), 0, 'of its copy nothing is left')
    t.equal(mapped(pool, 1), 1)
    await pool.close()
  })

  await t.test('a block that was preallocated and never written to', async t => {
    const { pool } = await openFiles(files())
    await thin(pool, 0).preallocate(0, BLOCK)
    await discardAll(pool)
    t.equal(mapped(pool), 1)
    await pool.close()
  })

  for (const [what, discards, change] of [
    ['a store that cannot say where holes are', 'passdown', { tellsHoles: false }],
    ['discards that are not passed down', 'nopassdown', {}],
  ] as const) {
    await t.test(what, async t => {
      const memory = files()
      Object.assign(memory.data, change)
      const { pool } = await openFiles(memory, { discards })
      await thin(pool, 0).write(0, BLOCK, filled(BLOCK, 1), 0)
      await discardAll(pool)
      t.equal(byteAt(thin(pool, 0), 0), 0)
      t.equal(mapped(pool), 1)
      await pool.close()
    })
  }
})

interface Step {
  kind: 'write' | 'discard' | 'snapshot' | 'commit'
  from: number
  count: number
}

const step = fc.record<Step>({
  kind: fc.oneof(
    { weight: 6, arbitrary: fc.constant('write' as const) },
    { weight: 12, arbitrary: fc.constant('discard' as const) },
    { weight: 1, arbitrary: fc.constant('snapshot' as const) },
    { weight: 2, arbitrary: fc.constant('commit' as const) },
  ),
  from: fc.nat(BLOCKS * PIECES - 1),
  count: fc.integer({ min: 1, max: 12 }),
})

t.test('blocks are mapped while something is in them, in whatever order', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 20, maxLength: 80 }), async steps => {
      const memory = files()
      const { pool } = await openFiles(memory)
      thin(pool, 0)
      const held = new Set<number>()
      /** Pieces with something in them; the copy of a shared block has nothing else, zeros too. */
      const solid = new Set<number>()
      const shared = new Set<number>()
      const piecesOf = (block: number) => all.map(i => block * PIECES + i)
      const isMapped = (block: number): boolean =>
        pool.metadata.mappings.mappedUntil(devId(0), block, block + 1) > block
      let snapshots = 0
      await pool.commit()
      for (const { kind, from, count } of steps) {
        const end = Math.min(from + count, BLOCKS * PIECES)
        const length = (end - from) * PIECE
        const device = thin(pool, 0)
        const changes = kind === 'write' || kind === 'discard'
        for (let block = 0; changes && block < BLOCKS; block++) {
          if (block * PIECES >= end || (block + 1) * PIECES <= from) continue
          if (shared.delete(block)) for (const piece of piecesOf(block)) solid.add(piece)
        }
        if (kind === 'write') {
          await device.write(from * PIECE, length, filled(length, 1), 0)
          for (let i = from; i < end; i++) solid.add(i)
          for (let i = from; i < end; i++) held.add(i)
        } else if (kind === 'discard') {
          await device.discard(from * PIECE, length)
          for (let i = from; i < end; i++) held.delete(i)
          for (let i = from; i < end; i++) solid.delete(i)
        } else if (kind === 'snapshot' && snapshots < 2) {
          pool.devices.createSnap(devId(++snapshots), devId(0))
          await pool.commit()
          for (let block = 0; block < BLOCKS; block++) if (isMapped(block)) shared.add(block)
        } else if (kind === 'commit') await pool.commit()
        for (let block = 0; block < BLOCKS; block++) {
          const isSolid = piecesOf(block).some(piece => solid.has(piece))
          if (isMapped(block) !== isSolid) throw new Error(`block ${block}: mapped, ${!isSolid}`)
        }
      }
      for (let piece = 0; piece < BLOCKS * PIECES; piece++) {
        const found = byteAt(thin(pool, 0), piece * PIECE)
        if (found !== (held.has(piece) ? 1 : 0)) throw new Error(`piece ${piece} has ${found}`)
      }
      await pool.close()
      const { problems } = checkMetadata(memory.metadata)
      if (problems.length > 0) throw new Error(problems[0]!.message)
    }),
    { numRuns: RUNS },
  )
})
