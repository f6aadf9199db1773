// Goal: whatever call of whatever file fails, who asked is told, nobody reads wrong bytes, nothing
// that was flushed is lost, and the pool opens again when the fault is gone.
// Method: a seeded workload runs once without faults, which counts its calls of data, metadata and
// journal. Then it runs again for each call and each kind of fault, with that one failing. Every
// sector says which write it came from. In the end the pool is closed, or its process dies, or the
// power goes; each time the next opening has to hold what was promised.
import t from 'tap'
import { type Bytes, bytes } from '../../src/base/index.js'
import { checkMetadata } from '../../src/metadata/index.js'
import type { ThinDevice, ThinPool } from '../../src/pool/index.js'
import { type Fault, Faults, faulty } from '../support/faulty-store.js'
import {
  devId,
  formatted,
  type MemoryFiles,
  openFiles,
  staleFreeBlocks,
  type TestClock,
} from '../support/memory-pool.js'
import { MemoryStore } from '../support/memory-store.js'
import { Random } from '../support/random.js'
import { TaggedDevices, tagged } from '../support/tagged-devices.js'
import { EFFORT, tally } from '../support/tally.js'
import { thinCheck } from '../support/thin-tools.js'

const SECTOR = 512
const BLOCK_SECTORS = 8
const BLOCK = BLOCK_SECTORS * SECTOR
const NR_SECTORS = 12 * BLOCK_SECTORS
const SIZE = NR_SECTORS * SECTOR
const STEPS = 60
const REOPEN_STEPS = 16
const MAX_DEVICES = 4
/** Turns of the loop within which everything has to have an end. */
const TURNS = 500

const KINDS: Omit<Fault, 'at'>[] = [
  { errno: 'EIO', lasts: 'once', share: 0 },
  { errno: 'EIO', lasts: 'once', share: 0.5 },
  { errno: 'EIO', lasts: 'once', share: 1 },
  { errno: 'ENOSPC', lasts: 'once', share: 0.5 },
  { errno: 'EIO', lasts: 'for this file', share: 0 },
  { errno: 'EIO', lasts: 'for all files', share: 0 },
  { errno: 'ENOSPC', lasts: 'for this file', share: 0.5 },
  { errno: 'ENOSPC', lasts: 'for all files', share: 0.5 },
  { errno: 'EROFS', lasts: 'for all files', share: 0 },
]

/** A workload on a pool whose files may fail, and what is known of it. */
class Run {
  readonly files: MemoryFiles
  readonly faults = new Faults()
  readonly model = new TaggedDevices(NR_SECTORS)
  readonly #random: Random
  pool!: ThinPool
  #clock!: TestClock
  #recorded!: { modes: string[]; errors: string[] }
  #step = 0
  #nextId = 0
  /** A flush that is under way, and the step that it began in. */
  #flushing: Promise<void> | null = null
  /** Since when the pool has been read-only; -1 while it is not. */
  #fellBackAt = -1
  /** Whether the pool is open: to open it may fail, too. */
  isOpen = false

  constructor(seed: number) {
    this.#random = new Random(seed)
    this.files = formatted({
      blockSectors: BLOCK_SECTORS,
      dataBlocks: 20,
      metadataBlocks: 192,
    })
  }

  async open(): Promise<void> {
    try {
      const opening = openFiles(faulty(this.files, this.faults))
      const { pool, clock, recorded } = await inTime('open', opening)
      this.pool = pool
      this.#clock = clock
      this.#recorded = recorded
      this.isOpen = true
    } catch (err) {
      told(err)
    }
  }

  get fellBack(): boolean {
    return this.#fellBackAt >= 0
  }

  /** Runs the workload. @throws when something is not as it has to be */
  async work(): Promise<void> {
    for (this.#step = 1; this.#step <= STEPS && this.isOpen; this.#step++) {
      if (this.#step % REOPEN_STEPS === 0 && this.pool.writable) await this.#reopen()
      else await this.#one()
      if (this.isOpen) await this.#verify()
    }
    await this.#flushed()
    if (this.isOpen) await this.#verify()
  }

  /** What is there now is read from the files: any of these reads may fail, too. */
  async #reopen(): Promise<void> {
    await this.#flushed()
    await this.close()
    if (!this.pool.writable) return
    this.isOpen = false
    await this.open()
  }

  async close(): Promise<void> {
    const { writable } = this.pool
    const flushed = (): void => {
      if (writable && this.pool.writable) this.model.flushed(this.#step)
    }
    await inTime('close', this.pool.close()).then(flushed, told)
    await this.#verify()
  }

  async #one(): Promise<void> {
    const kind = this.#pick()
    const first = this.#below(NR_SECTORS)
    const count = Math.min(1 + this.#below(3 * BLOCK_SECTORS), NR_SECTORS - first)
    const id = this.model.ids[this.#below(1000) % Math.max(this.model.ids.length, 1)]
    const other = this.model.ids[this.#below(1000) % Math.max(this.model.ids.length, 1)]
    if (kind === 'create' || id === undefined || other === undefined) return this.#create(null)
    switch (kind) {
      case 'snapshot':
        return this.#create(id)
      case 'delete':
        return this.#delete(id)
      case 'write': {
        const tags = Array.from({ length: count }, (_, i) => this.#step * 1000 + i + 1)
        const done = await this.#attempt(() =>
          this.#device(id).write(first * SECTOR, count * SECTOR, tagged(tags), 0),
        )
        return this.model.write(this.#step, id, first, tags, done)
      }
      case 'discard': {
        const done = await this.#attempt(() =>
          this.#device(id).discard(first * SECTOR, count * SECTOR),
        )
        return this.model.write(this.#step, id, first, Array(count).fill(0), done)
      }
      case 'share':
        return this.#share(id, other, first)
      case 'preallocate':
        await this.#attempt(() => this.#device(id).preallocate(first * SECTOR, count * SECTOR))
        return
      case 'flush':
        await this.#flushed()
        this.#flush()
        return
      case 'flush and wait':
        this.#flush()
        return this.#flushed()
      case 'time':
        this.#clock.advance(1000)
    }
  }

  async #create(origin: number | null): Promise<void> {
    if (this.model.ids.length >= MAX_DEVICES) return
    const id = this.#nextId++
    const done = await this.#attempt(() =>
      origin === null
        ? this.pool.devices.createThin(devId(id))
        : this.pool.devices.createSnap(devId(id), devId(origin)),
    )
    if (done) this.model.add(this.#step, id, origin)
  }

  async #delete(id: number): Promise<void> {
    const done = await this.#attempt(async () => {
      await this.pool.devices.empty(this.#device(id), () => false)
      this.pool.devices.delete(devId(id))
    })
    this.model.write(this.#step, id, 0, Array(NR_SECTORS).fill(0), false)
    if (done) this.model.remove(this.#step, id)
  }

  async #share(from: number, to: number, sector: number): Promise<void> {
    const first = Math.floor(sector / BLOCK_SECTORS) * BLOCK_SECTORS
    const target = (first + 5 * BLOCK_SECTORS) % NR_SECTORS
    const count = 2 * BLOCK_SECTORS
    if (Math.max(first, target) + count > NR_SECTORS) return
    const done = await this.#attempt(() =>
      this.#device(to).share(this.#device(from), first * SECTOR, target * SECTOR, count * SECTOR),
    )
    const [source, other] = [
      { id: from, first },
      { id: to, first: target },
    ]
    this.model.share(this.#step, source, other, count, done)
  }

  /** Begins a flush. What comes before it ends goes on meanwhile. */
  #flush(): void {
    const step = this.#step
    const { writable } = this.pool
    this.#flushing = inTime('flush', this.pool.commit()).then(() => {
      if (!writable) throw new Error('a flush went well after the pool became read-only')
      this.model.flushed(step)
    }, told)
    this.#flushing.catch(() => {}) // whoever awaits it gets the error
  }

  async #flushed(): Promise<void> {
    await this.#flushing
    this.#flushing = null
  }

  /**
   * As the server does it: what was done is acknowledged when it is settled.
   * @returns whether it was done
   */
  async #attempt(act: () => void | Promise<void>): Promise<boolean> {
    try {
      await inTime('request', (async () => act())())
      if (this.pool.unsettled) await inTime('settle', (async () => this.pool.settle())())
      return true
    } catch (err) {
      told(err)
      return false
    }
  }

  /** Reads everything. An error is fine, wrong bytes are not. */
  async #verify(): Promise<void> {
    if (!this.pool.writable && !this.fellBack) {
      // A commit that is under way may yet become the last.
      await this.#flushed()
      await this.#turns()
      this.#fellBackAt = this.#step
      if (this.pool.mode === 'read_only') {
        this.model.fellBack(this.#step, [...this.pool.metadata.deviceIds()])
      }
    }
    const since = this.#recorded.modes.length > 0 && !this.pool.writable
    for (const id of this.model.ids) this.#read(id, since)
  }

  #read(id: number, since: boolean): void {
    const content = Buffer.alloc(SIZE)
    try {
      this.#device(id).read(0, SIZE, content, 0)
    } catch (err) {
      told(err)
      return
    }
    this.model.verify(id, content, since && !this.fellBack)
  }

  async #turns(): Promise<void> {
    for (let i = 0; i < 10; i++) await new Promise(resolve => setImmediate(resolve))
  }

  #device(id: number): ThinDevice {
    return this.pool.devices.get(devId(id), bytes(SIZE))
  }

  #below(limit: number): number {
    return this.#random.below(limit)
  }

  #pick(): string {
    const kinds: [string, number][] = [
      ['write', 14],
      ['discard', 5],
      ['snapshot', 2],
      ['share', 2],
      ['create', 1],
      ['delete', 1],
      ['preallocate', 1],
      ['flush', 4],
      ['flush and wait', 3],
      ['time', 1],
    ]
    const all = kinds.flatMap(([kind, weight]) => Array<string>(weight).fill(kind))
    return all[this.#below(all.length)]!
  }
}

/** Every error that a fault causes has the errno of one. */
function told(err: unknown): void {
  const { code, errno } = err as { code?: string; errno?: string }
  if (errno && ['EIO', 'ENOSPC', 'EROFS'].includes(errno)) return
  if (code === 'DEVICE_MISSING') return // it came with what was undone
  throw err
}

/** @throws when it takes more turns of the loop than anything should */
async function inTime<T>(what: string, work: Promise<T>): Promise<T> {
  let over = false
  const late = async (): Promise<never> => {
    for (let i = 0; i < TURNS && !over; i++) await new Promise(resolve => setImmediate(resolve))
    throw new Error(`${what} hangs`)
  }
  const timer = late()
  timer.catch(() => {})
  return Promise.race([work, timer]).finally(() => {
    over = true
  })
}

/** Opens what is left, with no faults any more, and holds it against the model. */
async function verifyLeft(
  where: string,
  files: MemoryFiles,
  model: TaggedDevices,
  exactly: boolean,
): Promise<number> {
  const found = copyOf(files)
  const { problems } = checkMetadata(found.metadata)
  if (problems.length > 0) throw new Error(`${where}: ${problems[0]!.message}`)
  const { pool } = await openFiles(found)
  if (pool.mode !== 'write') throw new Error(`${where}: opens as ${pool.mode}: ${pool.reason}`)
  const ids = [...pool.metadata.deviceIds()]
  model.mustHaveHad(ids)
  const content = Buffer.alloc(SIZE)
  for (const id of ids) {
    pool.devices.get(devId(id), SIZE as Bytes).read(0, SIZE, content, 0)
    model.verify(id, content, !exactly)
  }
  const stale = staleFreeBlocks(pool, found.data)
  if (stale.length > 0) throw new Error(`${where}: free data block ${stale[0]} is no hole`)
  // It is as good as any: takes a write, where there is room for one, and closes.
  const id = devId(1000)
  pool.devices.createThin(id)
  const write = async (): Promise<void> =>
    pool.devices.get(id, SIZE as Bytes).write(0, BLOCK, tagged(Array(BLOCK_SECTORS).fill(7)), 0)
  await write().catch(told)
  await pool.close()
  if (checkMetadata(found.metadata).problems.length > 0) throw new Error(`${where}: not sound`)
  return ids.length * SIZE
}

/** The files as they are now, in the eyes of whoever is on the same machine. */
const copyOf = ({ metadata, data, journal }: MemoryFiles): MemoryFiles => ({
  metadata: imageOf(metadata),
  data: imageOf(data),
  journal: journal.copy(),
})
const imageOf = (store: MemoryStore): MemoryStore =>
  new MemoryStore(store.size, { path: store.path, image: Buffer.from(store.image) })

/** What a power cut leaves, when `keep` of what was not flushed got to the disk. */
const powerCut = ({ metadata, data, journal }: MemoryFiles, keep: () => boolean): MemoryFiles => ({
  metadata: metadata.crash(keep),
  data: data.crash(keep),
  journal: journal.copy('another boot'),
})

/** One workload with one fault. @returns bytes compared, and whether the fault struck */
async function scenario(
  seed: number,
  fault: Fault | null,
): Promise<{ bytes: number; calls: string[]; injected: number; image: Buffer }> {
  const run = new Run(seed)
  run.faults.fault = fault
  await run.files.metadata.sync() // as `thinfs init` does
  await run.open()
  await run.work()
  const random = new Random(seed)
  const { files, model } = run
  const lost = powerCut(files, () => false)
  const halfLost = powerCut(files, () => random.chance(0.5))
  let compared = await verifyLeft('killed', files, model, !run.fellBack)
  compared += await verifyLeft('power cut, all lost', lost, model, false)
  compared += await verifyLeft('power cut, half lost', halfLost, model, false)
  if (run.isOpen) await run.close()
  const { injected, calls } = run.faults
  run.faults.heal()
  compared += await verifyLeft('closed', files, model, !run.fellBack)
  return {
    bytes: compared + run.model.verified * SECTOR,
    calls,
    injected,
    image: run.files.metadata.image,
  }
}

/** Cases to try of each seed: 60 times as many are all of them. */
const CASES = 120 * EFFORT

t.test('any call of any file may fail', async t => {
  const seed = 1
  const { calls, image } = await scenario(seed, null)
  t.equal(thinCheck(image).status, 0)
  const operations = [...new Set(calls)]
  t.ok(operations.length >= 12, `calls of many kinds: ${operations.join(', ')}`)
  const nrCases = Math.min(CASES, calls.length * KINDS.length)
  let injected = 0
  let verified = 0
  let failed = 0
  for (let i = 0; i < nrCases && failed < 5; i++) {
    const at = Math.floor((i * calls.length) / nrCases)
    const fault: Fault = { at, ...KINDS[i % KINDS.length]! }
    try {
      const result = await scenario(seed, fault)
      injected += result.injected
      verified += result.bytes
    } catch (err) {
      failed++
      const { message, stack } = err as Error
      const where = `seed ${seed}: ${calls[at]}, ${JSON.stringify(fault)}`
      t.fail(`${where}: ${message}`, { stack: stack ?? '' })
    }
  }
  t.ok(injected >= nrCases, `${injected} faults in ${nrCases} cases`)
  tally(t, { 'faults injected': injected, 'bytes verified': verified })
})
