// Goal: of the mounts that want a pool one is its tenant, whatever the order of what they do, and
// every other one knows before it commits. Method: a place in memory whose calls end in every
// order; what each mount may say is held against who has written the record last.
import t from 'tap'
import type { ThinfsError } from '../../src/base/index.js'
import {
  isFree,
  lookAt,
  type RecordOptions,
  RecordTenancy,
  type Seen,
  type TenantPlace,
} from '../../src/tenancy/index.js'
import { TestClock } from '../support/memory-pool.js'

/** A place whose calls wait for `step`. */
class SteppedPlace implements TenantPlace {
  readonly path: string
  readonly #disk: Buffer
  #next: (() => void) | null = null

  constructor(disk: Buffer, path = 'place') {
    this.#disk = disk
    this.path = path
  }

  /** Whether a call waits. */
  get waits(): boolean {
    return this.#next !== null
  }

  /** Carries out the call that waits, and lets its caller go on to the next. */
  async step(): Promise<void> {
    const next = this.#next!
    this.#next = null
    next()
    for (let turn = 0; turn < 8; turn++) await Promise.resolve()
  }

  #turn(act: () => void): Promise<void> {
    return new Promise(resolve => {
      this.#next = () => {
        act()
        resolve()
      }
    })
  }

  read(into: Uint8Array, offset: number): Promise<void> {
    return this.#turn(() => void this.#disk.copy(into, 0, offset, offset + into.length))
  }

  write(from: Uint8Array, offset: number): Promise<void> {
    return this.#turn(() => this.#disk.set(from, offset))
  }

  flush(): Promise<void> {
    return this.#turn(() => {})
  }
}

/** A place that answers at once, until it is told to fail. */
class DiskPlace implements TenantPlace {
  readonly path = 'disk'
  readonly disk: Buffer
  failure: Error | null = null

  constructor(disk = Buffer.alloc(8192)) {
    this.disk = disk
  }

  async read(into: Uint8Array, offset: number): Promise<void> {
    if (this.failure) throw this.failure
    this.disk.copy(into, 0, offset, offset + into.length)
  }

  async write(from: Uint8Array, offset: number): Promise<void> {
    if (this.failure) throw this.failure
    this.disk.set(from, offset)
  }

  async flush(): Promise<void> {
    if (this.failure) throw this.failure
  }
}

const FREE: Seen = { tenant: null, sign: null, isDamaged: false }
const [A, B] = ['a'.repeat(32), 'b'.repeat(32)]

const of = (mountId: string) => ({
  host: { name: `host-${mountId[0]}`, machineId: mountId, bootId: mountId },
  mountId,
  pool: 'pool.yaml',
})

function options(place: TenantPlace, clock = new TestClock()) {
  const warnings: string[] = []
  const made: RecordOptions = {
    ...{ place, clock, strength: 'advisory', now: () => 1_795_917_785_000 + clock.now() },
    onWarning: what => warnings.push(what),
  }
  return { made, clock, warnings }
}

/** Lets everything run that waits for nothing. */
const settled = async (): Promise<void> => {
  for (let turn = 0; turn < 30; turn++) await Promise.resolve()
}

t.test('two that acquire at once, in every order: one has the pool', async t => {
  const outcomes = new Map<string, number>()
  /** Runs both, by the choices so far, then A's first. @returns where B had a choice, too */
  const run = async (choices: readonly boolean[]): Promise<number[]> => {
    const disk = Buffer.alloc(8192)
    const places = [new SteppedPlace(disk, 'A'), new SteppedPlace(disk, 'B')] as const
    const ended = [A, B].map((mountId, i) =>
      RecordTenancy.acquire(options(places[i]!).made, of(mountId), FREE).then(
        tenancy => tenancy,
        (err: ThinfsError) => err,
      ),
    )
    await settled()
    const open: number[] = []
    for (let at = 0; places.some(({ waits }) => waits); at++) {
      const both = places.every(({ waits }) => waits)
      if (both && at >= choices.length) open.push(at)
      const second = both ? (choices[at] ?? false) : places[1].waits
      await places[second ? 1 : 0].step()
    }
    const results = await Promise.all(ended)
    const owner = (await lookAt(new DiskPlace(disk))).tenant!
    const confirmed = await Promise.all(
      results.map(async (result, i) => {
        if (!(result instanceof RecordTenancy)) return result.code
        const asked = result.confirm().then(
          () => 'has it',
          (err: ThinfsError) => err.code,
        )
        while (places[i]!.waits) await places[i]!.step()
        return asked
      }),
    )
    const wanted = owner.mountId === A ? 0 : 1
    const is = [confirmed[wanted], confirmed[1 - wanted]].join(', ')
    outcomes.set(is, (outcomes.get(is) ?? 0) + 1)
    return open
  }
  // Depth first through the tree of choices.
  const left: boolean[][] = [[]]
  while (left.length > 0) {
    const choices = left.pop()!
    for (const at of await run(choices)) {
      left.push([...choices, ...Array(at - choices.length).fill(false), true])
    }
  }
  t.same([...outcomes.keys()].sort(), ['has it, FENCED', 'has it, POOL_IN_USE'])
  t.ok([...outcomes.values()].reduce((a, b) => a + b) > 1000, 'orders')
})

t.test('a tenant gives signs of life, and gives the pool back', async t => {
  const place = new DiskPlace()
  const { made, clock } = options(place)
  const tenancy = await RecordTenancy.acquire(made, of(A), FREE)
  t.match(tenancy.tenant, { generation: 1, since: 1_795_917_785, host: { name: 'host-a' } })
  for (let beat = 1; beat < 4; beat++) {
    t.match((await lookAt(place)).sign, { beat, gaveBack: false, mountId: A })
    clock.advance(5000)
    await settled()
  }
  t.notOk(isFree(await lookAt(place)))
  await tenancy.release()
  const after = await lookAt(place)
  t.ok(isFree(after))
  clock.advance(60_000)
  await settled()
  t.same(await lookAt(place), after, 'no sign follows')
  const next = await RecordTenancy.acquire(options(place).made, of(B), after)
  t.equal(next.tenant.generation, 2)
})

t.test('the next engine of a mount goes on, that of another does not', async t => {
  const place = new DiskPlace()
  const first = await RecordTenancy.acquire(options(place).made, of(A), FREE)
  const { made, clock } = options(place)
  const second = await RecordTenancy.resume(made, A)
  await second.confirm()
  t.same(second.tenant, first.tenant)
  clock.advance(5000)
  await settled()
  t.equal((await lookAt(place)).sign!.beat, 2)
  await t.rejects(RecordTenancy.resume(made, B), {
    code: 'FENCED',
    message: /^taken over by host-a/,
  })
  await t.rejects(RecordTenancy.resume(options(new DiskPlace()).made, A), {
    code: 'FENCED',
    message: /the record of the tenant is gone/,
  })
})

const LOSSES: Record<string, [how: (place: DiskPlace) => Promise<void>, message: RegExp]> = {
  'another host has taken it': [
    async place => {
      await RecordTenancy.acquire(options(place).made, of(B), await lookAt(place))
    },
    /^taken over by host-b at 2026-/,
  ],
  'another host has had it and given it back': [
    async place => {
      await (await RecordTenancy.acquire(options(place).made, of(B), await lookAt(place))).release()
    },
    /^taken over by host-b/,
  ],
  'the record cannot be read': [
    async place => {
      place.failure = new Error('disk: no answer')
    },
    /^disk: no answer: another host may have/,
  ],
  'the record is damaged': [
    async place => {
      place.disk[100]!++
    },
    /is damaged/,
  ],
  'the record is gone': [
    async place => {
      place.disk.fill(0)
    },
    /is gone/,
  ],
}

for (const [what, [lose, message]] of Object.entries(LOSSES)) {
  t.test(`lost: ${what}`, async t => {
    for (const finds of ['a look', 'a sign'] as const) {
      const place = new DiskPlace()
      const { made, clock } = options(place)
      const tenancy = await RecordTenancy.acquire(made, of(A), FREE)
      await lose(place)
      const left = Buffer.from(place.disk)
      const wanted = { code: 'FENCED', errno: 'EIO', message }
      if (finds === 'a look') await t.rejects(tenancy.confirm(), wanted)
      else clock.advance(5000)
      t.match(await tenancy.lost, wanted)
      place.failure = null
      await t.rejects(tenancy.confirm(), wanted, 'for good')
      await t.rejects(tenancy.release(), wanted)
      clock.advance(60_000)
      await settled()
      t.ok(left.equals(place.disk), 'nothing was written')
    }
  })
}

t.test('a sign that comes late does not unseat the next tenant', async t => {
  const disk = Buffer.alloc(8192)
  const place = new DiskPlace(disk)
  const late = new SteppedPlace(disk)
  const acquiring = RecordTenancy.acquire(options(late).made, of(A), FREE)
  // Up to its first sign, which is on its way while the next one takes over.
  await settled()
  while ((await lookAt(place)).tenant === null || !late.waits) await late.step()
  for (let call = 0; call < 3; call++) await late.step()
  const next = await RecordTenancy.acquire(options(place).made, of(B), await lookAt(place))
  while (late.waits) await late.step()
  const old = await acquiring
  await next.confirm()
  const asked = old.confirm()
  asked.catch(() => {})
  while (late.waits) await late.step()
  await t.rejects(asked, { code: 'FENCED', message: /host-b/ })
})

t.test('a sign that cannot be written is no loss', async t => {
  const place = new DiskPlace()
  const { made, clock, warnings } = options(place)
  const tenancy = await RecordTenancy.acquire(made, of(A), FREE)
  const write = place.write
  place.write = async () => {
    throw new Error('disk: no space')
  }
  for (let period = 0; period < 3; period++) {
    clock.advance(5000)
    await settled()
  }
  t.same(warnings, ['no sign of life: disk: no space'])
  place.write = write
  clock.advance(5000)
  await settled()
  t.equal((await lookAt(place)).sign!.beat, 5)
  await tenancy.confirm()
})

t.test('an acquirer whose judgement is old does not write', async t => {
  const place = new DiskPlace()
  await RecordTenancy.acquire(options(place).made, of(B), FREE)
  const left = Buffer.from(place.disk)
  const acquiring = RecordTenancy.acquire(options(place).made, of(A), FREE)
  await t.rejects(acquiring, {
    code: 'POOL_IN_USE',
    message: /^pool.yaml is served by host-b since/,
  })
  t.ok(left.equals(place.disk))
})
