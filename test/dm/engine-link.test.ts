// Goal: who asks the engine is answered, whenever the engine dies, or told that no engine stays.
// Method: real processes that die at once, before or after what they were asked, or by a signal
// from outside; what each was told is read from a file that all of them write.
import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import pino from 'pino'
import t, { type Test } from 'tap'
import { EngineLink } from '../../src/dm/engine-link.js'

const ENGINE = fileURLToPath(new URL('../support/link-engine.ts', import.meta.url))

/**
 * @param howOf what engine number `nr`, counted from 0, is told about its life
 * @param mayFail comes before an engine is told of the devices
 */
function linked(t: Test, howOf: (nr: number) => string, mayFail = async () => {}) {
  const file = join(t.testdir(), 'log')
  const children: ChildProcess[] = []
  const failures: unknown[] = []
  const negotiated: unknown[] = []
  const link = new EngineLink({
    spawn(before) {
      negotiated.push(before)
      const args = [file, howOf(children.length)]
      const child = fork(ENGINE, args, { execArgv: ['--import=tsx'], stdio: 'inherit' })
      children.push(child)
      return child
    },
    async replay(engine) {
      await mayFail()
      await engine.create(1)
      await engine.resume(1)
    },
    onFailed: err => failures.push(err),
    onServes() {},
    events: { event() {}, closed() {} },
    log: pino({ level: 'silent' }),
  })
  t.teardown(async () => {
    const ended = link.ended()
    for (const child of children) child.kill('SIGKILL')
    await ended
  })
  /** What engine `nr` wrote down. */
  const told = (nr: number): string[] =>
    readFileSync(file, 'utf8')
      .split('\n')
      .filter(line => line.startsWith(`${children[nr]!.pid} `))
      .map(line => line.slice(line.indexOf(' ') + 1))
  return { link, children, failures, negotiated, told }
}

t.test('an engine that follows is told all before it serves, and what was agreed', async t => {
  const { link, negotiated, told } = linked(t, nr => (nr === 0 ? 'first' : 'next'))
  await link.start(null)
  t.same(told(0), ['starts', 'create 1', 'resume 1', 'serve'])
  t.equal(await link.message(1, 0, ['create_thin', '0', 'die-before']), null)
  t.same(told(0), ['starts', 'create 1', 'resume 1', 'serve'], 'the first did not come to it')
  const rest = 'message create_thin 0 die-before'
  t.same(told(1), ['starts', 'create 1', 'resume 1', 'serve', rest])
  t.same(negotiated, [null, { maxWrite: 'first' }])
})

t.test('a message that was carried out by one that died is no error of the next', async t => {
  const { link, told } = linked(t, nr => (nr === 0 ? 'first' : 'next'))
  await link.start(null)
  t.equal(await link.message(1, 0, ['create_thin', '0', 'die-after']), null)
  t.equal(told(1).at(-1), 'message create_thin 0 die-after')
  await t.rejects(link.message(1, 0, ['create_thin', '0', 'die-after']), { message: 'there' })
})

t.test('requests of the moment in which an engine is killed are answered by the next', async t => {
  const { link, children, failures } = linked(t, () => 'next')
  await link.start(null)
  const answers = new Set<string>()
  for (let nr = 0; nr < 6; nr++) {
    const before = link.status(1, true)
    children[nr]!.kill('SIGKILL')
    // At once, and as the pipe breaks, before anybody was told of the death.
    const asked = [before, link.status(1, true)]
    const look = Date.now() + 10_000
    while (children[nr]!.signalCode === null && Date.now() < look) {
      asked.push(link.status(1, true))
      await new Promise(setImmediate)
    }
    for (const [line] of await Promise.all(asked)) answers.add(line!.replace(/\d+$/, 'PID'))
  }
  t.same([...answers], ['1 of PID'])
  t.same(failures, [])
})

t.test('engines that die without serving are given up, and nobody waits for another', async t => {
  const { link, children, failures } = linked(t, nr => (nr === 0 ? 'first' : 'dies at once'))
  await link.start(null)
  const asked = link.status(1, true)
  children[0]!.kill('SIGKILL')
  await t.rejects(
    asked.then(() => link.status(1, true)),
    { code: 'DAEMON_FAILED' },
  )
  t.equal(link.failed, true)
  t.equal(failures.length, 1)
  t.equal(children.length, 6, 'the first, and five that died')
  await link.remove(1)
  await t.rejects(link.create(2), { code: 'DAEMON_FAILED' })
})

t.test('a first engine that cannot start is the error of the start, and none follows', async t => {
  const { link, children } = linked(t, () => 'dies at once')
  await t.rejects(link.start(null), { code: 'DAEMON_FAILED', message: /status 7/ })
  await link.ended()
  t.equal(children.length, 1)
})

t.test('an engine that is not told all is ended, and another one tried', async t => {
  let told = 0
  const { link, children, failures } = linked(
    t,
    () => 'next',
    async () => {
      if (++told === 2) throw new Error('not this time')
    },
  )
  await link.start(null)
  children[0]!.kill('SIGKILL')
  await once(children[0]!, 'exit')
  t.match((await link.status(1, true))[0], `1 of ${children[2]!.pid}`)
  t.equal(children[1]!.signalCode, 'SIGKILL')
  t.same(failures, [])
})
