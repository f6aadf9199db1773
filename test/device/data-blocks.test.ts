// Goal: whatever order a store ends its calls in, a block holds what the last write left, is read
// so, is durable when a flush says so, and is given out again only when nothing is under way on it.
// Method: seeded random calls on a store that mixes them piece by piece, against a plain model that
// does each at once.
import t, { type Test } from 'tap'
import { type DataBlock, MIB, SYSTEM_CLOCK } from '../../src/base/index.js'
import { DataBlocks } from '../../src/device/index.js'
import { MemoryStore } from '../support/memory-store.js'
import { Random } from '../support/random.js'
import { turn } from '../support/thin-devices.js'
import { UnorderedStore } from '../support/unordered-store.js'

const BLOCK = 4096
const SECTOR = 512
const SECTORS = BLOCK / SECTOR
const BLOCKS = 6
const STEPS = 250

/** A value that a sector had, has, or will have when the call ends that writes it. */
interface Written {
  value: number
  ended: boolean
}

async function simulate(t: Test, seed: number): Promise<void> {
  const random = new Random(seed)
  const memory = new MemoryStore(BLOCKS * BLOCK)
  const store = new UnorderedStore(memory, random)
  const free = new Set<number>()
  /** Blocks that are to be released, and how many calls were begun on each and have not ended. */
  const releasing = new Set<number>()
  const busy = new Map<number, number>()
  /** Blocks that are being copied: nobody writes to those. */
  const sources = new Map<number, number>()
  const released = (blocks: readonly DataBlock[]): void => {
    for (const block of blocks) {
      if (!releasing.delete(block)) t.fail(`block ${block} was not to be released`)
      if ((busy.get(block) ?? 0) > 0) t.fail(`block ${block} is released while it is used`)
      const content = memory.image.subarray(block * BLOCK, (block + 1) * BLOCK)
      if (content.some(byte => byte !== 0)) t.fail(`block ${block} is released and not cleared`)
      free.add(block)
    }
  }
  const blocks = new DataBlocks(
    store,
    { blockSize: BLOCK, freeMeansHole: true, clock: SYSTEM_CLOCK },
    { released, refused: err => t.fail(String(err)) },
  )
  /** What was written to each sector since its block was given out, in the order of the calls. */
  const sectors = Array.from({ length: BLOCKS * SECTORS }, (): Written[] => [
    { value: 0, ended: true },
  ])
  const underWay = new Set<Promise<void>>()
  let stamp = 0

  /** Notes a call on a range of sectors as under way. */
  function follow(
    first: number,
    count: number,
    call: void | Promise<void>,
    ended: () => void,
  ): void {
    if (call === undefined) {
      ended()
      return
    }
    const block = Math.floor(first / SECTORS)
    const last = Math.floor((first + count - 1) / SECTORS)
    for (let b = block; b <= last; b++) busy.set(b, (busy.get(b) ?? 0) + 1)
    const followed = call.then(() => {
      for (let b = block; b <= last; b++) busy.set(b, busy.get(b)! - 1)
      underWay.delete(followed)
      ended()
    })
    underWay.add(followed)
  }

  function put(first: number, values: number[]): () => void {
    const written = values.map(value => ({ value, ended: false }))
    for (const [i, entry] of written.entries()) sectors[first + i]!.push(entry)
    return () => {
      for (const entry of written) entry.ended = true
    }
  }

  /** Whether [first, first + count) is of blocks that are in use. */
  const inUse = (first: number, count: number): boolean => {
    for (let at = first; at < first + count; at++) {
      const block = Math.floor(at / SECTORS)
      if (free.has(block) || releasing.has(block)) return false
    }
    return true
  }

  const mayWrite = (first: number, count: number): boolean => {
    if (!inUse(first, count)) return false
    for (let at = first; at < first + count; at++) {
      if ((sources.get(Math.floor(at / SECTORS)) ?? 0) > 0) return false
    }
    return true
  }

  function read(first: number, count: number): void {
    const since = Array.from({ length: count }, (_, i) => sectors[first + i]!.length - 1)
    const histories = Array.from({ length: count }, (_, i) => sectors[first + i]!)
    const found = Buffer.alloc(count * SECTOR, 0xdd)
    const call = blocks.readLater(found, 0, found.length, first * SECTOR)
    follow(first, count, call, () => {
      for (let i = 0; i < count; i++) {
        const may = histories[i]!.slice(since[i]).map(({ value }) => value)
        for (let at = i * SECTOR; at < (i + 1) * SECTOR; at += 4) {
          if (may.includes(found.readUInt32LE(at))) continue
          t.fail(`sector ${first + i} reads ${found.readUInt32LE(at)}, not of ${may}`)
          return
        }
      }
    })
  }

  function write(first: number, count: number): void {
    const value = ++stamp
    const content = Buffer.alloc(count * SECTOR)
    for (let at = 0; at < content.length; at += 4) content.writeUInt32LE(value, at)
    const call = blocks.write(content, 0, content.length, first * SECTOR)
    content.fill(0xee) // it is the caller's again
    follow(first, count, call, put(first, Array(count).fill(value)))
  }

  function copy(source: number, target: number, count: number): void {
    const values = Array.from({ length: count }, (_, i) => sectors[source + i]!.at(-1)!.value)
    const call = blocks.copy(source * SECTOR, target * SECTOR, count * SECTOR)
    const ended = put(target, values)
    const block = Math.floor(source / SECTORS)
    sources.set(block, (sources.get(block) ?? 0) + 1)
    follow(source, count, call, () => sources.set(block, sources.get(block)! - 1))
    follow(target, count, call, ended)
  }

  async function flush(): Promise<void> {
    // What a sector holds on the disk is the last that had ended before the call, or newer.
    const histories = [...sectors]
    const since = histories.map(history => history.findLastIndex(({ ended }) => ended))
    await blocks.flush()
    const { image } = memory.crash(() => false)
    histories.forEach((history, i) => {
      if (history !== sectors[i] || !inUse(i, 1)) return // given out anew
      const may = history.slice(since[i]).map(({ value }) => value)
      const found = image.readUInt32LE(i * SECTOR)
      if (!may.includes(found)) t.fail(`sector ${i} is ${found} on the disk, not of ${may}`)
    })
  }

  for (let step = 0; step < STEPS; step++) {
    const first = random.below(BLOCKS * SECTORS)
    const count = Math.min(BLOCKS * SECTORS - first, 1 + random.below(SECTORS * 2))
    const what = random.below(100)
    if (what < 20 && mayWrite(first, count)) write(first, count)
    else if (what < 35 && inUse(first, count)) read(first, count)
    else if (what < 42) {
      const [source, target] = [random.below(BLOCKS), random.below(BLOCKS)]
      const skip = random.below(SECTORS)
      if (source === target) continue
      if (!inUse(source * SECTORS, 1) || !mayWrite(target * SECTORS, 1)) continue
      copy(source * SECTORS + skip, target * SECTORS + skip, SECTORS - skip)
    } else if (what < 48 && mayWrite(first, count)) {
      const call = blocks.clear(first * SECTOR, count * SECTOR)
      follow(first, count, call, put(first, Array(count).fill(0)))
    } else if (what < 54) {
      const flushed = flush().finally(() => underWay.delete(flushed))
      underWay.add(flushed)
    } else if (what < 60) {
      const block = random.below(BLOCKS)
      if (free.size + releasing.size >= BLOCKS - 2 || !inUse(block * SECTORS, 1)) continue
      releasing.add(block)
      blocks.freed.release([block])
    } else if (what < 66 && free.size > 0) {
      const [block] = free
      free.delete(block!)
      for (let i = 0; i < SECTORS; i++) {
        sectors[block! * SECTORS + i] = [{ value: 0, ended: true }]
      }
    } else {
      for (let pieces = random.below(6); pieces > 0; pieces--) {
        store.step()
        if (random.chance(0.4)) await turn()
      }
    }
  }
  let quiet = false
  const quiesced = blocks.quiesce().then(() => {
    quiet = true
  })
  while (!quiet || underWay.size > 0) {
    store.step()
    await turn()
  }
  await quiesced
  t.equal(store.nrCalls, 0, 'nothing is under way')
  t.equal(releasing.size, 0, 'every freed block was released')
  for (let i = 0; i < sectors.length; i++) {
    if (!inUse(i, 1)) continue
    const { value } = sectors[i]!.at(-1)!
    const found = memory.image.readUInt32LE(i * SECTOR)
    if (found !== value) t.fail(`sector ${i} holds ${found}, not ${value}`)
  }
}

t.test('a store that ends its calls in any order', async t => {
  for (let seed = 1; seed <= 40; seed++) {
    await simulate(t, seed)
    if (!t.passing()) return t.comment(`seed ${seed}`)
  }
})

t.test('a store that ends its calls at once', async t => {
  const memory = new MemoryStore(2 * BLOCK)
  const listener = { released: () => {}, refused: () => {} }
  const blocks = new DataBlocks(
    memory,
    { blockSize: BLOCK, freeMeansHole: true, clock: SYSTEM_CLOCK },
    listener,
  )
  const content = Buffer.alloc(BLOCK, 1)
  t.equal(blocks.write(content, 0, BLOCK, 0), undefined, 'a write is no promise')
  t.equal(blocks.copy(0, BLOCK, BLOCK), undefined, 'nor is a copy')
  t.equal(blocks.clear(0, BLOCK), undefined, 'nor is a hole')
  t.ok(blocks.readNow(content, 0, BLOCK, BLOCK))
  t.equal(content[0], 1)
  let syncs = 0
  memory.onWrite = op => {
    if (op === 'sync') syncs++
  }
  await Promise.all([blocks.flush(), blocks.flush()])
  await blocks.flush()
  t.equal(syncs, 1, 'one flush covers all that was written before it')
  await blocks.write(content, 0, 512, 0)
  await blocks.flush()
  t.equal(syncs, 2)
})

t.test(
  'a long copy goes on while others are served, and holds up who needs its blocks',
  async t => {
    const LARGE = 16 * MIB
    const memory = new MemoryStore(3 * LARGE)
    const listener = { released: () => {}, refused: () => {} }
    const blocks = new DataBlocks(
      memory,
      { blockSize: LARGE, freeMeansHole: true, clock: SYSTEM_CLOCK },
      listener,
    )
    const content = Buffer.alloc(LARGE)
    for (let at = 0; at < LARGE; at += 512) content.writeUInt32LE(at, at)
    await blocks.write(content, 0, LARGE, 0)
    const copying = blocks.copy(0, LARGE, LARGE)
    t.ok(copying instanceof Promise)
    const sector = Buffer.alloc(512)
    t.ok(blocks.readNow(sector, 0, 512, 0), 'the source is read')
    t.ok(blocks.readNow(sector, 0, 512, 2 * LARGE), 'and other blocks')
    t.notOk(blocks.readNow(sector, 0, 512, 2 * LARGE - 512), 'the target is not yet')
    const last = Buffer.alloc(512, 7)
    const reading = blocks.readLater(sector, 0, 512, 2 * LARGE - 1024)
    const writing = blocks.write(last, 0, 512, 2 * LARGE - 512)
    let isCopied = false
    let turns = 0
    void Promise.resolve(copying).then(() => {
      isCopied = true
    })
    for (; !isCopied; turns++) await new Promise(resolve => setImmediate(resolve))
    t.ok(turns > 1, `${turns} turns of the event loop`)
    await Promise.all([reading, writing])
    t.equal(sector.readUInt32LE(0), LARGE - 1024)
    content.set(last, LARGE - 512)
    t.ok(memory.image.subarray(LARGE, 2 * LARGE).equals(content))
  },
)
