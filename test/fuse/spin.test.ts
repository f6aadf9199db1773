// Goal: who waits for requests looks for them first, where it pays, and never when it is idle.
import t, { type Test } from 'tap'
import { Spin } from '../../src/fuse/spin.js'

/** Has requests come after `waits` of microseconds; how long was looked for each. */
function looked(t: Test, spin: Spin, waits: readonly number[]): number[] {
  let now = 1
  t.intercept(performance, 'now', { value: () => now / 1000 })
  return waits.map(wait => {
    const { microseconds } = spin
    // One that comes while it is looked for wakes nobody.
    if (wait < microseconds) return microseconds
    now += microseconds
    spin.sleeps()
    now += wait - microseconds
    spin.wakes()
    return microseconds
  })
}

t.test('while requests come soon the time grows, up to the most', async t => {
  t.same(looked(t, new Spin(50), [60, 60, 60, 60, 20, 20, 60]), [0, 10, 20, 40, 50, 50, 50])
})

t.test('one that comes late ends it, and the next ones decide again', async t => {
  t.same(looked(t, new Spin(50), [60, 60, 5000, 5000, 101, 60, 60]), [0, 10, 20, 0, 0, 0, 10])
})

t.test('0 is never', async t => {
  t.same(looked(t, new Spin(0), [1, 1, 1, 60]), [0, 0, 0, 0])
})
