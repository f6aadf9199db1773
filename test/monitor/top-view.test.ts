// Goal: `thinfs top` fits into any terminal, and its order is the one that was asked for. Method:
// one pool at several sizes.
import t from 'tap'
import { IoCounters, OPERATION } from '../../src/base/index.js'
import { isSort, ratesOf, SORTS, type Sort, topView } from '../../src/monitor/index.js'
import type { PoolStatistics } from '../../src/volumes/index.js'

/**
 * @param times a volume has had its requests: the first many small reads, the second few large
 *   writes
 */
function statistics(time: number, times: number): PoolStatistics {
  const [one, two, all] = [new IoCounters(), new IoCounters(), new IoCounters()]
  for (const counters of [one, all]) {
    for (let i = 0; i < 100 * times; i++) counters.count(OPERATION.read, 512, 0.1)
  }
  for (const counters of [two, all]) {
    for (let i = 0; i < 10 * times; i++) counters.count(OPERATION.write, 2 ** 20, 5)
  }
  return {
    ...{ name: 'tank', mode: 'write', time, since: 0, engineRestarts: 0, dataBlockSize: 65_536 },
    data: { blocks: 1600, usedBlocks: 800 + 160 * times, hostFree: null },
    metadata: { blocks: 1024, usedBlocks: 512, hostFree: null },
    ...{ lowWaterMarkBlocks: 0, metadataLowWaterMarkBlocks: 0, writesWaiting: 3, io: all.counts },
    work: { commits: 2 * times, commitMs: 0, punches: 0, punchedBytes: 0, spaceWaits: 0 },
    volumes: [
      { name: 'idle\x1b[2J', devId: 2, size: 2 ** 30, mapped: 2 ** 20, open: false, io: null },
      { name: 'small', devId: 0, size: 2 ** 30, mapped: 2 ** 22, open: true, io: one.counts },
      {
        ...{ name: 'large', devId: 1, size: 3 * 10 * 2 ** 20, open: true, io: two.counts },
        mapped: 10 * 2 ** 20 * times,
      },
    ],
  }
}

const rates = ratesOf(statistics(1_000_000, 1), statistics(1_001_000, 2))
const view = (options: { sort?: Sort; reversed?: boolean; width?: number; height?: number } = {}) =>
  topView(rates, { sort: 'n', reversed: false, width: 132, height: 24, ...options })

const order = (sort: Sort, reversed = false): string[] =>
  view({ sort, reversed })
    .lines.slice(-3)
    .map(line => line.split(/[ ?]/)[0]!)

t.test('what it says', async t => {
  const { lines, head } = view()
  t.match(lines[0], /^tank: mode write, /)
  t.match(lines[1], /^data .* 70\.0M of 100M, 70\.0% \+10\.0M\/s, full in 3 s$/)
  t.match(lines[2], /^metadata .* 2\.00M of 4\.00M, 50\.0%$/)
  t.match(lines[3], '100 reads/s 50.0K/s, 10 writes/s 10.0M/s, 0 discards/s, 0 flushes/s')
  t.match(lines[4], /p99 5\.\d+ ms, 0 cold reads\/s, 2\.0 commits\/s, 3 wait for space$/)
  t.match(lines[head], /^VOLUME +r\/s +w\/s +READ\/s +WRITTEN\/s +P99 .* FULL IN +P50 +d\/s +f\/s$/)
  t.match(
    lines.find(line => line.startsWith('large')),
    / 0 +10 +0B +10\.0M +6\.\d+ ms +10\.0M +20\.0M +30\.0M +1 s /,
  )
  t.notMatch(lines.join(''), '\x1b', 'a name is no command to the terminal')
})

t.test('the order', async t => {
  t.same(order('n'), ['idle', 'large', 'small'])
  t.same(order('n', true), ['small', 'large', 'idle'])
  t.same(order('r'), ['small', 'idle', 'large'])
  t.same(order('w'), ['large', 'idle', 'small'])
  t.same(order('b'), ['large', 'small', 'idle'])
  t.same(order('l'), ['large', 'small', 'idle'])
  t.same(order('l', true), ['idle', 'small', 'large'])
  t.same(order('a'), ['large', 'idle', 'small'])
  t.same(order('m'), ['large', 'small', 'idle'])
  t.ok(Object.keys(SORTS).every(isSort))
  t.notOk(isSort('constructor'))
})

t.test('any size of terminal', async t => {
  for (const width of [1, 20, 40, 60, 80, 100, 200]) {
    for (const height of [1, 5, 8, 9, 24]) {
      const { lines } = view({ width, height })
      const longest = Math.max(...lines.map(line => [...line].length))
      t.ok(longest <= width, `${width} columns`)
      t.ok(lines.length <= height, `${height} lines`)
    }
  }
  t.equal(view({ height: 9 }).lines.at(-1), '2 more')
  t.match(view({ width: 40 }).lines.at(-1), /^small .* 100 +0/)
})
