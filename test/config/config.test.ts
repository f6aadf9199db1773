import assert from 'node:assert/strict'
import { readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { parse } from 'yaml'
import { MIB, ThinfsError } from '../../src/base/index.js'
import {
  checkVolumeName,
  exactSize,
  formatSize,
  formatSizes,
  loadConfig,
  lowWaterMarkBlocks,
  type PoolConfig,
  parseConfig,
  parseSize,
  renderConfig,
} from '../../src/config/index.js'

const FILE = '/srv/pool/pool.yaml'
const load = (text: string) => parseConfig(text, 'pool.yaml', FILE)

const SIZE_FORMS =
  'bytes, sectors as in 8s, or a number with K, M, G, T or P (powers of 1024), as in 64K, 64KiB or 1.5G'
const KEYS =
  'pool, data, metadata, state, ceph, cache, tenancy, data_block_size, low_water_mark, discards, on_full, queue_timeout, min_free_space, hooks, transport, spin, spin_share, volumes'
const NAME_RULE = 'a name is 1 to 255 bytes of UTF-8 that could name a file'
const ORIGIN = 'the name of another volume in this file'

t.test('says in full what a complete file says', async t => {
  const text = `
pool: main
data: { path: ../blocks/data, size: 1.5T, autoextend: { threshold: 70%, max: 8T } }
metadata: { path: /var/meta, size: 2GiB, autoextend: {} }
data_block_size: 128k
low_water_mark: 12.5%
discards: nopassdown
on_full: error
queue_timeout: 0
min_free_space: 12.5%
hooks: 'echo "$THINFS_EVENT" >> /e'
transport: uring
spin: 0
spin_share: 12.5%
volumes:
  web: { size: 10G, id: 0 }
  no: { size: 65536 }
  007: { snapshot_of: no, limit: 2M, reserve: 1M }
  __proto__: { size: 512B, snapshot_of: web, id: 16777215 }
`
  const { volumes, ...pool } = load(text)
  t.strictSame(pool, {
    file: FILE,
    folder: '/srv/pool',
    pool: 'main',
    data: {
      path: '/srv/blocks/data',
      size: 1.5 * 2 ** 40,
      autoextend: { threshold: 70, percent: 20, max: 2 ** 43 },
    },
    metadata: {
      path: '/var/meta',
      size: 2 ** 31,
      autoextend: { threshold: 80, percent: 20, max: null },
    },
    dataBlockSize: 131072,
    lowWaterMark: { percent: 12.5 },
    discards: 'nopassdown',
    onFull: 'error',
    queueTimeout: 0,
    minFreeSpace: 12.5,
    hooks: 'echo "$THINFS_EVENT" >> /e',
    transport: 'uring',
    spin: 0,
    spinShare: 12.5,
  })
  t.strictSame(new Map(Object.entries(volumes)).get('__proto__'), {
    size: 512,
    id: 16777215,
    snapshotOf: 'web',
  })
  t.strictSame(Object.keys(volumes).sort(), ['007', '__proto__', 'no', 'web'])
  t.strictSame(volumes.web, { size: 10 * 2 ** 30, id: 0 })
  const rules = { limit: 2 ** 21, reserve: 2 ** 20 }
  const origins = { size: 65536, snapshotOf: 'no', ...rules }
  t.strictSame(volumes['007'], origins, 'as large as its origin')
})

t.test('defaults: 64K blocks, files beside pool.yaml, queue, passdown, mark at 20%', async t => {
  for (const text of ['pool: main', 'pool: main\ndata: {}\nvolumes:\n  # none yet\n']) {
    t.strictSame(load(text), {
      file: FILE,
      folder: '/srv/pool',
      pool: 'main',
      data: { path: '/srv/pool/data', size: null },
      metadata: { path: '/srv/pool/metadata', size: 'auto' },
      dataBlockSize: 65536,
      lowWaterMark: { percent: 20 },
      discards: 'passdown',
      onFull: 'queue',
      queueTimeout: 60,
      transport: 'dev',
      spin: 400,
      spinShare: 80,
      volumes: {},
    })
  }
})

t.test('a bad file is refused with place, what stands there and what is allowed', async t => {
  const blockSizes =
    'a multiple of 64K from 64K to 1G, or 4K, 8K, 16K, 32K (those are readable by thinfs alone)'
  const cases: [text: string, message: string][] = [
    [
      'pool: a\ndata_block_size: 100K\n',
      `2:18: data_block_size: 100K is not allowed; ${blockSizes}`,
    ],
    ['pool: a\ndata_block_size: 2G', `2:18: data_block_size: 2G is not allowed; ${blockSizes}`],
    ['pool: a\ndata_block_size: 0', `2:18: data_block_size: 0 is not allowed; ${blockSizes}`],
    ['pool: a\ndata_block_size:', `2:17: data_block_size: nothing is not allowed; ${blockSizes}`],
    [
      'pool: a\ndata_block_size: [4K]',
      `2:18: data_block_size: a list is not allowed; ${blockSizes}`,
    ],
    [
      'pool: a\ndata: {size: 10Q}',
      `2:14: data.size: 10Q is not allowed; at least one data block: ${SIZE_FORMS}`,
    ],
    [
      'pool: a\ndata: {size: 32K}',
      '2:14: data.size: 32K is not allowed; at least one data block (data_block_size)',
    ],
    [
      'pool: a\ndata: 10G',
      '2:7: data: 10G is not allowed; a map of path, nbd, rbd, size, extents, autoextend',
    ],
    [
      'pool: a\ndata:\n  sise: 10G',
      '3:3: data.sise is not known; allowed are path, nbd, rbd, size, extents, autoextend',
    ],
    [
      'pool: a\ndata: {autoextend: {threshold: 100%}}',
      '2:32: data.autoextend.threshold: 100% is not allowed; a percentage from 50% to 99%',
    ],
    [
      'pool: a\ndata: {autoextend: {percent: 20}}',
      '2:30: data.autoextend.percent: 20 is not allowed; a percentage from 1% to 1000%, as in 20%',
    ],
    [
      'pool: a\nmetadata: {autoextend: {max: 16G}}',
      '2:30: metadata.autoextend.max: 16G is not allowed; a size from 2M to 16646400K (15.88G)',
    ],
    [
      'pool: a\ndata: {autoextend: 80%}',
      '2:20: data.autoextend: 80% is not allowed; a map of threshold, percent, max',
    ],
    ['pool: a\nvolume: {}\n', `2:1: volume is not known; allowed are ${KEYS}`],
    ['pool: a\n__proto__: {}\n', `2:1: __proto__ is not known; allowed are ${KEYS}`],
    ['data: {}\nzpool: a', `2:1: zpool is not known; allowed are ${KEYS}`],
    [
      'data: {}',
      '1:1: pool: is missing; a name: up to 127 letters, digits and . _ + -, a letter or digit first',
    ],
    [
      'pool: a b',
      '1:7: pool: a b is not allowed; a name: up to 127 letters, digits and . _ + -, a letter or digit first',
    ],
    [
      'pool: a\nmetadata: {size: 1M}',
      '2:18: metadata.size: 1M is not allowed; auto, or a size from 2M to 16646400K (15.88G)',
    ],
    [
      'pool: a\nmetadata: {path: ./data}',
      '2:18: metadata.path: ./data is not allowed; a file of its own, not that of the data',
    ],
    [
      'pool: a\ndata: {path: thinfs.log, size: 1M}',
      '2:14: data.path: thinfs.log is not allowed; a file that thinfs does not write for itself',
    ],
    [
      'pool: a\ndata: {path: daemon.json, size: 1M}',
      '2:14: data.path: daemon.json is not allowed; a file that thinfs does not write for itself',
    ],
    [
      'pool: a\nmetadata: {path: ./journal}',
      '2:18: metadata.path: ./journal is not allowed; a file that thinfs does not write for itself',
    ],
    [
      'pool: a\nmetadata: {path: volumes.json.new}',
      '2:18: metadata.path: volumes.json.new is not allowed; a file that thinfs does not write for itself',
    ],
    [
      'pool: a\ndata: {path: record-1.data, size: 1M}',
      '2:14: data.path: record-1.data is not allowed; a file that thinfs does not write for itself',
    ],
    [
      'pool: a\nlow_water_mark: 101%',
      `2:17: low_water_mark: 101% is not allowed; a percentage as in 20%, or ${SIZE_FORMS}`,
    ],
    ['pool: a\ndiscards: yes', '2:11: discards: yes is not allowed; passdown, nopassdown, ignore'],
    [
      'pool: a\nmin_free_space: 100%',
      '2:17: min_free_space: 100% is not allowed; a percentage from 0% to 99%, as in 10%',
    ],
    [
      'pool: a\nvolumes:\n  a: {size: 1G, limit: 1M, reserve: 2M}',
      '3:37: volumes.a.reserve: 2M is not allowed; no more than the limit',
    ],
    [
      'pool: a\nqueue_timeout: -1',
      '2:16: queue_timeout: -1 is not allowed; seconds from 0, which is for ever, to 1000000',
    ],
    ['pool: a\nhooks: " "', '2:8: hooks:   is not allowed; a command, as sh(1) takes it'],
    ['pool: a\ntransport: tcp', '2:12: transport: tcp is not allowed; dev, uring, fuse-native'],
    ['pool: a\nspin: 1001', '2:7: spin: 1001 is not allowed; microseconds from 0 to 1000'],
    [
      'pool: a\nspin_share: 0%',
      '2:13: spin_share: 0% is not allowed; a percentage over 0, as in 80%',
    ],
    [
      'pool: a\nspin_share: 101%',
      '2:13: spin_share: 101% is not allowed; a percentage over 0, as in 80%',
    ],
    ['pool: a\non_full: wait', '2:10: on_full: wait is not allowed; queue, error'],
    [
      'pool: a\nvolumes: [web]',
      '2:10: volumes: a list is not allowed; a map from names to size, id, snapshot_of, external_origin, limit, reserve',
    ],
    [
      'pool: a\nvolumes: {web: 10G}',
      '2:16: volumes.web: 10G is not allowed; a map of size, id, snapshot_of, limit, reserve, external_origin',
    ],
    ['pool: a\nvolumes:\n  web: {}', `3:8: volumes.web.size: is missing; ${SIZE_FORMS}`],
    [
      'pool: a\nvolumes:\n  web: {size: 100}',
      `3:15: volumes.web.size: 100 is not allowed; a multiple of 512 bytes: ${SIZE_FORMS}`,
    ],
    [
      'pool: a\nvolumes:\n  web: {size: 1G, id: -1}',
      '3:23: volumes.web.id: -1 is not allowed; a device id from 0 to 16777215',
    ],
    [
      'pool: a\nvolumes:\n  web: {size: 1G, id: 16777216}',
      '3:23: volumes.web.id: 16777216 is not allowed; a device id from 0 to 16777215',
    ],
    [
      'pool: a\nvolumes:\n  a: {size: 1G, id: 1}\n  b: {size: 1G, id: 1}',
      '4:21: volumes.b.id: 1 is not allowed; an id that no other volume has: see a',
    ],
    [
      'pool: a\nvolumes:\n  a: {snapshot_of: b}',
      `3:20: volumes.a.snapshot_of: b is not allowed; ${ORIGIN}`,
    ],
    [
      'pool: a\nvolumes:\n  a: {snapshot_of: b}\n  b: {snapshot_of: a}',
      '3:20: volumes.a.snapshot_of: b is not allowed; a volume that is not, by others, its own snapshot',
    ],
    [
      'pool: a\nvolumes:\n  a: {snapshot_of: a}',
      '3:20: volumes.a.snapshot_of: a is not allowed; a volume that is not, by others, its own snapshot',
    ],
    ['pool: a\nvolumes:\n  a/b: {size: 1G}', `3:3: volumes: "a/b": it has a '/'; ${NAME_RULE}`],
    [
      'pool: a\nvolumes:\n  thin-3: {size: 1G}',
      `3:3: volumes: "thin-3": that names the device with this id when it has no name; ${NAME_RULE}`,
    ],
    [
      'pool: "a\\nb"',
      '1:7: pool: "a\\nb" is not allowed; a name: up to 127 letters, digits and . _ + -, a letter or digit first',
    ],
    ['', `1:1: the file: nothing is not allowed; a map of ${KEYS}`],
    ['# nothing but this\n', `1:1: the file: nothing is not allowed; a map of ${KEYS}`],
    ['- pool', `1:1: the file: a list is not allowed; a map of ${KEYS}`],
    ['just text', `1:1: the file: just text is not allowed; a map of ${KEYS}`],
    ['pool: a\npool: b', '2:1: pool is there twice'],
    ['pool: a\nvolumes: {web: {size: 1G}, "web": {size: 2G}}', '2:28: web is there twice'],
    ['pool: !secret a', '1:7: Unresolved tag: !secret'],
    [
      'pool: [',
      '1:8: Flow sequence in block collection must be sufficiently indented and end with a ]',
    ],
    ['pool: a\n---\npool: b', '2:1: a second document, where one is allowed'],
    // The first in the file counts, whatever the order of the checks.
    ['on_full: wait\ndiscards: yes\npool: a', '1:10: on_full: wait is not allowed; queue, error'],
    // Through an alias, what is wrong stands where the anchor is.
    [
      'pool: a\ndata: &d {size: 1X}\nvolumes: {v: *d}',
      `2:17: data.size: 1X is not allowed; at least one data block: ${SIZE_FORMS}`,
    ],
  ]
  for (const [text, message] of cases) {
    t.throws(() => load(text), { code: 'BAD_CONFIG', message: `pool.yaml:${message}` }, text)
  }
})

t.test('hostile files end in an error, soon', async t => {
  const bomb = Array.from({ length: 9 }, (_, i) => `a${i + 1}: &a${i + 1} [${`*a${i},`.repeat(9)}]`)
  const cases = [
    ['aliases', `a0: &a0 [x]\n${bomb.join('\n')}\n`],
    ['nesting', '['.repeat(20_000)],
    ['lists in lists', '- '.repeat(20_000)],
    ['a binary', '\0\x01\x02\x7f'],
  ] as const
  for (const [name, text] of cases) t.throws(() => load(text), { code: 'BAD_CONFIG' }, name)

  t.doesNotThrow(() =>
    fc.assert(
      fc.property(fc.string({ unit: 'binary', maxLength: 200 }), text => {
        try {
          load(`pool: a\nvolumes: ${text}`)
        } catch (err) {
          if (!(err instanceof ThinfsError && err.code === 'BAD_CONFIG')) throw err
        }
      }),
    ),
  )
})

t.test('files that are not a pool.yaml at all', async t => {
  const folder = t.testdir({ large: '#'.repeat(2 ** 20 + 1), latin1: Buffer.from([0xe4, 0x3a]) })
  const path = (name: string) => join(folder, name)
  t.throws(() => loadConfig(path('none')), {
    errno: 'ENOENT',
    message: `${path('none')}: cannot be read`,
  })
  t.throws(() => loadConfig(folder), {
    code: 'BAD_CONFIG',
    message: `${folder}: is not a regular file`,
  })
  t.throws(() => loadConfig('/dev/zero'), { message: '/dev/zero: is not a regular file' })
  t.throws(() => loadConfig(path('large')), {
    message: `${path('large')}: has 1048577 bytes; 1 MiB is allowed`,
  })
  t.throws(() => loadConfig(path('latin1')), { message: `${path('latin1')}: is not UTF-8` })
})

t.test('one pool has one folder, by whatever link pool.yaml is reached', async t => {
  const folder = t.testdir({ real: { 'pool.yaml': 'pool: main' } })
  symlinkSync('real/pool.yaml', join(folder, 'link.yaml'))
  const config = loadConfig(join(folder, 'link.yaml'))
  t.equal(config.folder, join(folder, 'real'))
  t.equal(config.data.path, join(folder, 'real/data'))
})

const rules = (most: number) =>
  fc
    .option(
      fc.record({
        threshold: fc.integer({ min: 5000, max: 9900 }).map(n => n / 100),
        percent: fc.integer({ min: 1, max: 1000 }),
        max: fc.option(fc.integer({ min: 2 ** 21, max: most })),
      }),
    )
    .map(rule => (rule === null ? {} : { autoextend: { ...rule } }))

const sizes = fc.nat({ max: 2 ** 33 - 1 })
const configs: fc.Arbitrary<PoolConfig> = fc
  .record({
    pool: fc.stringMatching(/^[A-Za-z0-9][A-Za-z0-9._+-]{0,20}$/),
    dataPath: fc.string({ unit: 'grapheme', minLength: 1 }).filter(path => !path.includes('\0')),
    dataSize: fc.option(sizes.map(n => 2 ** 30 + n * 512)),
    metadataSize: fc.oneof(
      fc.constant('auto' as const),
      fc.integer({ min: 2 ** 21, max: 2 ** 33 }),
    ),
    dataRule: rules(2 ** 40),
    metadataRule: rules(2 ** 33),
    dataBlockSize: fc.oneof(
      fc.constantFrom(4096, 8192, 16384, 32768),
      fc.integer({ min: 1, max: 16384 }).map(n => n * 65536),
    ),
    lowWaterMark: fc.oneof(
      sizes.map(bytes => ({ bytes })),
      fc.integer({ min: 0, max: 10000 }).map(n => ({ percent: n / 100 })),
    ),
    discards: fc.constantFrom('passdown' as const, 'nopassdown' as const, 'ignore' as const),
    onFull: fc.constantFrom('queue' as const, 'error' as const),
    queueTimeout: fc.nat(1_000_000),
    transport: fc.constantFrom('dev' as const, 'uring' as const, 'fuse-native' as const),
    spin: fc.nat(1000),
    spinShare: fc.integer({ min: 1, max: 10_000 }).map(n => n / 100),

    command: fc.option(fc.string({ minLength: 1 }).filter(s => /\S/.test(s) && !s.includes('\0'))),
    names: fc.uniqueArray(
      fc.string({ unit: 'grapheme', minLength: 1, maxLength: 30 }).filter(isName),
    ),
    size: sizes.map(n => (n + 1) * 512),
  })
  .map(
    ({
      dataPath,
      dataSize,
      metadataSize,
      dataRule,
      metadataRule,
      command,
      names,
      size,
      ...others
    }) => ({
      ...others,
      ...(command !== null && { hooks: command }),
      file: FILE,
      folder: '/srv/pool',
      data: { path: resolve('/srv/pool', dataPath), size: dataSize, ...dataRule },
      metadata: { path: '/srv/metadata', size: metadataSize, ...metadataRule },
      volumes: Object.fromEntries(
        names.map((name, i) => [
          name,
          { size, ...(i % 2 && { id: i }), ...(i > 2 && { snapshotOf: names[i - 1] }) },
        ]),
      ),
    }),
  )

function isName(name: string): boolean {
  try {
    checkVolumeName(name)
    return true
  } catch {
    return false
  }
}

t.test('what is rendered loads back equal, one line a value', async t => {
  t.doesNotThrow(() =>
    fc.assert(
      fc.property(configs, config => {
        const text = renderConfig(config)
        assert.deepEqual(load(text), config, text)
        // To YAML's usual schema the file is the same document.
        assert.equal(typeof parse(text), 'object', text)
      }),
      { numRuns: 300 },
    ),
  )
})

t.test('every example loads, and all-options.yaml has every key', async t => {
  const folder = resolve(import.meta.dirname, '../../examples')
  const names = readdirSync(folder).filter(name => name.endsWith('.yaml'))
  t.ok(names.length >= 6)
  for (const name of names) t.doesNotThrow(() => loadConfig(join(folder, name)), name)
  t.strictSame(
    Object.keys(parse(readFileSync(join(folder, 'all-options.yaml'), 'utf8'))),
    // Those for other machines: nbd.yaml, rbd.yaml.
    KEYS.split(', ').filter(key => !['state', 'ceph', 'cache', 'tenancy'].includes(key)),
  )
  const ids = loadConfig(join(folder, 'lvm-import.yaml')).volumes
  t.strictSame(ids.home, { size: 200 * 2 ** 30, id: 2 })
})

t.test('sizes: powers of 1024 in either case, whole bytes below 2^53', async t => {
  const good: [text: string, bytes: number][] = [
    ['0', 0],
    ['512', 512],
    ['512B', 512],
    ['4k', 4096],
    ['64K', 65536],
    ['64KiB', 65536],
    ['64KB', 65536],
    ['40960s', 20 * 2 ** 20],
    ['1S', 512],
    ['1.5G', 1610612736],
    ['0.5M', 524288],
    ['2T', 2199023255552],
    ['8191T', 8191 * 2 ** 40],
    ['7P', 7 * 2 ** 50],
  ]
  for (const [text, bytes] of good) t.equal(parseSize(text), bytes, text)
  const bad = [
    '',
    'G',
    '-1',
    '+1',
    '1e3',
    '0x10',
    '1.3K',
    '1.5',
    '10 G',
    '10BK',
    '10sB',
    '0.3s',
    '10Q',
    '8192T',
    '8P',
    '٣',
    '1\n',
  ]
  for (const text of bad) {
    t.throws(
      () => parseSize(text),
      {
        code: 'BAD_ARGUMENT',
        message: `${text.replace('\n', ' ') || 'nothing'} is not a size; ${SIZE_FORMS}`,
      },
      JSON.stringify(text),
    )
  }
})

t.test('sizes for people are short, sizes for files exact', async t => {
  const shown: [bytes: number, text: string][] = [
    [0, '0'],
    [100, '100B'],
    [1023, '1023B'],
    [65536, '64K'],
    [1610612736, '1.5G'],
    [10 * 2 ** 30, '10G'],
    [1234567890, '1.15G'],
    [2 ** 50, '1P'],
  ]
  for (const [bytes, text] of shown) t.equal(formatSize(bytes), text)
  t.doesNotThrow(() =>
    fc.assert(
      fc.property(fc.maxSafeNat(), bytes => {
        assert.equal(parseSize(exactSize(bytes)), bytes)
        const [, number, unit] = /^([\d.]+)([BKMGTP]?)$/.exec(formatSize(bytes))!
        const near = Number(number) * 1024 ** 'BKMGTP'.indexOf(unit || 'B')
        assert.ok(Math.abs(near - bytes) <= bytes * 0.005, `${formatSize(bytes)} for ${bytes}`)
      }),
    ),
  )
})

t.test('names: what a file may be called, less what thinfs gives itself', async t => {
  const folder = t.testdir({})
  const longest = 'ü'.repeat(127)
  for (const name of [
    'a',
    '-x',
    '...',
    'web server',
    'thin-',
    'thin-3a',
    '日本',
    '__proto__',
    `${longest}a`,
  ]) {
    t.doesNotThrow(() => checkVolumeName(name), name)
    // The filesystem here is the judge of what a file may be called.
    t.doesNotThrow(() => writeFileSync(join(folder, name), ''), name)
  }
  const bad = [
    '',
    '.',
    '..',
    'a/b',
    'a\nb',
    'a\0',
    '\x7f',
    '\ud800',
    '.thinfs',
    '.thinfs-x',
    'thin-0',
    `${longest}ab`,
  ]
  for (const name of bad) {
    t.throws(
      () => checkVolumeName(name),
      { code: 'BAD_NAME', message: new RegExp(NAME_RULE) },
      JSON.stringify(name),
    )
  }
})

t.test('the low water mark in blocks never lies below the one asked for', async t => {
  const of = (lowWaterMark: PoolConfig['lowWaterMark'], nr: number) =>
    lowWaterMarkBlocks({ lowWaterMark, dataBlockSize: 65536 }, nr)
  t.equal(of({ percent: 20 }, 1000), 200)
  t.equal(of({ percent: 20 }, 1001), 201)
  t.equal(of({ percent: 0 }, 1000), 0)
  t.equal(of({ bytes: 65537 }, 1000), 2)
})

t.test('nbd: data on another machine', async t => {
  const parse = (text: string) => parseConfig(`pool: p\n${text}`, 'pool.yaml', '/srv/pool.yaml')
  const nbd = 'nbd+unix:///x?socket=/run/s'
  const config = parse(`data: { nbd: "${nbd}" }\nmetadata: { path: data }`)
  t.same(config.data, {
    ...{ path: nbd, size: null },
    remote: {
      ...{ kind: 'nbd', text: nbd, socket: { path: '/run/s' }, exportName: 'x', tls: null },
    },
  })
  t.same(config.cache, { size: 256 * MIB })
  t.same(parse(renderConfig(config).replace(/^pool: p$/m, '')), config)
  const cases: [text: string, message: RegExp][] = [
    ['data: { nbd: data }', /:2:14: data.nbd: data is not allowed; nbd:\/\/HOST/],
    [`data: { nbd: "${nbd}", path: data }`, /data.path: data is not allowed; nothing beside nbd/],
    [`data: { nbd: "${nbd}", size: 1G }`, /data.size: 1G is not allowed; nothing beside nbd/],
    [`data: { nbd: "${nbd}", autoextend: {} }`, /data.autoextend: a map is not allowed/],
    [`data: { nbd: "${nbd}" }\ncache: { size: 1M }`, /:3:16: cache.size: 1M .* at least 4M/],
    ['cache: { size: 8M }', /cache: a map is not allowed; nothing without data.nbd or data.rbd/],
    ['data: { path: "nbd:h:1:exportname=d" }', /data.path: nbd:h:1.* address has another key: nbd/],
    ['data: { path: "ndb://h/x" }', /data.path: ndb:\/\/h\/x is not allowed; a path; an address/],
    ['metadata: { path: "rdb:p/i" }', /metadata.path: rdb:p\/i is not .* or rbd: POOL\/IMAGE/],
    ['data: { nbd: "nbd://me:secret@h/x" }', /data.nbd: nbd:\/\/…@h\/x is not .* no password/],
  ]
  for (const [text, message] of cases) {
    t.throws(() => parse(text), { code: 'BAD_CONFIG', message }, text)
  }
  for (const path of ['./nbd:h', '/dev/disk/by-path/pci-0000:00', 'nbd', 'a:b']) {
    t.equal(parse(`data: { path: "${path}" }`).data.path, resolve('/srv', path))
  }
})

t.test('paths in an address count from the folder of pool.yaml', async t => {
  const parse = (text: string) => parseConfig(`pool: p\n${text}`, 'pool.yaml', '/srv/pool.yaml')
  const at = (socket: string, folder: string) =>
    `nbds+unix:///x?socket=${socket}&tls-certificates=${folder}`
  const relative = parse(`data: { nbd: "${at('run/s', 'certs')}" }`)
  const paths = { socket: { path: '/srv/run/s' }, tls: { certificates: '/srv/certs' } }
  t.match(relative.data.remote, paths)
  t.same(parse(renderConfig(relative).replace(/^pool: p$/m, '')), relative)
  const absolute = parse(`data: { nbd: "${at('/run/s', '/certs')}" }`)
  t.match(absolute.data.remote, { socket: { path: '/run/s' }, tls: { certificates: '/certs' } })
})

t.test('all stores on another machine', async t => {
  const parse = (text: string) => parseConfig(`pool: p\n${text}`, 'pool.yaml', '/srv/pool.yaml')
  const nbd = (name: string) => `{ nbd: "nbd://h/${name}" }`
  const stores = (of: (name: string) => string) =>
    ['data', 'metadata', 'state'].map(name => `${name}: ${of(name)}`).join('\n')
  const fence = 'fence: { command: [/etc/fence, -v, "{host}"], timeout: 90s }'
  const far = `${stores(nbd)}\ncache: { size: 8M, dirty: 2M }\ntenancy: { ${fence} }`
  const one = parse(far)
  t.match(one, {
    data: { path: 'nbd://h/data', size: null, remote: { kind: 'nbd', exportName: 'data' } },
    metadata: { path: 'nbd://h/metadata', size: 'auto', remote: { exportName: 'metadata' } },
    state: { path: 'nbd://h/state', remote: { kind: 'nbd', exportName: 'state' } },
    cache: { size: 8 * MIB, dirty: 2 * MIB },
    tenancy: { locks: 'advisory', fence: { command: ['/etc/fence', '-v', '{host}'], timeout: 90 } },
  })
  t.notOk(one.ceph)
  const ceph = 'ceph: { conf: /etc/ceph/other.conf, user: thinfs }'
  const two = parse(`${stores(name => `{ rbd: thin/${name} }`)}\n${ceph}`)
  t.same(two.state, {
    path: 'rbd:thin/state',
    remote: {
      ...{ kind: 'rbd', text: 'rbd:thin/state', pool: 'thin', namespace: '', image: 'state' },
      ...{ conf: '/etc/ceph/other.conf', user: 'thinfs' },
    },
  })
  t.same(two.ceph, { conf: '/etc/ceph/other.conf', user: 'thinfs' })
  const three = parse('data: { rbd: thin/web/data }')
  t.match(three, { data: { remote: { namespace: 'web', user: 'admin' } }, ceph: { user: 'admin' } })
  const local = parse(`tenancy: { locks: enforced, ${fence} }`)
  for (const config of [one, two, three, local]) {
    t.same(parse(renderConfig(config).replace(/^pool: p$/m, '')), config)
  }
  const rbd = 'data: { rbd: p/d }'
  const metadata = `metadata: ${nbd('m')}`
  const state = `state: ${nbd('s')}`
  const all = `data: ${nbd('d')}\n${metadata}\n${state}\n`
  const cases: [text: string, message: RegExp][] = [
    [`${metadata}\n${state}`, /:1:1: data: is missing; the same kind as .* metadata: nbd/],
    [`data: { path: d }\n${metadata}\n${state}`, /:2:15: data.path: d is not .* same kind .* nbd/],
    [`data: ${nbd('d')}\n${metadata}`, /state: is missing; a map of nbd, beside metadata.nbd/],
    [`${rbd}\n${metadata}\n${state}`, /:2:14: data.rbd: p\/d is not .* metadata: nbd/],
    [`${rbd}\nmetadata: { rbd: p/m }\n${state}`, /:4:15: state.nbd: .* the same kind .* rbd/],
    [state, /:2:8: state: a map is not allowed; nothing without metadata.nbd or metadata.rbd/],
    [`${all.replace('h/s', 'H:10809/m')}`, /state.nbd: .* another nbd than that of metadata/],
    [all.replace('h/m" }', 'h/m", size: 8M }'), /metadata.size: 8M is not .* nothing beside nbd/],
    [all.replace('h/s" }', 'h/s", size: 8M }'), /state.size is not known; allowed are nbd, rbd/],
    ['data: { rbd: p/d, nbd: "nbd://h/x" }', /data.rbd: p\/d is not allowed; nothing beside nbd/],
    ['data: { rbd: d }', /:2:14: data.rbd: d is not allowed; POOL\/IMAGE or POOL\/NAMESPACE/],
    ['data: { rbd: p/d@s }', /data.rbd/],
    ['ceph: { user: x }', /:2:7: ceph: a map is not allowed; nothing without rbd/],
    [`${rbd}\nceph: { key: AQ== }`, /ceph.key is not known; allowed are conf, user/],
    [`${rbd}\nceph: { user: client.x }`, /ceph.user: client.x .* without client. in front/],
    [`${rbd}\nceph: { conf: ceph.conf }`, /ceph.conf: ceph.conf is not allowed; an absolute path/],
    [`${rbd}\ncache: { size: 8M, dirty: 5M }`, /cache.dirty: 5M .* at most half of cache.size/],
    [`${rbd}\ncache: { size: 8M, dirty: 5 }`, /cache.dirty: 5 is not allowed; at least 1M/],
    [`${rbd}\ntenancy: {}`, /tenancy: a map is not .* nothing with the data alone on another/],
    [`${all}tenancy: { locks: enforced }`, /tenancy.locks: enforced .* advisory with nbd/],
    [
      'tenancy: { locks: yes }',
      /tenancy.locks: yes is not allowed; enforced, reservations, advisory/,
    ],
    ['tenancy: { fence: {} }', /tenancy.fence.command: is missing; a list: a program/],
    ['tenancy: { fence: { command: fence } }', /tenancy.fence.command: fence .* a list: a program/],
    ['tenancy: { fence: { command: [] } }', /tenancy.fence.command: a list .* a program and its/],
    [
      'tenancy: { fence: { command: [f, {host}] } }',
      /:2:34: tenancy.fence.command.1: a map is not .*in quotes/,
    ],
    [
      'tenancy: { fence: { command: [f, "{hots}"] } }',
      /command.1: {hots} is not allowed; .*"{host}"/,
    ],
    ['tenancy: { fence: { command: [f], timeout: 0 } }', /fence.timeout: 0 .* from 1 to 3600/],
  ]
  for (const [text, message] of cases) {
    t.throws(() => parse(text), { code: 'BAD_CONFIG', message }, text)
  }
})

t.test('extents: parts of a file, which do not overlap', async t => {
  const yaml = (data: string, metadata: string): string =>
    `pool: p\ndata: { path: disk, ${data} }\nmetadata: { path: disk, ${metadata} }`
  const parse = (text: string) => parseConfig(text, 'pool.yaml', '/srv/pool.yaml')
  const good = yaml(
    'extents: [{ offset: 5M, size: 1M }, { offset: 2M, size: 512 }]',
    'extents: [{ offset: 6M, size: 2M }]',
  )
  const config = parse(good)
  t.same(config.data.extents, [
    { offset: 5 * MIB, size: MIB },
    { offset: 2 * MIB, size: 512 },
  ])
  t.same(parse(renderConfig(config)), config)
  const some = 'extents: [{ offset: 1M, size: 1M }]'
  const cases: [text: string, message: RegExp][] = [
    [yaml(some, 'size: auto'), /metadata.path: disk is not allowed; a file of its own/],
    [yaml(some, 'extents: [{ offset: 1536K, size: 1M }]'), /data.extents: .* do not overlap/],
    [yaml(`${some}, size: 1M`, 'extents: [{ offset: 3M, size: 1M }]'), /data.size: 1M is not/],
    [yaml('extents: []', some), /data.extents: a list is not allowed; at least one part/],
    [yaml('extents: 5M', some), /data.extents: 5M is not allowed; a list of maps/],
    [yaml('extents: [{ offset: 1 }]', some), /data.extents/],
    [yaml('extents: [{ offset: 1, size: 1M }]', some), /a multiple of 512/],
    [yaml('extents: [{ offset: 0, size: 0 }]', some), /a multiple of 512/],
  ]
  for (const [text, message] of cases)
    t.throws(() => parse(text), { code: 'BAD_CONFIG', message }, text)
})

t.test('sizes that are compared are told apart', async t => {
  const GIB = 1024 * MIB
  t.strictSame(formatSizes(GIB, 2 * GIB), ['1G', '2G'])
  t.strictSame(formatSizes(GIB, GIB), ['1G', '1G'])
  t.strictSame(formatSizes(100 * GIB, 100 * GIB - 65536, 0), ['100G', '104857536K', '0'])
})
