// Goal: where there are flushes they have most of the time for themselves. Method: a clock of the
// test's, one piece of work and perhaps one flush a millisecond.
import t from 'tap'
import { FlushPace } from '../../src/device/flush-pace.js'
import { TestClock } from '../support/memory-pool.js'

interface Counted {
  punches: number
  /** The longest time in which there was a piece each millisecond. */
  burst: number
  /** Bursts. */
  rests: number
}

/** A second of work. */
async function aSecond(
  pace: FlushPace,
  clock: TestClock,
  flushes: (ms: number) => boolean,
): Promise<Counted> {
  const counted = { punches: 0, burst: 0, rests: 0 }
  let burst = 0
  let resting: Promise<void> | null = null
  for (let ms = 0; ms < 1000; ms++) {
    if (flushes(ms)) pace.flushCame()
    const turn = pace.turn()
    if (turn === null) {
      counted.punches++
      counted.burst = Math.max(counted.burst, ++burst)
    } else {
      if (resting === null) counted.rests++
      burst = 0
    }
    resting = turn
    clock.advance(1)
  }
  return counted
}

t.test('it rests while flushes come, and only then', async t => {
  const clock = new TestClock()
  const pace = new FlushPace(clock)
  t.match(await aSecond(pace, clock, () => false), { punches: 1000, rests: 0 })
  const { punches, burst, rests } = await aSecond(pace, clock, () => true)
  t.ok(punches > 300 && punches < 500, `${punches} of 1000`)
  t.ok(burst >= 20 && burst <= 60, `${burst} in a row`)
  t.ok(rests >= 5, `${rests} rests`)
  const seldom = await aSecond(pace, clock, ms => ms === 300)
  t.ok(seldom.rests <= 2 && seldom.punches > 850, `${seldom.rests} rests for one flush`)
})

t.test('whoever waits for the work ends the rest', async t => {
  const clock = new TestClock()
  const pace = new FlushPace(clock)
  const rest = (): Promise<void> | null => {
    for (let ms = 0; ms < 1000; ms++) {
      pace.flushCame()
      const turn = pace.turn()
      if (turn !== null) return turn
      clock.advance(1)
    }
    return null
  }
  pace.hurry()
  const resting = rest()
  t.not(resting, null)
  t.equal(pace.turn(), resting, 'all that ask wait for the same')
  pace.hurry()
  await resting
  t.equal(pace.turn(), null, 'a burst follows')
  const next = rest()
  clock.advance(1000)
  await next
  t.equal(pace.turn(), null)
})

t.test('work that begins after a while need not rest', async t => {
  const clock = new TestClock()
  const pace = new FlushPace(clock)
  t.equal(pace.turn(), null)
  pace.flushCame()
  clock.advance(1000)
  t.equal(pace.turn(), null)
})
