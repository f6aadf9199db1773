// Goal: metadata of another pool in the place of ours never costs a byte, whatever its transaction
// id, and what thin_restore makes of our own is served. Method: two pools whose metadata files are
// exchanged, as they are and through thin_dump and thin_restore; the files compared with what they
// were.
import { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { MIB } from '../../src/base/index.js'
import type { PoolConfig } from '../../src/config/index.js'
import { FileStore, type Label } from '../../src/storage/index.js'
import { type CheckReport, checkPool, type OpenOptions, openPool } from '../../src/volumes/index.js'
import { filesLeft, makePool } from '../support/pool-files.js'
import { thinCheck, thinDump, thinDumpXml, thinRestore } from '../support/thin-tools.js'

const BLOCK = 65536
const CONTENT = Buffer.alloc(BLOCK, 'precious')
const UUID = '[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}'

const messages = ({ problems }: CheckReport): string[] =>
  problems.map(({ severity, message }) => `${severity}: ${message}`)
const uuidBytes = ({ metadata }: PoolConfig): string =>
  readFileSync(metadata.path).toString('hex', 16, 32)
const tableOf = ({ folder }: PoolConfig) =>
  JSON.parse(readFileSync(join(folder, 'volumes.json'), 'utf8'))
const tableUuid = (config: PoolConfig): string =>
  tableOf(config).uuid?.replaceAll('-', '') ?? '0'.repeat(32)

/** A pool with 8 flushed blocks in one volume, which is closed. */
async function ourPool(t: Test): Promise<PoolConfig> {
  const config = await makePool(t.testdir())
  const { volumes, close } = await openPool(config)
  const { device } = await volumes.newVolumes.make('web', MIB)
  for (let block = 0; block < 8; block++) await device.write(block * BLOCK, BLOCK, CONTENT, 0)
  await volumes.commit()
  await close()
  return config
}

function labelOf({ data }: PoolConfig): Label {
  const store = FileStore.open(data.path)
  const label = store.readLabel()
  store.close()
  return label!
}

/** Gives a copy the label of its original, as cp -a does. */
function setLabel({ data }: PoolConfig, label: Label): void {
  const store = FileStore.open(data.path)
  store.writeLabel(label)
  store.close()
}

/** Metadata of a pool of the same size and name whose transaction id is higher. */
async function othersMetadata(t: Test): Promise<Buffer> {
  const folder = join(t.testdirName, 'other')
  mkdirSync(folder)
  const config = await makePool(folder)
  const { volumes, close } = await openPool(config)
  for (const name of ['a', 'b', 'c']) await volumes.create({ name, size: MIB })
  await close()
  return readFileSync(config.metadata.path)
}

/** Metadata of the same content as thin_restore makes it: without an id. */
const restored = (image: Buffer): Buffer => thinRestore(thinDumpXml(image), image.length)

const filesOf = ({ folder }: PoolConfig): Buffer[] =>
  ['data', 'metadata', 'volumes.json', 'journal'].map(name => readFileSync(join(folder, name)))

async function open(config: PoolConfig, options: OpenOptions = {}) {
  const warnings: string[] = []
  const pool = await openPool(config, { ...options, onWarning: what => warnings.push(what) })
  return { ...pool, warnings }
}

/** Opens and closes the pool, and reads what `web` has. */
async function content(config: PoolConfig, options: OpenOptions = {}) {
  const { volumes, warnings, close } = await open(config, options)
  const { device } = volumes.find('web')!
  const found = Buffer.alloc(BLOCK)
  for (let block = 0; block < 8; block++) {
    await device.read(block * BLOCK, BLOCK, found, 0)
    if (!found.equals(CONTENT)) throw new Error(`block ${block} is lost`)
  }
  await close()
  return warnings
}

async function refused(t: Test, config: PoolConfig, message: RegExp): Promise<void> {
  const before = filesOf(config)
  await t.rejects(openPool(config), { code: 'POOL_MISMATCH', message })
  t.ok(
    filesOf(config).every((file, i) => file.equals(before[i]!)),
    'the files are as they were',
  )
}

t.test('a pool is told from any other, to the kernel it is as any other', async t => {
  const ours = await ourPool(t)
  const image = readFileSync(ours.metadata.path)
  t.match(tableOf(ours).uuid, new RegExp(`^${UUID}$`))
  t.equal(uuidBytes(ours), tableUuid(ours), 'kept by every commit')
  t.not(uuidBytes(ours), (await othersMetadata(t)).toString('hex', 16, 32))
  t.equal(thinCheck(image).status, 0)
  t.match(thinDumpXml(image), /<superblock uuid="" /)
  t.same(thinDump(restored(image)), thinDump(image))
  t.same(messages(await checkPool(ours)), [])
})

t.test("another pool's metadata with a higher transaction id", async t => {
  const ours = await ourPool(t)
  const right = readFileSync(ours.metadata.path)
  writeFileSync(ours.metadata.path, await othersMetadata(t))
  const why = new RegExp(`volumes.json: of the pool ${UUID}, the metadata is of ${UUID}`)
  await refused(t, ours, why)
  t.match(messages(await checkPool(ours)), [why])

  const accepted = filesLeft(ours, 'accepted')
  const { volumes, close } = await open(accepted, { acceptMetadata: true })
  t.equal(volumes.count, 3)
  await close()
  t.equal(tableUuid(accepted), uuidBytes(accepted), 'its id is taken over')
  const again = await open(accepted)
  t.same(again.warnings, [])
  await again.close()

  writeFileSync(ours.metadata.path, right)
  t.same(await content(ours), [], 'the right metadata put back')
})

t.test('metadata without an id', async t => {
  await t.test('our own, as thin_restore makes it, is served with a warning', async t => {
    for (const end of ['closed', 'killed']) {
      const ours = await ourPool(t)
      const { volumes, close } = await openPool(ours)
      await volumes.create({ name: 'more', size: MIB })
      const left = end === 'killed' ? filesLeft(ours) : ours
      await close()
      writeFileSync(left.metadata.path, restored(readFileSync(left.metadata.path)))
      t.match(messages(await checkPool(left)), [/^warning: .*has no id/])
      t.match(await content(left), [/volumes.json: of the pool .*, the metadata has no id/])
      t.equal(tableUuid(left), uuidBytes(left))
      t.same(await content(left), [], 'once')
      t.equal(thinCheck(left.metadata.path).status, 0)
    }
  })

  await t.test("another's is refused where free blocks hold data", async t => {
    const ours = await ourPool(t)
    const image = await othersMetadata(t)
    for (const xml of [
      thinDumpXml(image),
      // A flag that asks for a check is no reason to discard anything.
      thinDumpXml(image).replace(' flags="0"', ' flags="1"'),
    ]) {
      writeFileSync(ours.metadata.path, thinRestore(xml, image.length))
      await refused(t, ours, /8 data blocks that it calls free hold data.*--accept-metadata/)
    }
    const journalLost = filesLeft(ours, 'without')
    writeFileSync(join(journalLost.folder, 'journal'), '')
    await refused(t, journalLost, /8 data blocks that it calls free hold data/)
  })
})

t.test('names from before pools had an id', async t => {
  const ours = await ourPool(t)
  const file = join(ours.folder, 'volumes.json')
  const { uuid, ...older } = tableOf(ours)
  writeFileSync(file, JSON.stringify(older))
  t.same(await content(ours), [])
  t.notOk('uuid' in tableOf(ours), 'not written for this alone')
  const { volumes, close } = await openPool(ours)
  await volumes.create({ name: 'next', size: MIB })
  await close()
  t.equal(tableOf(ours).uuid, uuid, 'with the next change')

  // Neither has one.
  const image = readFileSync(ours.metadata.path)
  const none = filesLeft(ours, 'none')
  writeFileSync(none.metadata.path, restored(image))
  writeFileSync(join(none.folder, 'volumes.json'), JSON.stringify({ ...tableOf(none), uuid: null }))
  t.same(await content(none), [])
  t.same(messages(await checkPool(none)), [])
})

t.test('an older copy of the metadata, and no journal that would tell', async t => {
  const ours = await ourPool(t)
  const older = readFileSync(ours.metadata.path)
  const { volumes, close } = await openPool(ours)
  const { device } = volumes.find('web')!
  for (let block = 8; block < 12; block++) await device.write(block * BLOCK, BLOCK, CONTENT, 0)
  await volumes.commit()
  const killed = filesLeft(ours, 'killed')
  await close()

  for (const left of [ours, killed]) {
    setLabel(left, labelOf(ours))
    const right = readFileSync(left.metadata.path)
    writeFileSync(left.metadata.path, older)
    rmSync(join(left.folder, 'journal'))
    const before = readFileSync(left.data.path)
    for (const attempt of ['the first', 'the second']) {
      await t.rejects(openPool(left), {
        code: 'POOL_MISMATCH',
        message: /metadata: 4 data blocks that it calls free hold data/,
      })
      t.ok(readFileSync(left.data.path).equals(before), `nothing is punched, ${attempt} time`)
    }
    writeFileSync(left.metadata.path, right)
    t.same(await content(left), [], 'the right metadata put back, still without a journal')
  }
})

t.test('newer data that cp(1) brought without its label, beside older files', async t => {
  const ours = await ourPool(t)
  const older = filesLeft(ours, 'older')
  const { volumes, close } = await openPool(ours)
  const { device } = volumes.find('web')!
  for (let block = 8; block < 12; block++) await device.write(block * BLOCK, BLOCK, CONTENT, 0)
  await volumes.commit()
  const killed = filesLeft(ours, 'killed')
  await close()
  const closed = filesLeft(ours, 'closed')

  for (const left of [killed, closed]) {
    const mixed = filesLeft(left, 'mixed')
    for (const name of ['metadata', 'journal', 'volumes.json']) {
      copyFileSync(join(older.folder, name), join(mixed.folder, name))
    }
    const why = /metadata: 4 data blocks that it calls free hold data.*extended attributes/
    await refused(t, mixed, why)
    t.match(await checkPool(mixed), { problems: [{ severity: 'error', code: 'POOL_MISMATCH' }] })
    t.match(messages(await checkPool(mixed)), [why])
    t.same(await content(left), [], 'what belongs together is served')
  }
})

t.test('a pool of which the copy has no journal is served', async t => {
  const ours = await ourPool(t)
  const copy = filesLeft(ours, 'copy')
  setLabel(copy, labelOf(ours))
  rmSync(join(copy.folder, 'journal'))
  t.same(await content(copy), [])
  t.same(messages(await checkPool(copy, { deep: true })), [])
})
