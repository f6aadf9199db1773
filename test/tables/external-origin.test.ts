// Goal: a thin device with an external origin is a copy of it that costs what is written. Method:
// random requests, several at a time, against a buffer; the kernel's facts for the ends.
import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import fc from 'fast-check'
import t from 'tap'
import { KIB, MIB } from '../../src/base/index.js'
import { errno, get, make, poolLine, put, SECTOR, tablesHere, thinLine } from '../support/tables.js'
import { thinCheck } from '../support/thin-tools.js'

const BLOCK = 64 * KIB
/** The origin ends within a block, the thin device within another one behind it. */
const ORIGIN = 4 * BLOCK + 1024
const SIZE = 7 * BLOCK + 512

const request = fc.record({
  do: fc.constantFrom('write' as const, 'read' as const, 'zero' as const),
  offset: fc.nat(SIZE / SECTOR - 1).map(sector => sector * SECTOR),
  length: fc.integer({ min: 1, max: (3 * BLOCK) / SECTOR }).map(sectors => sectors * SECTOR),
  fill: fc.integer({ min: 1, max: 255 }),
})

t.test('random requests leave what they leave in a copy of the origin', async t => {
  const { tables, file } = tablesHere(t)
  const origin = file('origin', ORIGIN / SECTOR)
  const content = Buffer.alloc(ORIGIN)
  for (let i = 0; i < ORIGIN; i++) content[i] = 1 + (i % 251)
  writeFileSync(origin.path, content, { flag: 'r+' })
  const metadata = file('metadata', (4 * MIB) / SECTOR)
  await make(tables, 0, poolLine(metadata, file('data', (64 * BLOCK) / SECTOR)))
  let devId = 0
  await fc.assert(
    fc.asyncProperty(fc.array(request, { maxLength: 15 }), async requests => {
      await tables.message(0, 0, ['create_thin', String(++devId)])
      await make(tables, 1, thinLine(0, devId, SIZE / SECTOR, { extents: [origin] }))
      const device = tables.device(1)
      const model = Buffer.alloc(SIZE)
      content.copy(model)
      const underWay: Promise<void>[] = []
      const sent: { begin: number; end: number }[] = []
      for (const { do: what, offset, length, fill } of requests) {
        const size = Math.min(length, SIZE - offset)
        if (what === 'read') {
          await Promise.all(underWay.splice(0))
          const expected = model.subarray(offset, offset + size)
          assert.ok((await get(device, offset, size)).equals(expected), `read at ${offset}`)
        } else {
          model.fill(what === 'write' ? fill : 0, offset, offset + size)
          // The order of two that overlap is theirs who send them at once.
          const overlaps = sent.some(other => offset < other.end && other.begin < offset + size)
          if (overlaps) {
            await Promise.all(underWay.splice(0))
            sent.length = 0
          }
          sent.push({ begin: offset, end: offset + size })
          underWay.push(
            what === 'write'
              ? put(device, offset, Buffer.alloc(size, fill))
              : Promise.resolve(device.zero(offset, size)),
          )
        }
      }
      await Promise.all(underWay)
      assert.ok((await get(device, 0, SIZE)).equals(model), 'all of it')
      await tables.remove(1)
      await tables.message(0, 0, ['delete', String(devId)])
    }),
    { numRuns: 30 },
  )
  t.ok(readFileSync(origin.path).equals(content), 'the origin is only read')
  await tables.remove(0)
  t.equal(thinCheck(metadata.path).status, 0)
})

t.test('writes to one block at once keep each other, and what the origin has', async t => {
  const { tables, file } = tablesHere(t)
  const origin = file('origin', BLOCK / SECTOR)
  writeFileSync(origin.path, Buffer.alloc(BLOCK, 0x0f), { flag: 'r+' })
  await make(tables, 0, poolLine(file('metadata', 8192), file('data', 1024)))
  await tables.message(0, 0, ['create_thin', '0'])
  await make(tables, 1, thinLine(0, 0, 128, { extents: [origin] }))
  const device = tables.device(1)
  await Promise.all([0, 1, 2].map(n => put(device, n * 1024, Buffer.alloc(512, n))))
  const expected = Buffer.alloc(BLOCK, 0x0f)
  for (const n of [0, 1, 2]) expected.fill(n, n * 1024, n * 1024 + 512)
  t.ok((await get(device, 0, BLOCK)).equals(expected))
  t.same(await tables.status(1, true), ['128 127'])
  await t.rejects(async () => device.discard(0, BLOCK), errno('EOPNOTSUPP'))
})
