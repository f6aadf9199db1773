// Goal: a thread that waits for requests looks for them first, where that pays, within its share,
// and never while it is idle.
import t, { type Test } from 'tap'
import { Spin } from '../../src/fuse/spin.js'

/** A clock, in microseconds, and a thread that waits for requests by it. */
class Thread {
  readonly spin: Spin
  now = 1

  constructor(t: Test, most: number, share = 1) {
    const real = performance.now
    performance.now = () => this.now / 1000
    t.teardown(() => {
      performance.now = real
    })
    this.spin = new Spin(most, share)
  }

  /**
   * A request comes after `gap`, or `late` later when the thread sleeps.
   * @returns how long it looked
   */
  request(gap: number, late = 50): number {
    const looks = this.spin.begins()
    if (gap <= looks) {
      this.now += gap
    } else {
      this.now += looks
      this.spin.sleeps()
      this.now += gap - looks + late
      this.spin.wakes()
    }
    this.spin.finds(1)
    return Math.min(gap, looks)
  }

  /** How long it looked for each of `count` requests. */
  requests(count: number, gap: number, late = 50): number[] {
    return Array.from({ length: count }, () => this.request(gap, late))
  }
}

const shareOf = (looked: readonly number[]): number =>
  looked.filter(time => time > 0).length / looked.length
const sum = (numbers: readonly number[]): number => numbers.reduce((a, b) => a + b, 0)

t.test('the thread learns how long gaps are, and then seldom sleeps', async t => {
  for (const gap of [5, 60, 150, 390]) {
    const thread = new Thread(t, 400)
    thread.requests(20_000, gap)
    const found = thread.requests(20_000, gap).filter(looked => looked === gap)
    t.ok(found.length > 19_500, `gaps of ${gap} µs: ${found.length}`)
  }
})

t.test('it looks little longer than gaps last', async t => {
  const thread = new Thread(t, 400)
  thread.requests(1000, 40)
  const looked = thread.request(10_000)
  t.ok(looked >= 40 && looked <= 80, String(looked))
})

t.test('requests that come late are not looked for', async t => {
  const thread = new Thread(t, 400)
  thread.requests(1000, 60)
  thread.requests(20, 5000)
  t.equal(sum(thread.requests(10_000, 5000)), 0)
})

t.test('an idle thread spends nothing', async t => {
  t.equal(sum(new Thread(t, 400).requests(10_000, 3000)), 0)
})

t.test('a pause now and then changes nothing', async t => {
  const thread = new Thread(t, 400)
  thread.requests(20_000, 60)
  const looked = Array.from({ length: 2000 }, () => {
    thread.request(20_000)
    return thread.requests(9, 60)
  })
  t.ok(shareOf(looked.flat()) > 0.95)
})

t.test('looking that delays the callers is given up, and taken up when it pays again', async t => {
  const thread = new Thread(t, 400)
  /** Somebody wants the CPU: gaps are twice as long while the thread looks. */
  const busy = (count: number): number[] =>
    Array.from({ length: count }, () => thread.request(thread.spin.looks ? 90 : 30, 15))
  thread.requests(20_000, 30)
  busy(30_000)
  t.ok(shareOf(busy(50_000)) < 0.05)
  thread.requests(30_000, 30)
  t.ok(shareOf(thread.requests(50_000, 30)) > 0.95)
})

t.test('a trial that promises too much is soon over', async t => {
  const thread = new Thread(t, 400)
  /** A thread that has looked for long is made to wait for its CPU. */
  let credit = 0
  const busy = (): number => {
    credit = thread.spin.looks ? credit - 1 : Math.min(200, credit + 1)
    return thread.request(thread.spin.looks && credit < 0 ? 90 : 30, 15)
  }
  for (let i = 0; i < 50_000; i++) busy()
  t.ok(shareOf(Array.from({ length: 50_000 }, busy)) < 0.15)
})

t.test('it spends no more than its share of the time', async t => {
  for (const share of [0.1, 0.5]) {
    const thread = new Thread(t, 400, share)
    thread.requests(20_000, 100)
    const began = thread.now
    const looked = sum(thread.requests(50_000, 100))
    const passed = thread.now - began
    t.ok(looked <= passed * share * 1.02, `${looked} of ${passed} µs`)
    t.ok(looked >= passed * share * 0.5, `${looked} of ${passed} µs`)
  }
})

t.test('a turn tells how long it has looked', async t => {
  const thread = new Thread(t, 400)
  thread.requests(1000, 60)
  thread.spin.wakes()
  t.equal(thread.spin.looked, 0)
  t.same(thread.requests(3, 60), [60, 60, 60])
  t.equal(thread.spin.looked, 180)
})

t.test('0 is never', async t => {
  t.equal(sum(new Thread(t, 0).requests(10_000, 1)), 0)
})
