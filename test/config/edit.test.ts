// Goal: a command changes one value of a pool.yaml, and nothing else in it. Method: texts as people
// write them, compared byte for byte; whatever renders, with comments put in anywhere.
import assert from 'node:assert/strict'
import fc from 'fast-check'
import t from 'tap'
import { type PoolConfig, parseConfig, withValues } from '../../src/config/index.js'

const FILE = '/srv/pool/pool.yaml'
const GIB = 2 ** 30

/** The text with data.size 2G, and nothing else in it other. */
function sized(text: string): string {
  const config = parseConfig(text, 'pool.yaml', FILE)
  const wanted: PoolConfig = { ...config, data: { ...config.data, size: 2 * GIB } }
  return withValues(text, [[['data', 'size'], '2G']], { path: 'pool.yaml', file: FILE, wanted })
}

t.test('a value that is there', async t => {
  const cases: [before: string, after: string][] = [
    ['pool: a\ndata:\n  size: 1G # all\n# end', 'pool: a\ndata:\n  size: 2G # all\n# end'],
    ['pool: a\ndata: {size: 1G}', 'pool: a\ndata: {size: 2G}'],
    ['{pool: a, data: {path: d, size: "1G"}}\n', '{pool: a, data: {path: d, size: 2G}}\n'],
    ["pool: a\r\ndata:\r\n  size:   '1G'\r\n", 'pool: a\r\ndata:\r\n  size:   2G\r\n'],
    ['"data":\n    "size":\n      1G\npool: a\n', '"data":\n    "size":\n      2G\npool: a\n'],
    ['---\npool: a\ndata: {size: 1G}\n...\n', '---\npool: a\ndata: {size: 2G}\n...\n'],
    [
      'pool: a\nlow_water_mark: 1G\ndata: {size: 1G}',
      'pool: a\nlow_water_mark: 1G\ndata: {size: 2G}',
    ],
  ]
  for (const [before, after] of cases) t.equal(sized(before), after, before)
})

t.test('a value that only a person can change is refused', async t => {
  const cases = [
    'pool: a\nlow_water_mark: &s 1G\ndata: {size: *s}',
    'pool: a\ndata: {size: &s 1G}\nlow_water_mark: *s',
    'pool: a\ndata: &d {size: 1G}\nmetadata: *d',
  ]
  for (const text of cases) {
    t.throws(
      () => sized(text),
      { code: 'BAD_CONFIG', message: /data\.size cannot become 2G: it is written/ },
      text,
    )
  }
})

t.test('a key of the first level that is not there comes at the end', async t => {
  const set = (text: string): string => {
    const wanted: PoolConfig = { ...parseConfig(text, 'pool.yaml', FILE), onFull: 'error' }
    const of = { path: 'pool.yaml', file: FILE, wanted }
    return withValues(text, [[['on_full'], 'error']], of)
  }
  t.equal(set('pool: a # x\ndata: {}\n'), 'pool: a # x\ndata: {}\non_full: error\n')
  t.equal(set('pool: a'), 'pool: a\non_full: error\n')
  t.equal(set('pool: a\non_full: queue # later'), 'pool: a\non_full: error # later')
  t.throws(() => set('{pool: a}'), { code: 'BAD_CONFIG' })
  t.throws(() => set('pool: a\n...\n'), { code: 'BAD_CONFIG' })
})

t.test('comments and blank lines stay where they are', async t => {
  const lines = ['pool: a', 'data:', '  path: x', '  size: 1G', 'discards: ignore']
  const between = fc.array(fc.constantFrom('', '# c', '   # size: 1G', '#'), { maxLength: 3 })
  t.doesNotThrow(() =>
    fc.assert(
      fc.property(fc.array(between, { minLength: 6, maxLength: 6 }), gaps => {
        const text = gaps
          .flatMap((gap, i) => [...gap, ...(lines[i] === undefined ? [] : [lines[i]])])
          .join('\n')
        assert.equal(sized(text), text.replace('  size: 1G\n', '  size: 2G\n'))
      }),
      { numRuns: 50 },
    ),
  )
})
