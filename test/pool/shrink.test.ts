// Goal: a pool that is made smaller keeps every byte, every time and everything that is shared,
// whatever goes on meanwhile and whenever it is killed or the power is cut. Method: pools in memory
// and arrays of bytes as their model; thin_check judges the metadata, and thin_dump has to say the
// same before and after, but for the numbers of data blocks.
import t, { type Test } from 'tap'
import { bytes } from '../../src/base/index.js'
import { checkMetadata } from '../../src/metadata/index.js'
import type { ThinPool } from '../../src/pool/index.js'
import {
  devId,
  formatted,
  killed,
  type MemoryFiles,
  openFiles,
  staleFreeBlocks,
} from '../support/memory-pool.js'
import type { MemoryStore } from '../support/memory-store.js'
import { Random } from '../support/random.js'
import { filled, turn } from '../support/thin-devices.js'
import { type ThinDump, thinCheck, thinDump } from '../support/thin-tools.js'
import { UnorderedStore } from '../support/unordered-store.js'

const KIB = 1024
const BLOCK = 4 * KIB
const NR_VIRTUAL = 600
const SIZE = bytes(NR_VIRTUAL * BLOCK)
const ALWAYS = { mayMove: () => true }

const device = (pool: ThinPool, id: number, size = SIZE) => {
  if (!pool.metadata.hasDevice(devId(id))) pool.devices.createThin(devId(id))
  return pool.devices.get(devId(id), size)
}

/** What each device maps: the blocks' numbers apart, which are equal for equal old ones. */
function verifyMoved(t: Test, before: ThinDump, after: ThinDump, end: number): void {
  const moved = new Map<number, number>()
  t.same([...after.devices.keys()], [...before.devices.keys()])
  let bad = 0
  for (const [id, { mappings, ...details }] of before.devices) {
    const { mappings: now, ...detailsNow } = after.devices.get(id)!
    t.same(detailsNow, details)
    t.same([...now.keys()], [...mappings.keys()])
    for (const [vblock, { dataBlock, time }] of mappings) {
      const found = now.get(vblock)!
      if (found.time !== time || found.dataBlock >= end) bad++
      if (dataBlock < end && found.dataBlock !== dataBlock) bad++
      if ((moved.get(dataBlock) ?? found.dataBlock) !== found.dataBlock) bad++
      moved.set(dataBlock, found.dataBlock)
    }
  }
  t.equal(bad, 0)
  t.equal(new Set(moved.values()).size, moved.size, 'no two blocks have become one')
  t.equal(after.nrDataBlocks, end)
  t.same([after.time, after.transaction], [before.time, before.transaction])
}

t.test('everything but the numbers of data blocks stays', async t => {
  // Two bitmaps of data, of which one goes.
  const memory = formatted({ blockSectors: 8, dataBlocks: 17_000, metadataBlocks: 2048 })
  const { pool } = await openFiles(memory)
  const filler = bytes(16_000 * BLOCK)
  await device(pool, 9, filler).preallocate(0, filler)
  const origin = device(pool, 0)
  for (let i = 0; i < NR_VIRTUAL; i += 2)
    await origin.write(i * BLOCK, BLOCK, filled(BLOCK, i % 251), 0)
  for (let id = 1; id <= 4; id++) {
    pool.devices.createSnap(devId(id), devId(0))
    for (let i = 0; i < 20; i++) {
      await origin.write(i * id * 7 * BLOCK, 512, filled(512, 100 + id), 0)
    }
  }
  // One block at several places: also of one device.
  await device(pool, 5).share(origin, 0, 300 * BLOCK, 20 * BLOCK)
  await device(pool, 5).share(origin, 0, 10 * BLOCK, 20 * BLOCK)
  await pool.devices.empty(device(pool, 9, filler), () => false)
  pool.devices.delete(devId(9))
  await pool.commit()
  const contents = [0, 1, 2, 3, 4, 5].map(id => {
    const content = Buffer.alloc(SIZE)
    device(pool, id).read(0, SIZE, content, 0)
    return content
  })
  const before = thinDump(memory.metadata.image)
  const { nrAllocatedMetadataBlocks, nrAllocatedDataBlocks } = pool.metadata
  const moves = await pool.shrink.plan(1000 * BLOCK)
  t.ok(moves.moves > 300, `${moves.moves} blocks to move`)
  t.equal(pool.metadata.nrDataBlocks, 17_000)
  t.equal(await pool.shrink.run(1000 * BLOCK - 1, ALWAYS), moves.moves)
  t.equal(pool.shrink.progress, null)
  t.equal(memory.data.size, 1000 * BLOCK)
  t.equal(pool.metadata.nrAllocatedDataBlocks, nrAllocatedDataBlocks)
  const gained = pool.metadata.nrAllocatedMetadataBlocks - nrAllocatedMetadataBlocks
  t.ok(gained <= 0, `${gained} metadata blocks more`)
  contents.forEach((content, id) => {
    const found = Buffer.alloc(SIZE)
    device(pool, id).read(0, SIZE, found, 0)
    t.ok(found.equals(content), `device ${id}`)
  })
  t.same(staleFreeBlocks(pool, memory.data), [])
  t.equal(thinCheck(memory.metadata.image).status, 0)
  verifyMoved(t, before, thinDump(memory.metadata.image), 1000)
  await pool.close()
  const again = await openFiles(memory)
  t.equal(again.pool.metadata.nrDataBlocks, 1000)
  await again.pool.space.extend({ data: 17_000 * BLOCK })
  await again.pool.close()
  t.equal(thinCheck(memory.metadata.image).status, 0, 'it grows again')
})

/** Random operations on devices, and arrays of bytes that say what comes of them. */
class Workload {
  readonly model = new Map<number, Buffer>()
  /** Contents since the last commit. */
  history = new Map<number, Buffer[]>()
  readonly #pool: ThinPool
  readonly #random: Random
  readonly #nrVirtual: number

  constructor(pool: ThinPool, random: Random, nrVirtual: number) {
    this.#pool = pool
    this.#random = random
    this.#nrVirtual = nrVirtual
  }

  get size() {
    return bytes(this.#nrVirtual * this.#pool.blockSize)
  }

  async fill(): Promise<void> {
    const pool = this.#pool
    const { blockSize, metadata } = pool
    const filler = bytes(Math.floor(metadata.nrDataBlocks * 0.6) * blockSize)
    await device(pool, 99, filler).preallocate(0, filler)
    for (let id = 0; id < 2; id++) {
      device(pool, id, this.size)
      this.model.set(id, Buffer.alloc(this.size))
    }
    for (let i = 0; i < 20; i++) await this.write()
    await pool.devices.empty(device(pool, 99, filler), () => false)
    pool.devices.delete(devId(99))
    await this.commit()
  }

  async commit(): Promise<void> {
    await this.#pool.commit()
    this.history = new Map([...this.model].map(([id, content]) => [id, [Buffer.from(content)]]))
  }

  async step(): Promise<void> {
    const random = this.#random
    const pool = this.#pool
    const { blockSize } = pool
    const [id, to] = [random.of([...this.model.keys()]), random.of([...this.model.keys()])]
    const kind = random.below(12)
    if (kind < 7) await this.write()
    else if (kind < 9) {
      const offset = random.below(this.#nrVirtual) * blockSize
      const length = Math.min(random.between(1, 3) * blockSize, this.size - offset)
      await device(pool, id, this.size).discard(offset, length)
      this.model.get(id)!.fill(0, offset, offset + length)
      this.#changed(id)
    } else if (kind === 9) {
      const [from, target] = [random.below(this.#nrVirtual), random.below(this.#nrVirtual)]
      if (id === to && from === target) return
      await device(pool, to, this.size).share(
        device(pool, id, this.size),
        ...([from * blockSize, target * blockSize, blockSize] as const),
      )
      const source = this.model.get(id)!
      source.copy(this.model.get(to)!, target * blockSize, from * blockSize, (from + 1) * blockSize)
      this.#changed(to)
    } else if (kind === 10 && this.model.size < 5) {
      const next = [0, 1, 2, 3, 4].find(each => !this.model.has(each))!
      pool.devices.createSnap(devId(next), devId(id))
      this.model.set(next, Buffer.from(this.model.get(id)!))
      await this.commit()
    } else if (kind === 11 && this.model.size > 1) {
      pool.devices.delete(devId(id))
      this.model.delete(id)
      await this.commit()
    }
    if (random.chance(0.1)) await this.commit()
    else await pool.settle()
  }

  async write(): Promise<void> {
    const random = this.#random
    const id = random.of([...this.model.keys()])
    const offset = random.below(this.size / 512) * 512
    const most = random.chance(0.5) ? 4 * KIB : 3 * this.#pool.blockSize
    const length = Math.min(random.between(1, most / 512) * 512, this.size - offset, 1024 * KIB)
    const content = filled(length, random.between(1, 255))
    await device(this.#pool, id, this.size).write(offset, length, content, 0)
    content.copy(this.model.get(id)!, offset)
    this.#changed(id)
  }

  #changed(id: number): void {
    this.history.get(id)?.push(Buffer.from(this.model.get(id)!))
  }

  /** The content of all devices as somebody may find it who comes now. */
  now(): Map<number, Buffer[]> {
    return new Map([...this.model].map(([id, content]) => [id, [Buffer.from(content)]]))
  }
}

/** @param allowed for each device the contents, any of which each sector may have */
async function verify(
  pool: ThinPool,
  allowed: Map<number, Buffer[]>,
  where: string,
): Promise<void> {
  const ids = [...pool.metadata.deviceIds()]
  if (ids.join() !== [...allowed.keys()].sort((a, b) => a - b).join()) {
    throw new Error(`${where}: devices ${ids}`)
  }
  for (const [id, versions] of allowed) {
    const size = versions[0]!.length
    const found = Buffer.alloc(size)
    await pool.devices.get(devId(id), bytes(size)).readLater(0, size, found, 0)
    for (let at = 0; at < size; at += 512) {
      if (versions.some(each => found.compare(each, at, at + 512, at, at + 512) === 0)) continue
      throw new Error(`${where}: device ${id} differs at ${at}`)
    }
  }
}

interface Left {
  files: MemoryFiles
  allowed: Map<number, Buffer[]>
  where: string
}

/** Makes a store copy in turns to come, half a block at a time. */
function copyLater(data: MemoryStore, random: Random): void {
  Object.assign(data, {
    async copyLater(source: number, target: number, length: number): Promise<void> {
      const half = length / 2
      for (const at of random.chance(0.5) ? [0, half] : [half, 0]) {
        for (let turns = random.below(3); turns > 0; turns--) await turn()
        data.copy(bytes(source + at), bytes(target + at), bytes(half))
      }
    },
  })
}

/** What a process that dies, or a machine, leaves at moments of a shrink. */
function watch(
  files: MemoryFiles,
  workload: Workload,
  random: Random,
  isQuiet: () => boolean,
): Left[] {
  const left: Left[] = []
  const look = (store: string, op: string): void => {
    if (!isQuiet() || !random.chance(0.4)) return
    const where = `${left.length}, at a ${op} of ${store}`
    const { metadata, data, journal } = files
    if (random.chance(0.5)) {
      left.push({ files: killed(files), allowed: workload.now(), where: `kill ${where}` })
      return
    }
    const share = random.of([0, 0.5, 1])
    const keep = (): boolean => random.chance(share)
    const cut = {
      metadata: metadata.crash(keep),
      data: data.crash(keep),
      journal: journal.copy('2'),
    }
    left.push({ files: cut, allowed: new Map(workload.history), where: `power cut ${where}` })
  }
  files.metadata.onWrite = op => look('metadata', op)
  files.data.onWrite = op => look('data', op)
  return left
}

/** A pool with 64 blocks of device 0, all of them above block 100, whose shrink is half done. */
async function halfDone(end = 100) {
  const memory = formatted({ blockSectors: 8, dataBlocks: 400 })
  const { pool, clock } = await openFiles(memory)
  const filler = bytes(120 * BLOCK)
  await device(pool, 9, filler).preallocate(0, filler)
  const size = bytes(64 * BLOCK)
  await device(pool, 0, size).write(0, size, filled(size, 1), 0)
  await pool.devices.empty(device(pool, 9, filler), () => false)
  pool.devices.delete(devId(9))
  await pool.commit()
  let isHeld = false
  let looks = 0
  const controller = new AbortController()
  const shrinking = pool.shrink.run(end * BLOCK, {
    mayMove: () => {
      isHeld ||= ++looks > 4
      return !isHeld
    },
    signal: controller.signal,
  })
  shrinking.catch(() => {})
  while (!isHeld) await turn()
  const left = pool.metadata.nrOwnedAboveEnd
  const goOn = (): void => {
    looks = Number.NEGATIVE_INFINITY
    isHeld = false
    clock.advance(100)
  }
  const stop = (): void => {
    controller.abort()
    goOn()
  }
  return { memory, pool, size, left, shrinking, goOn, stop }
}

t.test('a write to a block that was moved, acknowledged and not committed', async t => {
  const { memory, pool, size, left, shrinking, goOn } = await halfDone()
  t.ok(left > 0 && left < 64, `${left} blocks are left to be moved`)
  t.match(pool.shrink.progress, { blocks: 100, waits: true })
  const found = Buffer.alloc(size)
  // In place: all of the content is there, and no mapping has changed since the move.
  await device(pool, 0, size).write(0, size, filled(size, 2), 0)
  await pool.settle()
  const dead = await openFiles(killed(memory))
  device(dead.pool, 0, size).read(0, size, found, 0)
  t.ok(found.equals(filled(size, 2)), 'killed')
  await dead.pool.close()

  await device(pool, 0, size).flush()
  const { metadata, data, journal } = memory
  const never = (): boolean => false
  const cut = {
    metadata: metadata.crash(never),
    data: data.crash(never),
    journal: journal.copy('2'),
  }
  const after = await openFiles(cut)
  device(after.pool, 0, size).read(0, size, found, 0)
  t.ok(found.equals(filled(size, 2)), 'the power is cut after a flush of the device')
  await after.pool.close()
  goOn()
  t.equal(await shrinking, 64)
  await pool.close()
})

t.test('what comes first, and what is refused', async t => {
  await t.test('a write that finds no other block', async t => {
    const { memory, pool, size, shrinking, goOn } = await halfDone()
    const other = bytes(200 * BLOCK)
    await device(pool, 1, other).write(0, 100 * BLOCK, filled(100 * BLOCK, 3), 0)
    goOn()
    await t.rejects(shrinking, { code: 'NO_DATA_SPACE', message: /writes have taken the room/ })
    t.same([pool.metadata.nrDataBlocks, pool.metadata.dataEnd], [400, 400])
    const found = Buffer.alloc(size)
    device(pool, 0, size).read(0, size, found, 0)
    t.ok(found.equals(filled(size, 1)))
    await t.rejects(pool.shrink.run(100 * BLOCK, ALWAYS), {
      code: 'NO_DATA_SPACE',
      message: /164 data blocks are in use, 671744 bytes; 100 blocks, 409600 bytes, have no room/,
    })
    await pool.close()
    t.equal(thinCheck(memory.metadata.image).status, 0)
  })
  await t.test('the same when nothing has to be moved any more', async t => {
    const memory = formatted({ blockSectors: 8, dataBlocks: 400 })
    const { pool } = await openFiles(memory)
    const size = bytes(150 * BLOCK)
    await device(pool, 0, size).write(0, BLOCK, filled(BLOCK, 1), 0)
    await pool.commit()
    const shrinking = pool.shrink.run(100 * BLOCK, ALWAYS)
    shrinking.catch(() => {})
    await device(pool, 0, size).write(0, 120 * BLOCK, filled(120 * BLOCK, 3), 0)
    await t.rejects(shrinking, { code: 'NO_DATA_SPACE' })
    t.same([pool.metadata.nrDataBlocks, memory.data.size], [400, 400 * BLOCK])
    await pool.close()
    t.equal(thinCheck(memory.metadata.image).status, 0)
  })
  await t.test('a reserve that is set meanwhile', async t => {
    const { memory, pool, left, shrinking, goOn } = await halfDone()
    device(pool, 1)
    const free = pool.space.data.nrWritable
    t.ok(left > 10 && free > left, `${free} blocks are free, ${left} are left to be moved`)
    await pool.space.data.reserve(devId(1), free - 10)
    goOn()
    await t.rejects(shrinking, { code: 'NO_DATA_SPACE', message: /more are reserved/ })
    const { kept } = pool.space.reserves
    t.ok(pool.space.data.nrFree >= kept, `${kept} blocks can be kept`)
    await pool.close()
    t.equal(thinCheck(memory.metadata.image).status, 0)
  })
  await t.test('a write that takes its time', async t => {
    const memory = formatted({ blockSectors: 8, dataBlocks: 400 })
    const { pool } = await openFiles(memory)
    const filler = bytes(120 * BLOCK)
    await device(pool, 9, filler).preallocate(0, filler)
    const one = device(pool, 0)
    await pool.devices.empty(device(pool, 9, filler), () => false)
    pool.devices.delete(devId(9))
    await pool.commit()
    let goOn = (): void => {}
    const gate = new Promise<void>(resolve => {
      goOn = resolve
    })
    const write = memory.data.write.bind(memory.data)
    const late = (...args: Parameters<typeof write>): Promise<void> =>
      gate.then(() => write(...args))
    Object.assign(memory.data, { write: late })
    const writing = one.write(0, BLOCK, filled(BLOCK, 5), 0)
    Object.assign(memory.data, { write })
    const shrinking = pool.shrink.run(100 * BLOCK, ALWAYS)
    shrinking.catch(() => {})
    for (let i = 0; i < 100; i++) await turn()
    goOn()
    await writing
    t.equal(await shrinking, 1)
    const found = Buffer.alloc(BLOCK)
    one.read(0, BLOCK, found, 0)
    t.ok(found.equals(filled(BLOCK, 5)))
    await pool.close()
    t.equal(thinCheck(memory.metadata.image).status, 0)
  })
  await t.test('what others do meanwhile, and its end', async t => {
    const { memory, pool, shrinking, stop } = await halfDone()
    const shrinks = { code: 'POOL_SHRINKING' }
    await t.rejects(pool.shrink.run(100 * BLOCK, ALWAYS), shrinks)
    await t.rejects(pool.space.extend({ data: 500 * BLOCK }), shrinks)
    await t.rejects(pool.reserveMetadataSnap(), shrinks)
    stop()
    await t.rejects(shrinking)
    t.equal(pool.shrink.progress, null)
    await pool.space.extend({ data: 500 * BLOCK })
    await pool.reserveMetadataSnap()
    await t.rejects(pool.shrink.run(100 * BLOCK, ALWAYS), { code: 'SNAPSHOT_HELD' })
    await pool.releaseMetadataSnap()
    for (const size of [0, 501 * BLOCK]) {
      await t.rejects(pool.shrink.run(size, ALWAYS), { code: 'BAD_ARGUMENT' })
    }
    await pool.shrink.run(64 * BLOCK, ALWAYS)
    t.same([pool.metadata.nrDataBlocks, pool.space.data.nrFree], [64, 0])
    await pool.close()
    t.equal(thinCheck(memory.metadata.image).status, 0)
  })
})

t.test('whatever goes on, and whenever it is killed or the power is cut', async t => {
  let states = 0
  for (let seed = 1; seed <= 4; seed++) {
    const random = new Random(seed)
    const memory = formatted({ blockSectors: 8, dataBlocks: 400, metadataBlocks: 256 })
    if (seed % 2 === 0) copyLater(memory.data, random)
    const { pool, clock } = await openFiles(memory)
    const workload = new Workload(pool, random, 40)
    await workload.fill()
    clock.lookMs = 1
    let quiet = false
    const left = watch(memory, workload, random, () => quiet)
    const end = 210
    let ended = false
    const shrinking = pool.shrink.run(end * BLOCK, ALWAYS).finally(() => {
      ended = true
    })
    shrinking.catch(() => {})
    while (!ended) {
      memory.data.inMemory = random.chance(0.7)
      await workload.step()
      memory.data.inMemory = random.chance(0.7)
      quiet = true
      for (let i = random.below(6); i > 0; i--) await turn()
      quiet = false
    }
    await shrinking
    memory.data.onWrite = undefined
    memory.metadata.onWrite = undefined
    memory.data.inMemory = true
    await verify(pool, workload.now(), `seed ${seed}`)
    await workload.commit()
    t.same([pool.metadata.nrDataBlocks, memory.data.size], [end, end * BLOCK])
    t.same(staleFreeBlocks(pool, memory.data), [])
    await pool.close()
    t.equal(thinCheck(memory.metadata.image).status, 0, `seed ${seed}`)
    for (const { files, allowed, where } of left) {
      await goOn(files, allowed, `seed ${seed}, ${where}`, end)
      states++
    }
  }
  t.ok(states > 30, `${states} states`)
})

/** Opens what was left, and does it again. */
async function goOn(
  files: MemoryFiles,
  allowed: Map<number, Buffer[]>,
  where: string,
  end: number,
): Promise<void> {
  const { problems } = checkMetadata(files.metadata)
  if (problems.length > 0) throw new Error(`${where}: ${problems[0]!.message}`)
  const { pool } = await openFiles(files)
  await verify(pool, allowed, where)
  await pool.commit()
  const stale = staleFreeBlocks(pool, files.data)
  if (stale.length > 0) throw new Error(`${where}: free data block ${stale[0]} is no hole`)
  await pool.shrink.run(end * BLOCK, ALWAYS)
  await verify(pool, allowed, `${where}, again`)
  await pool.close()
  const after = checkMetadata(files.metadata).problems
  if (after.length > 0) throw new Error(`${where}, again: ${after[0]!.message}`)
  if (files.data.size !== end * BLOCK) throw new Error(`${where}: ${files.data.size} bytes`)
}

t.test('blocks that take more than a turn, and a store whose calls take time', async t => {
  const cases: [what: string, blockSectors: number, unordered: boolean][] = [
    ['blocks of 2 MiB', 4096, false],
    ['blocks of 64 KiB, unordered', 128, true],
    ['blocks of 2 MiB, unordered', 4096, true],
  ]
  for (const [what, blockSectors, unordered] of cases) {
    const random = new Random(7)
    const memory = formatted({ blockSectors, dataBlocks: 40 })
    const store = new UnorderedStore(memory.data, random)
    const cut = (size: number): void => memory.data.cut(bytes(size))
    Object.assign(store, { cut })
    let stops = false
    const stepping = (async () => {
      while (!stops) {
        for (let i = random.below(8); i > 0; i--) store.step()
        await turn()
      }
    })()
    const { pool, clock } = await openFiles(unordered ? { ...memory, data: store } : memory)
    const workload = new Workload(pool, random, 3)
    await workload.fill()
    clock.lookMs = 1
    memory.data.inMemory = false
    workload.history.clear()
    let ended = false
    const shrinking = pool.shrink.run(20 * pool.blockSize, ALWAYS).finally(() => {
      ended = true
    })
    shrinking.catch(() => {})
    while (!ended) {
      await (unordered ? workload.step() : workload.write())
      await turn()
    }
    await shrinking
    await verify(pool, workload.now(), what)
    await pool.close()
    stops = true
    await stepping
    t.equal(memory.data.size, 20 * blockSectors * 512, what)
    t.equal(thinCheck(memory.metadata.image).status, 0, what)
  }
})
