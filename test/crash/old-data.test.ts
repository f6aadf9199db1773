// Goal: no volume ever shows what another one, or it itself before a discard, has written. Method:
// seeded operations on devices, each write with a pattern of its own, against a model that knows
// every byte: what nobody wrote has to be zero. With and without holes below, each way of discards,
// a full pool, and kills in between; and punches that fail.
import t, { type Test } from 'tap'
import { bytes, type DevId, ThinfsError } from '../../src/base/index.js'
import { checkMetadata } from '../../src/metadata/index.js'
import type { Discards, ThinDevice, ThinPool } from '../../src/pool/index.js'

import {
  devId,
  formatted,
  type MemoryFiles,
  openFiles,
  staleFreeBlocks,
} from '../support/memory-pool.js'
import { EFFORT, tally } from '../support/tally.js'

const BLOCK = 4096
const DATA_BLOCKS = 96
/** Virtual blocks of a device: all of them together want more than there is. */
const SIZE = 32 * BLOCK
const DEVICES = 4
const STEPS = 300
const SEEDS = 6 * EFFORT
const FIRST_SEED = Number(process.env.THINFS_SEED ?? 20261121)

/** Numbers below a limit, the same for the same seed. */
function generator(seed: number): (below: number) => number {
  let state = seed >>> 0
  return below => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
}

class Run {
  verified = 0
  readonly #t: Test
  readonly #random: (below: number) => number
  readonly #files: MemoryFiles
  readonly #discards: Discards
  #pool!: ThinPool
  /** What each device has to show. Its length is the size that the device has had at most. */
  readonly #model = new Map<DevId, Buffer>()
  #pattern = 0

  constructor(t: Test, seed: number, discards: Discards, punches: boolean) {
    this.#t = t
    this.#random = generator(seed)
    this.#files = formatted({ blockSectors: 8, dataBlocks: DATA_BLOCKS, punches })
    this.#discards = discards
  }

  async run(what: string): Promise<void> {
    await this.#open()
    for (let step = 0; step < STEPS; step++) {
      try {
        await this.#step()
      } catch (err) {
        // The pool is full: the writer is told, and nothing has changed.
        if (!(err instanceof ThinfsError) || err.code !== 'NO_DATA_SPACE') throw err
      }
      if (step % 10 === 9 && !this.#holds(`${what}, step ${step}`)) return
    }
    await this.#pool.commit()
    if (this.#pool.blocks.freeMeansHole) {
      this.#t.same(staleFreeBlocks(this.#pool, this.#files.data), [], `${what}: free is hole`)
    }
    await this.#pool.close()
  }

  /** As the next engine does, after a kill. */
  async #open(): Promise<void> {
    this.#pool = (await openFiles(this.#files, { discards: this.#discards })).pool
  }

  async #step(): Promise<void> {
    const pool = this.#pool
    const random = this.#random
    const id = devId(random(DEVICES))
    const model = this.#model.get(id)
    if (model === undefined) return await this.#make(id)
    const device = pool.devices.get(id, bytes(SIZE))
    const offset = random(SIZE / 512) * 512
    const length = Math.min(SIZE - offset, 512 * (1 + random(40)))
    switch (random(12)) {
      case 0:
        // Devices are not in the journal: they come and go with a commit.
        pool.devices.delete(id)
        this.#model.delete(id)
        await pool.commit()
        return
      case 1:
        // Shrunk and grown again: to the end of the device.
        await this.#discard(id, model, offset, SIZE - offset)
        return
      case 2:
      case 3:
        await this.#discard(id, model, offset, length)
        return
      case 4:
        await device.preallocate(offset, length)
        return
      case 5:
      case 6:
        await pool.commit()
        return
      case 7:
        await pool.settle()
        await this.#open()
        return
      case 8:
        await this.#share(id, model)
        return
      default: {
        const content = Buffer.alloc(length, 1 + (this.#pattern++ % 255))
        await device.write(offset, length, content, 0)
        content.copy(model, offset)
      }
    }
  }

  async #make(id: DevId): Promise<void> {
    const origins = [...this.#model.keys()]
    const origin = origins[this.#random(origins.length + 1)]
    if (origin === undefined) this.#pool.devices.createThin(id)
    else this.#pool.devices.createSnap(id, origin)
    this.#model.set(id, Buffer.from(this.#model.get(origin!) ?? Buffer.alloc(SIZE)))
    await this.#pool.commit()
  }

  async #discard(id: DevId, model: Buffer, offset: number, length: number): Promise<void> {
    await this.#pool.devices.get(id, bytes(SIZE)).discard(offset, length)
    model.fill(0, offset, offset + length)
  }

  /** Whole blocks of another device, as a copy of a file is made. */
  async #share(id: DevId, model: Buffer): Promise<void> {
    const sources = [...this.#model.keys()].filter(other => other !== id)
    const source = sources[this.#random(sources.length)]
    if (source === undefined) return
    const length = BLOCK * (1 + this.#random(4))
    const [from, to] = [0, 0].map(() => BLOCK * this.#random((SIZE - length) / BLOCK)) as [
      number,
      number,
    ]
    const device = this.#pool.devices.get(source, bytes(SIZE))
    await this.#pool.devices.get(id, bytes(SIZE)).share(device, from, to, length)
    this.#model.get(source)!.copy(model, to, from, from + length)
  }

  #holds(what: string): boolean {
    const found = Buffer.alloc(SIZE)
    for (const [id, model] of this.#model) {
      found.fill(0xee)
      this.#pool.devices.get(id, bytes(SIZE)).read(0, SIZE, found, 0)
      this.verified += SIZE
      if (found.equals(model)) continue
      const at = found.findIndex((byte, i) => byte !== model[i])
      this.#t.fail(`${what}: device ${id} at ${at}: ${found[at]}, wanted ${model[at]}`)
      return false
    }
    return true
  }
}

for (const [discards, punches] of [
  ['passdown', true],
  ['passdown', false],
  ['nopassdown', true],
  ['nopassdown', false],
  ['ignore', true],
] as const) {
  t.test(`discards: ${discards}, ${punches ? 'holes' : 'no holes'}`, async t => {
    let verified = 0
    for (let seed = FIRST_SEED; seed < FIRST_SEED + SEEDS; seed++) {
      const run = new Run(t, seed, discards, punches)
      await run.run(`seed ${seed}`)
      verified += run.verified
    }
    t.ok(verified > 0)
    tally(t, { 'bytes verified': verified })
  })
}

t.test('a punch that fails lets no block go that holds something', async t => {
  const files = formatted({ blockSectors: 8, dataBlocks: 4 })
  const { pool } = await openFiles(files)
  const { data } = files
  const eio = () => new ThinfsError('IO_ERROR', 'no', { errno: 'EIO' })
  const secret = Buffer.alloc(BLOCK, 's')
  pool.devices.createThin(devId(1))
  pool.devices.createThin(devId(2))
  const [one, two] = [1, 2].map(id => pool.devices.get(devId(id), bytes(SIZE))) as [
    ThinDevice,
    ThinDevice,
  ]
  await pool.commit()

  // A write that fails half-way, and so does the punch that would take back what it did.
  const { write: writeData } = data
  data.onWrite = op => {
    if (op === 'punch') throw eio()
  }
  data.write = function (...args) {
    writeData.apply(this, args)
    throw eio()
  }
  await t.rejects(write(one, 0, secret), { code: 'IO_ERROR' })
  data.write = writeData
  const shown = Buffer.alloc(SIZE)
  for (let block = 0; block < 3; block++)
    await two.write(block * BLOCK + 512, 512, Buffer.alloc(512, 2), 0)
  two.read(0, SIZE, shown, 0)
  t.notOk(shown.includes('s'))
  await t.rejects(write(two, 3 * BLOCK, secret), { code: 'NO_DATA_SPACE' }, 'it stays taken')

  // A punch that fails after a commit: it is tried again, and until then the block is nobody's.
  await two.write(0, BLOCK, secret, 0)
  await pool.commit()
  await two.discard(0, BLOCK)
  await pool.commit()
  await t.rejects(write(one, 0, secret), { code: 'NO_DATA_SPACE' })
  t.equal(checkMetadata(files.metadata).problems.length, 0)

  // The next opening punches it.
  data.onWrite = undefined
  const reopened = { ...files, metadata: files.metadata.reopen(), data: data.reopen() }
  const again = await openFiles(reopened)
  const device = again.pool.devices.get(devId(1), bytes(SIZE))
  await device.write(512, 512, Buffer.alloc(512, 1), 0)
  shown.fill(0)
  device.read(0, SIZE, shown, 0)
  t.notOk(shown.includes('s'))
  t.same(staleFreeBlocks(again.pool, reopened.data), [])
})

/** Throws by rejecting, whenever the device finds out. */
const write = async (device: ThinDevice, offset: number, content: Buffer): Promise<void> =>
  device.write(offset, content.length, content, 0)
