// Goal: who reads one part after another finds the next in the cache, and who reads at random costs
// the disk nothing more. Method: a disk that writes down what it is asked for.
import { closeSync } from 'node:fs'
import t, { type Test } from 'tap'
import { bytes, KIB, MIB } from '../../src/base/index.js'
import { CacheMemory, RemoteStore } from '../../src/remote/index.js'
import { Random } from '../support/random.js'
import { ManualClock, TimedDisk } from '../support/timed-disk.js'

const SLOT = 64 * KIB
const SIZE = 16 * MIB

interface Opened {
  clock: ManualClock
  disk: TimedDisk
  store: RemoteStore
  read(offset: number, length: number): Promise<boolean>
}

async function open(t: Test, slots: number): Promise<Opened> {
  const clock = new ManualClock()
  const disk = new TimedDisk(SIZE, { perRequest: 1, bytesPerMs: 200_000 }, clock)
  for (let at = 0; at < SIZE; at += 4 * KIB) disk.image.writeUInt32LE(1 + at / KIB, at)
  const cache = CacheMemory.create(slots * SLOT)
  t.teardown(() => closeSync(cache))
  const store = await RemoteStore.open({ disk, cache, granule: SLOT, clock })
  /** @returns whether it had to wait */
  const read = async (offset: number, length: number): Promise<boolean> => {
    const found = Buffer.alloc(length)
    const isThere = store.readNow(found, 0, length, bytes(offset))
    if (!isThere) await clock.until(store.readLater(found, 0, length, bytes(offset)))
    if (!found.equals(disk.image.subarray(offset, offset + length))) t.fail(`bytes at ${offset}`)
    // What is being read ahead comes while the reader looks at what it has.
    await clock.until(new Promise<void>(resolve => clock.after(2, resolve)))
    return !isThere
  }
  return { clock, disk, store, read }
}

const readBytes = ({ asked }: TimedDisk): number =>
  asked.reduce((all, { kind, length }) => all + (kind === 'read' ? length : 0), 0)

for (const [name, length, gap] of [
  ['pages', 4 * KIB, 0],
  ['pieces of 64 KiB', SLOT, 0],
  ['pieces of 100 KiB with gaps', 100 * KIB, 28 * KIB],
] as const) {
  t.test(`${name}, one after the other`, async t => {
    const { disk, read, store } = await open(t, 512)
    let waits = 0
    let reads = 0
    for (let at = 4 * MIB; at + length < 8 * MIB; at += length + gap) {
      reads++
      if (await read(at, length)) waits++
    }
    t.ok(waits <= 6, `${waits} of ${reads} had to wait`)
    const { aheadUsedBytes: aheadUsed, aheadWastedBytes: aheadWasted } = store.cacheCounts()
    t.ok(aheadUsed > 2.5 * MIB && aheadWasted === 0, `${aheadUsed} bytes were used`)
    t.ok(readBytes(disk) <= 4 * MIB + 4 * MIB, 'and no more than the window is read past the end')
  })
}

t.test('at random: no byte more than is asked for', async t => {
  const { disk, read } = await open(t, 64)
  const random = new Random(3)
  let asked = 0
  for (let i = 0; i < 1500; i++) {
    if (await read(random.below(SIZE / KIB / 4) * 4 * KIB, 4 * KIB)) asked += 4 * KIB
  }
  const more = readBytes(disk) - asked
  t.ok(more < asked / 10, `${more} bytes more than ${asked}`)
})

t.test('given up where nobody wants it', async t => {
  const { disk, read, store } = await open(t, 64)
  const random = new Random(3)
  let asked = 0
  // Three pieces in order, then elsewhere.
  for (let i = 0; i < 400; i++) {
    const at = random.below(SIZE / MIB - 1) * MIB
    for (let j = 0; j < 3; j++) if (await read(at + j * 8 * KIB, 8 * KIB)) asked += 8 * KIB
  }
  const { aheadUsedBytes: aheadUsed, aheadWastedBytes: aheadWasted } = store.cacheCounts()
  const more = readBytes(disk) - asked
  t.ok(more < asked, `${more} bytes more than ${asked}; ${aheadUsed} used, ${aheadWasted} wasted`)
})

t.test('a cache of eight slots is not for that', async t => {
  const { disk, read } = await open(t, 8)
  for (let at = 0; at < 2 * MIB; at += SLOT) await read(at, SLOT)
  t.ok(readBytes(disk) <= 2 * MIB + SLOT)
})

t.test('reads of one page under way together are one request', async t => {
  const { clock, disk, store } = await open(t, 64)
  const reads = Array.from({ length: 5 }, () => Buffer.alloc(8 * KIB))
  const all = Promise.all(reads.map(into => store.readLater(into, 0, 8 * KIB, bytes(MIB))))
  await clock.until(all)
  t.equal(readBytes(disk), 8 * KIB)
  for (const into of reads) t.ok(into.equals(disk.image.subarray(MIB, MIB + 8 * KIB)))
})

t.test('a page that is being read is written to when it has come', async t => {
  const { clock, disk, store } = await open(t, 64)
  const into = Buffer.alloc(8 * KIB)
  const reading = store.readLater(into, 0, 8 * KIB, bytes(MIB))
  const writing = Promise.resolve(store.write(Buffer.alloc(4 * KIB, 7), 0, 4 * KIB, bytes(MIB)))
  await clock.until(Promise.all([reading, writing]))
  const found = Buffer.alloc(8 * KIB)
  t.ok(store.readNow(found, 0, 8 * KIB, bytes(MIB)))
  t.ok(found.subarray(0, 4 * KIB).equals(Buffer.alloc(4 * KIB, 7)), 'what was written stays')
  t.ok(found.subarray(4 * KIB).equals(disk.image.subarray(MIB + 4 * KIB, MIB + 8 * KIB)))
})
