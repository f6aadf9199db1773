// Goal: a host counts as fenced when its command says so by status 0, and never otherwise.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { fence } from '../../src/tenancy/index.js'

const OF = { host: 'host7', address: '10.0.0.7:0/9', pool: 'example' }

t.test('the command gets what it asks for', async t => {
  const file = join(t.testdir(), 'said')
  const command = [
    'sh',
    '-c',
    `printf '%s\\n' "$@" > ${file}`,
    'sh',
    '{host}',
    'of={pool}',
    '{address}',
  ]
  await fence({ command, timeout: 60 }, OF)
  t.equal(readFileSync(file, 'utf8'), 'host7\nof=example\n10.0.0.7:0/9\n')
})

const FAILURES: Record<string, [command: string[], timeout: number, message: RegExp]> = {
  'another status': [['sh', '-c', 'echo no such plug >&2; exit 3'], 60, /status 3: no such plug; /],
  'a signal': [['sh', '-c', 'kill -9 $$'], 60, /was ended by SIGKILL; /],
  'no such program': [['/none/fence', '{host}'], 60, /command \/none\/fence host7: .*ENOENT; /],
  'no end': [['sh', '-c', 'sleep 1000 & echo $! > "$1"; wait', 'sh', 'PID'], 0.5, /after 0.5 s; /],
}

for (const [what, [command, timeout, message]] of Object.entries(FAILURES)) {
  t.test(`no fence: ${what}`, async t => {
    const pid = join(t.testdir(), 'pid')
    const rule = { command: command.map(word => word.replace('PID', pid)), timeout }
    await t.rejects(fence(rule, OF), { code: 'TOOL_FAILED', message })
    if (what !== 'no end') return
    // What it has started has ended as well, or is about to.
    const started = readFileSync(pid, 'utf8').trim()
    const state = (): string => {
      try {
        return /^State:\s+(\w)/m.exec(readFileSync(`/proc/${started}/status`, 'utf8'))![1]!
      } catch {
        return 'gone'
      }
    }
    while (!['gone', 'Z'].includes(state())) await new Promise(resolve => setTimeout(resolve, 10))
  })
}

t.test('no fence: a host whose name is no argument', async t => {
  const rule = { command: ['true', '{host}'], timeout: 60 }
  const unknown = {
    code: 'TOOL_FAILED',
    message: /{host} is not known: as long as a server lets in that host alone/,
  }
  await t.rejects(fence(rule, { ...OF, host: '' }), unknown)
  for (const host of ['--help', 'a b', 'x\ny']) {
    await t.rejects(fence(rule, { ...OF, host }), { code: 'TOOL_FAILED', message: /no argument/ })
  }
  await fence({ command: ['true'], timeout: 60 }, { ...OF, host: '' })
})

t.test('given up while it runs', async t => {
  const giveUp = new AbortController()
  const fencing = fence({ command: ['sleep', '1000'], timeout: 60 }, OF, giveUp.signal)
  fencing.catch(() => {})
  giveUp.abort(new Error('given up'))
  await t.rejects(fencing, { message: 'given up' })
})
