// Goal: a pool whose disks become larger takes that while it is used, loses nothing of what it
// acknowledged and shows nothing of what was in the new part, whenever its process is killed; a
// disk that has become smaller is refused. Method: pages of random values against a map of them;
// the disks end calls in any order, grow with garbage at random moments, and stop to answer in the
// middle of whatever is under way, where the next process goes on; thin_check judges what is left.
import { closeSync } from 'node:fs'
import t, { type Test } from 'tap'
import { bytes, KIB } from '../../src/base/index.js'
import { ThinMetadata } from '../../src/metadata/index.js'
import type { ThinDevice, ThinPool } from '../../src/pool/index.js'
import { CacheMemory, RemoteStore, ResidentMemory, ResidentStore } from '../../src/remote/index.js'
import { MemoryJournal } from '../../src/storage/index.js'
import { devId, openFiles } from '../support/memory-pool.js'
import { Random } from '../support/random.js'
import { type DiskState, SlowDisk } from '../support/slow-disk.js'
import { thinCheck } from '../support/thin-tools.js'

const PAGE = 4 * KIB
const BLOCK = 64 * KIB
const BLOCK_PAGES = BLOCK / PAGE
const VIRTUAL_PAGES = 32 * BLOCK_PAGES
const turn = (): Promise<void> => new Promise(resolve => setImmediate(resolve))

const diskOf = (size: number): DiskState => ({
  image: Buffer.alloc(size),
  durable: Buffer.alloc(size),
})

class Machine {
  readonly random: Random
  readonly states = { data: diskOf(6 * BLOCK + 3 * PAGE), metadata: diskOf(200 * PAGE) }
  disks: { data: SlowDisk; metadata: SlowDisk }
  fds = { cache: 0, metadata: 0, journal: 0 }
  pool!: ThinPool
  device!: ThinDevice
  /** By page: what was acknowledged, and what may be there as well. */
  readonly model = new Map<number, number[]>()
  grown = 0

  constructor(seed: number) {
    this.random = new Random(seed)
    this.disks = this.#connect()
    this.#makeMemory()
  }

  #connect(): { data: SlowDisk; metadata: SlowDisk } {
    const { data, metadata } = this.states
    return { data: new SlowDisk(data, this.random), metadata: new SlowDisk(metadata, this.random) }
  }

  #makeMemory(): void {
    this.fds = {
      cache: CacheMemory.create(8 * BLOCK),
      metadata: ResidentMemory.create(),
      journal: MemoryJournal.create(),
    }
  }

  /** Makes the disks answer until a promise ends. @returns whether it has, in so many steps */
  async steps(promise: Promise<unknown>, most = 1_000_000): Promise<boolean> {
    let ended = false
    const end = (): void => {
      ended = true
    }
    promise.then(end, end)
    for (let i = 0; !ended && i < most; i++) {
      this.disks.data.step()
      this.disks.metadata.step()
      await turn()
    }
    if (ended) await promise
    return ended
  }

  async format(): Promise<void> {
    const opening = ResidentStore.open({ disk: this.disks.metadata, memory: this.fds.metadata })
    await this.steps(opening)
    const store = await opening
    ThinMetadata.format(store, { dataBlockSectors: BLOCK / 512 })
    await this.steps(store.sync())
  }

  async open(takesOver: boolean): Promise<void> {
    const { disks, fds } = this
    const opening = (async () => {
      const metadata = await ResidentStore.open({ disk: disks.metadata, memory: fds.metadata })
      const data = await RemoteStore.open({ disk: disks.data, cache: fds.cache, granule: BLOCK })
      const journal = new MemoryJournal(fds.journal)
      const { pool } = await openFiles({ metadata, data, journal }, { takesOver })
      if (!pool.metadata.hasDevice(devId(0))) {
        pool.devices.createThin(devId(0))
        await pool.commit()
      }
      this.pool = pool
      this.device = pool.devices.get(devId(0), bytes(VIRTUAL_PAGES * PAGE))
    })()
    await this.steps(opening)
  }

  /** Disks grow, the pool takes it, pages are written: without end. */
  async work(): Promise<void> {
    const { random, pool, device } = this
    for (;;) {
      const chance = random.next()
      if (chance < 0.03) this.#grow('data', BLOCK / 2 + PAGE * random.below(40))
      else if (chance < 0.05) this.#grow('metadata', PAGE * (1 + random.below(40)))
      else if (chance < 0.1) {
        const before = pool.metadata.nrDataBlocks
        await pool.space.extend({})
        if (pool.metadata.nrDataBlocks > before) this.grown++
      } else if (chance < 0.15) await pool.commit()
      else await this.#write(device)
    }
  }

  async #write(device: ThinDevice): Promise<void> {
    const page = this.random.below(VIRTUAL_PAGES)
    const value = 1 + this.random.below(255)
    const before = this.model.get(page) ?? [0]
    this.model.set(page, [...before, value])
    try {
      await device.write(page * PAGE, PAGE, Buffer.alloc(PAGE, value), 0)
      await this.pool.settle()
      this.model.set(page, [value])
    } catch (err) {
      if ((err as { code?: string }).code !== 'NO_DATA_SPACE') throw err
      this.model.set(page, before)
    }
  }

  /** Somebody makes a disk larger, by what was something else before. */
  #grow(name: 'data' | 'metadata', more: number): void {
    const state = this.states[name]
    if (state.image.length > 64 * BLOCK) return
    const tail = Buffer.alloc(more, 0xee)
    tail.fill(0, 0, this.random.below(2) * (more / 2))
    state.image = Buffer.concat([state.image, tail])
    state.durable = Buffer.concat([state.durable, tail])
  }

  /** Lets it work for so many steps of the disks; then it is killed, and the next one goes on. */
  async live(t: Test, steps: number): Promise<void> {
    await this.steps(this.work(), steps)
    // What it has begun goes on to where it waits for a disk, which answers no more.
    for (let i = 0; i < 50; i++) await turn()
    this.disks.data.abandon()
    this.disks.metadata.abandon()
    this.disks = this.#connect()
    await this.open(true)
    await this.mustBeAsModel(t)
  }

  async mustBeAsModel(t: Test): Promise<void> {
    const found = Buffer.alloc(PAGE)
    const wrong: string[] = []
    for (let page = 0; page < VIRTUAL_PAGES; page++) {
      const may = this.model.get(page) ?? [0]
      if (!this.device.read(page * PAGE, PAGE, found, 0)) {
        await this.steps(this.device.readLater(page * PAGE, PAGE, found, 0))
      }
      const value = may.find(value => found.equals(Buffer.alloc(PAGE, value)))
      if (value === undefined) wrong.push(`page ${page}: ${found[0]}, not ${may}`)
      else this.model.set(page, [value])
    }
    t.same(wrong, [])
  }

  /** Closes it in order, and opens it as another machine does. */
  async moveOn(): Promise<void> {
    await this.steps(this.pool.close())
    for (const fd of Object.values(this.fds)) closeSync(fd)
    this.disks = this.#connect()
    this.#makeMemory()
    await this.open(false)
  }
}

const SEEDS = Number(process.env.THINFS_TEST_ROUNDS ?? 2)

for (let seed = 1; seed <= SEEDS; seed++) {
  t.test(`seed ${seed}: disks that grow under a pool that is killed`, async t => {
    const machine = new Machine(seed)
    await machine.format()
    await machine.open(false)
    for (let life = 0; life < 8; life++) await machine.live(t, machine.random.below(250))
    await machine.moveOn()
    await machine.mustBeAsModel(t)
    await machine.steps(machine.pool.close())
    t.ok(machine.grown > 0 && machine.pool.metadata.nrDataBlocks > 6)
    t.equal(thinCheck(machine.states.metadata.durable).status, 0)
    for (const fd of Object.values(machine.fds)) closeSync(fd)
  })
}

t.test('a disk that has become smaller is refused, and nothing is written', async t => {
  const random = new Random(1)
  const [cache, metadata] = [CacheMemory.create(8 * BLOCK), ResidentMemory.create()]
  const state = diskOf(4 * BLOCK)
  const open = (): Promise<unknown>[] => {
    const disk = new SlowDisk(state, random)
    return [
      RemoteStore.open({ disk, cache, granule: BLOCK }),
      ResidentStore.open({ disk, memory: metadata }),
    ]
  }
  await Promise.all(open())
  state.image = state.image.subarray(0, 3 * BLOCK)
  const message = 'slow: the disk has 196608 bytes, it had 262144: make it as large again'
  for (const opening of open()) await t.rejects(opening, { code: 'POOL_MISMATCH', message })
  closeSync(cache)
  closeSync(metadata)
})

t.test(
  'a disk that ended in the middle of a page: what was written before its end stays',
  async t => {
    const state = diskOf(BLOCK + 2 * PAGE + 2560)
    const machine = new Machine(1)
    const disk = new SlowDisk(state, machine.random)
    const cache = CacheMemory.create(4 * BLOCK)
    t.teardown(() => closeSync(cache))
    const act = async <T>(promise: T | Promise<T>): Promise<T> => {
      let isOver = false
      const ending = Promise.resolve(promise).finally(() => {
        isOver = true
      })
      while (!isOver) {
        disk.step()
        await turn()
      }
      return ending
    }
    const store = await act(RemoteStore.open({ disk, cache, granule: PAGE }))
    const written = Buffer.concat([Buffer.alloc(PAGE, 7), Buffer.alloc(PAGE, 8)])
    await act(store.write(written, 0, 2 * PAGE, bytes(BLOCK)))
    const larger = Buffer.alloc(3 * BLOCK)
    larger.set(state.image)
    state.image = larger
    state.durable = Buffer.from(larger)
    await act(store.remeasure())
    const found = Buffer.alloc(2 * PAGE)
    await act(store.readLater(found, 0, found.length, bytes(BLOCK)))
    t.ok(found.equals(written))
    await act(store.sync())
    t.ok(state.durable.subarray(BLOCK, BLOCK + 2 * PAGE).equals(written))
  },
)
