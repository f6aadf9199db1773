// Goal: pools behind tables come to be, grow, wait and go as the kernel's do, whatever was in their
// files before. Method: each rule with the files that show it; thin_check and thin_dump judge.
import { cpSync, mkdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { KIB, MIB } from '../../src/base/index.js'
import { idOf } from '../../src/storage/index.js'
import type { Extent } from '../../src/tables/index.js'
import {
  errno,
  get,
  make,
  poolLine,
  put,
  reload,
  SECTOR,
  type TablesHere,
  tablesHere,
  thinLine,
} from '../support/tables.js'
import { fixture, thinCheck, thinDump } from '../support/thin-tools.js'

const BLOCK = 64 * KIB
const POOL = 1
const THIN = 2
const LENGTH = (64 * MIB) / SECTOR

interface Files extends TablesHere {
  metadata: Extent
  data: Extent
}

function files(t: Test, dataBlocks = 16): Files {
  const here = tablesHere(t)
  return {
    ...here,
    metadata: here.file('metadata', (4 * MIB) / SECTOR),
    data: here.file('data', (dataBlocks * BLOCK) / SECTOR),
  }
}

/** A pool that serves, with thin device 0 of 64 MiB as THIN. */
async function pool(t: Test, dataBlocks?: number): Promise<Files> {
  const here = files(t, dataBlocks)
  await make(here.tables, POOL, poolLine(here.metadata, here.data))
  await here.tables.message(POOL, 0, ['create_thin', '0'])
  await make(here.tables, THIN, thinLine(POOL, 0, LENGTH))
  return here
}

const status = async ({ tables }: Files, minor = POOL): Promise<string[]> =>
  (await tables.status(minor, true))[0]!.split(' ')

/** The bytes of a block, told by its number. */
const block = (fill: number, size = BLOCK): Buffer => Buffer.alloc(size, fill)

t.test('a fresh pool on parts of one file that holds old bytes', async t => {
  const here = tablesHere(t)
  const { tables } = here
  const { path } = here.file('disk', (32 * MIB) / SECTOR)
  writeFileSync(path, Buffer.alloc(32 * MIB, 0xdd), { flag: 'r+' })
  const part = (offset: number, length: number): Extent => ({
    path,
    offset: offset * MIB,
    length: length * MIB,
  })
  writeFileSync(path, Buffer.alloc(4 * KIB), { flag: 'r+' })
  const disk = readFileSync(path)
  disk.fill(0, 4 * MIB, 4 * MIB + 4 * KIB)
  writeFileSync(path, disk, { flag: 'r+' })
  const table = poolLine(part(4, 4), part(16, 1))
  await make(tables, POOL, {
    ...table,
    length: (2 * MIB) / SECTOR,
    data: [part(16, 1), part(10, 1)],
  })
  await tables.message(POOL, 0, ['create_thin', '0'])
  await make(tables, THIN, thinLine(POOL, 0, LENGTH))
  const thin = tables.device(THIN)
  for (let nth = 0; nth < 32; nth++) await put(thin, nth * BLOCK + 512, block(nth + 1, 512))
  const expected = Buffer.alloc(32 * BLOCK)
  for (let nth = 0; nth < 32; nth++) expected.fill(nth + 1, nth * BLOCK + 512, nth * BLOCK + 1024)
  t.ok((await get(thin, 0, 32 * BLOCK)).equals(expected), 'no old byte shows')
  // lvextend adds a part that holds old bytes, too.
  await reload(tables, POOL, {
    ...table,
    length: (3 * MIB) / SECTOR,
    data: [part(16, 1), part(10, 1), part(24, 1)],
  })
  await put(thin, 32 * BLOCK + 512, block(0xff, 512))
  t.same(await get(thin, 32 * BLOCK, 512), Buffer.alloc(512))
  await tables.remove(THIN)
  await tables.remove(POOL)
  const left = readFileSync(path)
  t.equal(thinCheck(left.subarray(4 * MIB, 8 * MIB)).status, 0)
  for (const [from, to] of [
    [8, 10],
    [11, 16],
    [17, 24],
    [25, 32],
  ]) {
    const rest = left.subarray(from! * MIB, to! * MIB)
    t.ok(
      rest.every(byte => byte === 0xdd),
      `MiB ${from} to ${to} are somebody else's`,
    )
  }
})

t.test('metadata that is refused', async t => {
  const here = files(t)
  const { tables, metadata, data } = here
  await tables.create(POOL)
  const table = poolLine(metadata, data)
  const load = (changes = {}): Promise<void> => tables.load(POOL, [{ ...table, ...changes }], false)
  await t.rejects(load({ readOnly: true }), errno('EPERM'), 'not formatted')
  await t.rejects(load({ data: [metadata] }), errno('EINVAL'), 'data and metadata are the same')
  await t.rejects(load({ blockSize: 100 }), errno('EINVAL'))
  t.ok(
    readFileSync(metadata.path).every(byte => byte === 0),
    'nothing was written',
  )
  const superblock = Buffer.alloc(4 * KIB)
  superblock[4095] = 1
  writeFileSync(metadata.path, superblock, { flag: 'r+' })
  await t.rejects(load(), errno('EILSEQ'))
  writeFileSync(metadata.path, block(0x4a), { flag: 'r+' })
  await t.rejects(load(), errno('ENOTBLK'))
  writeFileSync(metadata.path, fixture('one-thin'))
  await t.rejects(load({ blockSize: 256 }), errno('EINVAL'), 'other blocks')
  t.ok(readFileSync(metadata.path).equals(fixture('one-thin')))
})

t.test('one pool has one device', async t => {
  const here = await pool(t)
  const { tables, metadata, data } = here
  await tables.create(5)
  await t.rejects(tables.load(5, [poolLine(metadata, data)], false), errno('EBUSY'))
  await t.rejects(here.again().tables.load(POOL, [], false), errno('ENODEV'))
  const other = here.again().tables
  await other.create(POOL)
  const held = { code: 'POOL_IN_USE', errno: 'EBUSY' }
  await t.rejects(other.load(POOL, [poolLine(metadata, data)], false), held, 'another process')
  await tables.remove(THIN)
  await tables.remove(POOL)
  await other.load(POOL, [poolLine(metadata, data)], false)
})

t.test('what was acknowledged is there after a death', async t => {
  const here = await pool(t)
  const thin = here.tables.device(THIN)
  await put(thin, 0, block(1))
  await put(thin, 5 * BLOCK, block(2))
  await thin.discard(0, BLOCK)
  await put(thin, 7 * BLOCK + 100, block(3, 100))
  // Not committed.
  const { tables } = await afterDeath(t, here)
  const expected = Buffer.alloc(8 * BLOCK)
  expected.fill(2, 5 * BLOCK, 6 * BLOCK)
  expected.fill(3, 7 * BLOCK + 100, 7 * BLOCK + 200)
  t.ok((await get(tables.device(THIN), 0, 8 * BLOCK)).equals(expected))
})

/** What another process makes of the files as they are now: the pool, and thin device 0. */
async function afterDeath(t: Test, here: Files, data = here.data): Promise<TablesHere> {
  const left = tablesHere(t)
  for (const name of ['metadata', 'data']) cpSync(join(here.folder, name), join(left.folder, name))
  const at = ({ path, length }: Extent): Extent => {
    return { path: path.replace(here.folder, left.folder), offset: 0, length }
  }
  // A journal goes by the file that it belongs to.
  const nameOf = ({ path }: Extent): string => join('pools', `${idOf(path)}-0`)
  mkdirSync(join(left.folder, 'pools'))
  cpSync(join(here.folder, nameOf(here.metadata)), join(left.folder, nameOf(at(here.metadata))))
  await make(left.tables, POOL, poolLine(at(here.metadata), at(data)))
  await make(left.tables, THIN, thinLine(POOL, 0, LENGTH))
  return left
}

t.test('what was acknowledged while the pool grew is there after a death', async t => {
  const here = await pool(t, 4)
  const { tables, metadata } = here
  const thin = tables.device(THIN)
  for (let nth = 0; nth < 4; nth++) await put(thin, nth * BLOCK, block(nth))
  let left: TablesHere | null = null
  const data = { ...here.data, length: 8 * BLOCK }
  const waiting = put(thin, 4 * BLOCK, block(9)).then(async () => {
    left = await afterDeath(t, here, data)
  })
  truncateSync(data.path, data.length)
  await reload(tables, POOL, poolLine(metadata, data))
  await waiting
  t.same(await get(left!.tables.device(THIN), 4 * BLOCK, BLOCK), block(9))
})

t.test('a write that waits for space', async t => {
  const here = await pool(t, 4)
  const { tables, metadata, events } = here
  const thin = tables.device(THIN)
  for (let nth = 0; nth < 4; nth++) await put(thin, nth * BLOCK, block(nth))
  const waiting = put(thin, 4 * BLOCK, block(9))
  await new Promise(resolve => setTimeout(resolve, 50))
  t.same((await status(here)).slice(2, 7), [
    '4/4',
    '-',
    'out_of_data_space',
    'discard_passdown',
    'queue_if_no_space',
  ])
  t.ok(events.length > 0 && events.every(minor => minor === POOL))
  // Neither the pool's suspension nor one without a flush waits for it.
  await tables.suspend(THIN, false)
  await tables.resume(THIN)
  const data = { ...here.data, length: 8 * BLOCK }
  truncateSync(data.path, data.length)
  await tables.load(POOL, [poolLine(metadata, data)], false)
  await tables.suspend(POOL, true)
  const read = get(thin, 0, BLOCK)
  await tables.resume(POOL)
  await waiting
  t.same(await read, block(0))
  t.same(await get(thin, 4 * BLOCK, BLOCK), block(9))
  t.same((await status(here)).slice(2, 5), ['5/8', '-', 'rw'])
  t.equal((await status(here, THIN))[0], String((5 * BLOCK) / SECTOR))
})

t.test('a full pool whose table comes to say that writes fail', async t => {
  const here = await pool(t, 1)
  const { tables, metadata, data } = here
  const thin = tables.device(THIN)
  await put(thin, 0, block(1))
  const waiting = put(thin, BLOCK, block(2))
  await tables.load(POOL, [poolLine(metadata, data, { errorIfNoSpace: true })], false)
  const failed = t.rejects(waiting, errno('ENOSPC'))
  await tables.resume(POOL)
  await failed
  await t.rejects(async () => put(thin, BLOCK, block(2)), errno('ENOSPC'))
})

t.test('thin devices of a suspended pool wait', async t => {
  const { tables } = await pool(t)
  const thin = tables.device(THIN)
  await tables.suspend(POOL, true)
  let done = false
  const written = put(thin, 0, block(1)).then(() => {
    done = true
  })
  await tables.message(POOL, 0, ['create_snap', '1', '0'])
  await new Promise(resolve => setTimeout(resolve, 20))
  t.notOk(done)
  await tables.resume(POOL)
  await written
  await make(tables, 3, thinLine(POOL, 1, LENGTH))
  t.same(await get(tables.device(3), 0, BLOCK), Buffer.alloc(BLOCK), 'made before the write')
})

t.test('thin devices outlive the table of their pool', async t => {
  const here = await pool(t)
  const { tables, metadata, data } = here
  const thin = tables.device(THIN)
  await put(thin, 0, block(1))
  await reload(tables, POOL, { type: 'error', start: 0, length: data.length / SECTOR })
  t.same(await get(thin, 0, BLOCK), block(1))
  await t.rejects(tables.message(POOL, 0, ['create_thin', '5']), errno('EINVAL'))
  await reload(tables, POOL, poolLine(metadata, data))
  await put(thin, BLOCK, block(2))
  await tables.remove(THIN)
  await tables.remove(POOL)
  t.equal(thinDump(metadata.path).devices.get(0)!.mappedBlocks, 2)
})

t.test('a reload that changes how discards and writes go', async t => {
  const here = await pool(t)
  const { tables, metadata, data } = here
  const thin = tables.device(THIN)
  await put(thin, 0, block(1))
  await put(thin, BLOCK, block(1))
  await reload(tables, POOL, poolLine(metadata, data, { noDiscardPassdown: true }))
  t.equal((await status(here))[5], 'no_discard_passdown')
  await thin.discard(0, BLOCK)
  t.same(await get(thin, 0, 2 * BLOCK), Buffer.concat([block(0), block(1)]))
  t.equal((await status(here, THIN))[0], String(BLOCK / SECTOR))
  await reload(tables, POOL, poolLine(metadata, data, { readOnly: true }))
  t.equal((await status(here))[4], 'ro')
  await t.rejects(tables.message(POOL, 0, ['create_thin', '5']), errno('EOPNOTSUPP'))
  await reload(tables, POOL, poolLine(metadata, data))
  await put(thin, 3 * BLOCK, block(4))
  await tables.remove(THIN)
  await tables.remove(POOL)
  t.equal(thinCheck(metadata.path).status, 0)
})

t.test("a pool's own device shows its data device", async t => {
  const { tables, data } = await pool(t)
  await put(tables.device(THIN), 0, block(7))
  await tables.device(THIN).flush()
  t.same(await get(tables.device(POOL), 0, data.length), readFileSync(data.path))
  await put(tables.device(POOL), 100, Buffer.from('mapped one to one'))
  t.equal(readFileSync(data.path).toString('latin1', 100, 117), 'mapped one to one')
})

t.test('an older copy of the metadata is refused; without the journal it is accepted', async t => {
  const here = await pool(t)
  const thin = here.tables.device(THIN)
  await put(thin, 0, block(1))
  await here.tables.status(POOL, true)
  const older = readFileSync(here.metadata.path)
  await put(thin, BLOCK, block(2))
  await here.tables.close()
  const newer = readFileSync(here.metadata.path)
  writeFileSync(here.metadata.path, older)

  const { tables } = here.again()
  await tables.create(POOL)
  const load = (): Promise<void> => tables.load(POOL, [poolLine(here.metadata, here.data)], false)
  const journal = join(here.folder, 'pools', `${idOf(here.metadata.path)}-0`)
  await t.rejects(load(), { code: 'POOL_MISMATCH', message: journal })
  writeFileSync(here.metadata.path, newer)
  await load()
  await tables.clear(POOL)
  writeFileSync(here.metadata.path, older)
  await t.rejects(load(), { code: 'POOL_MISMATCH' })
  rmSync(journal)
  await load()
  await tables.resume(POOL)
  await make(tables, THIN, thinLine(POOL, 0, LENGTH))
  t.ok((await get(tables.device(THIN), 0, BLOCK)).equals(block(1)))
  t.ok((await get(tables.device(THIN), BLOCK, BLOCK)).equals(block(0)))
})

t.test('a pool on stripes', async t => {
  const here = tablesHere(t)
  const { tables } = here
  const half = (8 * BLOCK) / SECTOR
  const [a, b] = [here.file('a', half), here.file('b', half)]
  const rest = (file: Extent): Extent => ({ ...file, offset: 4 * BLOCK, length: 4 * BLOCK })
  // From the second block of what two stripes make.
  const data = [
    { stripes: [[rest(a)], [rest(b)]], chunk: BLOCK, offset: BLOCK, length: 6 * BLOCK },
    { ...b, length: 4 * BLOCK },
  ]
  const metadata = here.file('metadata', (4 * MIB) / SECTOR)
  const table = { ...poolLine(metadata, a), data, length: (10 * BLOCK) / SECTOR }
  await make(tables, POOL, table)
  await tables.message(POOL, 0, ['create_thin', '0'])
  await make(tables, THIN, thinLine(POOL, 0, LENGTH))
  const thin = tables.device(THIN)
  for (let nth = 0; nth < 10; nth++) await put(thin, nth * BLOCK, block(nth + 1))
  t.match(await tables.status(POOL, true), [/ 10\/10 /])
  const chunks = (file: Extent): number[] => {
    const bytes = readFileSync(file.path)
    return Array.from({ length: 8 }, (_, nth) => bytes[nth * BLOCK]!)
  }
  t.same(chunks(a), [0, 0, 0, 0, 0, 2, 4, 6])
  t.same(chunks(b), [7, 8, 9, 10, 1, 3, 5, 0])
  await thin.discard(BLOCK, 2 * BLOCK)
  await tables.status(POOL, true)
  // Blocks become holes when the commit that freed them is over.
  for (let turns = 0; chunks(a)[5] !== 0 && turns < 1000; turns++) await delay(10)
  t.same(chunks(a), [0, 0, 0, 0, 0, 0, 4, 6])

  await tables.create(7)
  const overlap = { ...table, metadata: [{ ...b, offset: 5 * BLOCK, length: 3 * BLOCK }] }
  await t.rejects(tables.load(7, [overlap], false), { message: /data and metadata are the same/ })
})
