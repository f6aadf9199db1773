// Goal: a pool all of whose stores are on NBD servers is there for whoever has its pool.yaml, in
// the kernel's format, with what was flushed; and its disks are taken by nobody who would do harm.
// Method: nbdkit with images, which thin_check and a plain copy judge.
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { isZero, KIB, METADATA_BLOCK_SIZE, MIB } from '../../src/base/index.js'
import type { PoolConfig } from '../../src/config/index.js'
import { checkPool, initPool, openPool, PoolFiles, planPool } from '../../src/volumes/index.js'
import { type Exports, imageOf, serveImages, shortFolder } from '../support/nbd-servers.js'
import { exportsConfig, poolConfig } from '../support/pool-files.js'
import { thinCheck } from '../support/thin-tools.js'

const SIZES = { data: 16 * MIB, metadata: 4 * MIB }

/** As pool.yaml in `folder` says it. */
const over = (folder: string, { data, metadata, state }: Exports): PoolConfig =>
  exportsConfig(folder, { data: data.address, metadata: metadata.address, state: state.address })

async function served(t: Test, ...args: string[]) {
  const folder = shortFolder(t)
  const exports = await serveImages(t, folder, SIZES, args)
  return { folder, exports, config: over(t.testdir(), exports) }
}

/** What a volume has. */
async function contentOf(config: PoolConfig, name: string, length: number): Promise<Buffer> {
  const { volumes, close } = await openPool(config)
  const found = Buffer.alloc(length)
  const { io } = volumes.find(name)!
  if (!io.read(0, length, found, 0)) await io.readLater(0, length, found, 0)
  await close()
  return found
}

for (const [name, args] of [
  ['that tells of holes', []],
  ['that does not', ['--filter=noextents']],
] as const) {
  t.test(`a server ${name}: made, used, checked, and opened from another folder`, async t => {
    const { folder, exports, config } = await served(t, ...args)
    await initPool(config)
    const { volumes, close } = await openPool(config)
    await volumes.create({ name: 'v', size: 4 * MIB })
    const { io } = volumes.find('v')!
    const content = Buffer.alloc(MIB, 'content')
    await io.write(4 * KIB, content.length, content, 0)
    await volumes.snapshot({ origin: 'v', name: 'before' })
    await io.write(0, 4 * KIB, Buffer.alloc(4 * KIB, 'new'), 0)
    await close()
    t.match(thinCheck(imageOf(folder, 'metadata')), { status: 0 }, 'thin_check of the export')
    t.same((await checkPool(config, { deep: true })).problems, [])
    t.notOk(existsSync(join(config.folder, 'volumes.json')), 'nothing of it is kept here')
    t.notOk(existsSync(join(config.folder, 'journal')))

    const elsewhere = over(shortFolder(t), exports)
    const wanted = Buffer.concat([Buffer.alloc(4 * KIB, 'new'), content])
    t.ok((await contentOf(elsewhere, 'v', wanted.length)).equals(wanted))
    wanted.fill(0, 0, 4 * KIB)
    t.ok((await contentOf(elsewhere, 'before', wanted.length)).equals(wanted))
    t.match(thinCheck(imageOf(folder, 'metadata')), { status: 0 })
  })
}

t.test('disks without a pool are said to have none, and stay as they are', async t => {
  const { folder, config } = await served(t)
  const message = /^nbd\+unix:.*: it is empty, there is no pool on it yet; thinfs init makes it$/
  await t.rejects(openPool(config), { code: 'NOT_A_POOL', message })
  await t.rejects(openPool(config, { readOnly: true }), { code: 'NOT_A_POOL', message })
  await t.rejects(checkPool(config), { code: 'NOT_A_POOL', message })
  for (const name of ['data', 'metadata', 'state']) {
    t.ok(isZero(readFileSync(imageOf(folder, name))), name)
  }
  await initPool(config)
  t.same((await checkPool(config, { deep: true })).problems, [])
})

t.test('metadata that was lost is no pool yet to be made', async t => {
  const { folder, config } = await served(t)
  await initPool(config)
  const { volumes, close } = await openPool(config)
  await volumes.create({ name: 'v', size: 4 * MIB })
  await close()
  writeFileSync(imageOf(folder, 'metadata'), Buffer.alloc(SIZES.metadata))
  await t.rejects(openPool(config), { code: 'METADATA_CORRUPT', message: /magic is 0/ })
})

t.test('disks that hold something are taken by --force alone', async t => {
  for (const name of ['data', 'metadata', 'state'] as const) {
    const { folder, config } = await served(t)
    const image = imageOf(folder, name)
    const before = readFileSync(image)
    before.write('somebody’s', name === 'metadata' ? 2 * MIB : 0)
    writeFileSync(image, before)
    const message = /^nbd\+unix:.*: it is not empty: it has data; .*--force overwrites it/
    await t.rejects(initPool(config), { code: 'BAD_ARGUMENT', message }, name)
    await t.rejects(planPool(config), { code: 'BAD_ARGUMENT', message }, name)
    t.ok(readFileSync(image).equals(before), `${name} is as it was`)
    await planPool(config, { force: true })
    t.ok(readFileSync(image).equals(before), `${name} is as it was`)
    await initPool(config, { force: true })
    t.match(thinCheck(imageOf(folder, 'metadata')), { status: 0 })
    await t.rejects(initPool(config), { code: 'BAD_ARGUMENT' }, 'a pool is something')
  }
})

t.test('a file system on an export is named', async t => {
  const { folder, config } = await served(t)
  const superblock = Buffer.alloc(2)
  superblock.writeUInt16LE(0xef53)
  const image = readFileSync(imageOf(folder, 'data'))
  superblock.copy(image, 1024 + 56)
  image.writeUInt32LE(1, 1024 + 76)
  writeFileSync(imageOf(folder, 'data'), image)
  const message = /it has a signature of ext\d at byte 1080/
  await t.rejects(initPool(config), { code: 'BAD_ARGUMENT', message })
})

t.test('two pools of one machine refuse each other the same disk', async t => {
  const { exports, config } = await served(t)
  await initPool(config)
  const open = await openPool(config)
  const other = over(t.testdir({ other: {} }), exports)
  t.throws(() => PoolFiles.open(other), {
    code: 'POOL_IN_USE',
    message: /^nbd\+unix:.*: another process has it/,
  })
  const data = { ...poolConfig(t.testdir({ third: {} })), data: other.data, cache: other.cache! }
  await t.rejects(initPool(data), { code: 'POOL_IN_USE' })
  await open.close()
  const readers = [PoolFiles.open(config, true), PoolFiles.open(other, true)]
  t.throws(() => PoolFiles.open(other), { code: 'POOL_IN_USE' })
  for (const reader of readers) reader.close()
  PoolFiles.open(other).close()
})

t.test('power is lost here: what was flushed is there', async t => {
  const { folder, config } = await served(t)
  await initPool(config)
  const { volumes, close } = await openPool(config)
  await volumes.create({ name: 'v', size: 4 * MIB })
  const { io } = volumes.find('v')!
  const content = Buffer.alloc(MIB, 'content')
  await io.write(0, MIB, content, 0)
  await volumes.commit()
  await io.write(MIB, MIB, content, 0)
  await volumes.pool.settle()
  const left = shortFolder(t)
  mkdirSync(left, { recursive: true })
  for (const name of ['data', 'metadata', 'state']) {
    copyFileSync(imageOf(folder, name), imageOf(left, name))
  }
  await close()
  t.match(thinCheck(imageOf(left, 'metadata')), { status: 0 })
  const after = over(t.testdir({ after: {} }), await serveImages(t, left, SIZES))
  t.ok((await contentOf(after, 'v', MIB)).equals(content))
  t.same((await checkPool(after, { deep: true })).problems, [])
})

t.test('exports that have grown make the pool larger when it is opened next', async t => {
  const { folder, config } = await served(t)
  await initPool(config)
  truncateSync(imageOf(folder, 'data'), 4 * SIZES.data)
  truncateSync(imageOf(folder, 'metadata'), 2 * SIZES.metadata)
  const { volumes, close } = await openPool(config)
  const { data, metadata } = await volumes.status()
  t.equal(data.blocks, (4 * SIZES.data) / config.dataBlockSize)
  t.equal(metadata.blocks, (2 * SIZES.metadata) / METADATA_BLOCK_SIZE)
  await volumes.create({ name: 'v', size: 2 * SIZES.data })
  const content = Buffer.alloc(MIB, 'more than there was room for')
  const { io } = volumes.find('v')!
  for (let at = 0; at < 2 * SIZES.data; at += MIB) await io.write(at, MIB, content, 0)
  await t.rejects(volumes.extend({ data: 8 * SIZES.data }), {
    code: 'BAD_ARGUMENT',
    message: /the disk has 67108864 bytes, 134217728 are wanted/,
  })
  await close()
  t.match(thinCheck(imageOf(folder, 'metadata')), { status: 0 })
  t.same((await checkPool(config, { deep: true })).problems, [])
})

t.test('what was read before the pool was this process’s is not written back', async t => {
  const { folder, config } = await served(t)
  await initPool(config)
  const files = PoolFiles.open(config)
  await files.connect()
  // Another host, which has no lock here, commits.
  const image = readFileSync(imageOf(folder, 'metadata'))
  image.writeUInt32LE(image.readUInt32LE(48) + 1, 48)
  writeFileSync(imageOf(folder, 'metadata'), image)
  const message = /another host has written to it meanwhile; try again/
  await t.rejects(openPool(config, { files }), { code: 'POOL_IN_USE', message })
  files.close()
  t.ok(readFileSync(imageOf(folder, 'metadata')).equals(image))
})
