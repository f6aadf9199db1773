import t from 'tap'
import { RateLimit } from '../../src/log/index.js'

t.test('the first of each period pass, and the next period tells how many did not', async t => {
  const told: number[] = []
  const limit = new RateLimit(2, 100, suppressed => told.push(suppressed))
  const allowed = [1, 2, 3, 99, 101, 150, 202].filter(now => limit.allows(now))
  t.same(allowed, [1, 2, 101, 150, 202])
  t.same(told, [2], 'nothing was held back in the second')
})
