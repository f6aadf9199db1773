// Goal: the command of an event runs, whatever the one before does, and never two at a time.
// Method: real commands, which write down what they find.
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { Hooks } from '../../src/daemon/hooks.js'
import type { Logger } from '../../src/log/index.js'

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await delay(10)
}

/** Hooks whose commands may write to `out`, and what they have logged. */
function made(t: Test, timeout = 30) {
  const out = join(t.testdir({}), 'out')
  const logged: { text: string; [field: string]: unknown }[] = []
  const note = (fields: object, text: string) => logged.push({ ...fields, text })
  const log = { debug: note, warn: note } as unknown as Logger
  const hooks = new Hooks(log, () => ({ OUT: out, THINFS_POOL: '/srv/p/pool.yaml' }), timeout)
  const run = (name: string, command: string) =>
    hooks.run({ command, event: { time: 0, event: name, detail: '', dataUsed: 5 } })
  const lines = () => (existsSync(out) ? readFileSync(out, 'utf8').split('\n').slice(0, -1) : [])
  return { run, lines, logged }
}

t.test('one after the other, with the variables', async t => {
  const { run, lines, logged } = made(t)
  run('a', 'echo begin $THINFS_EVENT >> $OUT; sleep 0.1; echo end $THINFS_POOL >> $OUT')
  run('b', 'echo "$THINFS_EVENT" in $PWD, $THINFS_DATA_USED >> $OUT')
  await until(() => logged.length === 2)
  t.same(lines(), ['begin a', 'end /srv/p/pool.yaml', 'b in /, 5'])
  t.match(logged, [
    { event: 'a', text: 'hook run' },
    { event: 'b', text: 'hook run' },
  ])
})

t.test('a failure is logged with what it said', async t => {
  const { run, logged } = made(t)
  run('a', 'echo not there >&2; exit 3')
  run('b', 'kill -9 $$')
  run('c', 'true')
  await until(() => logged.length === 3)
  t.match(logged[0], { text: 'hook failed', event: 'a', status: 3, stderr: 'not there' })
  t.match(logged[1], { text: 'hook failed', event: 'b' })
  t.match(logged[2], { text: 'hook run', event: 'c' })
})

t.test(
  'one that hangs is ended, with what it has started; the oldest that wait are dropped',
  async t => {
    const { run, lines, logged } = made(t, 1)
    run('hung', 'sleep 1000 & sleep 1000')
    for (let i = 1; i <= 18; i++) run(`e${i}`, 'echo $THINFS_EVENT >> $OUT')
    await until(() => lines().length === 16)
    t.equal(lines()[0], 'e3')
    await until(() => logged.length === 19)
    t.match(logged.slice(0, 3), [
      { event: 'e1', text: /too many/ },
      { event: 'e2', text: /too many/ },
      { event: 'hung', text: 'hook failed', status: 124 },
    ])
  },
)
