// Goal: a commit seals when every request that had taken blocks has mapped them or given them back,
// and only then may others take some. Method: promises that the test ends, well and not, in any
// order.
import t from 'tap'
import { UnmappedBlocks } from '../../src/pool/unmapped-blocks.js'
import { turn } from '../support/thin-devices.js'

t.test('a drain waits for the requests before it, however they end', async t => {
  const unmapped = new UnmappedBlocks()
  const ends: ((err?: Error) => void)[] = []
  const request = (): void =>
    unmapped.add(
      new Promise<void>((resolve, reject) => {
        ends.push(err => (err === undefined ? resolve() : reject(err)))
      }),
    )
  t.equal(unmapped.draining, null)
  request()
  request()
  t.equal(unmapped.count, 2)
  ends[1]!(new Error('the disk'))
  await turn()
  t.equal(unmapped.count, 1, 'one that failed has ended')
  request()
  let drained = false
  const drain = unmapped.drain().then(() => {
    drained = true
  })
  let mayTake = false
  void unmapped.draining?.then(() => {
    mayTake = true
  })
  ends[0]!()
  await turn()
  t.equal(drained, false, 'another has not ended')
  ends[2]!(new Error('no space'))
  await drain
  await turn()
  t.same(
    [unmapped.count, mayTake],
    [0, false],
    'none may be taken before the transaction is sealed',
  )
  unmapped.endDrain()
  await turn()
  t.same([unmapped.draining, mayTake], [null, true])
  unmapped.endDrain()
})
