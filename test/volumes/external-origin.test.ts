/**
 * Goal: a volume with an external origin is a copy of the file that costs what is written to it,
 * and so are its snapshots, whatever is done to them. Method: random operations of a file system on
 * volumes of a pool in memory, killed now and then, against plain buffers.
 */
import {
  closeSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import {
  FALLOC_KEEP_SIZE,
  FALLOC_PUNCH_HOLE,
  FALLOC_ZERO_RANGE,
  KIB,
  SEEK_DATA,
  SEEK_HOLE,
} from '../../src/base/index.js'
import { VolumeFs } from '../../src/fs/index.js'
import { openPool, rescuePool, type Volumes } from '../../src/volumes/index.js'
import { formatted, killed, type MemoryFiles, openFiles } from '../support/memory-pool.js'
import { makePool } from '../support/pool-files.js'
import { Random } from '../support/random.js'
import { openTable } from '../support/volumes-on-disk.js'

const BLOCK = 64 * KIB
const ROOT = 1
const PUNCH = FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE
const ZERO = FALLOC_KEEP_SIZE | FALLOC_ZERO_RANGE
/**
 * It ends within a sector, has a hole of some blocks, and one that begins and ends within blocks.
 */
const BASE_SIZE = 9 * BLOCK + 300

function baseIn(folder: string): Buffer {
  const content = Buffer.alloc(BASE_SIZE)
  const fd = openSync(join(folder, 'base.img'), 'w')
  for (const [begin, end] of [
    [0, 2 * BLOCK],
    [4 * BLOCK, 5 * BLOCK + 8192],
    [6 * BLOCK + 4096, BASE_SIZE],
  ] as const) {
    for (let i = begin; i < end; i++) content[i] = 1 + (i % 251)
    writeSync(fd, content, begin, end - begin, begin)
  }
  closeSync(fd)
  return content
}

interface Opened {
  volumes: Volumes
  fs: VolumeFs
  files: MemoryFiles
}

/** Keeps volumes.json in memory. */
class Table {
  readonly path = 'volumes.json'
  text: string | null = null
  read(): string | null {
    return this.text
  }
  async replace(content: Uint8Array): Promise<void> {
    this.text = Buffer.from(content).toString()
  }
}

async function open(files: MemoryFiles, table: Table, folder: string): Promise<Opened> {
  const { pool } = await openFiles(files)
  const volumes = openTable(pool, files.metadata, table, () => {}, folder)
  return { volumes, fs: new VolumeFs(volumes, { uid: 0, gid: 0 }, 0), files }
}

async function read(fs: VolumeFs, ino: number, offset: number, size: number): Promise<Buffer> {
  const buffer = Buffer.alloc(size, 0xee)
  if (fs.read(ino, offset, size, buffer, 0) < 0) await fs.readLater(ino, offset, size, buffer, 0)
  return buffer
}

/** @returns whether it was done; false where that is not supported */
async function tried(act: () => unknown): Promise<boolean> {
  try {
    await act()
    return true
  } catch (err) {
    if ((err as { errno: string }).errno === 'EOPNOTSUPP') return false
    throw err
  }
}

/** Everything outside of what lseek calls data is zeros. */
async function holesAreZeros(t: Test, fs: VolumeFs, ino: number, model: Buffer, what: string) {
  for (let at = 0; at < model.length; ) {
    const seek = async (whence: number) => fs.lseek(ino, at, whence)
    const data = await seek(SEEK_DATA).catch(() => model.length)
    if (!model.subarray(at, data).every(byte => byte === 0))
      return t.fail(`${what}: a hole has data`)
    if (data >= model.length) return
    at = data
    const hole = await seek(SEEK_HOLE)
    if (hole <= data) return t.fail(`${what}: data of no length at ${data}`)
    at = hole
  }
}

/** One operation on a file, and on the buffer that is its model. @returns the model */
async function change(fs: VolumeFs, ino: number, model: Buffer, random: Random): Promise<Buffer> {
  const offset = random.below(model.length)
  const length = Math.min(random.between(1, 3 * BLOCK), model.length - offset)
  switch (random.of(['write', 'write', 'write', 'punch', 'zero', 'size', 'past'])) {
    case 'write': {
      const fill = random.between(1, 255)
      await fs.write(ino, offset, length, Buffer.alloc(length, fill), 0)
      return model.fill(fill, offset, offset + length)
    }
    case 'punch': {
      const done = await tried(() => fs.fallocate(ino, PUNCH, offset, length))
      return done ? model.fill(0, offset, offset + length) : model
    }
    case 'zero':
      await fs.fallocate(ino, ZERO, offset, length)
      return model.fill(0, offset, offset + length)
    case 'past': {
      const at = model.length + random.below(BLOCK)
      await fs.write(ino, at, 100, Buffer.alloc(100, 7), 0)
      return Buffer.concat([model, Buffer.alloc(at - model.length), Buffer.alloc(100, 7)])
    }
    default: {
      const size = random.between(1, 12 * BLOCK)
      await fs.setattr(ino, { size })
      return Buffer.concat([model, Buffer.alloc(12 * BLOCK)]).subarray(0, size)
    }
  }
}

t.test('random operations leave what they leave in a copy of the file', async t => {
  for (let seed = 1; seed <= 12; seed++) {
    const folder = t.testdir()
    const base = baseIn(folder)
    const random = new Random(seed)
    const blockSectors = random.of([8, 128, 256])
    const files = formatted({ blockSectors, dataBlocks: (512 * 128) / blockSectors })
    const table = new Table()
    let opened = await open(files, table, folder)
    const path = join(folder, 'base.img')
    const size = random.of([undefined, 5 * BLOCK, 11 * BLOCK])
    const sized = size === undefined ? {} : { size }
    await opened.volumes.create({ name: 'v0', externalOrigin: path, ...sized })
    const models = new Map<string, Buffer>()
    const whole = Buffer.concat([base, Buffer.alloc(12 * BLOCK)])
    models.set('v0', whole.subarray(0, size ?? Math.ceil(BASE_SIZE / 512) * 512))
    for (let step = 0; step < 30; step++) {
      const { fs, volumes } = opened
      const name = random.of([...models.keys()])
      const { ino } = fs.lookup(ROOT, name)
      await fs.open(ino, 2, step + 1)
      models.set(name, await change(fs, ino, Buffer.from(models.get(name)!), random))
      fs.release(ino, step + 1)
      if (random.chance(0.15)) {
        const copy = `v${models.size}`
        await volumes.snapshot({ origin: name, name: copy })
        models.set(copy, Buffer.from(models.get(name)!))
      }
      if (random.chance(0.1)) {
        const from = random.of([...models.keys()])
        const length = Math.min(models.get(from)!.length, models.get(name)!.length)
        if (from !== name) {
          const done = await fs.copyFileRange(fs.lookup(ROOT, from).ino, 0, ino, 0, length)
          models.get(from)!.copy(models.get(name)!, 0, 0, done)
        }
      }
      if (random.chance(0.1)) {
        await fs.settle()
        opened = await open(killed(opened.files), table, folder)
      }
    }
    const { fs, volumes } = opened
    for (const [name, model] of models) {
      const { ino, size } = fs.lookup(ROOT, name)
      t.equal(size, model.length, `seed ${seed}: size of ${name}`)
      const found = await read(fs, ino, 0, size)
      t.equal(found.equals(model), true, `seed ${seed}: content of ${name}`)
      await holesAreZeros(t, fs, ino, model, `seed ${seed}: ${name}`)
    }
    t.equal(readFileSync(path).equals(base), true, 'the file is only read')
    t.same((await volumes.check()).problems, [], `seed ${seed}: sound`)
    await volumes.close()
  }
})

t.test('a file that is another one is refused, and all is well when it is back', async t => {
  const folder = t.testdir()
  const base = baseIn(folder)
  const path = join(folder, 'base.img')
  /** Seconds since 1970. */
  const made = 1_700_000_000
  utimesSync(path, made, made)
  const table = new Table()
  const files = formatted({ blockSectors: 128, dataBlocks: 64 })
  let { volumes, fs } = await open(files, table, folder)
  await t.rejects(volumes.create({ name: 'x', externalOrigin: join(folder, 'none') }), {
    code: 'BAD_ARGUMENT',
    message: /none: no such file/,
  })
  await t.rejects(volumes.create({ name: 'x', externalOrigin: folder }), { code: 'BAD_ARGUMENT' })
  await t.rejects(volumes.create({ name: 'x' }), { code: 'BAD_ARGUMENT' })
  await volumes.create({ name: 'web', externalOrigin: path })
  await volumes.snapshot({ origin: 'web', name: 'web@1' })
  await volumes.message({ message: 'create_snap 7 0' })
  t.match(JSON.parse(table.text!).volumes, [
    { name: 'web', external_origin: { path: 'base.img', size: BASE_SIZE, shown: BASE_SIZE } },
    { name: 'web@1', external_origin: { path: 'base.img' } },
    { name: 'thin-7', external_origin: { path: 'base.img' } },
  ])
  await volumes.close()
  utimesSync(path, made, made + 1)
  const reopened = await open(files, table, folder)
  volumes = reopened.volumes
  fs = reopened.fs
  const { ino } = fs.lookup(ROOT, 'web')
  for (const change of [
    () => {},
    () => writeFileSync(path, base.subarray(1)),
    () => rmSync(path),
  ]) {
    change()
    t.throws(() => fs.open(ino, 2, 1), { code: 'ORIGIN_CHANGED', errno: 'EIO' })
    await t.rejects(async () => fs.write(ino, 5, 1, Buffer.of(1), 0), { code: 'ORIGIN_CHANGED' })
    t.equal(volumes.find('web')!.opens, 0)
    t.equal(volumes.infos.mappedBytes(volumes.find('web')!), 0, 'nothing is written')
  }
  baseIn(folder)
  utimesSync(path, made, made)
  await fs.open(ino, 2, 1)
  t.equal((await read(fs, ino, 0, BASE_SIZE)).equals(base), true)
  await volumes.close()
})

t.test('a rescue shows it where it is', async t => {
  const config = await makePool(t.testdir())
  const content = baseIn(config.folder)
  const { volumes, close } = await openPool(config)
  await volumes.create({ name: 'v', externalOrigin: join(config.folder, 'base.img') })
  await close()
  const folder = join(config.folder, 'rescued')
  mkdirSync(folder)
  const rescued = await rescuePool(config, folder, BLOCK, () => {})
  const after = await openPool(rescued.config, { readOnly: true, acceptMetadata: true })
  const found = Buffer.alloc(BASE_SIZE)
  await after.volumes.find('v')!.io.readLater(0, BASE_SIZE, found, 0)
  await after.close()
  t.ok(found.equals(content))
})
