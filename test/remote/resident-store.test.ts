// Goal: a store that is all in memory shows what was written, whoever is killed; what a sync
// acknowledged is on the disk, and nothing is sent before one. Method: the contract of all stores;
// then random writes and syncs against a plain copy, while the disk ends calls in any order, fails,
// and loses what it had not flushed, and the process that serves is replaced.
import assert from 'node:assert/strict'
import { closeSync } from 'node:fs'
import t, { type Test } from 'tap'
import { bytes, KIB, MIB, PAGE_SIZE, ThinfsError } from '../../src/base/index.js'
import { type RemoteDisk, ResidentMemory, ResidentStore } from '../../src/remote/index.js'
import { storeContract } from '../contract/store.js'
import { Random } from '../support/random.js'
import { SlowDisk } from '../support/slow-disk.js'

const turn = (): Promise<void> => new Promise(resolve => setImmediate(resolve))

function memory(t: Test): number {
  const fd = ResidentMemory.create()
  t.teardown(() => closeSync(fd))
  return fd
}

/** A disk whose calls end at once, and are counted. */
class QuickDisk implements RemoteDisk {
  readonly path = 'quick'
  readonly makesHoles = true
  epoch = 1
  readonly image: Buffer
  readonly writes: [offset: number, length: number][] = []
  reads = 0

  constructor(size: number) {
    this.image = Buffer.alloc(size)
  }

  get size(): number {
    return this.image.length
  }

  async read(into: Uint8Array, offset: number): Promise<void> {
    this.reads += into.length
    into.set(this.image.subarray(offset, offset + into.length))
  }

  async write(from: Uint8Array, offset: number): Promise<void> {
    this.writes.push([offset, from.length])
    this.image.set(from, offset)
  }

  async zero(offset: number, length: number): Promise<void> {
    this.image.fill(0, offset, offset + length)
  }

  /** The next flush fails, and the disk loses what it was to cover. */
  losesOnFlush = false
  #durable: Buffer | null = null

  async flush(): Promise<void> {
    if (this.losesOnFlush) {
      this.losesOnFlush = false
      this.image.set(this.#durable ?? Buffer.alloc(this.image.length))
      throw new ThinfsError('IO_ERROR', 'the disk fails', { errno: 'EIO' })
    }
    this.#durable = Buffer.from(this.image)
  }

  async extents(): Promise<{ offset: number; length: number }[] | null> {
    return null
  }

  close(): void {}
}

storeContract(
  'ResidentStore',
  (t, size) => ResidentStore.open({ disk: new QuickDisk(size), memory: memory(t) }),
  { grows: false },
)

t.test('what a flush that failed was to cover is sent again', async t => {
  const disk = new QuickDisk(MIB)
  const store = await ResidentStore.open({ disk, memory: memory(t) })
  const block = Buffer.alloc(PAGE_SIZE, 7)
  store.write(block, 0, PAGE_SIZE, bytes(0))
  disk.losesOnFlush = true
  await t.rejects(store.sync(), { code: 'IO_ERROR' })
  await store.sync()
  t.ok(disk.image.subarray(0, PAGE_SIZE).equals(block))
  t.equal(store.unflushed, 0)
})

t.test('neighbours go in one request, and nothing goes before a sync', async t => {
  const disk = new QuickDisk(16 * MIB)
  const store = await ResidentStore.open({ disk, memory: memory(t) })
  const block = Buffer.alloc(PAGE_SIZE, 1)
  for (let nr = 0; nr < 600; nr++) store.write(block, 0, PAGE_SIZE, bytes((nr * 2 + 8) * PAGE_SIZE))
  store.write(block, 0, PAGE_SIZE, bytes(0))
  t.same(disk.writes, [])
  t.equal(store.unflushed, 601 * PAGE_SIZE)
  await store.sync()
  t.equal(store.unflushed, 0)
  t.equal(disk.writes.length, 6, 'of 1 MiB at most')
  t.ok(disk.writes.every(([, length]) => length <= MIB))
  const all = Buffer.alloc(16 * MIB)
  store.read(all, 0, all.length, bytes(0))
  t.ok(disk.image.equals(all))
})

t.test('what the disk has in use is read once, and the memory is of one disk', async t => {
  const disk = new QuickDisk(4 * MIB)
  disk.image.fill(7, MIB, MIB + 100 * KIB)
  const extents = [{ offset: MIB, length: 128 * KIB }]
  disk.extents = async () => extents
  const fd = memory(t)
  const told: [number, number][] = []
  const onLoad = (done: number, all: number): void => void told.push([done, all])
  const store = await ResidentStore.open({ disk, memory: fd, onLoad })
  t.equal(disk.reads, 128 * KIB)
  t.same(told.at(-1), [128 * KIB, 128 * KIB])
  t.equal(store.nextData(bytes(0)), MIB)
  t.equal(store.nextHole(bytes(MIB)), MIB + 100 * KIB)
  await ResidentStore.open({ disk, memory: fd })
  t.equal(disk.reads, 128 * KIB, 'the next process has it')
  const grown = Object.assign(new QuickDisk(8 * MIB), { path: disk.path })
  t.equal((await ResidentStore.open({ disk: grown, memory: fd })).size, 8 * MIB)
  const cut = ResidentStore.open({ disk, memory: fd })
  await t.rejects(cut, { code: 'POOL_MISMATCH', message: /it had \d+: make it as large again/ })
  const other = Object.assign(new QuickDisk(4 * MIB), { path: 'another' })
  const refused = ResidentStore.open({ disk: other, memory: fd })
  await t.rejects(refused, { code: 'BAD_ARGUMENT', message: /that of another disk/ })
})

t.test('any order, failures, power cuts, deaths', async t => {
  for (let seed = 1; seed <= 25; seed++) await run(t, seed)
})

async function run(t: Test, seed: number): Promise<void> {
  const random = new Random(seed)
  const nrPages = 64
  const empty = () => Buffer.alloc(nrPages * PAGE_SIZE)
  const disk = new SlowDisk({ image: empty(), durable: empty() }, random)
  const fd = ResidentMemory.create()
  /** Makes the disk answer until a promise ends. */
  const stepping = async <T>(promise: Promise<T>): Promise<T> => {
    let ended = false
    const end = (): void => {
      ended = true
    }
    promise.then(end, end)
    while (!ended) {
      disk.step()
      await turn()
    }
    return promise
  }
  const open = () => stepping(ResidentStore.open({ disk, memory: fd }))
  let store = await open()
  /** By page: the number written last, and those that may be on the disk. */
  const model = new Uint32Array(nrPages)
  const possible = Array.from(model, () => new Set([0]))
  let life = 0
  let syncs = 0
  const block = Buffer.alloc(PAGE_SIZE)
  const sync = (): void => {
    const asked = Uint32Array.from(model)
    const asker = life
    store.sync().then(
      () => {
        if (asker !== life) return
        syncs++
        // Of what was there before the call nothing older is left.
        for (const [page, value] of asked.entries()) {
          for (const older of possible[page]!) if (older < value) possible[page]!.delete(older)
        }
      },
      () => {},
    )
  }
  const onDisk = (image: Buffer, why: string): void => {
    for (let page = 0; page < nrPages; page++) {
      const found = image.readUInt32LE(page * PAGE_SIZE)
      assert.ok(possible[page]!.has(found), `seed ${seed}: ${why}: page ${page} has ${found}`)
    }
  }
  for (let value = 1; value < 400; value++) {
    const what = random.below(20)
    if (what < 12) {
      const page = random.below(nrPages)
      block.fill(0).writeUInt32LE(value)
      store.write(block, 0, PAGE_SIZE, bytes(page * PAGE_SIZE))
      model[page] = value
      possible[page]!.add(value)
    } else if (what < 15) sync()
    else if (what === 15) {
      disk.powerCut()
      onDisk(disk.state.image, 'a power cut of the disk')
    } else if (what === 16) disk.failing = random.chance(0.5) ? 0.3 : 0
    else if (what === 17 && random.chance(0.5)) {
      // What it has begun, it has sent.
      await turn()
      disk.abandon()
      life++
      const { failing } = disk
      disk.failing = 0
      disk.epoch++
      store = await open()
      disk.failing = failing
    }
    for (let i = random.below(4); i > 0; i--) {
      disk.step()
      await turn()
    }
    const page = random.below(nrPages)
    store.read(block, 0, PAGE_SIZE, bytes(page * PAGE_SIZE))
    assert.equal(block.readUInt32LE(0), model[page], `seed ${seed}: page ${page}`)
  }
  disk.failing = 0
  await stepping(store.sync().then(() => store.sync()))
  disk.powerCut()
  for (let page = 0; page < nrPages; page++) {
    assert.equal(disk.state.image.readUInt32LE(page * PAGE_SIZE), model[page], `seed ${seed}`)
  }
  t.ok(syncs > 0, `seed ${seed}: some syncs succeeded`)
  closeSync(fd)
}
