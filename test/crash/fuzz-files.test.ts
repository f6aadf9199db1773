/**
 * Goal: whatever stands in volumes.json, the journal or pool.yaml, a pool opens or is refused with
 * one line that tells what is wrong, and its metadata stays sound. Method: files as thinfs writes
 * them, changed field by field and byte by byte; what opened is compared by checkers of the
 * metadata.
 */
import '../support/unverified.js'
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { crc32c } from '@node-rs/crc32'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { bytes, MAX_DEVICE_SIZE, ThinfsError } from '../../src/base/index.js'
import { loadConfig, type PoolConfig } from '../../src/config/index.js'
import { parseConfig } from '../../src/config/load.js'
import { checkMetadata } from '../../src/metadata/index.js'
import { NO_EVENTS, ThinPool } from '../../src/pool/index.js'
import { CHANGE } from '../../src/pool/journal-changes.js'
import { FRAME, IDENTITY } from '../../src/pool/journal-frames.js'
import { checkPool, openPool } from '../../src/volumes/index.js'
import { devId, formatted, MemoryJournal, openFiles, TestClock } from '../support/memory-pool.js'
import { makePool } from '../support/pool-files.js'
import { SparseStore } from '../support/sparse-store.js'
import { EFFORT, tally } from '../support/tally.js'
import { thinCheck } from '../support/thin-tools.js'

const SEED = EFFORT === 1 ? { seed: 4 } : {}
/** Null in five of six cases. */
const rarely = <T>(value: fc.Arbitrary<T>): fc.Arbitrary<T | null> =>
  fc.oneof({ weight: 5, arbitrary: fc.constant(null) }, { weight: 1, arbitrary: value })
const BLOCK = 4096

// Files are flushed again and again: where it costs nothing.
const base = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'thinfs-fuzz-'))
t.teardown(() => rmSync(base, { recursive: true }))

const outcomes = new Map<string, number>()
const count = (outcome: string): void => {
  outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1)
}
function told(t: Test, inputs: number): void {
  for (const [outcome, times] of [...outcomes].sort()) t.comment(`${times} ${outcome}`)
  outcomes.clear()
  tally(t, { 'inputs fuzzed': inputs })
}

/** @returns null, or the code of the error, which is one of the table and one line */
async function attempt(act: () => unknown): Promise<string | null> {
  try {
    await act()
    return null
  } catch (err) {
    if (!(err instanceof ThinfsError)) throw err
    if (/\p{Cc}/u.test(err.message)) throw new Error(`not one line: ${JSON.stringify(err.message)}`)
    if (err.message.length > 6000) throw new Error(`${err.message.length} characters`)
    return err.code
  }
}

const NUMBERS = [0, 1, -1, 0.5, 2 ** 24, 2 ** 32, 2 ** 53 - 1, 2 ** 53, 2 ** 60, 1e15, 1e308, -1e15]
const STRINGS = ['', '..', '.', 'a/b', 'a\0b', 'a\nb', '__proto__', 'constructor', 'web', 'thin-1']
const ODD: fc.Arbitrary<unknown> = fc.oneof(
  fc.constantFrom<unknown>(...NUMBERS, ...STRINGS, null, true, [], {}, 'x'.repeat(300)),
  fc.string({ unit: 'binary' }),
  fc.double(),
)

// --- volumes.json ---

/** A place in a JSON value, each step taken modulo what there is. */
type Change = {
  steps: number[]
  how: 'set' | 'remove' | 'add' | 'double'
  odd: unknown
  by: number
}

const change: fc.Arbitrary<Change> = fc.record({
  steps: fc.array(fc.nat({ max: 1000 }), { minLength: 1, maxLength: 4 }),
  how: fc.constantFrom('set', 'set', 'set', 'remove', 'add', 'double'),
  odd: ODD,
  by: fc.constantFrom(0, 0, 1, -1),
})

function changed(root: unknown, { steps, how, odd, by }: Change): void {
  let holder = root as Record<string, unknown>
  let key = ''
  for (const step of steps) {
    const inner = key === '' ? holder : holder[key]
    if (typeof inner !== 'object' || inner === null || Object.keys(inner).length === 0) break
    holder = inner as Record<string, unknown>
    const keys = Object.keys(holder)
    key = keys[step % keys.length]!
  }
  const old = holder[key]
  if (how === 'remove') {
    if (Array.isArray(holder)) holder.splice(Number(key), 1)
    else delete holder[key]
  } else if (how === 'double' && Array.isArray(old)) old.push(structuredClone(old[0] ?? odd))
  else if (how === 'add') holder.extra = odd
  else holder[key] = by !== 0 && typeof old === 'number' ? old + by : odd
}

async function withNames(): Promise<{ config: PoolConfig; table: object }> {
  const folder = join(base, 'names')
  mkdirSync(folder)
  const config = await makePool(folder, {
    data: { path: '', size: 4 * 1024 * 1024 },
    metadata: { path: '', size: 2 * 1024 * 1024 },
  })
  const { volumes, close } = await openPool(config)
  await volumes.create({ name: 'web', size: 1024 * 1024 })
  await volumes.find('web')!.device.write(5, 70_000, Buffer.alloc(70_000, 'web'), 0)
  await volumes.snapshot({ origin: 'web', name: 'old' })
  await volumes.create({ name: 'log', size: 512 })
  await volumes.rename({ from: 'log', to: 'logs' })
  await close()
  return { config, table: JSON.parse(readFileSync(join(folder, 'volumes.json'), 'utf8')) }
}

const names = await withNames()
const files = ['data', 'metadata', 'journal'].map(name => join(names.config.folder, name))
for (const file of files) cpSync(file, `${file}.kept`)

/** Opens the pool with a certain volumes.json, and uses what is there. */
async function openWith(text: string | Buffer): Promise<string> {
  const { config } = names
  for (const file of files) cpSync(`${file}.kept`, file)
  writeFileSync(join(config.folder, 'volumes.json'), text)
  await attempt(() => checkPool(config))
  let opened: Awaited<ReturnType<typeof openPool>> | undefined
  const refused = await attempt(async () => {
    opened = await openPool(config)
  })
  if (!opened) return `refused: ${refused}`
  const { volumes } = opened
  const buffer = Buffer.alloc(BLOCK)
  await attempt(() => volumes.list())
  await attempt(() => volumes.status())
  for (const { name, device, devId: id } of [...volumes.all()]) {
    if (device.devId !== id) throw new Error(`${name} is device ${id} and ${device.devId}`)
    await attempt(() => device.read(0, Math.min(BLOCK, device.size), buffer, 0))
    await attempt(() => device.write(0, Math.min(BLOCK, device.size), buffer, 0))
    await attempt(() => volumes.resize({ name, size: 1024 }))
  }
  await attempt(() => volumes.rename({ from: 'web', to: 'net' }))
  await attempt(() => volumes.remove({ names: ['old'] }))
  await attempt(() => volumes.create({ name: 'new', size: 4096 }))
  const closed = await attempt(() => opened!.close())
  if (closed !== null) throw new Error(`close: ${closed}`)
  // What it wrote can be opened again, and the checker finds nothing.
  const { problems } = await checkPool(config)
  if (problems.length > 0) throw new Error(problems[0]!.message)
  return 'served'
}

t.test('any volumes.json', async t => {
  const inputs = 200 * EFFORT
  await fc.assert(
    fc.asyncProperty(
      fc.array(change, { minLength: 1, maxLength: 2 }),
      rarely(fc.tuple(fc.nat(), fc.nat({ max: 255 }))),
      async (changes, byte) => {
        const table = structuredClone(names.table)
        for (const one of changes) changed(table, one)
        const text = Buffer.from(JSON.stringify(table))
        if (byte) text[byte[0] % text.length] = byte[1]
        count(await openWith(text))
      },
    ),
    { ...SEED, numRuns: inputs, endOnFailure: true },
  )
  t.ok(outcomes.get('served')! > inputs / 50, 'some are as good')
  t.ok(outcomes.get('refused: POOL_MISMATCH')! > inputs / 20)
  told(t, inputs)
})

t.test('a volumes.json that was once taken wrongly', async t => {
  const id = (names.table as { transaction_id: number }).transaction_id
  const [web, old] = (names.table as { volumes: { name: string; dev_id: number }[] }).volumes
  const cases: [what: string, text: string, outcome: string][] = [
    ['nested', '['.repeat(1_000_000), 'refused: POOL_MISMATCH'],
    ['nested and closed', '['.repeat(500_000) + ']'.repeat(500_000), 'refused: POOL_MISMATCH'],
    [
      'no date',
      JSON.stringify({ ...names.table, volumes: [{ ...web, created: 1e300 }] }),
      'refused: POOL_MISMATCH',
    ],
    [
      'nobody',
      JSON.stringify({ ...names.table, volumes: [{ ...web, uid: 2 ** 32 }] }),
      'refused: POOL_MISMATCH',
    ],
    [
      'too large',
      JSON.stringify({ ...names.table, volumes: [{ ...web, size: MAX_DEVICE_SIZE + 1 }] }),
      'refused: POOL_MISMATCH',
    ],
    [
      'an undo that gives one device the entry of another',
      JSON.stringify({
        ...names.table,
        transaction_id: id + 1,
        undo: [{ dev_id: old!.dev_id, before: web }],
      }),
      'refused: POOL_MISMATCH',
    ],
    [
      'an undo that takes a name that is taken',
      JSON.stringify({
        ...names.table,
        transaction_id: id + 1,
        undo: [{ dev_id: old!.dev_id, before: { ...old, name: web!.name } }],
      }),
      'refused: POOL_MISMATCH',
    ],
    [
      'far ahead',
      JSON.stringify({ ...names.table, transaction_id: id + 1e15 }),
      'refused: POOL_MISMATCH',
    ],
    [
      'nothing in it that the pool has',
      JSON.stringify({ ...names.table, volumes: [{ ...web, dev_id: 99 }], undo: [] }),
      'served',
    ],
  ]
  for (const [what, text, outcome] of cases) t.equal(await openWith(text), outcome, what)
  told(t, cases.length)
})

t.test('what is no file is refused, and not waited for', async t => {
  const { config } = names
  const { folder } = config
  let cases = 0
  for (const name of ['volumes.json', 'journal', 'metadata', 'data']) {
    for (const make of ['mkfifo', 'mkdir']) {
      await openWith(JSON.stringify(names.table))
      rmSync(join(folder, name))
      execFileSync(make, [join(folder, name)])
      t.type(await attempt(() => openPool(config)), 'string', `${make} ${name}`)
      // What the check does not read does not matter to it.
      await attempt(() => checkPool(config))
      rmSync(join(folder, name), { recursive: true })
      cases++
    }
  }
  for (const [name, size] of [
    ['volumes.json', 2 ** 40],
    ['journal', 2 ** 40],
  ] as const) {
    await openWith(JSON.stringify(names.table))
    writeFileSync(join(folder, name), '')
    truncateSync(join(folder, name), size)
    t.equal(await attempt(() => openPool(config)), 'POOL_MISMATCH', `${name} of 1 TiB`)
    rmSync(join(folder, name))
    cases++
  }
  for (const [what, make] of [
    ['a FIFO', (path: string) => execFileSync('mkfifo', [path])],
    ['a folder', (path: string) => mkdirSync(path)],
    ['100 MB', (path: string) => writeFileSync(path, Buffer.alloc(1e8))],
  ] as const) {
    const path = join(base, 'pool.yaml')
    make(path)
    t.equal(await attempt(() => loadConfig(path)), 'BAD_CONFIG', what)
    rmSync(path, { recursive: true })
    cases++
  }
  for (const path of ['/dev/zero', '/dev/null', 'a\0b', join(base, 'x'.repeat(5000))]) {
    t.equal(await attempt(() => loadConfig(path)), 'BAD_CONFIG', path.slice(0, 20))
    cases++
  }
  tally(t, { 'inputs fuzzed': cases })
})

// --- journal ---

interface Frame {
  kind: number
  payload: Buffer
}

/** A pool with changes that only its journal has. */
async function withJournal(): Promise<{ metadata: Buffer; journal: MemoryJournal; size: number }> {
  const files = formatted({ blockSectors: 8, dataBlocks: 300, metadataBlocks: 256 })
  const { pool } = await openFiles(files)
  const buffer = Buffer.alloc(64 * 1024, 'journal')
  pool.devices.createThin(devId(1))
  pool.devices.createThin(devId(2))
  const device = pool.devices.get(devId(1), bytes(2 ** 20))
  await device.write(0, buffer.length, buffer, 0)
  await pool.commit()
  await device.write(2 * buffer.length, buffer.length, buffer, 0)
  await device.discard(0, 8192)
  await pool.devices.get(devId(2), bytes(2 ** 20)).share(device, 2 * buffer.length, 0, 16384)
  pool.extended(devId(2), bytes(2 ** 21))
  pool.devices.opened(devId(1), 2)
  await pool.settle()
  return {
    metadata: Buffer.from(files.metadata.image),
    journal: files.journal.copy(),
    size: files.data.size,
  }
}

const left = await withJournal()

const nat64 = fc.oneof(
  fc.nat({ max: 400 }),
  fc.constantFrom(
    1,
    2,
    3,
    299,
    300,
    2 ** 24 - 1,
    2 ** 24,
    2 ** 40,
    2 ** 41,
    2 ** 53 - 1,
    2 ** 53,
    2 ** 60,
    2 ** 63,
  ),
)
const changeRecord = fc
  .record({
    kind: fc.oneof({ weight: 20, arbitrary: fc.integer({ min: 1, max: 5 }) }, fc.nat({ max: 9 })),
    time: fc.constantFrom(0, 1, 5, 0xff_ffff, 0x100_0000, 0xffff_ffff),
    devId: fc.oneof({ weight: 8, arbitrary: fc.constantFrom(1, 2) }, nat64),
    first: nat64,
    second: nat64,
  })
  .map(fields => {
    const change = Buffer.alloc(CHANGE.size)
    CHANGE.write(new DataView(change.buffer, change.byteOffset), 0, fields)
    return change
  })
const hash = createHash('sha256').update(left.metadata.subarray(0, BLOCK)).digest()
const age = Buffer.alloc(IDENTITY.size - 68)
const identity = Buffer.concat([Buffer.from('boot-1'.padEnd(36)), hash, age])
const frame: fc.Arbitrary<Frame> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc
      .array(changeRecord, { minLength: 1, maxLength: 12 })
      .map(changes => ({ kind: 2, payload: Buffer.concat(changes) })),
  },
  {
    weight: 1,
    arbitrary: fc.constantFrom({ kind: 1, payload: identity }, { kind: 3, payload: identity }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      kind: fc.nat({ max: 5 }),
      payload: fc.uint8Array({ maxLength: 100 }).map(bytes => Buffer.from(bytes)),
    }),
  },
)

function framed({ kind, payload }: Frame): Buffer {
  const header = Buffer.alloc(FRAME.size)
  const fields = { magic: 0x4a_6e_68_74, kind, length: payload.length, csum: crc32c(payload) }
  FRAME.write(new DataView(header.buffer, header.byteOffset), 0, fields)
  return Buffer.concat([header, payload])
}

/** Opens the pool with a journal, and closes it. */
async function replayed(journal: Buffer): Promise<{ outcome: string; image: Buffer }> {
  const metadata = new SparseStore('metadata', left.metadata)
  let pool: ThinPool | undefined
  const refused = await attempt(async () => {
    pool = await ThinPool.open({
      metadata,
      data: new SparseStore('data', Buffer.alloc(0), left.size),
      journal: new MemoryJournal('boot-1', journal),
      readOnly: false,
      takesOver: true,
      discards: 'passdown',
      onFull: 'error',
      lowWaterMark: 0,
      clock: new TestClock(),
      events: NO_EVENTS,
    })
  })
  for (const size of pool?.devices.unsavedSizes.values() ?? []) {
    if (!(size <= MAX_DEVICE_SIZE)) throw new Error(`a device of ${size} bytes`)
  }
  const buffer = Buffer.alloc(BLOCK)
  await attempt(() => pool?.devices.get(devId(1), bytes(2 ** 20)).read(0, BLOCK, buffer, 0))
  await attempt(() => pool?.devices.get(devId(1), bytes(2 ** 20)).write(100, 100, buffer, 0))
  const closed = await attempt(() => pool?.close())
  const outcome = refused === null ? `replayed, closed: ${closed ?? 'well'}` : `refused: ${refused}`
  return { outcome, image: metadata.image() }
}

t.test('any journal', async t => {
  const inputs = 300 * EFFORT
  let shown = 0
  await fc.assert(
    fc.asyncProperty(
      fc.array(frame, { minLength: 1, maxLength: 4 }),
      fc.boolean(),
      rarely(fc.tuple(fc.nat(), fc.nat({ max: 255 }))),
      async (frames, behindOurs, byte) => {
        const start = behindOurs ? left.journal.content : framed({ kind: 1, payload: identity })
        const journal = Buffer.concat([start, ...frames.map(framed)])
        if (byte) journal[byte[0] % journal.length] = byte[1]
        const { outcome, image } = await replayed(journal)
        const { problems } = checkMetadata(new SparseStore('metadata', image))
        if (problems.length > 0) throw new Error(`${outcome}: ${problems[0]!.message}`)
        if (outcome.startsWith('refused')) {
          if (!image.equals(left.metadata)) throw new Error('refused, but the metadata changed')
        } else if (++shown % 20 === 0) {
          const { status, stdout, stderr } = thinCheck(image)
          if (status !== 0) throw new Error(`thin_check: ${stdout}${stderr}`)
        }
        count(outcome)
      },
    ),
    { ...SEED, numRuns: inputs, endOnFailure: true },
  )
  t.ok(outcomes.get('replayed, closed: well')! > inputs / 20, 'some fit')
  t.ok(outcomes.get('refused: POOL_MISMATCH')! > inputs / 20, 'some do not')
  told(t, inputs)
})

// --- pool.yaml ---

const YAML = `pool: p
data: {path: data, size: 1G}
metadata: {path: metadata, size: auto}
data_block_size: 64K
low_water_mark: 20%
discards: passdown
on_full: queue
volumes:
  web: {size: 10G, id: 5}
  old: {snapshot_of: web}
`
const line = fc.oneof(
  fc.constantFrom(
    '__proto__: {size: 1G}',
    '<<: {pool: x}',
    'pool: !!js/function "x"',
    'a: &a [*a]',
    '  web: {size: 1e400}',
    '  n: {size: -1}',
    '  n: {size: 9007199254740991}',
    '  n: {size: 9007199254740992}',
    '  n: {id: 16777216, size: 1G}',
    '? [a]\n: b',
    '--- x',
    '...',
    '\t',
    '%YAML 9.9',
    'data: {size: 0}',
    'data_block_size: 3K',
    '  a/b: {size: 1G}',
    '  "a\\nb": {size: 1G}',
    '  "a\\0b": {size: 1G}',
    '  constructor: {size: 1G}',
    '  x: {snapshot_of: x}',
    '  y: {snapshot_of: toString}',
    'volumes: [a]',
    'data: {path: "a\\0b"}',
    'data: {path: "a\\nb"}',
    'low_water_mark: 1e400%',
  ),
  fc.string({ unit: 'binary', maxLength: 30 }),
)

t.test('any pool.yaml', async t => {
  const inputs = 1500 * EFFORT
  await fc.assert(
    fc.asyncProperty(
      fc.nat({ max: YAML.split('\n').length - 1 }),
      fc.array(line, { maxLength: 2 }),
      rarely(fc.tuple(fc.nat({ max: YAML.length }), fc.string({ unit: 'binary' }))),
      async (at, lines, other) => {
        const all = YAML.split('\n')
        all.splice(at, lines.length > 0 ? 1 : 0, ...lines)
        let text = all.join('\n')
        if (other) text = text.slice(0, other[0]) + other[1] + text.slice(other[0] + 1)
        const refused = await attempt(() => parseConfig(text, 'pool.yaml', '/p/pool.yaml'))
        count(refused ?? 'taken')
      },
    ),
    { ...SEED, numRuns: inputs, endOnFailure: true },
  )
  t.same([...outcomes.keys()].sort(), ['BAD_CONFIG', 'taken'])
  told(t, inputs)
})

t.test('a pool.yaml that wants much is refused at its place', async t => {
  const many = (count: number, one: (i: number) => string, between = '\n'): string =>
    Array.from({ length: count }, (_, i) => one(i)).join(between)
  const cases: [what: string, text: string, message: RegExp][] = [
    ['lists in lists', '['.repeat(100_000), /^pool.yaml:1:\d+: .*nested/],
    ['closed', '['.repeat(50_000) + ']'.repeat(50_000), /^pool.yaml:1:\d+: .*nested/],
    ['maps in maps', '{a: '.repeat(50_000), /^pool.yaml:1:\d+: .*nested/],
    ['sequences in a line', '- '.repeat(50_000), /^pool.yaml:1:\d+: .*nested/],
    ['keys in keys', '? '.repeat(50_000), /^pool.yaml:1:\d+: .*nested/],
    ['keys that are not known', many(20_000, i => `a${i}: x`), /^pool.yaml:1:1: a0 is not known/],
    [
      'a billion laughs',
      `a: &a0 [x, x]\n${many(40, i => `b${i}: &a${i + 1} [*a${i}, *a${i}]`)}`,
      /^pool.yaml: .*alias/,
    ],
    ['a list of itself', 'pool: &a [*a]', /^pool.yaml:1:\d+: pool: a list is not allowed/],
    [
      'many digits',
      `pool: p\ndata: {size: ${'9'.repeat(500_000)}}`,
      /^pool.yaml:2:14: data.size: /,
    ],
    [
      'many volumes without a size',
      `pool: p\nvolumes:\n${many(10_000, i => `  v${i}: {}`)}`,
      /^pool.yaml:3:7: /,
    ],
  ]
  for (const [what, text, message] of cases) {
    t.throws(
      () => parseConfig(text, 'pool.yaml', '/p/pool.yaml'),
      { code: 'BAD_CONFIG', message },
      what,
    )
  }
  const line = many(20_000, i => `  v${i + 1}: {snapshot_of: v${i}}`)
  const { volumes } = parseConfig(
    `pool: p\nvolumes:\n${line}\n  v0: {size: 512}`,
    'pool.yaml',
    '/p/pool.yaml',
  )
  t.equal(volumes.v20000?.size, 512, 'a long line of snapshots')
  tally(t, { 'inputs fuzzed': cases.length + 1 })
})
