// Goal: the modes of a pool follow each other as the table says, and in no other way. Method: every
// mode is reached by a path of the table, and from each every mode is tried; what a request may do
// in it is what dm-thin's documentation says
// (Documentation/admin-guide/device-mapper/thin-provisioning).
import t from 'tap'
import type { PoolMode } from '../../src/pool/options.js'
import { MODE_CHANGES, PoolState } from '../../src/pool/pool-state.js'

const MODES = Object.keys(MODE_CHANGES) as PoolMode[]
/** How to get to each mode from `write`, where a pool begins. */
const PATHS: Record<PoolMode, PoolMode[]> = {
  write: [],
  out_of_data_space: ['out_of_data_space'],
  out_of_metadata_space: ['out_of_metadata_space'],
  read_only: ['read_only'],
  fail: ['read_only', 'fail'],
}

function stateIn(mode: PoolMode): { state: PoolState; told: PoolMode[] } {
  const told: PoolMode[] = []
  const state = new PoolState({ mode: next => told.push(next) })
  for (const step of PATHS[mode]) state.set(step, step)
  return { state, told }
}

t.test('every mode is followed by those of the table alone', async t => {
  for (const from of MODES) {
    t.equal(stateIn(from).state.mode, from)
    for (const to of MODES.filter(mode => mode !== from)) {
      const { state, told } = stateIn(from)
      const before = told.length
      state.set(to, 'why')
      const follows = to in MODE_CHANGES[from]
      t.equal(state.mode, follows ? to : from, `${from} -> ${to}`)
      t.same(told.slice(before), follows ? [to] : [], 'and told of')
      t.equal(state.reason, follows ? 'why' : from === 'write' ? null : from)
    }
  }
})

t.test('nothing leads out of read_only but failure, and out of failure nothing', async t => {
  t.same(Object.keys(MODE_CHANGES.read_only), ['fail'])
  t.same(Object.keys(MODE_CHANGES.fail), [])
})

t.test('what a request may do', async t => {
  const allowed = (act: () => void): boolean => {
    try {
      act()
      return true
    } catch {
      return false
    }
  }
  const rights = MODES.map(mode => {
    const { state } = stateIn(mode)
    return [mode, allowed(() => state.mustBeReadable()), allowed(() => state.mustBeWritable())]
  })
  t.same(rights, [
    ['write', true, true],
    ['out_of_data_space', true, true],
    ['out_of_metadata_space', true, true],
    ['read_only', true, false],
    ['fail', false, false],
  ])
})
