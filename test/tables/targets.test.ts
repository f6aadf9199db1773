// Goal: whatever a table is made of, its device holds what was written. Method: random tables of
// linear, striped and zero targets, over files and over other devices, against a map from sectors
// to bytes that follows the kernel's words for each target; random requests to both.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import t from 'tap'
import type { Source, Target } from '../../src/tables/index.js'
import { errno, get, make, put, reload, SECTOR, tablesHere } from '../support/tables.js'

/** Sectors of each of two files, and of a device that shows the second one. */
const LOWER = 64
const LOWER_MINOR = 7

type Piece =
  | { type: 'zero'; length: number }
  | { type: 'linear'; length: number; file: number; from: number; split: number }
  | { type: 'striped'; chunk: number; rows: number; swap: boolean; from: number }

const piece: fc.Arbitrary<Piece> = fc.oneof(
  fc.record({ type: fc.constant('zero' as const), length: fc.integer({ min: 1, max: 9 }) }),
  fc.record({
    type: fc.constant('linear' as const),
    length: fc.integer({ min: 1, max: 20 }),
    file: fc.nat(1),
    from: fc.nat(LOWER - 20),
    split: fc.nat(20),
  }),
  fc.record({
    type: fc.constant('striped' as const),
    chunk: fc.integer({ min: 1, max: 4 }),
    rows: fc.integer({ min: 1, max: 5 }),
    swap: fc.boolean(),
    from: fc.nat(LOWER - 20),
  }),
)

/** Where each sector of a piece is: [file, sector], or null for zeros. */
function sectorsOf(piece: Piece): ([number, number] | null)[] {
  switch (piece.type) {
    case 'zero':
      return Array.from({ length: piece.length }, () => null)
    case 'linear':
      return Array.from({ length: piece.length }, (_, i) => [piece.file, piece.from + i])
    case 'striped': {
      const { chunk, rows, swap, from } = piece
      return Array.from({ length: chunk * rows * 2 }, (_, i) => {
        const nth = Math.floor(i / chunk)
        const stripe = nth % 2
        const file = swap ? 1 - stripe : stripe
        return [file, from + Math.floor(nth / 2) * chunk + (i % chunk)]
      })
    }
  }
}

const request = fc.record({
  do: fc.constantFrom('write' as const, 'read' as const, 'discard' as const, 'zero' as const),
  from: fc.nat(10_000),
  length: fc.integer({ min: 1, max: 12_000 }),
  fill: fc.integer({ min: 1, max: 255 }),
})

t.test('random tables hold what was written', async t => {
  const { tables, file } = tablesHere(t)
  const extents = [file('a', LOWER), file('b', LOWER)]
  const whole: Source = { extents: [extents[1]!] }
  await make(tables, LOWER_MINOR, { type: 'linear', start: 0, length: LOWER, source: whole })
  await tables.create(1)

  /** The second file is reached by way of the other device. */
  const source = (nth: number, from: number, length: number, split = length): Source => {
    if (nth === 1) return { minor: LOWER_MINOR, start: from }
    const { path } = extents[0]!
    const at = Math.min(split, length)
    const parts = [
      { path, offset: from * SECTOR, length: at * SECTOR },
      { path, offset: (from + at) * SECTOR, length: (length - at) * SECTOR },
    ]
    return { extents: parts.filter(part => part.length > 0) }
  }
  const targetOf = (piece: Piece, start: number, length: number): Target => {
    switch (piece.type) {
      case 'zero':
        return { type: 'zero', start, length }
      case 'linear': {
        const { file, from, split } = piece
        return { type: 'linear', start, length, source: source(file, from, length, split) }
      }
      case 'striped': {
        const { chunk, rows, swap, from } = piece
        const stripes = [0, 1].map(i => source(swap ? 1 - i : i, from, chunk * rows))
        return { type: 'striped', start, length, chunk, stripes }
      }
    }
  }

  await fc.assert(
    fc.asyncProperty(
      fc.array(piece, { minLength: 1, maxLength: 6 }),
      fc.array(request, { maxLength: 12 }),
      async (pieces, requests) => {
        const map: ([number, number] | null)[] = []
        const table = pieces.map(piece => {
          const start = map.length
          map.push(...sectorsOf(piece))
          return targetOf(piece, start, map.length - start)
        })
        await reload(tables, 1, ...table)
        const device = tables.device(1)
        assert.equal(device.size, map.length * SECTOR)
        const files = extents.map(({ path }) => readFileSync(path))
        const placeOf = (offset: number): [Buffer, number] | null => {
          const place = map[Math.floor(offset / SECTOR)]!
          return place && [files[place[0]]!, place[1] * SECTOR + (offset % SECTOR)]
        }
        for (const { do: what, from, length, fill } of requests) {
          const offset = from % device.size
          const size = Math.min(length, device.size - offset)
          if (what === 'write') await put(device, offset, Buffer.alloc(size, fill))
          if (what === 'discard') await device.discard(offset, size)
          if (what === 'zero') await device.zero(offset, size)
          if (what !== 'read') {
            for (let i = 0; i < size; i++) {
              const place = placeOf(offset + i)
              if (place) place[0][place[1]] = what === 'write' ? fill : 0
            }
          }
          const expected = Buffer.alloc(size)
          for (let i = 0; i < size; i++) {
            const place = placeOf(offset + i)
            if (place) expected[i] = place[0][place[1]]!
          }
          assert.ok((await get(device, offset, size)).equals(expected), `${what} at ${offset}`)
        }
        await device.flush()
        for (const [i, { path }] of extents.entries()) {
          assert.ok(readFileSync(path).equals(files[i]!), `what is below, file ${i}`)
        }
      },
    ),
    { numRuns: 60 },
  )
})

t.test('the parts around an error target are served', async t => {
  const { tables, file } = tablesHere(t)
  const extents = [file('a', 8)]
  await make(
    tables,
    0,
    { type: 'linear', start: 0, length: 8, source: { extents } },
    { type: 'error', start: 8, length: 8 },
    { type: 'zero', start: 16, length: 8 },
  )
  const device = tables.device(0)
  await put(device, 7 * SECTOR, Buffer.alloc(SECTOR, 5))
  t.same(await get(device, 7 * SECTOR, SECTOR), Buffer.alloc(SECTOR, 5))
  t.same(await get(device, 16 * SECTOR, 8 * SECTOR), Buffer.alloc(8 * SECTOR))
  const failed = { code: 'IO_ERROR', errno: 'EIO' }
  await t.rejects(get(device, 7 * SECTOR, 2 * SECTOR), failed)
  await t.rejects(put(device, 15 * SECTOR, Buffer.alloc(2 * SECTOR)), failed)
  await device.flush()
})

t.test('tables that the kernel refuses', async t => {
  const { tables, file } = tablesHere(t)
  const extents = [file('a', 8)]
  const lower: Source = { extents }
  await make(tables, 0, { type: 'linear', start: 0, length: 8, source: lower })
  await tables.create(1)
  const linear = (length: number, source: Source): Target => {
    return { type: 'linear', start: 0, length, source }
  }
  const striped: Target = {
    type: 'striped',
    start: 0,
    length: 9,
    chunk: 2,
    stripes: [lower, lower],
  }
  await t.rejects(tables.load(1, [striped], false), errno('EINVAL'), 'half a chunk')
  await t.rejects(tables.load(1, [linear(8, { minor: 5, start: 0 })], false), errno('ENODEV'))
  await t.rejects(tables.load(2, [linear(8, lower)], false), errno('ENODEV'))
  await t.rejects(tables.create(1), errno('EBUSY'))
  await t.rejects(tables.resume(1), errno('EINVAL'), 'no table')
  // What is below may become long enough before the table takes effect.
  await tables.load(1, [linear(9, { minor: 0, start: 0 })], false)
  await t.rejects(tables.resume(1), errno('EINVAL'), 'larger than what is below')
  await t.rejects(tables.resume(1), errno('EINVAL'), 'that table is gone')
  await tables.load(1, [linear(9, { minor: 0, start: 0 })], false)
  await reload(tables, 0, { type: 'zero', start: 0, length: 9 })
  t.same(await tables.resume(1), { size: 9 * SECTOR })
  await t.rejects(put(tables.device(1), 9 * SECTOR, Buffer.alloc(1)), errno('EIO'), 'past the end')
  await tables.load(1, [linear(8, lower)], true)
  await tables.resume(1)
  await t.rejects(put(tables.device(1), 0, Buffer.alloc(1)), errno('EROFS'))
  for (const bad of [
    { path: extents[0]!.path, offset: -1, length: 1 },
    { path: extents[0]!.path, offset: 0, length: 0.5 },
    { path: '/none', offset: 0, length: 1 },
  ]) {
    await t.rejects(tables.load(1, [linear(1, { extents: [bad] })], false))
  }
  await t.rejects(tables.load(1, [linear(1, { extents: [] })], false), errno('EINVAL'))
})
