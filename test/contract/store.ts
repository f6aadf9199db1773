import assert from 'node:assert/strict'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { bytes, KIB } from '../../src/base/index.js'
import type { DataStore } from '../../src/storage/index.js'

const PAGE = 4 * KIB
const SIZE = 256 * KIB

/** Opens an empty store of `size` bytes that reads as zeros; the test `t` removes it. */
export type OpenStore = (t: Test, size: number) => DataStore | Promise<DataStore>

type Step =
  | { do: 'write'; offset: number; length: number; fill: number }
  | { do: 'punch' | 'punchLater' | 'zero' | 'read' | 'readNow'; offset: number; length: number }
  | { do: 'copy' | 'copyLater' | 'copyToHole'; source: number; target: number; length: number }
  | { do: 'sync' }

const range = fc
  .tuple(fc.nat(SIZE), fc.nat(SIZE))
  .map(([a, b]) => ({ offset: Math.min(a, b), length: Math.abs(a - b) }))
const step: fc.Arbitrary<Step> = fc.oneof(
  fc.tuple(range, fc.integer({ min: 1, max: 255 })).map(([r, fill]): Step => {
    return { do: 'write', ...r, fill }
  }),
  fc
    .tuple(range, fc.constantFrom('punch', 'punchLater', 'zero', 'read', 'readNow'))
    .map(([r, what]): Step => ({ do: what as 'punch', ...r })),
  fc
    .tuple(
      fc.nat(SIZE / 2),
      fc.nat(SIZE / 2),
      fc.boolean(),
      fc.constantFrom<'copy' | 'copyLater' | 'copyToHole'>('copy', 'copyLater', 'copyToHole'),
    )
    .map(([a, b, up, what]): Step => {
      // One half to the other, so that they cannot overlap.
      const [source, target] = up ? [a, SIZE / 2 + b] : [SIZE / 2 + a, b]
      return { do: what, source, target, length: SIZE / 2 - Math.max(a, b) }
    }),
  fc.constant<Step>({ do: 'sync' }),
)

/** Reads in whatever way the store has. */
async function read(
  store: DataStore & { read?: DataStore['readNow'] | undefined },
  ...[buffer, at, length, offset]: [Uint8Array, number, number, number]
): Promise<void> {
  const range = [buffer, at, length, bytes(offset)] as const
  if (store.read !== undefined) store.read(...range)
  else if (!store.readNow(...range)) await store.readLater(...range)
}

/**
 * What every store promises, whether it answers at once or later; each implementation calls it once
 * from its own test.
 */
export function storeContract(name: string, open: OpenStore, { grows = true } = {}): void {
  const content = async (store: DataStore): Promise<Buffer> => {
    const all = Buffer.alloc(store.size)
    await read(store, all, 0, all.length, 0)
    return all
  }

  t.test(`${name}: any sequence of operations leaves what it would leave in memory`, async t => {
    const store = await open(t, SIZE)
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 25 }), async steps => {
        await store.zero(bytes(0), bytes(SIZE))
        const model = Buffer.alloc(SIZE)
        for (const s of steps) await apply(store, model, s)
        assert.ok((await content(store)).equals(model), 'content')
        // What a hole hides would be lost by whoever copies only the data.
        for (let at = 0; at < SIZE; ) {
          const data = store.nextData(bytes(at))
          const skipped = model.subarray(at, data)
          assert.ok(data >= at && skipped.every(byte => byte === 0), `nextData(${at}) is ${data}`)
          if (data === SIZE) break
          const hole = store.nextHole(data)
          assert.ok(hole > data, `nextHole(${data}) is ${hole}, where data is`)
          at = hole
        }
      }),
      { numRuns: 50 },
    )
  })

  t.test(
    `${name}: punching whole pages leaves a hole, where the store says that it does`,
    async t => {
      const store = await open(t, SIZE)
      await store.write(Buffer.alloc(SIZE, 1), 0, SIZE, bytes(0))
      const [begin, end] = [64 * KIB, 128 * KIB]
      await store.punch(bytes(begin), bytes(end - begin))
      if (store.punches) {
        t.equal(store.nextHole(bytes(0)), begin)
        t.equal(store.nextData(bytes(begin)), end)
      }
      t.equal(store.nextData(bytes(end + 1)), end + 1, 'data is where it is looked for')
      t.equal(store.nextData(store.size), store.size, 'nothing after the end')
      t.equal(store.nextHole(bytes(end)), store.size, 'the end counts as a hole')
    },
  )

  t.test(`${name}: a range that passes the end is refused and changes nothing`, async t => {
    const store = await open(t, SIZE)
    await store.write(Buffer.alloc(PAGE, 7), 0, PAGE, bytes(SIZE - PAGE))
    const buffer = Buffer.alloc(2 * PAGE, 9)
    const at = bytes(SIZE - PAGE)
    const length = bytes(PAGE + 1)
    const refused = { name: 'ThinfsError', code: 'IO_ERROR' }
    await t.rejects(read(store, buffer, 0, length, at), refused)
    t.throws(() => store.readNow(buffer, 0, length, at), refused)
    await t.rejects(store.readLater(buffer, 0, length, at), refused)
    t.throws(() => store.write(buffer, 0, length, at), refused)
    t.throws(() => store.punch(at, length), refused)
    t.throws(() => store.zero(at, length), refused)
    t.throws(() => store.copy(bytes(0), at, length), refused)
    if (store.copyLater) await t.rejects(store.copyLater(bytes(0), at, length, false), refused)
    await t.rejects(store.punchLater(at, length), refused)
    const end = (await content(store)).subarray(SIZE - PAGE)
    t.ok(end.equals(Buffer.alloc(PAGE, 7)))
    t.equal(store.size, SIZE)
  })

  t.test(`${name}: reads and writes touch the bytes asked for and no others`, async t => {
    const store = await open(t, SIZE)
    await store.write(Buffer.from('..abc..'), 2, 3, bytes(PAGE - 1))
    const buffer = Buffer.from('........')
    await read(store, buffer, 1, 5, PAGE - 2)
    t.same(buffer, Buffer.from('.\0abc\0..'))
  })

  t.test(`${name}: grows with zeros and never shrinks`, async t => {
    const store = await open(t, SIZE)
    t.throws(() => store.grow(bytes(SIZE - PAGE)), { code: 'BAD_ARGUMENT' })
    store.grow(bytes(SIZE))
    if (!grows) {
      t.throws(() => store.grow(bytes(2 * SIZE)), { code: 'BAD_ARGUMENT' })
      return t.equal(store.size, SIZE)
    }
    store.grow(bytes(2 * SIZE))
    t.equal(store.size, 2 * SIZE)
    t.ok((await content(store)).equals(Buffer.alloc(2 * SIZE)))
  })
}

async function apply(store: DataStore, model: Buffer, s: Step): Promise<void> {
  switch (s.do) {
    case 'write':
      await store.write(Buffer.alloc(s.length, s.fill), 0, s.length, bytes(s.offset))
      model.fill(s.fill, s.offset, s.offset + s.length)
      break
    case 'read':
    case 'readNow': {
      const buffer = Buffer.alloc(s.length, 'before')
      if (s.do === 'read') await read(store, buffer, 0, s.length, s.offset)
      else if (!store.readNow(buffer, 0, s.length, bytes(s.offset))) {
        await store.readLater(buffer, 0, s.length, bytes(s.offset))
      }
      assert.ok(buffer.equals(model.subarray(s.offset, s.offset + s.length)), 'what was written')
      break
    }
    case 'copy':
    case 'copyLater':
    case 'copyToHole': {
      const copy = [bytes(s.source), bytes(s.target), bytes(s.length)] as const
      if (s.do === 'copyToHole') await store.punch(copy[1], copy[2])
      if (s.do === 'copy' || !store.copyLater) await store.copy(...copy)
      else await store.copyLater(...copy, s.do === 'copyToHole' && store.punches)
      model.copy(model, s.target, s.source, s.source + s.length)
      break
    }
    case 'sync':
      await store.sync()
      break
    default:
      await store[s.do](bytes(s.offset), bytes(s.length))
      model.fill(0, s.offset, s.offset + s.length)
  }
}
