// Goal: who waits for a commit has what was there when it asked, durable, and never more commits
// run than are needed, one at a time, each in its order. Method: seeded random writes, discards,
// commits and flushes on stores whose flushes end in any order; at each answer the power is cut,
// and a model knows what each block may hold.
import t, { type Test } from 'tap'
import { checkMetadata } from '../../src/metadata/index.js'
import { formatted, type MemoryFiles, openFiles } from '../support/memory-pool.js'
import { MemoryStore } from '../support/memory-store.js'
import { Random } from '../support/random.js'
import { BLOCK, byteAt, failure, filled, thin, turn } from '../support/thin-devices.js'

const SEEDS = 20
const STEPS = 60
const NR_BLOCKS = 8

const smallFiles = (): MemoryFiles =>
  formatted({ blockSectors: 128, dataBlocks: 24, metadataBlocks: 64 })

/** Makes each flush of `store` end when the test calls it from the list. */
function heldFlushes(store: MemoryStore, held: (() => void)[]): void {
  store.sync = () => {
    const synced = MemoryStore.prototype.sync.call(store)
    return new Promise<void>(resolve => held.push(resolve)).then(() => synced)
  }
}

/** What the order of calls says of the commits of a pool. */
class Stages {
  /** Superblocks written. */
  commits = 0
  readonly wrong: string[] = []
  #metadataFlushed = true

  constructor({ metadata, data }: MemoryFiles) {
    let dataFlushed = false
    data.onWrite = op => {
      if (op === 'sync') dataFlushed = true
    }
    metadata.onWrite = (op, offset) => {
      if (op === 'sync') this.#metadataFlushed = true
      else if (offset > 0) {
        if (!dataFlushed) this.wrong.push('metadata is written before the data is flushed')
        this.#metadataFlushed = false
      } else {
        if (!this.#metadataFlushed) this.wrong.push('a superblock before what it names is durable')
        this.commits++
        dataFlushed = false
      }
    }
  }
}

async function simulate(t: Test, seed: number): Promise<void> {
  const random = new Random(seed)
  const memory = smallFiles()
  const { pool, clock } = await openFiles(memory)
  const device = thin(pool, 0)
  await pool.commit()
  const stages = new Stages(memory)
  const held: (() => void)[] = []
  heldFlushes(memory.metadata, held)
  heldFlushes(memory.data, held)

  /** By block: what it has held, each with the number of the change. */
  const history = Array.from({ length: NR_BLOCKS }, () => [{ nr: 0, value: 0 }])
  let changes = 0
  /** The last change that an answer has promised. */
  let promised = 0
  /** Answers that came without what they promise. */
  const lost: string[] = []

  const change = (block: number, value: number): void => {
    history[block]!.push({ nr: ++changes, value })
  }
  const cutPower = async (): Promise<void> => {
    const none = (): boolean => false
    const { metadata, data } = {
      metadata: memory.metadata.crash(none),
      data: memory.data.crash(none),
    }
    const floor = promised
    const after = await openFiles({ metadata, data, journal: memory.journal.copy('next boot') })
    const problems = checkMetadata(metadata).problems
    if (problems.length > 0) lost.push(`metadata after a power cut: ${problems}`)
    const found = thin(after.pool, 0)
    for (const [block, values] of history.entries()) {
      const last = values.findLastIndex(({ nr }) => nr <= floor)
      const value = byteAt(found, block * BLOCK)
      if (!values.slice(last).some(allowed => allowed.value === value)) {
        lost.push(`block ${block} has ${value} after change ${floor} was durable`)
      }
    }
  }
  const waiting = new Set<Promise<void>>()
  const wait = (answer: Promise<void>): void => {
    const until = changes
    const ended = answer.then(async () => {
      promised = Math.max(promised, until)
      await cutPower()
    })
    waiting.add(ended)
    void ended.finally(() => waiting.delete(ended)).catch(() => {})
  }

  for (let step = 0; step < STEPS; step++) {
    const block = random.below(NR_BLOCKS)
    const what = random.below(10)
    if (what < 4) {
      const value = 1 + random.below(255)
      await device.write(block * BLOCK, BLOCK, filled(BLOCK, value), 0)
      change(block, value)
    } else if (what < 5) {
      await device.discard(block * BLOCK, BLOCK)
      change(block, 0)
    } else if (what < 7) wait(pool.commit())
    else if (what < 8) clock.advance(1000)
    else {
      await turn()
      if (held.length > 0) held.splice(random.below(held.length), 1)[0]!()
      await turn()
    }
  }
  for (let i = 0; waiting.size > 0 && i < 10_000; i++) {
    for (const end of held.splice(0)) end()
    await turn()
  }
  t.equal(waiting.size, 0, 'everybody is answered')
  await Promise.all(waiting)
  t.same([...lost, ...stages.wrong], [], `seed ${seed}`)
  const closing = pool.close()
  for (let closed = false; !closed; await turn()) {
    for (const end of held.splice(0)) end()
    closed = await Promise.race([closing.then(() => true), turn().then(() => false)])
  }
  t.same(checkMetadata(memory.metadata).problems, [])
}

t.test('an answer is a promise, whatever is under way', async t => {
  for (let seed = 1; seed <= SEEDS; seed++) await simulate(t, seed)
})

t.test('all who ask while a commit runs share the next', async t => {
  const memory = smallFiles()
  const { pool } = await openFiles(memory)
  const device = thin(pool, 0)
  await pool.commit()
  const stages = new Stages(memory)
  const held: (() => void)[] = []
  heldFlushes(memory.data, held)
  await device.write(0, BLOCK, filled(BLOCK, 1), 0)
  const first = pool.commit()
  await turn()
  await device.write(BLOCK, BLOCK, filled(BLOCK, 2), 0)
  const others = Array.from({ length: 50 }, () => pool.commit())
  held.shift()!()
  await first
  t.equal(stages.commits, 1)
  await turn()
  t.equal(held.length, 1, 'one flush for fifty')
  held.shift()!()
  await Promise.all(others)
  t.equal(stages.commits, 2)

  await pool.commit()
  t.same(held, [], 'nothing was written')
  t.equal(stages.commits, 2, 'without a change there is no superblock to write')
})

t.test('a flush of data alone waits for no commit', async t => {
  const memory = smallFiles()
  const { pool } = await openFiles(memory)
  const device = thin(pool, 0)
  await device.write(0, BLOCK, filled(BLOCK, 1), 0)
  await pool.commit()
  const held: (() => void)[] = []
  heldFlushes(memory.metadata, held)
  await thin(pool, 1).write(0, BLOCK, filled(BLOCK, 2), 0)
  let committed = false
  const committing = pool.commit().then(() => {
    committed = true
  })
  await turn()
  await device.write(0, 512, filled(512, 3), 0)
  await device.flush()
  t.equal(memory.data.crash(() => false).image[0], 3)
  t.equal(committed, false)
  for (let i = 0; !committed && i < 100; i++) {
    for (const end of held.splice(0)) end()
    await turn()
  }
  await committing
})

t.test('a failure in any stage fails all who wait, and goes back to the last commit', async t => {
  const stages: [string, (memory: MemoryFiles) => void][] = [
    ['the flush of the data', ({ data }) => failing(data, 'sync')],
    ['the metadata', ({ metadata }) => failing(metadata, 'write')],
    ['the flush of the metadata', ({ metadata }) => failing(metadata, 'sync')],
    ['the superblock', ({ metadata }) => failing(metadata, 'write', 0)],
  ]
  for (const [stage, fail] of stages) {
    const memory = smallFiles()
    const { pool, recorded } = await openFiles(memory)
    const device = thin(pool, 0)
    await device.write(0, BLOCK, filled(BLOCK, 1), 0)
    await pool.commit()
    await device.write(BLOCK, BLOCK, filled(BLOCK, 2), 0)
    fail(memory)
    const asked = [pool.commit(), pool.commit(), pool.commit()]
    for (const { status } of await Promise.allSettled(asked)) t.equal(status, 'rejected', stage)
    memory.data.onWrite = memory.metadata.onWrite = undefined
    t.same(recorded.modes, ['read_only'], stage)
    t.equal(byteAt(device, 0), 1, stage)
    t.equal(byteAt(device, BLOCK), 0, 'what was not committed is not there')
    await t.rejects(pool.commit(), { code: 'POOL_READ_ONLY' }, 'and no later one covers it up')
    await t.rejects(device.flush(), { code: 'POOL_READ_ONLY' })
    await pool.close()
    t.same(checkMetadata(memory.metadata).problems, [], stage)
  }
})

/** Makes the next call `op` of a store fail, of those at `where`. */
function failing(store: MemoryStore, op: 'write' | 'sync', where?: number): void {
  store.onWrite = (called, offset) => {
    if (called !== op || (where !== undefined && offset !== where)) return
    store.onWrite = undefined
    throw failure('EIO')
  }
}
