// Goal: what is read from the histograms is what happened. Method: durations that are kept one by
// one and sorted, against the counters that have seen the same.
import t from 'tap'
import {
  countsBetween,
  IoCounters,
  LATENCY_BOUNDS,
  meanOf,
  OPERATION,
  quantileOf,
  Random,
} from '../../src/base/index.js'

t.test('bounds are two an octave', async t => {
  t.same(LATENCY_BOUNDS.slice(0, 10), [1, 2, 3, 4, 6, 8, 12, 16, 24, 32])
  t.equal(LATENCY_BOUNDS.at(-1), 2 ** 26)
})

t.test('a duration is below the bound of its bucket, and not below the one before', async t => {
  for (const bound of LATENCY_BOUNDS.slice(0, -1)) {
    for (const microseconds of [bound - 1, bound]) {
      const counters = new IoCounters()
      counters.count(OPERATION.read, 1, (microseconds + 0.5) / 1000)
      const at = LATENCY_BOUNDS.findIndex(end => microseconds < end)
      t.equal(counters.counts.read.buckets.length - 1, at, `${microseconds} us`)
    }
  }
  const counters = new IoCounters()
  counters.count(OPERATION.flush, 0, 3_600_000)
  counters.count(OPERATION.flush, 0, -1)
  const { buckets } = counters.counts.flush
  t.equal(buckets[LATENCY_BOUNDS.length], 1, 'an hour')
  t.equal(buckets[0], 1, 'a clock that went back')
})

t.test('quantiles are those of the durations, within a bucket', async t => {
  const random = new Random(7)
  const counters = new IoCounters()
  const all: number[] = []
  for (let i = 0; i < 5000; i++) {
    const ms = 2 ** (random.below(1600) / 100 - 6)
    all.push(ms)
    counters.count(OPERATION.write, 4096, ms)
  }
  all.sort((a, b) => a - b)
  const { write } = counters.counts
  t.match(write, { count: 5000, bytes: 5000 * 4096 })
  t.ok(Math.abs(meanOf(write) - all.reduce((sum, ms) => sum + ms, 0) / 5000) < 0.001)
  for (const share of [0.01, 0.5, 0.9, 0.99, 1]) {
    const exact = all[Math.ceil(share * all.length) - 1]!
    const found = quantileOf(write, share)
    t.ok(found > exact / 1.55 && found < exact * 1.55, `${share}: ${found}, exactly ${exact}`)
  }
})

t.test('counts go over to another process, and a difference is what came in between', async t => {
  const one = new IoCounters()
  t.ok(one.isEmpty)
  one.count(OPERATION.read, 512, 1)
  one.coldRead()
  const before = one.counts
  const other = new IoCounters()
  other.add(before)
  t.strictSame(other.counts, before)
  other.count(OPERATION.read, 1024, 0.002)
  const { read, write, coldReads } = countsBetween(before, other.counts)
  t.match(read, { count: 1, bytes: 1024 })
  t.equal(quantileOf(read, 0.5) < 0.004, true)
  t.equal(write.count, 0)
  t.equal(coldReads, 0)
  t.same(countsBetween(other.counts, before), before, 'a counter that went back began anew')
})
