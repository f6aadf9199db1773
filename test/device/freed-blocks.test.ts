// Goal: a freed block is given out again once, after it was punched, and not while something is
// under way on it or the store has refused it. Method: random calls on a store that refuses punches
// as it likes, and a plain model: the sets of blocks that are in use, freed, and released.
import t, { type Test } from 'tap'
import { bytes, type DataBlock } from '../../src/base/index.js'
import { FlushPace } from '../../src/device/flush-pace.js'
import { FreedBlocks } from '../../src/device/freed-blocks.js'
import { TestClock } from '../support/memory-pool.js'
import { MemoryStore } from '../support/memory-store.js'
import { Random } from '../support/random.js'
import { failure, turn } from '../support/thin-devices.js'

const BLOCK = 4096
const BLOCKS = 24

async function simulate(t: Test, seed: number, freeMeansHole: boolean): Promise<number> {
  const random = new Random(seed)
  const store = new MemoryStore(BLOCKS * BLOCK)
  store.image.fill(1)
  const inUse = new Set<number>(Array.from({ length: BLOCKS }, (_, i) => i))
  const freed = new Set<number>()
  const busy: { begin: number; end: number }[] = []
  let nrRefused = 0
  let mayRefuse = true
  let nrPunched = 0
  const punch = store.punchLater.bind(store)
  store.punchLater = async (offset, length) => {
    if (random.chance(0.5)) await turn()
    if (mayRefuse && random.chance(0.3)) throw failure('EIO')
    await punch(offset, length)
  }
  const clock = new TestClock()
  const pace = new FlushPace(clock)
  const blocks = new FreedBlocks({
    ...{ store, blockSize: BLOCK, freeMeansHole, pace },
    busy: () => [...busy],
    punched: () => nrPunched++,
    listener: {
      released(released: readonly DataBlock[]) {
        for (const block of released) {
          if (!freed.delete(block)) t.fail(`seed ${seed}: block ${block} was not freed`)
          const isZero = store.image[block * BLOCK] === 0
          if (isZero !== freeMeansHole) t.fail(`seed ${seed}: block ${block} punched: ${isZero}`)
        }
      },
      refused: () => nrRefused++,
    },
  })
  for (let i = 0; i < 100; i++) {
    switch (random.below(8)) {
      case 0: {
        const take = [...inUse].filter(() => random.chance(0.15))
        for (const block of take) {
          inUse.delete(block)
          freed.add(block)
        }
        blocks.release(take)
        break
      }
      case 1: {
        // Only what is in use can come to be busy.
        const [block] = inUse
        if (block !== undefined) busy.push({ begin: block, end: block + 1 })
        break
      }
      case 2:
        busy.shift()
        blocks.releaseIdle()
        break
      case 3:
        blocks.retry()
        break
      case 4:
        pace.flushCame()
        break
      case 5:
        if (random.chance(0.2)) blocks.hurry()
        break
      case 6:
        clock.advance(random.below(150))
        break
      default:
        await turn()
    }
    for (const { begin } of busy) {
      if (!inUse.has(begin) && !freed.has(begin)) t.fail(`seed ${seed}: ${begin} is busy and free`)
    }
  }
  busy.length = 0
  mayRefuse = false
  blocks.releaseIdle()
  for (let i = 0; i < 40; i++) {
    clock.advance(150)
    await turn()
    blocks.retry()
  }
  await blocks.punched
  t.equal(freed.size, 0, `seed ${seed}: all that was freed is released`)
  t.same(
    [blocks.releasing, blocks.punching, blocks.hasRefused, blocks.nrReleasing],
    [...[false, false, false, 0]],
  )
  t.equal(blocks.counts.punches, nrPunched)
  return nrRefused
}

t.test('blocks are released once nothing is under way on them', async t => {
  let nrRefused = 0
  for (let seed = 1; seed <= 20; seed++) {
    nrRefused += await simulate(t, seed, true)
    t.equal(await simulate(t, seed, false), 0, 'without holes nothing is punched')
    if (!t.passing()) return
  }
  t.ok(nrRefused > 10, `${nrRefused} times a punch was refused`)
})

t.test('those that the store refused are told of once, kept back, and tried again', async t => {
  const store = new MemoryStore(8 * BLOCK)
  const punches: [number, number][] = []
  let refuses = true
  store.punchLater = async (offset, length) => {
    punches.push([offset / BLOCK, length / BLOCK])
    if (refuses) throw failure('EIO')
  }
  const released: number[] = []
  let nrRefused = 0
  const blocks = new FreedBlocks({
    ...{ store, blockSize: BLOCK, freeMeansHole: true, busy: () => [], punched: () => {} },
    pace: new FlushPace(new TestClock()),
    listener: { released: some => void released.push(...some), refused: () => nrRefused++ },
  })
  blocks.release([6, 2, 3, 1])
  t.equal(blocks.nrReleasing, 4)
  await blocks.punched
  t.same(
    punches,
    [
      [1, 3],
      [6, 1],
    ],
    'neighbours together',
  )
  t.same([nrRefused, released], [1, []])
  t.same([blocks.hasRefused, blocks.nrReleasing], [true, 0], 'no commit would free them')
  refuses = false
  blocks.retry()
  t.equal(blocks.punching, true)
  blocks.retry()
  await blocks.punched
  t.same(released, [1, 2, 3, 6])
  t.equal(punches.length, 4, 'each once more')
  blocks.release([bytes(5)])
  blocks.keep()
  blocks.release([4])
  await blocks.punched
  await turn()
  t.notOk(released.includes(4), 'nothing is passed down any more')
})

t.test('punches rest while flushes come, unless somebody waits for them', async t => {
  const clock = new TestClock()
  const pace = new FlushPace(clock)
  const store = new MemoryStore(100 * BLOCK)
  let nrPunched = 0
  store.punchLater = async () => {
    nrPunched++
    pace.flushCame()
    clock.advance(1)
  }
  const blocks = new FreedBlocks({
    ...{ store, blockSize: BLOCK, freeMeansHole: true, busy: () => [], punched: () => {}, pace },
    listener: { released: () => {}, refused: () => t.fail('nothing is refused') },
  })
  const all = Array.from({ length: 50 }, (_, i) => 2 * i)
  const settle = async (): Promise<void> => {
    for (let i = 0; i < 10; i++) await turn()
  }
  blocks.hurry()
  const begun = pace.turn()
  t.equal(begun, null)
  clock.advance(30)
  blocks.release(all)
  await settle()
  t.same([nrPunched, blocks.punching], [10, true])
  blocks.hurry()
  await blocks.punched
  t.equal(nrPunched, 50)
  blocks.release(all)
  await settle()
  t.ok(nrPunched < 100, 'the next ones rest again')
  clock.advance(60)
  await settle()
  clock.advance(60)
  await blocks.punched
  t.equal(nrPunched, 100)
})
