/**
 * Goal: whatever is done in whatever order, the store holds the last durable state and nothing
 * else, and the state in memory is what was done. Method: random operations on the engine and on
 * plain maps; after each commit the store is given to thin_check, thin_dump and our checker, which
 * counts all references anew, and what they find is compared with the maps.
 */
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { bytes, type DataBlock, type DevId } from '../../src/base/index.js'
import { checkMetadata, type SealedTransaction, ThinMetadata } from '../../src/metadata/index.js'
import { MemoryStore } from '../support/memory-store.js'
import { thinCheck, thinDump, withImage } from '../support/thin-tools.js'

interface ModelDevice {
  creationTime: number
  snapTime: number
  transaction: number
  mappings: Map<number, { dataBlock: number; time: number }>
}

interface Model {
  time: number
  transaction: number
  nrDataBlocks: number
  devices: Map<number, ModelDevice>
  held: Map<number, ModelDevice> | null
}

const cloneDevices = (devices: Map<number, ModelDevice>): Map<number, ModelDevice> =>
  new Map([...devices].map(([id, d]) => [id, { ...d, mappings: new Map(d.mappings) }]))

const clone = (model: Model): Model => ({
  ...model,
  devices: cloneDevices(model.devices),
  held: model.held && cloneDevices(model.held),
})

/** How many mappings name each data block, those of the metadata snapshot included. */
function references(model: Model): Map<number, number> {
  const counts = new Map<number, number>()
  for (const devices of [model.devices, model.held]) {
    for (const { mappings } of devices?.values() ?? []) {
      for (const { dataBlock } of mappings.values()) {
        counts.set(dataBlock, (counts.get(dataBlock) ?? 0) + 1)
      }
    }
  }
  return counts
}

const sorted = <V>(map: Map<number, V>): [number, V][] => [...map].sort(([a], [b]) => a - b)

/** The engine and the maps it is compared with. */
class Pair {
  readonly t: Test
  readonly store: MemoryStore
  readonly cacheBlocks: number
  metadata: ThinMetadata
  live: Model
  durable: Model
  sealed: { transaction: SealedTransaction; model: Model } | null = null
  #mapping = { dataBlock: 0 as DataBlock, time: 0 }

  constructor(
    t: Test,
    options: { metadataBlocks: number; dataBlocks: number; cacheBlocks?: number },
  ) {
    this.t = t
    this.store = new MemoryStore(options.metadataBlocks * 4096)
    this.cacheBlocks = options.cacheBlocks ?? 16384
    ThinMetadata.format(this.store, { dataBlockSectors: 128 })
    this.metadata = this.#open()
    this.metadata.growData(options.dataBlocks)
    this.live = {
      time: 0,
      transaction: 0,
      nrDataBlocks: options.dataBlocks,
      devices: new Map(),
      held: null,
    }
    this.durable = { ...clone(this.live), nrDataBlocks: 0 }
  }

  #open(): ThinMetadata {
    return ThinMetadata.open(this.store, { cacheBlocks: this.cacheBlocks })
  }

  /** Whether the last durable transaction is all that there is. */
  get isDurable(): boolean {
    return this.sealed === null && !this.metadata.changed
  }

  /** Room for an operation, as a pool that keeps a reserve would ask. */
  get hasRoom(): boolean {
    return this.metadata.nrAllocatableMetadataBlocks > 64
  }

  /** One of the devices, by any number. */
  pick(n: number): DevId | null {
    const ids = [...this.live.devices.keys()]
    return ids.length === 0 ? null : (ids[n % ids.length] as DevId)
  }

  create(id: DevId): void {
    if (this.live.devices.has(id)) {
      this.t.throws(() => this.metadata.createThin(id), { code: 'DEVICE_EXISTS' })
      return
    }
    this.metadata.createThin(id)
    const { time, transaction } = this.live
    const device = { creationTime: time, snapTime: time, transaction, mappings: new Map() }
    this.live.devices.set(id, device)
  }

  snap(id: DevId, origin: DevId): void {
    if (this.live.devices.has(id)) {
      this.t.throws(() => this.metadata.createSnap(id, origin), { code: 'DEVICE_EXISTS' })
      return
    }
    this.metadata.createSnap(id, origin)
    const time = ++this.live.time
    const source = this.live.devices.get(origin)!
    source.snapTime = time
    this.live.devices.set(id, {
      creationTime: time,
      snapTime: time,
      transaction: this.live.transaction,
      mappings: new Map(source.mappings),
    })
  }

  delete(id: DevId): void {
    this.metadata.deleteDevice(id)
    this.live.devices.delete(id)
  }

  /** A data block that nothing which a crash could bring back points to; -1 when there is none. */
  allocate(used: Map<number, number>[]): number {
    const expected = this.metadata.nrAllocatableDataBlocks > 0
    const block = this.metadata.allocateData()
    if (block >= 0 !== expected) this.t.fail('allocatable and allocated do not agree')
    if (used.some(counts => counts.has(block))) this.t.fail(`block ${block} is in use`)
    return block
  }

  /** What dm-thin does for writes: provision, break sharing, or nothing. */
  write(id: DevId, vblocks: Iterable<number>): void {
    const device = this.live.devices.get(id)!
    const used = [this.durable, this.sealed?.model, this.live].flatMap(m =>
      m ? [references(m)] : [],
    )
    for (const vblock of vblocks) {
      if (!this.hasRoom) return
      const found = this.metadata.mappings.find(id, vblock, this.#mapping)
      const wanted = device.mappings.get(vblock)
      if (found !== (wanted !== undefined)) this.t.fail(`find ${vblock} says ${found}`)
      if (wanted && wanted.time >= device.snapTime) continue
      const block = this.allocate(used)
      if (block < 0) return
      used[0]!.set(block, 1)
      this.metadata.mappings.insert(id, vblock, block as DataBlock, this.metadata.time)
      device.mappings.set(vblock, { dataBlock: block, time: this.live.time })
    }
  }

  /** What copy_file_range does: shares the data blocks of a range of another device. */
  copy(source: DevId, begin: number, target: DevId, to: number, length: number): void {
    const from = this.live.devices.get(source)!
    const into = this.live.devices.get(target)!
    this.metadata.markShared([source, target])
    from.snapTime = into.snapTime = ++this.live.time
    for (let i = 0; i < length && this.hasRoom; i++) {
      if (!this.metadata.mappings.find(source, begin + i, this.#mapping)) continue
      const { dataBlock, time } = this.#mapping
      if (into.mappings.get(to + i)?.dataBlock !== dataBlock) this.metadata.incData(dataBlock)
      this.metadata.mappings.insert(target, to + i, dataBlock, time)
      into.mappings.set(to + i, { dataBlock, time })
    }
  }

  discard(id: DevId, begin: number, end: number): void {
    const { mappings } = this.live.devices.get(id)!
    let removed = 0
    for (const vblock of [...mappings.keys()]) {
      if (vblock < begin || vblock >= end) continue
      mappings.delete(vblock)
      removed++
    }
    const found = this.metadata.mappings.removeRange(id, begin, end)
    if (found !== removed) this.t.equal(found, removed, 'number of blocks unmapped')
  }

  reserve(): void {
    if (this.live.held) {
      this.t.throws(() => this.metadata.reserveMetadataSnap(), { code: 'SNAPSHOT_HELD' })
      return
    }
    this.metadata.reserveMetadataSnap()
    this.live.held = cloneDevices(this.live.devices)
  }

  release(): void {
    if (!this.live.held) {
      this.t.throws(() => this.metadata.releaseMetadataSnap(), { code: 'SNAPSHOT_NOT_HELD' })
      return
    }
    while (!this.metadata.releaseMetadataSnap(1)) {
      if (this.metadata.heldRoot === 0) this.t.fail('a part is left, and not held')
    }
    this.live.held = null
  }

  growData(more: number): void {
    this.live.nrDataBlocks += more
    this.metadata.growData(this.live.nrDataBlocks)
  }

  growMetadata(more: number): void {
    this.store.grow(bytes(this.store.size + more * 4096))
    this.metadata.growMetadata(this.store.size / 4096)
  }

  setTransactionId(): void {
    this.metadata.setTransactionId(this.live.transaction, this.live.transaction + 1)
    this.live.transaction++
  }

  /** Ends the running transaction; it becomes durable with `finish`. */
  seal(): void {
    if (this.sealed) return
    const transaction = this.metadata.seal()
    if (!transaction) return
    const model = clone(this.live)
    this.sealed = { transaction, model }
    const before = references(this.durable)
    const after = references(model)
    const freed = new Set<number>(transaction.freed)
    if ([...freed].some(block => after.has(block))) this.t.fail('a freed block is mapped')
    for (const block of before.keys()) {
      if (!after.has(block) && !freed.has(block)) this.t.fail(`block ${block} is not freed`)
    }
    this.t.same(
      [...transaction.freed].sort((a, b) => a - b),
      transaction.freed,
      'ascending',
    )
  }

  async finish(): Promise<void> {
    if (!this.sealed) return
    const { transaction, model } = this.sealed
    await transaction.write()
    this.durable = model
    this.sealed = null
    transaction.end()
    this.metadata.releaseData(transaction.freed)
  }

  async commit(): Promise<void> {
    await this.finish()
    this.seal()
    await this.finish()
    this.t.equal(this.metadata.changed, false, 'nothing left to commit')
  }

  async rollback(): Promise<void> {
    await this.finish()
    this.metadata.rollback()
    this.live = clone(this.durable)
  }

  /** As after a crash: what is in the store, without what was not sealed. */
  async reopen(): Promise<void> {
    await this.finish()
    this.metadata = this.#open()
    this.live = clone(this.durable)
  }

  /** Compares the store with what should be durable. */
  verifyStore(): void {
    const { t } = this
    withImage(this.store.image, path => this.#verifyFile(path))
    t.same(checkMetadata(this.store).problems, [], 'our checker')
  }

  #verifyFile(path: string): void {
    const { t, durable } = this
    const check = thinCheck(path)
    t.equal(check.status, 0, `thin_check: ${check.stderr}`)
    const dump = thinDump(path)
    t.equal(dump.time, durable.time, 'time')
    t.equal(dump.transaction, durable.transaction, 'transaction id')
    t.equal(dump.nrDataBlocks, durable.nrDataBlocks, 'data blocks')
    sameDevices(t, dump.devices, durable.devices)
    if (durable.held) sameDevices(t, thinDump(path, '-m').devices, durable.held)
  }

  /** Compares what the engine says with what was done. */
  verifyLive(): void {
    const { t, metadata, live } = this
    const counts = references(live)
    t.same(
      [...metadata.deviceIds()],
      [...live.devices.keys()].sort((a, b) => a - b),
      'ids',
    )
    t.equal(metadata.nrAllocatedDataBlocks, counts.size, 'allocated data blocks')
    for (const [id, device] of live.devices) {
      const devId = id as DevId
      const details = metadata.details(devId)
      const wanted = sorted(device.mappings)
      t.equal(details.mappedBlocks, wanted.length, 'mapped')
      t.equal(details.snapshottedTime, device.snapTime, 'snapshotted time')
      t.equal(metadata.mappings.highestMapped(devId), wanted.at(-1)?.[0] ?? -1, 'highest')
      let at = 0
      let next = 0
      let wrong = 0
      metadata.mappings.forEach(devId, 0, Number.POSITIVE_INFINITY, (vblock, dataBlock, time) => {
        const [v, m] = wanted[at++] ?? [-1, { dataBlock: -1, time: -1 }]
        if (v !== vblock || m.dataBlock !== dataBlock || m.time !== time) wrong++
      })
      for (const [vblock, { dataBlock }] of wanted) {
        if (metadata.mappings.next(devId, next, this.#mapping) !== vblock) wrong++
        if (this.#mapping.dataBlock !== dataBlock) wrong++
        next = vblock + 1
        const runEnd = metadata.mappings.mappedUntil(devId, vblock, vblock + 300)
        const gap = [...range(vblock, 300)].find(v => !device.mappings.has(v)) ?? vblock + 300
        if (runEnd !== gap || metadata.mappings.mappedUntil(devId, runEnd, runEnd + 1) < runEnd)
          wrong++
        const shared = counts.get(dataBlock)! > 1
        const said = metadata.mappings.isReallyShared(devId, vblock)
        // Of what changed since the last durable commit it may say so although it is no more.
        if (shared ? !said : said && this.isDurable) wrong++
      }
      if (metadata.mappings.next(devId, next, this.#mapping) !== -1) wrong++
      const exclusive: number[] = []
      for (let at = 0; at < Number.POSITIVE_INFINITY; ) {
        at = metadata.mappings.forEachExclusive(devId, at, vblock => exclusive.push(vblock))
      }
      if (metadata.mappings.mappedUntil(devId, next, next + 9) !== next) wrong++
      const alone = wanted.filter(([, { dataBlock }]) => counts.get(dataBlock) === 1)
      t.same(
        exclusive,
        alone.map(([vblock]) => vblock),
        'exclusive',
      )
      t.equal(at, wanted.length, 'all mappings are visited')
      t.equal(wrong, 0, 'lookups')
    }
    let free = 0
    let before = -1
    metadata.forEachFreeRun((begin, end) => {
      if (begin <= before) t.fail('runs of free blocks do not ascend')
      before = end
      for (let block: number = begin; block < end; block++) if (counts.has(block)) t.fail('is used')
      free += end - begin
    })
    t.equal(free, live.nrDataBlocks - counts.size, 'free data blocks')
  }
}

function sameDevices(
  t: Test,
  found: ReturnType<typeof thinDump>['devices'],
  wanted: Map<number, ModelDevice>,
): void {
  t.same(
    [...found.keys()],
    [...wanted.keys()].sort((a, b) => a - b),
    'devices',
  )
  for (const [id, device] of found) {
    const model = wanted.get(id)
    if (!model) continue
    t.equal(device.mappedBlocks, model.mappings.size, `mapped blocks of ${id}`)
    t.equal(device.creationTime, model.creationTime, `creation time of ${id}`)
    t.equal(device.snapTime, model.snapTime, `snapshotted time of ${id}`)
    t.equal(device.transaction, model.transaction, `transaction id of ${id}`)
    const a = JSON.stringify([...device.mappings])
    const b = JSON.stringify(sorted(model.mappings).map(([v, m]) => [v, m]))
    t.equal(a === b, true, `mappings of ${id}`)
  }
}

function* range(begin: number, length: number, step = 1): Generator<number> {
  for (let i = 0; i < length; i++) yield begin + i * step
}

/** A reproducible source of numbers in [0, 2^32). */
function random(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let x = Math.imul(state ^ (state >>> 15), state | 1)
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61)
    return (x ^ (x >>> 14)) >>> 0
  }
}

const small = fc.nat({ max: 7 })
const vblock = fc.oneof(fc.nat({ max: 600 }), fc.nat({ max: 4000 }), fc.nat({ max: 2 ** 30 }))
const length = fc.oneof(fc.nat({ max: 8 }), fc.nat({ max: 700 }))
const operation = fc.oneof(
  { weight: 3, arbitrary: fc.record({ op: fc.constant('create' as const), id: small }) },
  { weight: 4, arbitrary: fc.record({ op: fc.constant('snap' as const), id: small, from: small }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('delete' as const), id: small }) },
  {
    weight: 12,
    arbitrary: fc.record({
      op: fc.constant('write' as const),
      id: small,
      begin: vblock,
      length,
      step: fc.constantFrom(1, 1, 3),
    }),
  },
  {
    weight: 4,
    arbitrary: fc.record({ op: fc.constant('discard' as const), id: small, begin: vblock, length }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      op: fc.constant('copy' as const),
      id: small,
      begin: vblock,
      from: small,
      to: vblock,
      length,
    }),
  },
  {
    weight: 10,
    arbitrary: fc.record({
      op: fc.constantFrom(
        'seal' as const,
        'seal' as const,
        'finish' as const,
        'finish' as const,
        'commit' as const,
        'rollback' as const,
        'reopen' as const,
        'reserve' as const,
        'release' as const,
        'growData' as const,
        'growMetadata' as const,
        'setTransactionId' as const,
        'empty' as const,
      ),
      id: small,
    }),
  },
)

t.test('random operations, compared with plain maps', async t => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(operation, { minLength: 5, maxLength: 60, size: 'max' }),
      fc.constantFrom(1, 8, 16384),
      async (operations, cacheBlocks) => {
        const pair = new Pair(t, { metadataBlocks: 1000, dataBlocks: 9000, cacheBlocks })
        await pair.commit()
        for (const o of operations) {
          const id = pair.pick(o.id)
          const changes = !['seal', 'finish', 'commit', 'rollback', 'reopen'].includes(o.op)
          if (changes && !pair.hasRoom) continue
          if (o.op === 'create') pair.create(o.id as DevId)
          else if (o.op === 'seal') pair.seal()
          else if (o.op === 'finish') await pair.finish()
          else if (o.op === 'commit') await pair.commit()
          else if (o.op === 'rollback') await pair.rollback()
          else if (o.op === 'reopen') await pair.reopen()
          else if (o.op === 'reserve') pair.reserve()
          else if (o.op === 'release') pair.release()
          else if (o.op === 'growData') pair.growData(5000 + o.id)
          else if (o.op === 'growMetadata') pair.growMetadata(1 + o.id * 40)
          else if (o.op === 'setTransactionId') pair.setTransactionId()
          else if (id === null) continue
          else if (o.op === 'snap') pair.snap(o.id as DevId, pair.pick(o.from)!)
          else if (o.op === 'delete') pair.delete(id)
          else if (o.op === 'write') pair.write(id, range(o.begin, o.length, o.step))
          else if (o.op === 'discard') pair.discard(id, o.begin, o.begin + o.length)
          else if (o.op === 'copy') {
            pair.copy(pair.pick(o.from)!, o.begin, id, o.to, Math.min(o.length, 50))
          } else pair.discard(id, 0, Number.POSITIVE_INFINITY)
        }
        pair.verifyLive()
        await pair.finish()
        pair.verifyStore()
        await pair.commit()
        pair.verifyStore()
        await pair.reopen()
        pair.verifyLive()
        if (!t.passing()) throw new Error('see above')
      },
    ),
    { numRuns: 30 },
  )
})

t.test('trees of three levels, filled and emptied in random order', async t => {
  const pair = new Pair(t, { metadataBlocks: 4096, dataBlocks: 250_000, cacheBlocks: 64 })
  const next = random(1)
  const id = 1 as DevId
  pair.create(id)
  for (let round = 0; round < 4; round++) {
    pair.write(
      id,
      Array.from({ length: 16_000 }, () => next()),
    )
    await pair.commit()
  }
  t.ok(pair.metadata.nrAllocatedMetadataBlocks > 300, 'more leaves than one node has children')
  pair.verifyStore()
  pair.verifyLive()
  pair.snap(2 as DevId, id)
  pair.write(2 as DevId, pair.live.devices.get(id)!.mappings.keys())
  pair.snap(3 as DevId, id)
  for (let round = 0; round < 12; round++) {
    const target = (1 + (next() % 3)) as DevId
    const begin = next()
    const length = next() >>> (round % 5)
    pair.discard(target, begin, begin + length)
    if (round % 3 === 0) await pair.commit()
  }
  await pair.commit()
  pair.verifyStore()
  pair.verifyLive()
  // One key at a time, from random places, until the tree is small.
  const { mappings } = pair.live.devices.get(3 as DevId)!
  const keys = [...mappings.keys()].map(key => ({ key, order: next() }))
  for (const { key } of keys.sort((a, b) => a.order - b.order).slice(100)) {
    mappings.delete(key)
    if (pair.metadata.mappings.removeRange(3 as DevId, key, key + 1) !== 1)
      t.fail(`${key} was there`)
  }
  await pair.commit()
  pair.verifyStore()
  pair.verifyLive()
})

t.test('a device goes in slices, the pool is consistent after each', async t => {
  const pair = new Pair(t, { metadataBlocks: 1024, dataBlocks: 40_000 })
  const id = 5 as DevId
  pair.create(id)
  pair.write(id, range(0, 20_000, 2))
  pair.snap(6 as DevId, id)
  pair.write(id, range(0, 200, 2))
  await pair.commit()
  t.equal(pair.metadata.mappings.sliceBegin(6 as DevId, 4), 0, 'what is mostly shared goes at once')
  pair.write(id, range(200, 16_000))
  await pair.commit()
  let slices = 0
  for (let begin = 1; begin > 0; slices++) {
    begin = pair.metadata.mappings.sliceBegin(id, 4)
    if (begin > 0) pair.discard(id, begin, Number.POSITIVE_INFINITY)
    else pair.delete(id)
    await pair.commit()
    if (slices % 4 === 0) pair.verifyStore()
  }
  t.ok(slices > 8 && slices < 40, `${slices} slices`)
  pair.verifyStore()
  pair.verifyLive()
})

t.test('counts above two: many snapshots that each change a little', async t => {
  const pair = new Pair(t, { metadataBlocks: 2000, dataBlocks: 20_000 })
  pair.create(0 as DevId)
  pair.write(0 as DevId, range(0, 3000))
  for (let k = 1; k <= 7; k++) {
    pair.snap(k as DevId, (k >>> 1) as DevId)
    pair.write(0 as DevId, range(k * 100, 300, 9))
    pair.write(k as DevId, range(0, 300, 10))
    if (k % 2 === 0) await pair.commit()
  }
  await pair.commit()
  pair.verifyStore()
  pair.verifyLive()
  for (const id of [3, 0, 7, 1]) {
    pair.delete(id as DevId)
    await pair.commit()
    pair.verifyStore()
    pair.verifyLive()
  }
})

t.test(
  'both maps grow over the ends of their bitmaps, the metadata when nothing is free',
  async t => {
    const pair = new Pair(t, { metadataBlocks: 100, dataBlocks: 1000 })
    pair.create(0 as DevId)
    pair.write(0 as DevId, range(0, 1000))
    await pair.commit()
    // In one transaction a further device takes one block: that of its empty tree.
    while (pair.metadata.nrAllocatableMetadataBlocks > 0) {
      pair.create(pair.live.devices.size as DevId)
    }
    pair.growMetadata(16320 * 2)
    pair.growData(16320 * 2)
    await pair.commit()
    pair.verifyStore()
    pair.write(0 as DevId, range(5000, 20_000))
    await pair.commit()
    pair.verifyStore()
    pair.verifyLive()
  },
)

t.test('metadata that runs out leaves the last commit', async t => {
  const pair = new Pair(t, { metadataBlocks: 40, dataBlocks: 40_000 })
  pair.create(0 as DevId)
  await pair.commit()
  const fill = (): void => {
    for (let vblock = 0; ; vblock++) {
      pair.metadata.mappings.insert(
        0 as DevId,
        vblock * 3,
        pair.metadata.allocateData() as DataBlock,
        pair.metadata.time,
      )
    }
  }
  t.throws(fill, { code: 'NO_METADATA_SPACE' })
  await pair.rollback()
  pair.verifyLive()
  pair.write(0 as DevId, range(0, 500))
  await pair.commit()
  pair.verifyStore()
})

t.test('data that runs out comes back with the commit that frees it', async t => {
  const pair = new Pair(t, { metadataBlocks: 200, dataBlocks: 100 })
  const id = 0 as DevId
  pair.create(id)
  pair.write(id, range(0, 200))
  t.equal(pair.metadata.allocateData(), -1)
  await pair.commit()
  pair.discard(id, 10, 20)
  t.equal(pair.metadata.nrAllocatableDataBlocks, 0, 'the old state has them still')
  pair.seal()
  t.same(pair.sealed!.transaction.freed, [10, 11, 12, 13, 14, 15, 16, 17, 18, 19])
  pair.discard(id, 50, 51)
  t.equal(pair.metadata.allocateData(), -1)
  await pair.finish()
  t.equal(pair.metadata.nrAllocatableDataBlocks, 10, 'but not the one that is freed since')
  pair.write(id, range(10, 5))
  await pair.commit()
  t.equal(pair.metadata.nrAllocatableDataBlocks, 6)
  pair.verifyStore()
  const unused = pair.metadata.allocateData() as DataBlock
  pair.metadata.releaseUnused(unused)
  t.equal(pair.metadata.nrAllocatableDataBlocks, 6, 'unused, it can be taken at once')
  pair.metadata.allocateDataAt(unused)
  t.throws(() => pair.metadata.allocateDataAt(unused), /has 1 owners, wanted 0/)
})

/** All mappings, in a form that can be compared. */
function contents(metadata: ThinMetadata): string {
  const devices = [...metadata.deviceIds()].map(id => {
    const mappings: number[][] = []
    metadata.mappings.forEach(id, 0, Number.POSITIVE_INFINITY, (...mapping) => {
      mappings.push(mapping)
    })
    return [id, metadata.details(id).mappedBlocks, mappings]
  })
  return JSON.stringify([metadata.time, devices])
}

const modelContents = ({ time, devices }: Model): string =>
  JSON.stringify([
    time,
    sorted(devices).map(([id, { mappings }]) => [
      id,
      mappings.size,
      sorted(mappings).map(([vblock, { dataBlock, time }]) => [vblock, dataBlock, time]),
    ]),
  ])

/** A sealed transaction that changes much, on top of a durable one. */
async function sealedPair(t: Test, next: () => number) {
  const pair = new Pair(t, { metadataBlocks: 200, dataBlocks: 2000 })
  pair.create(0 as DevId)
  pair.write(0 as DevId, range(0, 600))
  pair.snap(1 as DevId, 0 as DevId)
  await pair.commit()
  pair.write(0 as DevId, range(next() % 500, 300))
  pair.discard(1 as DevId, 0, 1 + (next() % 600))
  pair.seal()
  return { pair, transaction: pair.sealed!.transaction, model: pair.sealed!.model }
}

t.test('a commit whose n-th access to the store fails: rollback finds what is there', async t => {
  let refused = true
  for (let n = 1; refused; n++) {
    const { pair, transaction, model } = await sealedPair(t, random(n))
    let accesses = 0
    let superblockWritten = false
    pair.store.onWrite = (op, offset) => {
      if (++accesses === n) throw new Error('refused')
      if (op === 'write' && offset === 0) superblockWritten = true
    }
    refused = await transaction.write().then(
      () => false,
      () => true,
    )
    pair.store.onWrite = undefined
    pair.metadata.rollback()
    const wanted = modelContents(superblockWritten ? model : pair.durable)
    t.equal(contents(pair.metadata) === wanted, true, `access ${n}`)
    pair.metadata.setNeedsCheck()
    await pair.metadata.seal()!.write()
    t.equal(ThinMetadata.open(pair.store).needsCheck, true)
    t.same(checkMetadata(pair.store).problems, [])
  }
})

t.test('power lost at any moment of a commit: the state before it, or after', async t => {
  const next = random(7)
  for (let run = 0; run < 30; run++) {
    const { pair, transaction, model } = await sealedPair(t, next)
    const images: MemoryStore[] = []
    pair.store.onWrite = () => images.push(pair.store.crash(() => next() % 2 === 0))
    await transaction.write()
    pair.store.onWrite = undefined
    const states = [pair.durable, model].map(modelContents)
    for (const image of images) {
      t.ok(states.includes(contents(ThinMetadata.open(image))), `run ${run}`)
      t.same(checkMetadata(image).problems, [], `run ${run}`)
    }
    const flushed = pair.store.crash(() => false)
    t.equal(contents(ThinMetadata.open(flushed)) === states[1], true, 'what was written lasts')
  }
})

t.test('a metadata snapshot that is released in part is one of what is left', async t => {
  const pair = new Pair(t, { metadataBlocks: 4096, dataBlocks: 40_000 })
  for (const id of [1, 2, 3] as DevId[]) {
    pair.create(id)
    pair.write(id, range(0, 5000, id))
  }
  pair.snap(4 as DevId, 2 as DevId)
  await pair.commit()
  pair.reserve()
  await pair.commit()
  // One is held alone, one together with a live device, of one parts are.
  pair.delete(1 as DevId)
  pair.discard(3 as DevId, 6000, 9000)
  await pair.commit()
  const mapped = (): number => {
    const dumps = withImage(pair.store.image, path => [...thinDump(path, '-m').devices.values()])
    return dumps.reduce((sum, { mappings }) => sum + mappings.size, 0)
  }
  let before = mapped()
  t.equal(before, 4 * 5000)
  let steps = 0
  for (let done = false; !done; steps++) {
    done = pair.metadata.releaseMetadataSnap(4)
    const sealed = pair.metadata.seal()!
    await sealed.write()
    sealed.end()
    pair.metadata.releaseData(sealed.freed)
    withImage(pair.store.image, path => t.equal(thinCheck(path).status, 0, 'thin_check'))
    t.same(checkMetadata(pair.store).problems, [], 'our checker')
    if (done) break
    const after = mapped()
    t.ok(after < before, `${after} mappings are left, fewer than ${before}`)
    before = after
  }
  t.ok(steps > 5, 'in many steps')
  t.equal(pair.metadata.heldRoot, 0)
  pair.live.held = null
  pair.verifyLive()
})
