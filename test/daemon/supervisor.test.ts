// Goal: engines are replaced for as long as that can help, and no longer. Method: processes and a
// clock that do what the test says; what spawn(2) itself refuses is tried with the real one.
import { spawn } from 'node:child_process'
import { EventEmitter } from 'node:events'
import t, { type Test } from 'tap'
import { Supervisor } from '../../src/daemon/supervisor.js'
import type { Negotiated } from '../../src/fuse/index.js'
import { makeLogger } from '../../src/log/index.js'
import { PidsCgroup } from '../support/pids-cgroup.js'

const log = makeLogger({ process: 'daemon', level: 'silent', file: null, pretty: false })
const NEGOTIATED = { minor: 36 } as unknown as Negotiated
/** Before the second to sixth engine of a row that makes no progress. */
const DELAYS = [100, 500, 2000, 5000]

/** A process that says and does what the test wants. */
class FakeEngine extends EventEmitter {
  readonly pid: number
  /** Requests that came, by method. */
  readonly asked: { id: number; method: string }[] = []
  /** What else it was told. */
  readonly told: { method: string; params?: unknown }[] = []
  onAsked = (): void => {}

  constructor(pid: number) {
    super()
    this.pid = pid
  }

  send(message: { id?: number; method: string }, ...rest: unknown[]): void {
    const { id } = message
    if (id === undefined) this.told.push(message)
    else this.asked.push({ ...message, id })
    ;(rest.at(-1) as (err: Error | null) => void)(null)
    if (id !== undefined) this.onAsked()
  }

  says(method: string, params?: object): void {
    this.emit('message', { jsonrpc: '2.0', method, ...(params ? { params } : {}) })
  }

  serves(): this {
    this.says('started')
    this.says('ready', { negotiated: NEGOTIATED })
    return this
  }

  answers(result: unknown): void {
    this.emit('message', { jsonrpc: '2.0', id: this.asked.at(-1)!.id, result })
  }

  dies(code: number | null, signal: string | null = null): void {
    this.emit('close', code, signal)
  }
}

function supervise() {
  const engines: FakeEngine[] = []
  const waits: { ms: number; then: () => void }[] = []
  const told: string[] = []
  const state = { mounted: true, spawnFails: null as Error | null }
  const supervisor = new Supervisor({
    negotiated: NEGOTIATED,
    counted: null,
    spawnEngine() {
      if (state.spawnFails !== null) throw state.spawnFails
      const engine = new FakeEngine(1000 + engines.length)
      engines.push(engine)
      return engine as never
    },
    isMounted: () => state.mounted,
    after: (ms, then) => void waits.push({ ms, then }),
    onOpening: () => {},
    onHappened: () => {},
    onRestarted: why => void told.push(why),
    onTrouble: why => void told.push(why),
    log,
  })
  supervisor.start().catch(() => {})
  /** Lets time pass until the next engine is started. @returns milliseconds */
  const pass = (): number => {
    const { ms, then } = waits.shift()!
    then()
    return ms
  }
  return { supervisor, engines, waits, pass, state, told, last: () => engines.at(-1)! }
}

type Death = (engine: FakeEngine) => void

/** Ways to die of what the next engine would meet again. */
const OWN_DEATHS: Record<string, Death> = {
  'a journal that cannot be replayed': engine => {
    engine.says('started')
    engine.says('failed', { message: 'block 7: checksum', code: 'METADATA_CORRUPT', errno: 'EIO' })
    engine.dies(1)
  },
  'a request that comes again': engine => engine.serves().dies(1),
  'a first commit': engine => engine.serves().dies(null, 'SIGSEGV'),
}

for (const [what, die] of Object.entries(OWN_DEATHS)) {
  t.test(`${what} ends it, after a growing delay each time`, async t => {
    const { supervisor, engines, waits, pass, last } = supervise()
    die(last())
    t.same(waits, [], 'the first time there is no wait')
    for (const ms of DELAYS) {
      t.equal(supervisor.trouble, null)
      die(last())
      t.equal(pass(), ms)
    }
    t.match(supervisor.trouble, { code: 'DAEMON_FAILED', message: /died 5 times without progress/ })
    die(last())
    t.equal(engines.length, 6)
    t.same(waits, [])
    await t.rejects(supervisor.ended, { code: 'DAEMON_FAILED', message: /died 6 times/ })
    await t.rejects(supervisor.admin.list(), { code: 'DAEMON_FAILED', message: /died 6 times/ })
  })
}

t.test('no engine follows one that found the pool to be another host’s', async t => {
  const lost = { message: 'taken over by host7', code: 'FENCED', errno: 'EIO' }
  for (const begins of [(engine: FakeEngine) => engine.serves(), (engine: FakeEngine) => engine]) {
    const { supervisor, engines, waits, last } = supervise()
    begins(last()).says('failed', lost)
    last().dies(3)
    t.equal(engines.length, 1)
    t.same(waits, [])
    await t.rejects(supervisor.ended, lost)
    await t.rejects(supervisor.admin.list(), lost)
    t.equal(supervisor.trouble, null)
  }
})

t.test('deaths with progress in between do not add up, whatever the time', async t => {
  const { engines, waits, last } = supervise()
  for (let death = 1; death <= 100; death++) {
    last().serves().says('served')
    last().dies(1)
    t.same(waits, [], 'the next one follows at once')
  }
  t.equal(engines.length, 101)
})

/** Ways to die that say nothing of the engine. */
const OUTSIDE: Record<string, Death> = {
  'the host has no space': engine => {
    engine.says('started')
    engine.says('failed', { message: 'no space left', code: 'IO_ERROR', errno: 'ENOSPC' })
    engine.dies(1)
  },
  'it may open no more files': engine => {
    engine.says('started')
    engine.says('failed', { message: 'too many open files', code: null, errno: 'EMFILE' })
    engine.dies(1)
  },
  'it is killed': engine => engine.serves().dies(null, 'SIGKILL'),
  'its program cannot be loaded': engine => engine.dies(1),
  'it has no memory to begin with': engine => engine.dies(null, 'SIGABRT'),
}

t.test('a restart waits for no delay', async t => {
  const { supervisor, engines, waits, pass, last } = supervise()
  const kill = (): void => last().serves().dies(null, 'SIGKILL')
  kill()
  kill()
  const early = supervisor.restart()
  t.equal(engines.length, 3)
  last().serves()
  await early
  t.equal(pass(), 100)
  t.equal(engines.length, 3, 'the one that was waited for is there already')

  for (const ms of DELAYS.slice(1, -1)) {
    kill()
    t.equal(pass(), ms)
  }
  kill()
  t.not(supervisor.trouble, null)
  const futile = supervisor.restart()
  t.equal(waits.length, 1)
  last().dies(null, 'SIGKILL')
  await t.rejects(futile, { message: /another is tried every 5 s/ })
  const late = supervisor.restart()
  last().serves()
  await late
  t.equal(supervisor.trouble, null)
  const { length } = engines
  for (const { then } of waits) then()
  t.equal(engines.length, length)
})

for (const [what, die] of Object.entries(OUTSIDE)) {
  t.test(`${what}: it is tried again for ever, and heals by itself`, async t => {
    const { supervisor, pass, last } = supervise()
    const waiting = supervisor.admin.list()
    waiting.catch(() => {})
    die(last())
    for (const ms of DELAYS) {
      die(last())
      t.equal(pass(), ms)
    }
    for (let death = 0; death < 50; death++) {
      die(last())
      t.equal(pass(), 5000)
    }
    const reason = /another is tried every 5 s: the engine died 55 times/
    t.match(supervisor.trouble, { message: reason })
    await t.rejects(supervisor.admin.list(), { code: 'DAEMON_FAILED', message: reason })

    last().serves().says('served')
    t.equal(supervisor.trouble, null)
    const asked = new Promise<void>(resolve => {
      last().onAsked = resolve
    })
    const listing = supervisor.admin.list()
    await asked
    last().answers([])
    t.same(await listing, [])
  })

  t.test(`${what}: but not for a mount that is gone`, async t => {
    const { supervisor, pass, state, last } = supervise()
    die(last())
    for (const _ of DELAYS) {
      die(last())
      pass()
    }
    state.mounted = false
    die(last())
    await t.rejects(supervisor.ended, { code: 'DAEMON_FAILED' })
  })
}

t.test('a spawn that throws is a death of shortage, not of the daemon', async t => {
  const { supervisor, engines, waits, pass, state, last } = supervise()
  state.spawnFails = Object.assign(new Error('spawn ENOMEM'), { code: 'ENOMEM' })
  last().serves().says('served')
  last().dies(null, 'SIGKILL')
  t.equal(engines.length, 1)
  t.equal(waits[0]!.ms, 100, 'the first attempt at once has failed, too')
  for (let attempt = 0; attempt < 20; attempt++) pass()
  t.match(supervisor.trouble, { errno: 'ENOMEM', message: /spawn ENOMEM/ })
  state.spawnFails = null
  pass()
  last().serves()
  t.equal(supervisor.trouble, null)
})

t.test('what reads is asked again of the next engine; what changes is not', async t => {
  const { supervisor, last } = supervise()
  for (const method of ['list', 'status', 'check', 'resize'] as const) {
    const asked = (): Promise<void> => new Promise(resolve => (last().onAsked = resolve))
    last().serves().says('served')
    let heard = asked()
    const answer =
      method === 'resize'
        ? supervisor.admin.resize({ name: 'a', size: 1 })
        : (supervisor.admin[method] as (request: object) => Promise<unknown>)({})
    answer.catch(() => {})
    await heard
    last().dies(null, 'SIGKILL')
    heard = asked()
    last().serves()
    if (method === 'resize') {
      await t.rejects(answer, { code: 'DAEMON_FAILED', message: /is not known, look with/ }, method)
      continue
    }
    await heard
    t.equal(last().asked.at(-1)!.method, method)
    last().answers('answer')
    t.equal(await answer, 'answer', method)
  }
})

t.test('nobody is asked in the place of who has gone', async t => {
  const { supervisor, last } = supervise()
  const signal = AbortSignal.abort(new Error('gone'))
  const asked = (supervisor.admin.create as (...args: unknown[]) => Promise<unknown>)({}, signal)
  last().serves()
  await t.rejects(asked, { message: 'gone' })
  t.same(last().asked, [])
})

t.test(
  'an engine goes on with the counters of the one before, as far as they are known',
  async t => {
    const { supervisor, last, told } = supervise()
    const countsOn = (): unknown => last().told.find(({ method }) => method === 'count on')?.params
    const serves = async (): Promise<void> => {
      last().serves()
      while (countsOn() === undefined) await new Promise(resolve => setImmediate(resolve))
      last().says('served')
    }
    await serves()
    t.same(countsOn(), { before: null, engineRestarts: 1 }, 'the daemon took over')
    last().dies(1)
    await serves()
    t.same(countsOn(), { before: null, engineRestarts: 2 }, 'nobody has asked')
    const asked = new Promise<void>(resolve => {
      last().onAsked = resolve
    })
    const answer = supervisor.admin.statistics()
    await asked
    last().answers({ reads: 5 })
    t.same(await answer, { reads: 5 })
    last().dies(1)
    await serves()
    t.same(countsOn(), { before: { reads: 5 }, engineRestarts: 3 }, 'what was seen last')
    last().says('counted', { reads: 7 })
    last().dies(0)
    await serves()
    t.same(countsOn(), { before: { reads: 7 }, engineRestarts: 4 }, 'what it said at its end')
    t.equal(told.length, 3, 'each restart is told of')
  },
)

/** A supervisor of real processes; resolves when it waits for the next one. */
async function spawnOnce(t: Test, attempt: () => ReturnType<typeof spawn>) {
  let spawned = 0
  await new Promise<void>((resolve, reject) => {
    const supervisor = new Supervisor({
      negotiated: NEGOTIATED,
      counted: null,
      spawnEngine() {
        spawned++
        const child = attempt()
        if (child.pid) reject(new Error('a process was started'))
        return child
      },
      isMounted: () => true,
      after: (ms, _then) => (ms === 100 ? resolve() : reject(new Error(`${ms} ms`))),
      onOpening: () => {},
      onHappened: () => {},
      onRestarted: () => {},
      onTrouble: () => {},
      log,
    })
    supervisor.start().catch(reject)
    supervisor.ended.catch(reject)
  })
  t.equal(spawned, 2)
}

t.test('processes that cannot be started, as Node tells it', async t => {
  const stdio = ['ignore', 2, 2, 'ipc'] as const
  await spawnOnce(t, () => spawn('/nowhere/node', [], { stdio: [...stdio] }))
})

const pids = PidsCgroup.available()
t.test('no more processes: EAGAIN', { skip: pids ? false : 'needs a pids cgroup' }, async t => {
  const group = new PidsCgroup(t, 'supervisor')
  await group.full(() =>
    spawnOnce(t, () => spawn(process.execPath, ['-e', ''], { stdio: ['ignore', 2, 2, 'ipc'] })),
  )
})
