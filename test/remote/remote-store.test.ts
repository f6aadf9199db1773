// Goal: a cache in front of a disk that answers late, fails, or loses what it had not flushed,
// never shows wrong bytes, and what a sync acknowledged is on the disk; whoever is killed,
// whenever. Method: random calls, as DataBlocks makes them, against a copy in memory; the order in
// which the disk ends calls, its failures and power cuts, and the deaths of the process are random
// as well.
import assert from 'node:assert/strict'
import { closeSync, readFileSync, writeSync } from 'node:fs'
import t from 'tap'
import { bytes, KIB } from '../../src/base/index.js'
import { native } from '../../src/native.js'
import { CacheMemory, RemoteStore } from '../../src/remote/index.js'
import { Random } from '../support/random.js'
import { SlowDisk } from '../support/slow-disk.js'

const SLOT = 64 * KIB
const PAGE = 4 * KIB
const SECTOR = 512
const turn = (): Promise<void> => new Promise(resolve => setImmediate(resolve))

interface Operation {
  what: 'write' | 'punch' | 'punchLater' | 'zero' | 'copy' | 'read'
  offset: number
  length: number
  source: number
  content: Buffer
}

/** What runs on a range of data blocks: one that writes, or any number that read. */
interface Running {
  operation: Operation
  begin: number
  end: number
  writes: boolean
}

interface Shape {
  slots: number
  blockSize: number
  size: number
  /** Whether few calls are under way at a time. */
  isCalm?: boolean
}

class Harness {
  readonly #random: Random
  readonly #isCalm: boolean
  readonly #blockSize: number
  readonly #size: number
  readonly model: Buffer
  disk: SlowDisk
  store!: RemoteStore
  cache: number
  readonly running = new Set<Running>()
  /** By data block: bumped with each call that begins to change it. */
  readonly #changes: Uint32Array
  syncs = 0
  done = 0
  #error: unknown = null
  /** Bumped when the process dies: what its calls come to then counts no more. */
  #life = 0

  constructor(seed: number, { slots, blockSize, size, isCalm = false }: Shape) {
    this.#isCalm = isCalm
    this.#random = new Random(seed)
    this.#blockSize = blockSize
    this.#size = size
    const image = Buffer.alloc(size)
    // Some of it holds something from the start.
    for (let at = 0; at < size; at += SLOT) {
      if (this.#random.chance(0.3)) image.fill(1 + this.#random.below(255), at, at + SLOT / 2)
    }
    this.model = Buffer.from(image)
    this.disk = new SlowDisk({ image, durable: Buffer.from(image) }, this.#random)
    this.cache = CacheMemory.create(slots * SLOT)
    this.#changes = new Uint32Array(size / blockSize)
  }

  async open(): Promise<void> {
    const granule = Math.min(SLOT, this.#blockSize)
    const opening = RemoteStore.open({ disk: this.disk, cache: this.cache, granule })
    this.store = await this.#stepping(opening)
  }

  /** Makes the disk answer until a promise ends. */
  async #stepping<T>(promise: Promise<T>): Promise<T> {
    let ended = false
    const end = (): void => {
      ended = true
    }
    promise.then(end, end)
    for (let i = 0; !ended; i++) {
      assert.ok(i < 100_000, 'it ends')
      this.disk.step()
      await turn()
    }
    return promise
  }

  /** Begins a random call, unless another one is in its way. */
  begin(): void {
    const { operation, blocks } = this.#choose()
    for (const { begin, end, writes } of this.running) {
      const touches = blocks.some(([from, to]) => begin < to && from < end)
      if (touches && (writes || operation.what !== 'read')) return
    }
    const writes = operation.what !== 'read'
    const runs = blocks.map(([begin, end], i) => ({
      ...{ operation, begin, end },
      writes: writes && i === 0,
    }))
    for (const run of runs) this.running.add(run)
    if (writes) this.#apply(operation)
    this.#run(operation, runs)
  }

  #choose(): { operation: Operation; blocks: [number, number][] } {
    const random = this.#random
    const what = random.of([
      'write',
      'write',
      'write',
      'read',
      'read',
      'punch',
      'punchLater',
      'zero',
      'copy',
    ] as const)
    const most = random.of([PAGE, SLOT, 3 * SLOT])
    // Punches are of whole blocks, mostly.
    const unit =
      what === 'punchLater' ? this.#blockSize : random.of([SECTOR, PAGE, this.#blockSize])
    const length = Math.min(this.#size / 4, unit * (1 + random.below(Math.max(1, most / unit))))
    const offset = unit * random.below((this.#size - length) / unit + 1)
    const blocksOf = (at: number): [number, number] => [
      Math.floor(at / this.#blockSize),
      Math.ceil((at + length) / this.#blockSize),
    ]
    let source = -1
    const blocks = [blocksOf(offset)]
    if (what === 'copy') {
      source = unit * random.below((this.#size - length) / unit + 1)
      const of = blocksOf(source)
      // Never from a block to itself.
      if (of[0] < blocks[0]![1] && blocks[0]![0] < of[1]) return this.#choose()
      blocks.push(of)
    }
    const content = Buffer.alloc(
      length,
      Buffer.from([1 + random.below(255), 1 + random.below(255)]),
    )
    return { operation: { what, offset, length, source, content }, blocks }
  }

  #apply({ what, offset, length, source, content }: Operation): void {
    if (what === 'write') content.copy(this.model, offset)
    else if (what === 'copy') this.model.copy(this.model, offset, source, source + length)
    else this.model.fill(0, offset, offset + length)
    const end = Math.ceil((offset + length) / this.#blockSize)
    for (let i = Math.floor(offset / this.#blockSize); i < end; i++) this.#changes[i]!++
  }

  /** Carries it out, again and again where it fails. */
  #run(operation: Operation, runs: Running[]): void {
    const { store } = this
    const life = this.#life
    const attempt = async (): Promise<void> => {
      const { what, offset, length, source, content } = operation
      const [at, size] = [bytes(offset), bytes(length)]
      if (what === 'write') {
        const buffer = Buffer.concat([Buffer.alloc(3), content])
        const written = store.write(buffer, 3, length, at)
        // The caller's buffer is his again at once.
        buffer.fill(0)
        await written
      } else if (what === 'copy') await store.copy(bytes(source), at, size)
      else if (what !== 'read') await store[what](at, size)
      else {
        const found = Buffer.alloc(length + 2, 0xee)
        if (!store.readNow(found, 1, length, at)) await store.readLater(found, 1, length, at)
        const wanted = this.model.subarray(offset, offset + length)
        const differs = found.subarray(1, length + 1).findIndex((byte, i) => byte !== wanted[i])
        assert.equal(differs, -1, `read of ${length} at ${offset}: differs at ${offset + differs}`)
        assert.ok(found[0] === 0xee && found[length + 1] === 0xee, 'and no other bytes')
      }
    }
    const ended = (err?: unknown): void => {
      if (life !== this.#life) return // It was killed; the next one has the call.
      if (err !== undefined) {
        if ((err as { code?: string }).code === 'IO_ERROR') this.#run(operation, runs)
        else this.#error ??= err
        return
      }
      this.done++
      for (const run of runs) this.running.delete(run)
    }
    attempt().then(() => ended(), ended)
  }

  /** A sync, and what it promises. */
  sync(): void {
    const { store } = this
    const life = this.#life
    const changes = this.#changes.slice()
    const busy = new Set<number>()
    for (const { begin, end, writes } of this.running) {
      if (writes) for (let i = begin; i < end; i++) busy.add(i)
    }
    store.sync().then(
      () => {
        if (life !== this.#life) return
        this.syncs++
        for (const [i, count] of changes.entries()) {
          if (busy.has(i) || this.#changes[i] !== count) continue
          const [from, to] = [i * this.#blockSize, (i + 1) * this.#blockSize]
          const isThere = this.disk.state.durable
            .subarray(from, to)
            .equals(this.model.subarray(from, to))
          if (!isThere)
            this.#error ??= new Error(`block ${i} is not durable after sync ${this.syncs}`)
        }
      },
      err => {
        if (err.code !== 'IO_ERROR') this.#error ??= err
      },
    )
  }

  /** The process dies, and another one goes on. */
  async kill(): Promise<void> {
    this.#life++
    this.disk.abandon()
    if (this.#random.chance(0.3)) this.disk.powerCut()
    this.disk = new SlowDisk(this.disk.state, this.#random)
    // What is under way in this process still changes the memory of the one that died, a copy has
    // not.
    const left = readFileSync(`/proc/self/fd/${this.cache}`)
    const cache = native.memory_create('copy', left.length)
    writeSync(cache, left)
    closeSync(this.cache)
    this.cache = cache
    await this.open()
    // Calls that were not answered are made again.
    const again = new Map<Operation, Running[]>()
    for (const run of this.running)
      again.set(run.operation, [...(again.get(run.operation) ?? []), run])
    for (const [operation, runs] of again) this.#run(operation, runs)
  }

  async round(): Promise<void> {
    const random = this.#random
    const chance = random.next()
    // Where little is under way, a sync often has one page to write.
    const [most, syncs] = this.#isCalm ? [3, 0.1] : [12, 0.02]
    if (chance < 0.47 - syncs && this.running.size < most) this.begin()
    else if (chance < 0.47 && chance >= 0.47 - syncs) this.sync()
    else if (chance < 0.472) this.disk.powerCut()
    else if (chance < 0.474) this.disk.failing = random.of([0, 0, 0.3])
    else if (chance < 0.475) {
      this.disk.failing = 0
      await this.kill()
    } else this.disk.step()
    if (random.chance(0.5)) await turn()
    this.#mustBeSound()
  }

  async end(): Promise<void> {
    this.disk.failing = 0
    for (let i = 0; this.running.size > 0; i++) {
      assert.ok(
        i < 100_000,
        `calls without end: ${[...this.running].map(run => run.operation.what)}`,
      )
      this.disk.step()
      await turn()
      this.#mustBeSound()
    }
    await this.#stepping(this.store.sync())
    this.#mustBeSound()
    assert.equal(this.store.unsent, 0)
    assert.ok(this.disk.state.durable.equals(this.model), 'all of it is on the disk')
    const found = Buffer.alloc(this.#size)
    await this.#stepping(this.store.readLater(found, 0, found.length, bytes(0)))
    assert.ok(found.equals(this.model), 'and in the cache')
    closeSync(this.cache)
  }

  #mustBeSound(): void {
    if (this.#error !== null) throw this.#error
    assert.equal(this.disk.clashes, 0, 'no two writes of the same bytes were under way')
    if (!this.#random.chance(0.02)) return
    for (let at = 0; this.store.nextData(bytes(at)) < this.#size; ) {
      const data = this.store.nextData(bytes(at))
      const hole = this.store.nextHole(data)
      assert.ok(hole > data)
      at = hole
    }
  }
}

const ROUNDS = Number(process.env.THINFS_TEST_ROUNDS ?? 1500)

const SHAPES: Shape[] = [
  { slots: 8, blockSize: 64 * KIB, size: 64 * SLOT },
  { slots: 8, blockSize: 4 * KIB, size: 24 * SLOT },
  { slots: 8, blockSize: 16 * KIB, size: 32 * SLOT },
  { slots: 64, blockSize: 128 * KIB, size: 48 * SLOT },
  { slots: 8, blockSize: 4 * KIB, size: 8 * SLOT, isCalm: true },
  { slots: 8, blockSize: 64 * KIB, size: 8 * SLOT, isCalm: true },
]
for (const [seed, shape] of SHAPES.entries()) {
  const { slots, blockSize, isCalm = false } = shape
  const name = `${slots} slots, blocks of ${blockSize / KIB} KiB${isCalm ? ', one by one' : ''}`
  t.test(`${name}: as in memory`, async t => {
    const harness = new Harness(Number(process.env.THINFS_TEST_SEED ?? seed + 1), shape)
    await harness.open()
    for (let i = 0; i < ROUNDS; i++) await harness.round()
    await harness.end()
    t.ok(harness.done > ROUNDS / (isCalm ? 50 : 25), `${harness.done} calls`)
    t.ok(harness.syncs > 0, `${harness.syncs} syncs`)
  })
}
