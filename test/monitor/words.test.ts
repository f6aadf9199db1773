// Goal: what the page says is right where no browser is. Method: tables of cases.
import t from 'tap'
import { History } from '../../src/monitor/history.js'
import {
  type Cells,
  cellText,
  colouredVolumes,
  countText,
  durationText,
  kindOf,
  latencyText,
  sizeText,
  timeText,
  treeOf,
} from '../../src/monitor/page/words.js'
import { type PoolRates, ratesOf } from '../../src/monitor/rates.js'
import type { PoolStatistics } from '../../src/volumes/index.js'

t.test('numbers', async t => {
  const sizes = [0, 1, 1023, 1024, 1536, 10 * 1024, 2 ** 20, 123.4 * 2 ** 30, 2 ** 50, -2048, 0.2]
  t.same(sizes.map(sizeText), [
    ...['0B', '1B', '1023B', '1.00K', '1.50K', '10.0K', '1.00M', '123G', '1.00P', '-2.00K', '0B'],
  ])
  t.same([0, 0.25, 9.96, 123, 12_345].map(countText), ['0', '0.3', '10.0', '123', '12.3k'])
  t.same([0, 0.0049, 0.5, 3.24, 250, 1500].map(latencyText), [
    ...['–', '5 µs', '500 µs', '3.24 ms', '250 ms', '1.5 s'],
  ])
  t.same([0.2, 1, 59.9, 61, 3600, 90_061, 1e9].map(durationText), [
    ...['less than 1 s', '1 s', '59 s', '1 min 1 s', '1 h', '1 d 1 h', '31 y 251 d'],
  ])
})

t.test('times', async t => {
  const time = new Date(2026, 10, 28, 22, 5, 9).getTime() / 1000
  t.equal(timeText(time), '2026-11-28 22:05:09')
  t.same(
    [1, 30, 60, 3600, 86_400].map(from => timeText(time, from)),
    [...['22:05:09', '22:05:09', '22:05', '22:05', '2026-11-28']],
  )
})

t.test('volumes are a tree of snapshots, and none is left out', async t => {
  const tree = (...pairs: [name: string, origin: string | null][]) =>
    treeOf(pairs.map(([name, origin]) => ({ name, origin }))).map(
      ({ volume, prefix }) => `${prefix}${volume.name}`,
    )
  t.same(tree(['a', null], ['a1', 'a'], ['a2', 'a'], ['a11', 'a1'], ['b', 'gone']), [
    ...['a', '├ a1', '│ └ a11', '└ a2', 'b'],
  ])
  t.same(tree(['x', 'y'], ['y', 'x']), ['x', 'y'], 'a circle')
  t.same(tree(['x', 'x']), ['x'])
  const chain = Array.from({ length: 20_000 }, (_, i) => [`v${i}`, i ? `v${i - 1}` : null] as const)
  t.equal(treeOf(chain.map(([name, origin]) => ({ name, origin }))).length, 20_000)
})

t.test('a cell is whose most of it is', async t => {
  const cells: Cells = {
    blocks: 14,
    blocksPerCell: 4,
    dataBlockSize: 65_536,
    used: [0, 4, 4, 2],
    exclusive: [0, 3, 1, 2],
    owner: [-1, 0, 1, 1],
    volumes: [
      { name: 'web', exclusive: 3 },
      { name: 'db', exclusive: 3 },
    ],
  }
  t.same(
    cells.used.map((_, i) => kindOf(cells, i)),
    ['free', 0, 'shared', 1],
  )
  t.equal(cellText(cells, 0), 'blocks 0 to 3: free')
  t.equal(
    cellText(cells, 1),
    'blocks 4 to 7: 4 of 4 in use, 3 of one volume alone, most of web, 1 shared',
  )
  t.equal(cellText(cells, 3), 'blocks 12 to 13: 2 of 2 in use, 2 of one volume alone, most of db')
  const many = Array.from({ length: 12 }, (_, i) => ({ exclusive: i % 3 === 0 ? 0 : i }))
  t.same(colouredVolumes(many), [11, 10, 8, 7, 5, 4, 2, 1])
})

t.test('the past is bounded, even and ends now', async t => {
  const history = new History()
  const io = { read: {}, write: {}, all: {} }
  for (let time = 0; time < 100_000; time++) {
    history.add({ time, used: time, size: 1, io } as unknown as PoolRates)
  }
  const times = history.samples.map(({ time }) => time)
  t.ok(times.length > 500 && times.length <= 1024)
  t.equal(times[0], 0)
  t.ok(times.at(-1)! > 99_700)
  const steps = times.slice(1).map((time, i) => time - times[i]!)
  t.ok(Math.max(...steps) <= 2 * Math.min(...steps), 'as much time between any two')
})

t.test('rates are of the time between, and none is negative after a loss', async t => {
  const nothing = { count: 0, bytes: 0, ms: 0, buckets: [] }
  const at = (time: number, writes: number, usedBlocks: number, commits: number) =>
    ({
      ...{ name: 'p', mode: 'write', time, since: 10, dataBlockSize: 65_536 },
      data: { blocks: 1000, usedBlocks },
      metadata: { blocks: 100, usedBlocks: 10 },
      io: {
        ...{ read: nothing, discard: nothing, flush: nothing, coldReads: 0 },
        write: { count: writes, bytes: writes * 512, ms: writes * 2, buckets: [] },
      },
      work: { commits, commitMs: 0, punches: 0, punchedBytes: 0, spaceWaits: 0 },
      volumes: [],
    }) as unknown as PoolStatistics
  const since = ratesOf(null, at(30_000, 100, 0, 0))
  t.match(since, { seconds: 20, io: { write: { perSecond: 5, bytesPerSecond: 2560, meanMs: 2 } } })
  const between = ratesOf(at(30_000, 100, 100, 5), at(32_000, 120, 110, 7))
  t.match(between, {
    io: { write: { perSecond: 10 }, all: { perSecond: 10 } },
    usedPerSecond: (10 * 65_536) / 2,
    secondsUntilFull: 890 / 5,
    commitsPerSecond: 1,
  })
  const lost = ratesOf(at(30_000, 100, 100, 5), at(31_000, 3, 90, 0))
  t.match(lost, { io: { write: { perSecond: 3 } }, secondsUntilFull: null, commitsPerSecond: 0 })
})
