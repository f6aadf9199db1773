// Goal: after a failure nothing is changed any more, what can be read is the last commit, and
// nothing at all is written where somebody else may have the pool. Method: a pool's parts that note
// what is done to them, in order, and fail when the test says so.
import t from 'tap'
import { type Later, ThinfsError } from '../../src/base/index.js'
import { Failure } from '../../src/pool/failure.js'
import { NO_EVENTS } from '../../src/pool/index.js'
import { PoolState } from '../../src/pool/pool-state.js'
import { failure, turn } from '../support/thin-devices.js'

function rig(options: { mayWrite?: () => Later<void>; write?: () => Promise<void> } = {}) {
  const done: string[] = []
  const note = (what: string): void => void done.push(what)
  const events = {
    ...NO_EVENTS,
    mode: (mode: string) => note(mode),
    ioError: (operation: string) => note(`error: ${operation}`),
    lost: () => note('told of the loss'),
  }
  const state = new PoolState(events)
  const sealed = { write: options.write ?? (async () => note('needs_check written')) }
  const failing = new Failure(
    {
      metadata: {
        rollback: () => note('rolled back'),
        setNeedsCheck: () => note('needs_check'),
        seal: () => sealed,
      } as never,
      blocks: { freed: { keep: () => note('freed blocks kept') } } as never,
      state,
      events,
      mayWrite: options.mayWrite ?? (() => {}),
    },
    {
      failed: err => note(`waiting callers get ${err.code}`),
      dropped: () => note('dropped'),
      rolledBack: () => note('looked up anew'),
    },
  )
  return { done, state, failing }
}

const ROLLBACK = ['dropped', 'rolled back', 'looked up anew', 'needs_check', 'needs_check written']
const ENDED = ['read_only', 'waiting callers get POOL_READ_ONLY']

t.test('a failed change goes back to the last commit, once', async t => {
  const { done, state, failing } = rig()
  state.halfWay = true
  await failing.fail('metadata', failure('EIO'), null)
  t.same(done, ['error: metadata', ...ENDED, ...ROLLBACK])
  t.same([state.mode, state.halfWay, state.lost?.code], ['read_only', false, 'POOL_READ_ONLY'])
  const { lost } = state
  await failing.fail('flush', failure('ENOSPC'), null)
  t.same(done.slice(8), ['error: flush'], 'a second one is told of, and that is all')
  t.equal(state.lost, lost, 'callers hear of the first')
})

t.test('a commit that is under way may yet become the last', async t => {
  const { done, failing } = rig()
  let end = (): void => {}
  const commit = new Promise<void>((_resolve, reject) => {
    end = () => reject(failure('EIO'))
  })
  commit.catch(() => {})
  const failed = failing.fail('metadata', failure('EIO'), commit)
  await turn()
  t.same(done, ['error: metadata', ...ENDED], 'nothing changes, and nothing is rolled back yet')
  end()
  await Promise.all([failed, failing.failing])
  t.same(done.slice(3), ROLLBACK)
})

t.test('a store that was cut off is not gone back to', async t => {
  const cutOff = new ThinfsError('POOL_MISMATCH', 'data: 5 bytes')
  const whole = rig()
  await whole.failing.fail('size', cutOff, null)
  t.same(whole.done, ['error: size', ...ENDED], 'what is in memory is right')
  const half = rig()
  half.state.halfWay = true
  await half.failing.fail('size', cutOff, null)
  t.same(half.done.slice(3), ROLLBACK, 'unless a change was made half')
})

t.test('where needs_check cannot be written the pool can not be read either', async t => {
  const { done, state, failing } = rig({ write: () => Promise.reject(failure('EIO')) })
  await failing.fail('commit', failure('EIO'), null)
  t.equal(state.mode, 'fail')
  t.same(done.slice(-2), ['error: needs_check', 'fail'])
})

t.test('nothing is written where somebody else may have the pool', async t => {
  const lock = new ThinfsError('LOCK_LOST', 'data: another host')
  const given = ['read_only', 'fail', 'waiting callers get POOL_READ_ONLY']
  const kept = ['freed blocks kept', 'dropped', 'told of the loss']
  const known = rig()
  await known.failing.fail('commit', lock, null)
  await known.failing.fail('commit', lock, null)
  t.same(known.done, [...given, ...kept], 'known before, and told once')
  const atOnce = (): void => {
    throw lock
  }
  const later = async (): Promise<void> => {
    await turn()
    throw lock
  }
  for (const mayWrite of [atOnce, later]) {
    const found = rig({ mayWrite })
    await found.failing.fail('commit', failure('EIO'), null)
    t.notOk(found.done.includes('needs_check written'))
    t.same(found.done.slice(-3), kept, 'found out before needs_check is written')
    t.equal(found.state.mode, 'fail')
  }
})
