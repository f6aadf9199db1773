// Goal: a device with a reserve gets its blocks however full others make the pool, and one with a
// limit gets no more than that. Method: random operations on a pool in memory and on a model, which
// has for each device a map from virtual blocks to data blocks, and counts by looking at all of
// them.
import fc from 'fast-check'
import t from 'tap'
import { bytes, type DevId, SYSTEM_CLOCK, ThinfsError } from '../../src/base/index.js'
import { checkMetadata, type ThinMetadata } from '../../src/metadata/index.js'
import type { ThinPool } from '../../src/pool/index.js'
import { Reserves } from '../../src/pool/reserves.js'
import { devId, formatted, killed, type MemoryFiles, openFiles } from '../support/memory-pool.js'
import { Random } from '../support/random.js'
import { turn } from '../support/thin-devices.js'
import { UnorderedStore } from '../support/unordered-store.js'

/** More of them take longer and find more: RUNS=1000. */
const RUNS = Number(process.env.RUNS ?? 40)
const BLOCK = 4096
const DATA_BLOCKS = 48
const DEVICE_BLOCKS = 24
const MAX_DEVICES = 5

interface Step {
  kind: 'write' | 'discard' | 'snapshot' | 'create' | 'delete' | 'reserve' | 'limit' | 'kill'
  device: number
  block: number
  count: number
  /** Whether blocks are counted anew before: what the pool knows is exact then. */
  recount: boolean
}

const step = fc.record<Step>({
  kind: fc.oneof(
    { weight: 16, arbitrary: fc.constant('write' as const) },
    { weight: 4, arbitrary: fc.constant('discard' as const) },
    { weight: 3, arbitrary: fc.constant('snapshot' as const) },
    { weight: 2, arbitrary: fc.constant('create' as const) },
    { weight: 2, arbitrary: fc.constant('delete' as const) },
    { weight: 4, arbitrary: fc.constant('reserve' as const) },
    { weight: 1, arbitrary: fc.constant('limit' as const) },
    { weight: 1, arbitrary: fc.constant('kill' as const) },
  ),
  device: fc.nat(1000),
  block: fc.nat(DEVICE_BLOCKS - 1),
  count: fc.integer({ min: 1, max: 6 }),
  recount: fc.boolean(),
})

interface Device {
  blocks: Map<number, number>
  limit: number
  reserve: number
}

class Model {
  readonly devices = new Map<DevId, Device>()
  #next = 0

  owners(): Map<number, number> {
    const owners = new Map<number, number>()
    for (const { blocks } of this.devices.values()) {
      for (const block of blocks.values()) owners.set(block, (owners.get(block) ?? 0) + 1)
    }
    return owners
  }

  get free(): number {
    return DATA_BLOCKS - this.owners().size
  }

  own({ blocks }: Device): number {
    const owners = this.owners()
    return [...blocks.values()].filter(block => owners.get(block) === 1).length
  }

  kept(device: Device): number {
    return Math.max(0, device.reserve - this.own(device))
  }

  /** The blocks that are kept for all, or for all but one. */
  keptForAll(but?: Device): number {
    const others = [...this.devices.values()].filter(device => device !== but)
    return others.reduce((sum, device) => sum + this.kept(device), 0)
  }

  needs({ blocks }: Device, first: number, end: number): { unmapped: number; taken: number } {
    const owners = this.owners()
    let unmapped = 0
    let taken = 0
    for (let at = first; at < end; at++) {
      const block = blocks.get(at)
      if (block === undefined) unmapped++
      if (block === undefined || owners.get(block)! > 1) taken++
    }
    return { unmapped, taken }
  }

  write({ blocks }: Device, first: number, end: number): void {
    const owners = this.owners()
    for (let at = first; at < end; at++) {
      const block = blocks.get(at)
      if (block === undefined || owners.get(block)! > 1) blocks.set(at, this.#next++)
    }
  }
}

async function outcome(act: () => void | Promise<void>): Promise<string> {
  try {
    await act()
    return 'done'
  } catch (err) {
    return (err as { code: string }).code
  }
}

class Tested {
  files: MemoryFiles = formatted({ blockSectors: 8, dataBlocks: DATA_BLOCKS, metadataBlocks: 256 })
  pool!: ThinPool
  readonly model = new Model()

  async open(): Promise<void> {
    this.pool = (await openFiles(this.files)).pool
    for (const [id, { reserve, limit }] of this.model.devices) {
      this.pool.space.reserves.set(id, reserve)
      this.device(id).limit = limit
    }
  }

  device(id: DevId) {
    return this.pool.devices.get(id, bytes(DEVICE_BLOCKS * BLOCK))
  }

  async settle(recount: boolean): Promise<void> {
    const { space } = this.pool
    await this.pool.commit()
    await space.allReleased()
    if (recount) space.reserves.recount()
    while (space.reserves.counting !== null) await space.reserves.counting
  }

  expect(is: boolean, what: string): void {
    if (!is) throw new Error(what)
  }

  async run({ kind, device: nr, block, count, recount }: Step): Promise<void> {
    const { model } = this
    const { devices } = model
    const ids = [...devices.keys()]
    const id = ids[nr % ids.length]
    const device = id === undefined ? undefined : devices.get(id)
    await this.settle(recount)
    const { pool } = this
    const { reserves } = pool.space
    if (kind === 'create' || device === undefined || id === undefined) {
      if (ids.length >= MAX_DEVICES) return
      const next = devId(Math.max(-1, ...ids) + 1)
      pool.devices.createThin(next)
      devices.set(next, { blocks: new Map(), limit: Number.POSITIVE_INFINITY, reserve: 0 })
      return
    }
    const end = Math.min(block + count, DEVICE_BLOCKS)
    switch (kind) {
      case 'write': {
        const { unmapped, taken } = model.needs(device, block, end)
        const length = (end - block) * BLOCK
        const content = Buffer.alloc(length, 1)
        const kept = model.kept(device)
        const others = model.keptForAll(device)
        const known = reserves.kept - reserves.keptFor(id)
        const free = model.free
        const found = await outcome(() => this.device(id).write(block * BLOCK, length, content, 0))
        if (unmapped > 0 && device.blocks.size + unmapped > device.limit) {
          this.expect(found === 'VOLUME_FULL', `past the limit: ${found}`)
          return
        }
        const what = `${taken} of ${free}, ${kept} kept, ${others} for others, ${known} known`
        this.expect(found === 'done' || found === 'NO_DATA_SPACE', found)
        if (taken <= kept) this.expect(found === 'done', `within the reserve: ${what}`)
        if (found === 'done') this.expect(taken === 0 || taken <= free - others, `others': ${what}`)
        if (taken <= free - known) this.expect(found === 'done', `there was room: ${what}`)
        if (found === 'done') model.write(device, block, end)
        return
      }
      case 'discard': {
        await this.device(id).discard(block * BLOCK, (end - block) * BLOCK)
        for (let at = block; at < end; at++) device.blocks.delete(at)
        return
      }
      case 'snapshot': {
        if (ids.length >= MAX_DEVICES) return
        const next = devId(Math.max(-1, ...ids) + 1)
        const cost = device.reserve - model.kept(device)
        const found = await outcome(() => pool.devices.createSnap(next, id))
        if (cost <= model.free - reserves.kept) this.expect(found === 'done', `snapshot: ${found}`)
        if (found !== 'done') return
        const blocks = new Map(device.blocks)
        devices.set(next, { blocks, limit: Number.POSITIVE_INFINITY, reserve: 0 })
        return
      }
      case 'delete': {
        pool.devices.delete(id)
        devices.delete(id)
        return
      }
      case 'reserve': {
        const before = device.reserve
        const wanted = (block * count) % 20
        const free = model.free - model.keptForAll(device)
        const found = await outcome(() => pool.space.data.reserve(id, wanted))
        const lacks = Math.max(0, wanted - model.own(device))
        if (found !== 'done') this.expect(found === 'NO_DATA_SPACE' && wanted > before, found)
        else this.expect(wanted <= before || lacks <= free, `${lacks} of ${free} reserved`)
        if (recount && lacks <= free) this.expect(found === 'done', `${lacks} of ${free} refused`)
        if (found === 'done') device.reserve = wanted
        this.expect(reserves.blocksOf(id) === device.reserve, 'a refused reserve is as it was')
        return
      }
      case 'limit': {
        device.limit = block % 2 === 0 ? block : Number.POSITIVE_INFINITY
        this.device(id).limit = device.limit
        return
      }
      case 'kill': {
        await pool.settle()
        this.files = killed(this.files)
        await this.open()
      }
    }
  }

  /** What holds after each step. */
  verify(where: string): void {
    const { model, pool } = this
    for (const [id, device] of model.devices) {
      const { mappedBlocks } = pool.metadata.details(id)
      this.expect(
        mappedBlocks === device.blocks.size,
        `${where}: ${mappedBlocks} blocks are mapped`,
      )
      const kept = pool.space.reserves.keptFor(id)
      const wanted = model.kept(device)
      this.expect(kept >= wanted, `${where}: ${kept} kept for ${id}, not ${wanted}`)
    }
    const all = model.keptForAll()
    this.expect(model.free >= all, `${where}: ${model.free} free, ${all} are to be kept`)
  }

  /** Counted anew, what is kept is neither more nor less. */
  async verifyCount(): Promise<void> {
    await this.settle(true)
    for (const [id, device] of this.model.devices) {
      const kept = this.pool.space.reserves.keptFor(id)
      this.expect(kept === this.model.kept(device), `${kept} kept for ${id}`)
    }
    const kept = this.model.keptForAll()
    this.expect(this.pool.space.reserves.kept === kept, 'the sum of what is kept')
  }
}

t.test('reserves and limits hold, whatever is done in whatever order', async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 10, maxLength: 60 }), async steps => {
      const tested = new Tested()
      await tested.open()
      for (const [nr, step] of steps.entries()) {
        await tested.run(step)
        tested.verify(`step ${nr}, ${step.kind}`)
      }
      await tested.verifyCount()
      await tested.pool.close()
      const { problems } = checkMetadata(tested.files.metadata)
      if (problems.length > 0) throw new Error(problems[0]!.message)
    }),
    { numRuns: RUNS },
  )
})

t.test('writes under way count, where the store takes its time', async t => {
  const files = formatted({ blockSectors: 8, dataBlocks: DATA_BLOCKS })
  const data = new UnorderedStore(files.data, new Random(1))
  /** Lets the store work until it is done. */
  async function ended<T>(work: Promise<T>): Promise<T> {
    let isOver = false
    const over = (): void => {
      isOver = true
    }
    work.then(over, over)
    while (!isOver) {
      data.step()
      await turn()
    }
    return work
  }
  const { pool } = await ended(openFiles({ ...files, data }))
  pool.devices.createThin(devId(0))
  const device = pool.devices.get(devId(0), bytes(DEVICE_BLOCKS * BLOCK))
  device.limit = 2
  const write = (block: number) =>
    outcome(() => device.write(block * BLOCK, BLOCK, Buffer.alloc(BLOCK, 1), 0))
  const found = await ended(Promise.all([write(0), write(1), write(2)]))
  t.same(found, ['done', 'done', 'VOLUME_FULL'])
  t.equal(await ended(write(0)), 'done', 'what is mapped can be written')
  await ended((async () => device.discard(0, BLOCK))())
  t.equal(await ended(write(2)), 'done', 'what was discarded counts no more')
  await ended(pool.close())
})

t.test('preallocation asks before it takes anything', async t => {
  const { pool } = await openFiles(formatted({ blockSectors: 8, dataBlocks: DATA_BLOCKS }))
  for (const id of [0, 1]) pool.devices.createThin(devId(id))
  const [one, other] = [0, 1].map(id => pool.devices.get(devId(id), bytes(100 * BLOCK))) as [
    ReturnType<ThinPool['devices']['get']>,
    ReturnType<ThinPool['devices']['get']>,
  ]
  one.limit = 10
  await t.rejects(one.preallocate(0, 11 * BLOCK), { code: 'VOLUME_FULL' })
  await pool.space.data.reserve(devId(0), 8)
  await t.rejects(other.preallocate(0, (DATA_BLOCKS - 7) * BLOCK), { code: 'NO_DATA_SPACE' })
  t.equal(pool.metadata.nrAllocatedDataBlocks, 0)
  await other.preallocate(0, (DATA_BLOCKS - 8) * BLOCK)
  await one.preallocate(0, 8 * BLOCK)
  await t.rejects(pool.space.data.reserve(devId(0), 9), { code: 'NO_DATA_SPACE' })
  t.equal(pool.mode, 'write')
  await pool.close()
})

/** Metadata of which nothing is asked but which blocks are a device's own. */
const counted = (count: (id: DevId, found: () => void) => void): ThinMetadata => {
  const forEachExclusive = (id: DevId, _at: number, found: () => void): number => {
    count(id, found)
    return Number.POSITIVE_INFINITY
  }
  return { hasDevice: () => true, mappings: { forEachExclusive } } as unknown as ThinMetadata
}

t.test('a count that is asked for as another one ends is not lost', async t => {
  // So many turns of the queue of promises later: one of them is the moment between the two.
  for (let turns = 1; turns < 8; turns++) {
    let own = 1
    let asked = false
    const metadata = counted((_, found) => {
      for (let i = 0; i < own; i++) found()
      if (!asked) void askLater()
      asked = true
    })
    const reserves = new Reserves(metadata, SYSTEM_CLOCK, () => {})
    const askLater = async (): Promise<void> => {
      for (let i = 0; i < turns; i++) await Promise.resolve()
      own = 2
      reserves.recount()
    }
    reserves.set(devId(0), 10)
    do await turn()
    while (reserves.counting !== null)
    t.equal(reserves.keptFor(devId(0)), 8, `${turns} turns later`)
  }
})

t.test('damage in one device keeps no other from being counted', async t => {
  const metadata = counted((id, found) => {
    if (id === devId(0)) throw new ThinfsError('METADATA_CORRUPT', 'as it were')
    found()
  })
  const reserves = new Reserves(metadata, SYSTEM_CLOCK, () => {})
  reserves.set(devId(0), 10)
  reserves.set(devId(1), 10)
  while (reserves.counting !== null) await reserves.counting
  t.same([reserves.keptFor(devId(0)), reserves.keptFor(devId(1))], [10, 9])
})
