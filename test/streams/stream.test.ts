/**
 * Goal: a chain of streams gives the same bytes elsewhere, whatever the history, and a stream that
 * was damaged gives nothing. Method: pools with random histories, sent by increments to a pool with
 * blocks of another size; SHA-256 of what is read on both sides; bits flipped and ends cut off at
 * random.
 */
import { createHash } from 'node:crypto'
import t, { type Test } from 'tap'
import { KIB } from '../../src/base/index.js'
import { readFrom, StreamReader, sendTo } from '../../src/streams/index.js'
import { receiveInto } from '../../src/streams/receive.js'
import type { Volumes } from '../../src/volumes/index.js'
import { formatted, killed, type MemoryFiles, openFiles } from '../support/memory-pool.js'
import { Random } from '../support/random.js'
import { openTable } from '../support/volumes-on-disk.js'

/** volumes.json in memory. */
class MemoryTable {
  readonly path = 'volumes.json'
  content: string | null = null
  read(): string | null {
    return this.content
  }
  async replace(content: Uint8Array): Promise<void> {
    this.content = Buffer.from(content).toString()
  }
}

async function openPool(blockSectors: number) {
  const dataBlocks = (128 * 128) / blockSectors
  const files = formatted({ blockSectors, dataBlocks, metadataBlocks: 256 })
  return await open(files, new MemoryTable())
}

async function open(files: MemoryFiles, table: MemoryTable) {
  const { pool } = await openFiles(files)
  return { ...files, table, volumes: openTable(pool, files.metadata, table) }
}

/** As the next process finds the pool. */
const restarted = ({ table, ...files }: OpenPool): Promise<OpenPool> => open(killed(files), table)

type OpenPool = Awaited<ReturnType<typeof openPool>>

function digestOf(volumes: Volumes, name: string): string {
  const { device } = volumes.find(name)!
  const content = Buffer.alloc(device.size)
  device.read(0, device.size, content, 0)
  return createHash('sha256').update(content).digest('hex')
}

/** All of a stream. @param names a volume, and the one to go on from */
async function send(
  { volumes, metadata, data }: OpenPool,
  names: string[],
  compress = false,
  { resume = 0, checkpointPeriod = 2 ** 30 } = {},
): Promise<Buffer> {
  const held = await volumes.hold({ names, identify: names[0]! })
  const [volume, older] = held.volumes
  const chunks: Uint8Array[] = []
  const source = {
    metadata,
    read: readFrom(data),
    blockSize: held.dataBlockSize,
    ...volume!,
    resume,
  }
  const base = older === undefined ? null : { ...older, content: older.content! }
  await sendTo({ ...source, base }, async chunk => void chunks.push(Buffer.from(chunk)), {
    compress,
    checkpointPeriod,
    onProgress() {},
  })
  for (const { file } of held.volumes) await volumes.hidden.drop(volumes.hidden.find(file!)!.devId)
  return Buffer.concat(chunks)
}

/** In pieces of any size, as a pipe has them. */
async function* inPieces(stream: Buffer): AsyncGenerator<Buffer> {
  const random = new Random(stream.length)
  for (let at = 0; at < stream.length; ) {
    const end = at + random.between(0, 90_000)
    yield stream.subarray(at, end)
    at = end
  }
}

async function receive(
  { volumes }: OpenPool,
  name: string,
  stream: Buffer,
  keeps = false,
): Promise<string | null> {
  const reader = await StreamReader.open(inPieces(stream))
  const { size, base, content, resume } = reader.header
  const from = base === null ? {} : { base: base.content }
  const at = resume > 0 ? { resume, content: content! } : {}
  const volume = await volumes.beginVolume({ name, size, ...from, ...at })
  try {
    const hidden = volumes.byDevId(volume.devId)!
    await volumes.sizes.set(hidden, size)
    const { device } = hidden
    const target = {
      write: (offset: number, content: Uint8Array) =>
        device.write(offset, content.length, Buffer.from(content), 0),
      discard: (offset: number, length: number) => device.discard(offset, length, false),
    }
    await receiveInto(
      target,
      reader,
      () => {},
      async offset => {
        const { devId } = volume
        if (keeps) await volumes.keepVolume({ devId, name, content: content!, ...from, offset })
      },
    )
    const id = content === null ? {} : { content }
    await volumes.nameVolume({ devId: volume.devId, name, ...id })
    return volume.base
  } finally {
    await volumes.hidden.drop(volume.devId)
  }
}

/** Writes, discards, changes of the size. */
async function change(volumes: Volumes, name: string, random: Random): Promise<void> {
  const volume = volumes.find(name)!
  const { device } = volume
  for (let i = random.between(1, 8); i > 0; i--) {
    const offset = random.below(device.size)
    const length = Math.min(random.between(1, 200 * KIB), device.size - offset)
    if (random.chance(0.3)) await device.discard(offset, length)
    else await device.write(offset, length, Buffer.alloc(length, random.between(1, 255)), 0)
  }
  if (random.chance(0.3)) await volumes.sizes.set(volume, random.between(1, 3000) * KIB + 512)
}

t.test('chains of increments give the same SHA-256, with blocks of another size too', async t => {
  for (let seed = 1; seed <= 8; seed++) {
    const random = new Random(seed)
    const here = await openPool(random.of([8, 128, 128, 256]))
    const there = await openPool(random.of([8, 128, 256]))
    await here.volumes.create({ name: 'web', size: 2048 * KIB })
    let older: string | null = null
    for (let step = 0; step < 6; step++) {
      await change(here.volumes, 'web', random)
      const name = `web@${step}`
      await here.volumes.snapshot({ origin: 'web', name })
      const stream = await send(here, older === null ? [name] : [name, older], random.chance(0.2))
      const base = await receive(there, name, stream)
      t.equal(base, older, `seed ${seed}: ${name} goes on from the one before`)
      t.equal(digestOf(there.volumes, name), digestOf(here.volumes, name), `seed ${seed}: ${name}`)
      // Writing to the volume goes on; its snapshots stay.
      if (random.chance(0.8)) older = name
    }
    for (const { volumes } of [here, there]) {
      t.same((await volumes.check()).problems, [], `seed ${seed}: sound`)
      await volumes.close()
    }
  }
})

t.test('a base that was written to is refused, on both sides, and so is another one', async t => {
  const here = await openPool(128)
  const there = await openPool(128)
  const { volumes } = here
  await volumes.create({ name: 'web', size: 1024 * KIB })
  await change(volumes, 'web', new Random(1))
  await volumes.snapshot({ origin: 'web', name: 'one' })
  await volumes.snapshot({ origin: 'web', name: 'never' })
  await receive(there, 'one', await send(here, ['one']))
  await change(volumes, 'web', new Random(2))
  await volumes.snapshot({ origin: 'web', name: 'two' })
  const stream = await send(here, ['two', 'one'])
  const contentOf = async (pool: OpenPool, name: string) => {
    const held = await pool.volumes.hold({ names: [name] })
    await pool.volumes.hidden.drop(pool.volumes.hidden.find(held.volumes[0]!.file!)!.devId)
    return held.volumes[0]!.content
  }
  t.equal(await contentOf(here, 'never'), null, 'it was never sent')
  t.equal(there.volumes.find('one')!.entry.content?.id, await contentOf(here, 'one'))

  const other = await openPool(128)
  await t.rejects(receive(other, 'two', stream), { code: 'NO_BASE', message: /no volume of this/ })

  // A single byte, in a block that only this volume has: no other mapping than before is needed.
  const { device } = there.volumes.find('one')!
  const at = device.nextData(0)
  await device.write(at, 1, Buffer.from([1]), 0)
  await there.volumes.commit()
  await t.rejects(receive(there, 'two', stream), { code: 'NO_BASE', message: /one was changed/ })
  await volumes
    .find('one')!
    .device.write(volumes.find('one')!.device.nextData(0), 1, Buffer.of(1), 0)
  await volumes.commit()
  t.equal(await contentOf(here, 'one'), null)
  t.strictSame(
    [...there.volumes.all()].map(({ name }) => name),
    ['one'],
    'nothing stays',
  )
  for (const pool of [here, there, other]) await pool.volumes.close()
})

t.test('what a base maps past its end is not with the receiver, and is sent', async t => {
  const here = await openPool(128)
  const there = await openPool(128)
  const { volumes, metadata, data } = here
  await volumes.create({ name: 'web', size: 640 * KIB })
  await volumes.find('web')!.device.write(0, 640 * KIB, Buffer.alloc(640 * KIB, 7), 0)
  await volumes.snapshot({ origin: 'web', name: 'one' })
  // As another program leaves a device whose table it has made smaller.
  const held = await volumes.hold({ names: ['web', 'one'], identify: 'one' })
  const [web, one] = held.volumes.map(volume => ({ ...volume, blockSize: held.dataBlockSize }))
  const chunks: Uint8Array[] = []
  const write = async (chunk: Uint8Array) => void chunks.push(Buffer.from(chunk))
  const options = { compress: false, onProgress() {} }
  const older = { ...one!, size: 200 * KIB, content: one!.content! }
  const read = readFrom(data)
  await sendTo({ ...older, metadata, read, base: null, resume: 0 }, write, options)
  await receive(there, 'one', Buffer.concat(chunks.splice(0)))
  await sendTo({ ...web!, metadata, read, content: null, base: older, resume: 0 }, write, options)
  await receive(there, 'web', Buffer.concat(chunks))
  t.equal(digestOf(there.volumes, 'web'), digestOf(volumes, 'web'))
  for (const pool of [here, there]) await pool.volumes.close()
})

t.test('a stream is taken on from where it came to, and back to where it came from', async t => {
  const [a, b, c] = [await openPool(128), await openPool(128), await openPool(128)]
  await a.volumes.create({ name: 'web', size: 1024 * KIB })
  await change(a.volumes, 'web', new Random(3))
  await a.volumes.snapshot({ origin: 'web', name: 'one' })
  const one = await send(a, ['one'])
  for (const pool of [b, c]) await receive(pool, 'one', one)
  await b.volumes.snapshot({ origin: 'one', name: 'work' })
  await change(b.volumes, 'work', new Random(4))
  const work = await send(b, ['work', 'one'])
  for (const pool of [a, c]) {
    await receive(pool, 'work', work)
    t.equal(digestOf(pool.volumes, 'work'), digestOf(b.volumes, 'work'))
  }
  for (const pool of [a, b, c]) await pool.volumes.close()
})

async function isRefused(t: Test, pool: OpenPool, stream: Buffer, what: string): Promise<void> {
  await t.rejects(receive(pool, 'x', stream), { code: /^(BAD_STREAM|NO_BASE)$/ }, what)
  t.strictSame([...pool.volumes.all()], [], `${what}: nothing stays`)
  t.equal(pool.volumes.pool.metadata.deviceIds().next().done, true, `${what}: no device`)
}

t.test('cut short, with a bit flipped, a record too many or too few: nothing stays', async t => {
  const here = await openPool(128)
  const there = await openPool(128)
  await here.volumes.create({ name: 'web', size: 2048 * KIB })
  await change(here.volumes, 'web', new Random(5))
  await change(here.volumes, 'web', new Random(6))
  await here.volumes.commit()
  const random = new Random(7)
  for (const compress of [false, true]) {
    const stream = await send(here, ['web'], compress)
    for (let i = 0; i < 12; i++) {
      await isRefused(t, there, stream.subarray(0, random.below(stream.length)), 'cut short')
      const flipped = Buffer.from(stream)
      flipped[random.below(flipped.length)]! ^= 1 << random.below(8)
      await isRefused(t, there, flipped, 'a bit flipped')
    }
    await isRefused(t, there, stream.subarray(0, -1), 'a byte is missing')
    await isRefused(t, there, Buffer.concat([stream, Buffer.of(0)]), 'a byte follows')
    await isRefused(t, there, Buffer.concat([stream, stream]), 'a stream follows')
    const records = recordsOf(stream)
    const without = records.filter((_, i) => i !== 2)
    await isRefused(
      t,
      there,
      Buffer.concat(without),
      'a record is missing, each of the others whole',
    )
    await isRefused(t, there, Buffer.concat(records.toSpliced(2, 0, records[2]!)), 'one is twice')
    await receive(there, 'whole', stream)
    t.equal(digestOf(there.volumes, 'whole'), digestOf(here.volumes, 'web'))
    await there.volumes.remove({ names: ['whole'] })
  }
  for (const pool of [here, there]) await pool.volumes.close()
})

/** The magic number, and each record with its head. */
function recordsOf(stream: Buffer): Buffer[] {
  const parts = [stream.subarray(0, 16)]
  for (let at = 16; at < stream.length; ) {
    const end = at + 32 + stream.readUInt32LE(at + 12)
    parts.push(stream.subarray(at, end))
    at = end
  }
  return parts
}

t.test('a stream that is cut short, again and again, goes on where it was kept', async t => {
  let resumed = 0
  for (let seed = 1; seed <= 3; seed++) {
    const random = new Random(100 + seed)
    const here = await openPool(random.of([8, 128, 384, 4096]))
    let there = await openPool(random.of([8, 128, 256]))
    await here.volumes.create({ name: 'web', size: 2048 * KIB })
    let older: string | null = null
    for (const name of ['web@1', 'web@2']) {
      for (let i = 0; i < 4; i++) await change(here.volumes, 'web', random)
      await here.volumes.snapshot({ origin: 'web', name })
      const names: string[] = older === null ? [name] : [name, older]
      const compress = random.chance(0.3)
      let resume = 0
      for (let tries = 0; ; tries++) {
        const options = { resume, checkpointPeriod: random.between(1, 200 * KIB) }
        const stream: Buffer = await send(here, names, compress, options)
        if (tries > 3) {
          await receive(there, name, stream, true)
          break
        }
        const cut = stream.subarray(0, random.between(1, stream.length - 1))
        await t.rejects(receive(there, name, cut, true), { code: 'BAD_STREAM' })
        if (random.chance(0.5)) there = await restarted(there)
        const [kept] = await there.volumes.partials()
        t.equal(there.volumes.find(name), undefined, 'no volume before it is whole')
        if (resume > 0) t.ok(kept!.offset >= resume, 'nothing that was kept is lost')
        resume = kept?.offset ?? 0
        if (kept === undefined) continue
        if (resumed++ % 4 > 0) continue
        const { partial } = there.volumes.byDevId(devIdOf(there, name))!.entry
        t.equal(partial?.base ?? null, older && here.volumes.find(older)!.entry.content!.id)
        await t.rejects(receive(there, name, await send(here, names)), { code: 'VOLUME_EXISTS' })
        const wrong = await send(here, names, false, { ...options, resume })
        await t.rejects(receive(there, 'other', wrong), { code: 'NO_BASE' })
        if (older === null) continue
        const onOther = await send(here, [name], false, { ...options, resume })
        await t.rejects(receive(there, name, onOther), { code: 'NO_BASE' }, 'another base')
      }
      t.equal(digestOf(there.volumes, name), digestOf(here.volumes, name), `seed ${seed}: ${name}`)
      t.strictSame(await there.volumes.partials(), [])
      older = name
    }
    // What went in in parts is as good a base as any.
    await change(here.volumes, 'web', random)
    await receive(there, 'web', await send(here, ['web', 'web@2']))
    t.equal(digestOf(there.volumes, 'web'), digestOf(here.volumes, 'web'))
    for (const { volumes } of [here, there]) {
      t.same((await volumes.check()).problems, [], `seed ${seed}: sound`)
      await volumes.close()
    }
  }
  t.ok(resumed > 4, `${resumed} went on`)
})

/** The device that is kept for a name. */
const devIdOf = ({ volumes }: OpenPool, name: string): number =>
  [...volumes.pool.metadata.deviceIds()].find(devId => {
    const { entry } = volumes.byDevId(devId)!
    return entry.name === name && entry.partial !== undefined
  })!

t.test('a part that is kept goes when it is given up; a point that is none is refused', async t => {
  const here = await openPool(128)
  const there = await openPool(128)
  await here.volumes.create({ name: 'web', size: 2048 * KIB })
  const { device } = here.volumes.find('web')!
  await device.write(0, 1024 * KIB, Buffer.alloc(1024 * KIB, 7), 0)
  await device.discard(128 * KIB, 64 * KIB)
  await here.volumes.commit()
  const options = { checkpointPeriod: 1 }
  const stream = await send(here, ['web'], false, options)
  await t.rejects(receive(there, 'web', stream.subarray(0, -40), true), { code: 'BAD_STREAM' })
  const [kept] = await there.volumes.partials()
  t.match(kept, { name: 'web', size: 2048 * KIB, offset: 1024 * KIB, base: null })
  t.match((await there.volumes.status()).warnings, [/^web: \d+ bytes of a stream .* are kept/])
  await t.rejects(there.volumes.dropPartial({ name: 'none' }), { code: 'VOLUME_MISSING' })
  await there.volumes.dropPartial({ name: 'web' })
  t.strictSame(await there.volumes.partials(), [])
  t.equal(there.volumes.pool.metadata.deviceIds().next().done, true, 'no device')
  await t.rejects(receive(there, 'web', await send(here, ['web'], false, { resume: 1024 * KIB })), {
    code: 'NO_BASE',
    message: /none is kept/,
  })
  await t.rejects(send(here, ['web'], false, { resume: 100 }), { code: 'BAD_ARGUMENT' })
  // A checkpoint that lacks a record before it, each of which is whole.
  const records = recordsOf(stream)
  const without = Buffer.concat([...records.slice(0, 2), ...records.slice(3)])
  await t.rejects(receive(there, 'web', without, true), { code: 'BAD_STREAM' })
  t.strictSame(await there.volumes.partials(), [])
  for (const { volumes } of [here, there]) await volumes.close()
})
