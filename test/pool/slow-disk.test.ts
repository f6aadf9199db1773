import t, { type Test } from 'tap'
import { type Bytes, bytes } from '../../src/base/index.js'
import { checkMetadata } from '../../src/metadata/index.js'
import type { ThinDevice } from '../../src/pool/index.js'
import { devId, formatted, openFiles, staleFreeBlocks } from '../support/memory-pool.js'
import { MemoryStore } from '../support/memory-store.js'
import { Random } from '../support/random.js'
import { turn } from '../support/thin-devices.js'
import { UnorderedStore } from '../support/unordered-store.js'

// Goal: whatever happens while reads, and writes that wait for them, are under way, everybody sees
// what was written. Method: seeded random requests to volumes and their snapshots, on a store whose
// reads, punches and flushes end in any order, reads half by half, or on one that has no page
// cache, whose writes do so too; a model knows what each part may hold. A change never meets
// another one of the same part: the order of these is nobody's promise.
const SEEDS = 25
const STEPS = 300
const BLOCK = 16 * 1024
/** Parts of a volume: what a request begins and ends with. */
const PART = BLOCK / 4
const NR_PARTS = 48
const SIZE = bytes(NR_PARTS * PART)

/**
 * A volume, and by part what it may hold: a snapshot of a part that was being changed has either.
 */
interface Modelled {
  id: number
  device: ThinDevice
  parts: Set<number>[]
  /** What changes that are under way make of a part. */
  changing: Map<number, number>
  /** For every read under way, by part, what it may find. */
  reads: Set<{ first: number; may: Set<number>[] }>
  underWay: number
}

/** Keeps each later call of `data` waiting in the list that is returned. */
function slow(data: MemoryStore, random: Random): (() => void)[] {
  const waiting: (() => void)[] = []
  const disk = (): Promise<void> => new Promise(resolve => waiting.push(resolve))
  data.readNow = (buffer, at, length, offset) => {
    if (random.below(3) > 0) return false
    data.read(buffer, at, length, offset)
    return true
  }
  data.readLater = async (buffer, at, length, offset) => {
    const half = bytes(Math.floor(length / 2))
    await disk()
    data.read(buffer, at, half, offset)
    await disk()
    data.read(buffer, at + half, length - half, bytes(offset + half))
  }
  const { punchLater, sync } = MemoryStore.prototype
  data.punchLater = (offset: Bytes, length: Bytes) =>
    disk().then(() => punchLater.call(data, offset, length))
  data.sync = () => disk().then(() => sync.call(data))
  return waiting
}

/**
 * @param cached whether the store has a page cache: what it writes is written at once
 * @param dies whether the process ends in the midst of it, and another one takes its place
 */
async function simulate(
  t: Test,
  seed: number,
  { cached, dies }: { cached: boolean; dies: boolean },
): Promise<void> {
  const random = new Random(seed)
  const store = formatted({
    blockSectors: BLOCK / 512,
    dataBlocks: 40 + random.below(30),
    punches: random.below(4) > 0,
  })
  let waiting: (() => void)[] = []
  const unordered = new UnorderedStore(store.data, random)
  /** Lets everything come that `promise` waits for. */
  async function served<T>(promise: Promise<T>): Promise<T> {
    let over = false
    const end = promise.finally(() => {
      over = true
    })
    while (!over) {
      for (const arrived of waiting.splice(0)) arrived()
      unordered.step()
      await turn()
    }
    return await end
  }
  const opening = openFiles(cached ? store : { ...store, data: unordered })
  const { pool } = await served(opening)
  if (cached) waiting = slow(store.data, random)
  /** Something of what waits comes. */
  const arrive = (): void => {
    if (cached) waiting.splice(random.below(waiting.length + 1), 1)[0]?.()
    else unordered.step()
  }
  const underWay = new Set<Promise<void>>()
  const volumes: Modelled[] = []
  let stamp = 0
  let isDead = false

  function add(id: number, parts: Set<number>[]): void {
    const device = pool.devices.get(devId(id), SIZE)
    volumes.push({ id, device, parts, changing: new Map(), reads: new Set(), underWay: 0 })
  }

  function follow(volume: Modelled, request: Promise<void>): void {
    volume.underWay++
    const followed = request.finally(() => {
      volume.underWay--
      underWay.delete(followed)
    })
    underWay.add(followed)
  }

  function mayHold(volume: Modelled, part: number): Set<number> {
    const change = volume.changing.get(part)
    return new Set([...volume.parts[part]!, ...(change === undefined ? [] : [change])])
  }

  async function read(volume: Modelled, first: number, count: number): Promise<void> {
    const may = Array.from({ length: count }, (_, i) => mayHold(volume, first + i))
    const noted = { first, may }
    volume.reads.add(noted)
    const found = Buffer.alloc(count * PART, 0xdd)
    if (!volume.device.read(first * PART, found.length, found, 0)) {
      await volume.device.readLater(first * PART, found.length, found, 0)
    }
    volume.reads.delete(noted)
    for (let at = 0; at < found.length; at += 512) {
      const value = found.readUInt32LE(at)
      if (may[Math.floor(at / PART)]!.has(value)) continue
      t.fail(`volume ${volume.id}, byte ${first * PART + at}: ${value}`)
      return
    }
  }

  /** @param request what makes [first, first + count) hold `value` */
  function change(
    volume: Modelled,
    [first, count, value]: readonly [number, number, number],
    request: () => void | Promise<void>,
  ): void {
    const parts = Array.from({ length: count }, (_, i) => first + i)
    if (parts.some(part => volume.changing.has(part))) return
    for (const part of parts) {
      volume.changing.set(part, value)
      for (const noted of volume.reads) noted.may[part - noted.first]?.add(value)
    }
    const ended = (): void => {
      if (isDead) return // nobody was told any more
      for (const part of parts) {
        volume.parts[part] = new Set([value])
        volume.changing.delete(part)
      }
    }
    /** For want of space: of a discard its edges, so some of it may be done. */
    const failed = (err: NodeJS.ErrnoException): void => {
      if (err.code !== 'NO_DATA_SPACE') throw err
      for (const part of parts) {
        if (value === 0) volume.parts[part]!.add(0)
        volume.changing.delete(part)
      }
    }
    try {
      const later = request()
      if (later instanceof Promise) follow(volume, later.then(ended, failed))
      else ended()
    } catch (err) {
      failed(err as NodeJS.ErrnoException)
    }
  }

  for (let id = 0; id < 2; id++) {
    pool.devices.createThin(devId(id))
    add(
      id,
      Array.from({ length: NR_PARTS }, () => new Set([0])),
    )
  }
  for (let step = 0; step < STEPS; step++) {
    const volume = volumes[random.below(volumes.length)]!
    const { device } = volume
    const first = random.below(NR_PARTS)
    const count = Math.min(NR_PARTS - first, 1 + random.below(16))
    const what = random.below(100)
    if (what < 30) {
      const content = Buffer.alloc(count * PART)
      const value = ++stamp
      for (let at = 0; at < content.length; at += 4) content.writeUInt32LE(value, at)
      change(volume, [first, count, value], () =>
        device.write(first * PART, content.length, content, 0),
      )
      content.fill(0xee) // it is the caller's again
    } else if (what < 55) {
      follow(volume, read(volume, first, count))
    } else if (what < 65) {
      change(volume, [first, count, 0], () => device.discard(first * PART, count * PART))
    } else if (what < 72 && volumes.length < 6) {
      const id = 2 + step
      pool.devices.createSnap(devId(id), devId(volume.id))
      add(
        id,
        volume.parts.map((_, part) => mayHold(volume, part)),
      )
    } else if (what < 76 && volumes.length > 2 && volume.underWay === 0) {
      pool.devices.delete(devId(volume.id))
      volumes.splice(volumes.indexOf(volume), 1)
    } else if (what < 80) {
      follow(volume, pool.commit())
    } else {
      for (let arrived = random.below(12); arrived > 0; arrived--) {
        arrive()
        if (random.chance(0.3)) await turn()
      }
    }
  }
  if (dies) {
    // What was acknowledged by now has to be there, and what was under way may be.
    t.equal(pool.settle(), undefined)
    isDead = true
    const left = {
      metadata: store.metadata.reopen(),
      data: store.data.reopen(),
      journal: store.journal.copy(),
    }
    const { pool: next } = await openFiles(left)
    for (const volume of volumes) {
      // A snapshot is there once it was committed.
      if (!next.metadata.hasDevice(devId(volume.id))) continue
      volume.device = next.devices.get(devId(volume.id), SIZE)
      await read(volume, 0, NR_PARTS)
    }
    await next.close()
    t.same(checkMetadata(left.metadata).problems, [])
    if (store.data.punches) t.same(staleFreeBlocks(next, left.data), [])
    return
  }
  for (const volume of volumes) follow(volume, read(volume, 0, NR_PARTS))
  await served(Promise.all(underWay).then(() => pool.close()))
  t.same(checkMetadata(store.metadata).problems, [])
  if (store.data.punches) t.same(staleFreeBlocks(pool, store.data), [])
}

for (const [what, options] of Object.entries({
  'a slow disk': { cached: true, dies: false },
  'a store without a page cache': { cached: false, dies: false },
  'the same, and a process that is killed': { cached: false, dies: true },
})) {
  t.test(what, async t => {
    for (let seed = 1; seed <= SEEDS; seed++) {
      await simulate(t, seed, options)
      if (!t.passing()) return t.comment(`seed ${seed}`)
    }
  })
}
