/**
 * The control socket as a peer sees it: a plain socket on this side, so that what crosses it is
 * compared with the bytes of JSON-RPC 2.0, not with our own reader and writer.
 */
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, mkdirSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { createInterface, type Interface } from 'node:readline'
import { promisify } from 'node:util'
import t, { type Test } from 'tap'
import { AssertionError, ThinfsError } from '../../src/base/index.js'
import {
  adminClient,
  adminOf,
  ControlSocket,
  connectControlSocket,
  delegate,
  serveAdmin,
} from '../../src/control/index.js'
import type { MountedAdmin } from '../../src/volumes/index.js'

/** A folder, whose path is as long as wanted. */
function folder(t: Test, length = 0): string {
  const base = mkdtempSync(join(tmpdir(), 'thinfs-'))
  t.teardown(() => rmSync(base, { recursive: true, force: true }))
  const path = join(base, 'x'.repeat(Math.max(0, length - base.length - 1)))
  mkdirSync(path, { recursive: true })
  return path
}

async function serve(t: Test, admin: MountedAdmin, path = join(folder(t), 'control.sock')) {
  const control = await ControlSocket.listen(path, connection => serveAdmin(connection, admin))
  let open = true
  async function close(): Promise<void> {
    if (open) control.close()
    open = false
    await control.closed
  }
  t.teardown(close)
  return { path, close }
}

async function peer(t: Test, path: string): Promise<{ socket: Socket; lines: Interface }> {
  const socket = connect(path)
  t.teardown(() => socket.destroy())
  await once(socket, 'connect')
  return { socket, lines: createInterface({ input: socket }) }
}

async function ask(at: { socket: Socket; lines: Interface }, text: string): Promise<unknown> {
  const line = once(at.lines, 'line')
  at.socket.write(text)
  return JSON.parse((await line)[0])
}

t.test('a file system without sockets is told', async t => {
  // devpts has none, as FAT.
  await t.rejects(
    ControlSocket.listen('/dev/../dev/pts/control.sock', () => {}),
    {
      code: 'DAEMON_FAILED',
      errno: 'EPERM',
      message: /^\/dev\/pts: .* be made there \(EPERM\); .*keep pool.yaml on another/,
    },
  )
})

/** Answers every method with its own name and request; fails as told by the request. */
const echo = adminOf(async (method, request) => {
  const { name } = (request ?? {}) as { name?: string }
  if (name === 'taken') throw new ThinfsError('VOLUME_EXISTS', 'taken: a volume has the name')
  if (name === 'odd') throw Object.assign(new Error('odd: strange'), { code: 'ESTALE' })
  return { method, request: request ?? null }
})

t.test('the socket is for its owner alone, and replaces one that was left behind', async t => {
  const path = join(folder(t), 'control.sock')
  writeFileSync(path, '')
  const { close } = await serve(t, echo, path)
  t.equal(statSync(path).mode & 0o777, 0o600)
  t.ok(statSync(path).isSocket())
  await close()
  t.throws(() => statSync(path), { code: 'ENOENT' })
})

t.test('resize carries the permission to shrink, which is true or false', async t => {
  const { path } = await serve(t, echo)
  const at = await peer(t, path)
  const resize = (id: number, shrink: unknown): string => {
    const params = { name: 'web', size: 512, shrink }
    return `${JSON.stringify({ jsonrpc: '2.0', id, method: 'resize', params })}\n`
  }
  t.match(await ask(at, resize(1, true)), {
    result: { method: 'resize', request: { name: 'web', size: 512, shrink: true } },
  })
  t.match(await ask(at, resize(2, 'yes')), { error: { data: { code: 'BAD_ARGUMENT' } } })
})

/** Connects as a user, asks, and prints what comes until the other end hangs up. */
const ASK = `
import os, socket, sys
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
try:
    peer.sendall(b'{"jsonrpc":"2.0","id":1,"method":"list"}\\n')
    peer.shutdown(socket.SHUT_WR)
except OSError: pass
try: print(peer.recv(4096).decode(), end='')
except ConnectionResetError: pass`
const isRoot = { skip: process.getuid?.() === 0 ? false : 'needs root to be somebody else' }

t.test('other users are not heard, even where the mode lets them connect', isRoot, async t => {
  const path = join(folder(t), 'control.sock')
  chmodSync(dirname(path), 0o755)
  await serve(t, echo, path)
  chmodSync(path, 0o666)
  const askAs = async (uid: number): Promise<string> =>
    (await promisify(execFile)('python3', ['-c', ASK, path, String(uid)], { timeout: 60_000 }))
      .stdout
  t.equal(await askAs(65534), '')
  t.match(await askAs(0), /"method":"list"/)
})

t.test('a socket on which another user listens is not asked', isRoot, async t => {
  const path = join(folder(t), 'control.sock')
  chmodSync(dirname(path), 0o777)
  const listen = `
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1]); server.listen()
print('listening', flush=True)
peer, _ = server.accept()
print(peer.recv(1), flush=True)`
  const other = spawn('python3', ['-c', listen, path])
  t.teardown(() => other.kill())
  const said = createInterface({ input: other.stdout })[Symbol.asyncIterator]()
  t.equal((await said.next()).value, 'listening')
  await t.rejects(connectControlSocket(path), { code: 'NOT_TRUSTED', errno: 'EPERM' })
  t.equal((await said.next()).value, "b''", 'nothing was said to it')
})

t.test('requests and answers are JSON-RPC 2.0, one line each', async t => {
  const at = await peer(t, (await serve(t, echo)).path)
  const volume = { name: 'web', size: 1 }
  t.same(
    await ask(
      at,
      `${JSON.stringify({ jsonrpc: '2.0', id: 7, method: 'create', params: volume })}\n`,
    ),
    { jsonrpc: '2.0', id: 7, result: { method: 'create', request: volume } },
  )
  t.same(await ask(at, '{"jsonrpc":"2.0","id":"a","method":"status"}\n'), {
    jsonrpc: '2.0',
    id: 'a',
    result: { method: 'status', request: null },
  })
  t.match(await ask(at, '{"jsonrpc":"2.0","id":8,"method":"nothing"}\n'), {
    id: 8,
    error: { code: -32601 },
  })
  const [half, rest] = ['{"jsonrpc":"2.0","id":9,"meth', 'od":"check"}\n']
  at.socket.write(half)
  t.match(await ask(at, rest), { id: 9, result: { method: 'check' } }, 'a line in two pieces')
  const two =
    '{"jsonrpc":"2.0","id":10,"method":"list"}\n{"jsonrpc":"2.0","id":11,"method":"list"}\n'
  const first = await ask(at, two)
  const [second] = await once(at.lines, 'line')
  t.same(
    [first, JSON.parse(second)].map(answer => answer.id),
    [10, 11],
    'two lines in one piece',
  )
})

t.test('an error keeps its code and errno', async t => {
  const { path } = await serve(t, echo)
  const at = await peer(t, path)
  const create = (name: string) =>
    `${JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'create', params: { name, size: 1 } })}\n`
  t.match(await ask(at, create('taken')), {
    error: {
      code: -32000,
      message: 'taken: a volume has the name',
      data: { code: 'VOLUME_EXISTS', errno: 'EEXIST' },
    },
  })
  const connection = await connectControlSocket(path)
  const client = adminClient(connection!)
  await t.rejects(client.create({ name: 'taken', size: 1 }), {
    name: 'ThinfsError',
    code: 'VOLUME_EXISTS',
    errno: 'EEXIST',
    message: 'taken: a volume has the name',
  })
  await t.rejects(client.create({ name: 'odd', size: 1 }), { message: 'odd: strange' })
  connection!.dispose()
})

t.test('a request of the wrong shape does not reach the pool', async t => {
  let reached = 0
  const at = await peer(
    t,
    (
      await serve(
        t,
        adminOf(async () => void reached++),
      )
    ).path,
  )
  const cases: [method: string, params: unknown, message: string][] = [
    ['resize', { name: 'web' }, 'resize: size must be a whole number'],
    ['resize', { name: 'web', size: 1.5 }, 'resize: size must be a whole number'],
    ['create', { name: 'web', size: 2 ** 60 }, 'create: size must be a whole number or absent'],
    ['create', { name: ['web'], size: 1 }, 'create: name must be a string'],
    [
      'create',
      { name: 'w', size: 1, devId: '1' },
      'create: devId must be a whole number or absent',
    ],
    ['snapshot', undefined, 'snapshot: origin must be a string'],
    ['remove', { names: 'web' }, 'remove: names must be a list of strings'],
    ['remove', { names: [null] }, 'remove: names must be a list of strings'],
    [
      'inject',
      { name: 'web', readErrors: [0, 0.5] },
      'inject: readErrors must be a list of whole numbers or absent',
    ],
    ['rename', ['a', 'b'], 'rename: from must be a string'],
    ['message', { message: null }, 'message: message must be a string'],
  ]
  for (const [method, params, message] of cases) {
    const request = { jsonrpc: '2.0', id: 1, method, params }
    const answer = await ask(at, `${JSON.stringify(request)}\n`)
    t.match(
      answer,
      { error: { message, data: { code: 'BAD_ARGUMENT', errno: 'EINVAL' } } },
      message,
    )
  }
  t.equal(reached, 0)
})

t.test('who sends too much, or no JSON, is cut off; others are served', async t => {
  const { path } = await serve(t, echo)
  const good = await peer(t, path)
  for (const [what, bytes] of [
    ['a line without end', Buffer.alloc(1024 * 1024 + 1, 'x')],
    [
      'a line that is too long',
      Buffer.concat([Buffer.alloc(1024 * 1024 + 1, ' '), Buffer.from('\n')]),
    ],
    ['no JSON', Buffer.from('Content-Length: 3\r\n\r\n')],
    ['bytes', Buffer.from([0, 255, 254, 10, 13, 10])],
  ] as const) {
    const bad = await peer(t, path)
    bad.socket.on('error', () => {})
    const closed = once(bad.socket, 'close')
    bad.socket.write(bytes)
    await closed
    t.ok(bad.socket.destroyed, what)
  }
  for (const text of ['null\n', '[]\n', '{}\n', '"x"\n', '1\n']) good.socket.write(text)
  t.match(await ask(good, '{"jsonrpc":"2.0","id":1,"method":"list"}\n'), { id: 1 })
})

t.test('a path longer than a socket address', async t => {
  const long = join(folder(t, 180), 'control.sock')
  t.ok(long.length > 108)
  await serve(t, echo, long)
  t.ok(statSync(long).isSocket())
  const connection = await connectControlSocket(long)
  t.match(await adminClient(connection!).list(), { method: 'list' })
  connection!.dispose()
})

t.test('nobody there is no error', async t => {
  const path = folder(t)
  t.equal(await connectControlSocket(join(path, 'control.sock')), null)
  t.equal(await connectControlSocket(join(path, 'nowhere', 'control.sock')), null)
  const { path: socket, close } = await serve(t, echo)
  await close()
  t.equal(await connectControlSocket(socket), null)
})

/** A pool whose every method waits until its signal is aborted; `signals` has what was asked. */
function waiting() {
  const signals = new Map<string, AbortSignal>()
  let nrAsked = 0
  let onAsked = (): void => {}
  const admin = adminOf(async (method, _request, signal) => {
    signals.set(method, signal!)
    nrAsked++
    onAsked()
    signal!.throwIfAborted()
    await new Promise((_, reject) =>
      signal!.addEventListener('abort', () => reject(signal!.reason), { once: true }),
    )
  })
  async function asked(nr: number): Promise<void> {
    while (nrAsked < nr) await new Promise<void>(resolve => (onAsked = resolve))
  }
  return { admin, signals, asked }
}

/** Until the signal is aborted. */
const aborted = async (signal: AbortSignal): Promise<unknown> =>
  signal.aborted || once(signal, 'abort')

t.test('a request whose caller has gone is cancelled, wherever it waits', async t => {
  const { admin, signals, asked } = waiting()
  const engine = await connectControlSocket((await serve(t, admin)).path)
  // As a daemon does.
  const { path } = await serve(
    t,
    delegate(() => adminClient(engine!)),
  )
  const other = await connectControlSocket(path)
  const staying = adminClient(other!).create({ name: 'a', size: 1 })
  staying.catch(() => {})
  const { socket } = await peer(t, path)
  for (const [id, method, params] of [
    [1, 'resize', { name: 'a', size: 1 }],
    [2, 'remove', { names: ['a'] }],
    [3, 'list', undefined],
  ]) {
    socket.write(`${JSON.stringify({ jsonrpc: '2.0', id, method, params })}\n`)
  }
  await asked(4)
  socket.destroy()
  for (const method of ['resize', 'remove', 'list']) {
    const signal = signals.get(method)!
    await aborted(signal)
    t.match(signal.reason, { code: 'CANCELLED', errno: 'ECANCELED' }, method)
  }
  t.notOk(signals.get('create')!.aborted, 'those of others go on')
  engine!.dispose()
  await t.rejects(staying, { code: 'DAEMON_FAILED' })
  other!.dispose()
})

t.test('connections that are idle keep nobody out', async t => {
  const { path } = await serve(t, echo)
  const first = await peer(t, path)
  const ended = once(first.socket, 'close')
  const list = '{"jsonrpc":"2.0","id":1,"method":"list"}\n'
  // Each has been accepted before the next one comes.
  const accepted = async () => {
    const at = await peer(t, path)
    t.match(await ask(at, list), { result: { method: 'list' } })
    return at
  }
  const early = await accepted()
  for (let nr = 0; nr < 62; nr++) await accepted()
  t.match(await ask(early, list), { id: 1 })
  for (let nr = 0; nr < 64; nr++) {
    await accepted()
    if (nr === 0) await ended
    else if (nr === 61) t.match(await ask(early, list), { id: 1 }, 'who asked later stays longer')
  }
})

t.test('when all wait for answers, one more is told so', async t => {
  const { admin, asked, signals } = waiting()
  const { path } = await serve(t, admin)
  for (let nr = 1; nr <= 64; nr++) {
    const { socket } = await peer(t, path)
    socket.write('{"jsonrpc":"2.0","id":1,"method":"check"}\n')
    await asked(nr)
  }
  const connection = await connectControlSocket(path)
  await t.rejects(adminClient(connection!).list(), {
    code: 'DAEMON_FAILED',
    errno: 'EBUSY',
    message: /too many connections: 64 others wait for answers/,
  })
  connection!.dispose()
  t.notOk(signals.has('list'), 'the pool was not asked')
})

t.test('a request that is taken back is cancelled', async t => {
  const { admin, signals, asked } = waiting()
  const { path } = await serve(t, admin)
  const connection = await connectControlSocket(path)
  const controller = new AbortController()
  const volume = { name: 'a', size: 1 }
  const creating = adminClient(connection!).create(volume, controller.signal)
  await asked(1)
  controller.abort()
  await t.rejects(creating, { code: 'CANCELLED', errno: 'ECANCELED' })
  t.ok(signals.get('create')!.aborted)
  await t.rejects(adminClient(connection!).resize(volume, AbortSignal.abort(new Error('late'))), {
    message: 'late',
  })
  t.notOk(signals.has('resize'), 'nobody was asked')
  connection!.dispose()

  const at = await peer(t, path)
  const text = `${JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'resize', params: volume })}
{"jsonrpc":"2.0","method":"$/cancelRequest","params":{"id":1}}\n`
  t.match(await ask(at, text), { id: 1, error: { data: { code: 'CANCELLED' } } }, 'in one piece')
})

t.test('closing answers what was asked, and what comes later is rejected', async t => {
  let finish = (): void => {}
  const started = new Promise<void>(resolve => {
    finish = resolve
  })
  let answer = (_: unknown): void => {}
  const slow = adminOf(async () => {
    finish()
    return await new Promise(resolve => {
      answer = resolve
    })
  })
  const { path, close } = await serve(t, slow)
  const [asking, other] = [await connectControlSocket(path), await connectControlSocket(path)]
  const asked = adminClient(asking!).check({})
  await started
  const closing = close()
  const late = adminClient(other!).list()
  late.catch(() => {})
  answer('done')
  t.equal(await asked, 'done')
  await closing
  await t.rejects(late, { code: 'DAEMON_FAILED' })
  await t.rejects(adminClient(other!).list(), { code: 'DAEMON_FAILED' })
})

t.test('a bug is answered and then stops the process', async t => {
  const { path } = await serve(
    t,
    adminOf(async () => {
      throw new AssertionError('two owners')
    }),
  )
  const thrown = new Promise(resolve => process.prependOnceListener('uncaughtException', resolve))
  const handlers = process.listeners('uncaughtException')
  const connection = await connectControlSocket(path)
  // tap's own handler would end the test.
  for (const handler of handlers.slice(1)) process.off('uncaughtException', handler)
  await t.rejects(adminClient(connection!).list(), { message: /two owners/ })
  t.match(await thrown, { message: 'thinfs bug: two owners' })
  for (const handler of handlers.slice(1)) process.on('uncaughtException', handler)
  connection!.dispose()
})
