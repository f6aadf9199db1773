// Goal: names and sizes on a disk of another machine are the old ones or the new ones, and the new
// ones once that was acknowledged, wherever a power cut there tears a write. Method: a disk that
// keeps any of the sectors that no flush has covered, against the texts that were written.
import t from 'tap'
import { MIB } from '../../src/base/index.js'
import { type RemoteDisk, STATE_SIZE_MIN, StateDisk } from '../../src/remote/index.js'
import { Random } from '../support/random.js'

const SECTOR = 512

/** A disk that loses its power after so many calls that change it. */
class TornDisk implements RemoteDisk {
  readonly path = 'torn'
  readonly size = STATE_SIZE_MIN
  readonly makesHoles = true
  epoch = 1
  /** Calls until the power goes; the next ones fail. */
  left = Number.POSITIVE_INFINITY
  /** Whether the connection comes back at once, and nobody but `epoch` tells. */
  comesBack = false
  readonly image: Buffer
  readonly #durable: Buffer
  readonly #random: Random

  constructor(content: Buffer, random: Random) {
    this.image = Buffer.from(content)
    this.#durable = Buffer.from(content)
    this.#random = random
  }

  async read(into: Uint8Array, offset: number): Promise<void> {
    into.set(this.image.subarray(offset, offset + into.length))
  }

  async write(from: Uint8Array, offset: number): Promise<void> {
    this.image.set(from, offset)
    this.#count()
  }

  async zero(offset: number, length: number): Promise<void> {
    this.image.fill(0, offset, offset + length)
    this.#count()
  }

  async flush(): Promise<void> {
    if (this.left === 1 && !this.comesBack) this.#count()
    this.image.copy(this.#durable)
    this.#count()
  }

  async extents(): Promise<null> {
    return null
  }

  close(): void {}

  #count(): void {
    if (--this.left > 0) return
    for (let at = 0; at < this.size; at += SECTOR) {
      if (this.#random.chance(0.5)) this.image.copy(this.#durable, at, at, at + SECTOR)
    }
    this.#durable.copy(this.image)
    this.left = Number.POSITIVE_INFINITY
    this.epoch++
    if (this.comesBack) return
    throw Object.assign(new Error('the power is gone'), { code: 'EIO' })
  }
}

const most = 8 * MIB
const textOf = (random: Random, nr: number): string =>
  `${nr} `.repeat(1 + random.below(random.chance(0.2) ? 200_000 : 3000))

t.test('a power cut anywhere leaves the old content or the new one', async t => {
  for (let seed = 1; seed <= 40; seed++) {
    const random = new Random(seed)
    let image: Buffer = Buffer.alloc(STATE_SIZE_MIN)
    let content: string | null = null
    for (let nr = 1; nr <= 12; nr++) {
      const disk = new TornDisk(image, random)
      const state = await StateDisk.open(disk)
      t.ok(state.read(most) === content, `seed ${seed}, ${nr}: what was left`)
      const next = textOf(random, nr)
      // The first ones are whole: without any there would be none to go back to.
      disk.left = nr < 3 ? Number.POSITIVE_INFINITY : 1 + random.below(4)
      disk.comesBack = random.chance(0.3)
      const wasAcknowledged = await state.replace(next).then(
        () => true,
        () => false,
      )
      image = disk.image
      const found = (await StateDisk.open(new TornDisk(image, random))).read(most)
      const isRight = found === next || (!wasAcknowledged && found === content)
      t.ok(isRight, `seed ${seed}, ${nr}: ${wasAcknowledged ? 'the new one' : 'one of both'}`)
      content = found
    }
  }
})

t.test('what is no state is refused, and what is empty has none', async t => {
  const random = new Random(1)
  const empty = new TornDisk(Buffer.alloc(STATE_SIZE_MIN), random)
  const state = await StateDisk.open(empty)
  t.equal(state.isEmpty, true)
  t.equal(state.read(most), null)
  await state.replace('a')
  t.equal(state.read(most), 'a')
  t.throws(() => state.read(0), { code: 'BAD_ARGUMENT' })
  await t.rejects(state.replace('x'.repeat(4 * MIB)), { code: 'IO_ERROR', errno: 'EFBIG' })
  t.equal((await StateDisk.open(empty)).read(most), 'a')

  const other = new TornDisk(Buffer.alloc(STATE_SIZE_MIN, 'something else'), random)
  await t.rejects(StateDisk.open(other), { code: 'POOL_MISMATCH', message: /no slot .* is whole/ })
  const small = Object.assign(new TornDisk(Buffer.alloc(STATE_SIZE_MIN), random), { size: MIB })
  await t.rejects(StateDisk.open(small), { code: 'BAD_ARGUMENT', message: /the state takes/ })
})

t.test('what is before the slots is not touched', async t => {
  const random = new Random(1)
  const disk = new TornDisk(Buffer.alloc(STATE_SIZE_MIN), random)
  disk.image.fill(5, 0, 8192)
  const state = await StateDisk.open(disk)
  for (const text of ['one', 'two', 'three']) await state.replace(text)
  t.ok(disk.image.subarray(0, 8192).every(byte => byte === 5))
})

t.test(
  'the journal between two mounts: as it was kept, or nothing that could be believed',
  async t => {
    const random = new Random(1)
    const disk = new TornDisk(Buffer.alloc(STATE_SIZE_MIN), random)
    const state = await StateDisk.open(disk)
    t.equal(state.journal, null, 'never kept')
    await state.keepJournal(Buffer.from('in order'))
    await state.replace('names')
    const kept = async (): Promise<string | undefined> =>
      (await StateDisk.open(disk)).journal?.toString()
    t.equal(await kept(), 'in order')
    await state.keepJournal(Buffer.alloc(state.journalMax, 'x'))
    t.equal((await kept())?.length, state.journalMax)
    disk.image[MIB - 1]! ^= 1
    t.equal(await kept(), '', 'damaged: it says nothing')
    await state.keepJournal(null)
    t.equal(await kept(), undefined)
    t.equal(state.read(most), 'names')
  },
)
