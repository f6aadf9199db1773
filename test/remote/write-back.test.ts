// Goal: what is written back goes in few large requests, and no flush takes long because of what
// was acknowledged before it, however slow the disk is. Method: a disk that takes its time by a
// clock that the test turns, and writers that never pause.
import assert from 'node:assert/strict'
import { closeSync } from 'node:fs'
import t, { type Test } from 'tap'
import { bytes, KIB, type Later, MIB } from '../../src/base/index.js'
import { CacheMemory, RemoteStore } from '../../src/remote/index.js'
import { Random } from '../support/random.js'
import { ManualClock, type Speed, TimedDisk } from '../support/timed-disk.js'

const SLOT = 64 * KIB
const PAGE = 4 * KIB
const QUICK: Speed = { perRequest: 0.1, bytesPerMs: 200_000 }

interface Opened {
  clock: ManualClock
  disk: TimedDisk
  store: RemoteStore
  said: string[]
}

async function open(
  t: Test,
  { size, slots, speed, dirty }: { size: number; slots: number; speed: Speed; dirty?: number },
): Promise<Opened> {
  const clock = new ManualClock()
  const disk = new TimedDisk(size, speed, clock)
  const cache = CacheMemory.create(slots * SLOT)
  t.teardown(() => closeSync(cache))
  const said: string[] = []
  const onWait = (what: string): void => void said.push(what)
  const store = await RemoteStore.open({ disk, cache, granule: SLOT, clock, dirty, onWait })
  return { clock, disk, store, said }
}

/** A write that has nothing to wait for. */
function atOnce(late: Later<void>): void {
  assert.equal(late, undefined)
}

const writesOf = ({ asked }: TimedDisk): [offset: number, length: number][] =>
  asked.filter(({ kind }) => kind === 'write').map(({ offset, length }) => [offset, length])

t.test('neighbours go together, a megabyte at a time', async t => {
  const { clock, disk, store } = await open(t, { size: 4 * MIB, slots: 64, speed: QUICK })
  const content = Buffer.alloc(600 * KIB, 'abc')
  for (let at = 0; at < content.length; at += 40 * KIB) {
    atOnce(store.write(content, at, 40 * KIB, bytes(800 * KIB + at)))
  }
  await clock.until(store.sync())
  t.same(writesOf(disk), [
    [800 * KIB, 224 * KIB],
    [MIB, 376 * KIB],
  ])
  t.ok(disk.image.subarray(800 * KIB, 1400 * KIB).equals(content))

  // Wherever the cache has them.
  disk.asked.length = 0
  const blocks = [35, 33, 32, 34, 37]
  for (const [i, block] of blocks.entries()) {
    atOnce(store.write(Buffer.alloc(SLOT, i + 1), 0, SLOT, bytes(block * SLOT)))
  }
  atOnce(store.write(Buffer.alloc(4 * KIB, 9), 0, 4 * KIB, bytes(36 * SLOT)))
  await clock.until(store.sync())
  t.same(writesOf(disk), [
    [2 * MIB, 260 * KIB],
    [37 * SLOT, SLOT],
  ])
  for (const [i, block] of blocks.entries()) {
    const found = disk.image.subarray(block * SLOT, (block + 1) * SLOT)
    t.ok(found.equals(Buffer.alloc(SLOT, i + 1)), `block ${block}`)
  }
})

t.test('a punch is the disk’s before what is written after it', async t => {
  const { clock, disk, store } = await open(t, { size: MIB, slots: 64, speed: QUICK })
  atOnce(store.write(Buffer.alloc(4 * SLOT, 1), 0, 4 * SLOT, bytes(0)))
  const punching = Promise.resolve(store.punch(bytes(SLOT), bytes(SLOT)))
  await clock.until(punching)
  atOnce(store.write(Buffer.alloc(SLOT, 2), 0, SLOT, bytes(SLOT)))
  await clock.until(store.sync())
  const kinds = disk.asked.map(({ kind }) => kind)
  t.same(kinds, ['zero', 'write', 'flush'], 'and what is punched is not written first')
})

t.test('what is alone goes by one request, which makes it durable', async t => {
  const { clock, disk, store } = await open(t, { size: 4 * MIB, slots: 64, speed: QUICK })
  const kinds = async (): Promise<string[]> => {
    await clock.until(store.sync())
    return disk.asked.splice(0).map(({ kind }) => kind)
  }
  const write = (offset: number): void =>
    atOnce(store.write(Buffer.alloc(PAGE, 1), 0, PAGE, bytes(offset)))
  for (let at = 0; at < 4 * PAGE; at += PAGE) write(MIB + at)
  t.same(await kinds(), ['durable write'], 'neighbours')
  write(0)
  write(2 * PAGE)
  t.same(await kinds(), ['write', 'write', 'flush'], 'two pages')
  write(0)
  write(MIB)
  t.same(await kinds(), ['write', 'write', 'flush'], 'of two runs')
  t.equal(store.cacheCounts().flushes, 3)

  // What a flush has to cover besides.
  await clock.until(Promise.resolve(store.punch(bytes(MIB), bytes(SLOT))))
  write(0)
  t.same(await kinds(), ['zero', 'write', 'flush'], 'after zeros')
  write(0)
  t.same(await kinds(), ['durable write'])
  write(0)
  disk.failing = 'flush'
  write(MIB)
  await t.rejects(clock.until(store.sync()), { code: 'IO_ERROR' })
  disk.failing = null
  disk.asked.length = 0
  // The disk may have lost all that it was to cover, and say nothing of that a second time.
  t.same(await kinds(), ['write', 'write', 'flush'], 'after a flush that failed')
  write(MIB)
  t.same(await kinds(), ['durable write'])
})

/**
 * Streams, then writes pages here and there, and flushes at any moment.
 * @returns the longest flush
 */
async function longestFlush({ clock, disk, store }: Opened, milliseconds: number): Promise<number> {
  const random = new Random(7)
  const slots = disk.size / SLOT
  const pause = (ms: number): Promise<void> => new Promise(resolve => clock.after(ms, resolve))
  let isOver = false
  let at = 0
  const write = async (): Promise<void> => {
    const content = Buffer.alloc(SLOT, 5)
    for (let i = 1; !isOver; i++) {
      const streams = Math.floor(clock.now() / (milliseconds / 4)) % 2 === 0
      const offset = streams ? (at++ % slots) * SLOT : random.below(slots * 16) * 4 * KIB
      const late = store.write(content, 0, streams ? SLOT : 4 * KIB, bytes(offset))
      if (late !== undefined) await late
      else if (i % 100 === 0) await pause(1)
    }
  }
  const writing = Promise.all(Array.from({ length: 4 }, write))
  let longest = 0
  while (clock.now() < milliseconds) {
    await clock.until(pause(random.below(700)))
    longest = Math.max(longest, await clock.until(store.sync()))
  }
  isOver = true
  await clock.until(writing)
  return longest
}

const SPEEDS: Record<string, Speed> = {
  'of a megabyte a second': { perRequest: 1, bytesPerMs: 1000 },
  'of eight megabytes, or five hundred requests, a second': { perRequest: 2, bytesPerMs: 8000 },
  'of a hundred requests a second': { perRequest: 10, bytesPerMs: 20_000 },
  'that takes all at once and writes it when it is flushed': {
    ...{ perRequest: 0.1, bytesPerMs: 4000, cachedPerMs: 1_000_000 },
  },
}

for (const [name, speed] of Object.entries(SPEEDS)) {
  t.test(`no flush of a disk ${name} takes three seconds`, async t => {
    const opened = await open(t, { size: 32 * MIB, slots: 1024, speed })
    const longest = await longestFlush(opened, 8000)
    t.ok(longest > 0 && longest < 3000, `${Math.round(longest)} ms`)
  })
}

t.test('what may be dirty follows the disk, up to cache.dirty', async t => {
  const of = async (dirty?: number): Promise<number> => {
    const opened = await open(t, {
      ...{ size: 64 * MIB, slots: 1024, speed: QUICK },
      ...(dirty !== undefined && { dirty }),
    })
    const { clock, store } = opened
    const content = Buffer.alloc(SLOT, 7)
    for (let i = 0; ; i++) {
      let written = 0
      let late = store.write(content, 0, SLOT, bytes(0))
      while (late === undefined && written < 60 * MIB) {
        written += SLOT
        late = store.write(content, 0, SLOT, bytes(written))
      }
      await clock.until(Promise.resolve(late).then(() => store.sync()))
      if (i === 10) return written
    }
  }
  t.equal(await of(), 32 * MIB, 'half of the cache')
  t.equal(await of(3 * MIB), 3 * MIB)
})

t.test('writers that wait, and a disk that is silent, are worth one word each', async t => {
  const speed = { perRequest: 1, bytesPerMs: 500 }
  const { clock, disk, store, said } = await open(t, { size: 16 * MIB, slots: 128, speed })
  const content = Buffer.alloc(SLOT, 5)
  for (let i = 0; i < 128; i++) {
    const late = store.write(content, 0, SLOT, bytes(i * SLOT))
    if (late !== undefined) await clock.until(late)
  }
  t.match(said, [
    /^writes wait for the disk: 1\.\d MiB are not flushed, it takes 0\.\d MiB a second$/,
  ])
  t.equal(said.length, 1, 'for all of them')
  await clock.until(store.sync())

  disk.speed = { perRequest: 12_000, bytesPerMs: 1000 }
  said.length = 0
  atOnce(store.write(content, 0, SLOT, bytes(0)))
  await clock.until(store.sync())
  t.equal(said[0], 'the disk has not answered for 5 s')
  t.ok(said.includes('the disk answers again'))
})
