// Goal: when a block is moved, its new place holds what the old one does in the very turn in which
// the mappings change, though others write to it meanwhile. Method: seeded random writes to a block
// that is being moved, on a store that ends its calls in any order, and a plain buffer that each
// write changes at once.
import t, { type Test } from 'tap'
import { type Later, MIB, SYSTEM_CLOCK } from '../../src/base/index.js'
import { DataBlocks } from '../../src/device/index.js'
import type { DataStore } from '../../src/storage/index.js'
import { MemoryStore } from '../support/memory-store.js'
import { Random } from '../support/random.js'
import { turn } from '../support/thin-devices.js'
import { UnorderedStore } from '../support/unordered-store.js'

const BLOCK = 64 * 1024
const NO_LISTENER = { released: () => {}, refused: () => {} }

const blocksOn = (store: DataStore, blockSize = BLOCK, freeMeansHole = true): DataBlocks =>
  new DataBlocks(store, { blockSize, freeMeansHole, clock: SYSTEM_CLOCK }, NO_LISTENER)

/** A store that reads at once, as one with a page cache does, and ends all else in any order. */
class CachedStore extends UnorderedStore {
  readonly #memory: MemoryStore

  constructor(memory: MemoryStore, random: Random) {
    super(memory, random)
    this.#memory = memory
  }

  override readNow(...args: Parameters<DataStore['readNow']> | []): boolean {
    this.#memory.read(...(args as Parameters<DataStore['readNow']>))
    return true
  }
}

/** @returns whether the move was held up by a write at least once */
async function moveUnderWrites(t: Test, seed: number, isCached: boolean): Promise<boolean> {
  const random = new Random(seed)
  const memory = new MemoryStore(2 * BLOCK)
  const model = Buffer.alloc(BLOCK)
  for (let at = 0; at < BLOCK; at += 4) model.writeUInt32LE(random.below(2 ** 32), at)
  if (seed % 3 === 0) model.fill(0, BLOCK / 4, BLOCK / 2)
  memory.write(model, 0, BLOCK, 0 as never)
  const store = isCached ? new CachedStore(memory, random) : new UnorderedStore(memory, random)
  const blocks = blocksOn(store)
  const writes: Later<void>[] = []
  let isOver = false
  let nrWrites = 0
  const moved = blocks.moves.later(0, 1, () => {
    const found = memory.image.subarray(BLOCK, 2 * BLOCK)
    if (!found.equals(model)) t.fail(`seed ${seed}: the new place holds something else`)
    return 'moved'
  })
  void moved.then(() => {
    isOver = true
  })
  while (!isOver) {
    if (nrWrites < 20 && random.chance(0.2)) {
      const length = 512 * (1 + random.below(40))
      const offset = 512 * random.below((BLOCK - length) / 512)
      const content = Buffer.alloc(length, 1 + (nrWrites++ % 255))
      content.copy(model, offset)
      writes.push(blocks.write(content, 0, length, offset))
    }
    store.step()
    if (random.chance(0.3)) await turn()
  }
  t.equal(await moved, 'moved')
  while (store.nrCalls > 0) store.step()
  await Promise.all(writes)
  return nrWrites > 0
}

t.test('a block that is written to while it is moved', async t => {
  let nrHeldUp = 0
  for (let seed = 1; seed <= 30; seed++) {
    if (await moveUnderWrites(t, seed, seed % 2 === 0)) nrHeldUp++
    if (!t.passing()) return t.comment(`seed ${seed}`)
  }
  t.ok(nrHeldUp > 15, `${nrHeldUp} moves met writes`)
})

t.test('a copy off the thread tells whether anybody has written to the block', async t => {
  const memory = new MemoryStore(3 * BLOCK)
  let end = (): void => {}
  const store = Object.assign(memory, {
    copyLater: async (source: number, target: number, length: number) => {
      await new Promise<void>(resolve => {
        end = resolve
      })
      memory.copy(source as never, target as never, length as never)
    },
  })
  const blocks = blocksOn(store)
  t.equal(blocks.moves.canBegin, true)
  const content = Buffer.alloc(512, 1)
  const copyOf = async (write: () => void): Promise<boolean> => {
    const copy = blocks.moves.begin(0, 1)
    write()
    end()
    await copy.copied
    const isSame = copy.isSame()
    copy.end()
    return isSame
  }
  t.equal(await copyOf(() => {}), true)
  t.equal(await copyOf(() => void blocks.write(content, 0, 512, 2 * BLOCK)), true, 'another block')
  t.equal(await copyOf(() => void blocks.write(content, 0, 512, BLOCK - 512)), false, 'this block')
  t.equal(await copyOf(() => {}), true, 'a write before it is in it')
})

t.test('at once: holes stay holes, and what has to be waited for is left', async t => {
  const memory = new MemoryStore(4 * BLOCK)
  const blocks = blocksOn(memory)
  const content = Buffer.alloc(BLOCK / 2, 3)
  memory.write(content, 0, content.length, 0 as never)
  t.equal(blocks.moves.now(0, 1), 'moved')
  t.ok(memory.image.subarray(BLOCK, 2 * BLOCK).equals(memory.image.subarray(0, BLOCK)))
  t.equal(memory.nextHole(BLOCK as never), 1.5 * BLOCK, 'its second half takes no space')
  t.equal(blocks.moves.now(2, 3), 'moved', 'a hole')
  t.equal(memory.nextData((2 * BLOCK) as never), memory.size)
  const slow = new UnorderedStore(memory, new Random(1))
  t.equal(blocksOn(slow).moves.now(0, 1), 'waits', 'it is not in memory')
  const large = new MemoryStore(4 * MIB)
  large.write(content, 0, content.length, 0 as never)
  t.equal(blocksOn(large, 2 * MIB).moves.now(0, 1), 'waits', 'too large for one turn')
})
