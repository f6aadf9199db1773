/**
 * Goal: what comes from the kernel or over the control socket, however odd, is answered once or not
 * at all, and whoever asks properly is still served. Method: a kernel made of queues that sends
 * anything, and clients of a real socket that do.
 */
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import fc from 'fast-check'
import t from 'tap'

import { adminOf, ControlSocket, serveAdmin } from '../../src/control/index.js'
import { VolumeFs } from '../../src/fs/index.js'
import { OPCODE } from '../../src/fuse/abi.js'
import { FuseSession } from '../../src/fuse/session.js'
import { AtomicFile } from '../../src/storage/index.js'
import { FakeKernel, text, u32, u64 } from '../support/fake-kernel.js'
import { formatted, openFiles } from '../support/memory-pool.js'
import { EFFORT, tally } from '../support/tally.js'
import { openTable } from '../support/volumes-on-disk.js'

const SEED = EFFORT === 1 ? { seed: 4 } : {}
/** Null in five of six cases. */
const rarely = <T>(value: fc.Arbitrary<T>): fc.Arbitrary<T | null> =>
  fc.oneof({ weight: 5, arbitrary: fc.constant(null) }, { weight: 1, arbitrary: value })
const folder = mkdtempSync(join(tmpdir(), 'thinfs-fuzz-'))
t.teardown(() => rmSync(folder, { recursive: true }))

// --- the kernel ---

const ROOT = 1
/** Not answered, by the protocol. */
const SILENT: readonly number[] = [
  OPCODE.FORGET,
  OPCODE.BATCH_FORGET,
  OPCODE.INTERRUPT,
  OPCODE.NOTIFY_REPLY,
]

async function served() {
  const files = formatted({ blockSectors: 8, dataBlocks: 64 })
  const { pool } = await openFiles(files)
  const volumes = openTable(pool, files.metadata, new AtomicFile(join(folder, 'volumes.json')))
  const { devId } = await volumes.newVolumes.make('web', 99_840)
  await volumes.find('web')!.device.write(5000, 9000, Buffer.alloc(9000, 1), 0)
  const kernel = new FakeKernel()
  const fatal: unknown[] = []
  const options = {
    fd: -1,
    fileSystem: new VolumeFs(volumes, { uid: 0, gid: 0 }, 0),
    negotiated: { maxWrite: 1024 * 1024 } as never,
    onInitialized() {},
    onUnmounted() {},
    onFatal: (err: unknown) => fatal.push(err),
  }
  const session = new FuseSession(options, null, kernel)
  return { kernel, session, volumes, fatal, web: devId + 2 }
}

const odd64 = fc.oneof(
  fc.bigInt({ min: 0n, max: 10n }),
  fc.constantFrom(4095n, 99_839n, 99_840n, 1n << 31n, (1n << 53n) - 1n, 1n << 53n, 1n << 63n),
  fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
)
/** What follows a header: fields, then bytes or names. */
const body = fc.tuple(
  fc.array(
    fc.oneof(
      odd64.map(value => u64(value)),
      fc.constantFrom(0, 1, 3, 4, 17, 4096, 2 ** 20, 2 ** 20 + 1, 2 ** 31, 2 ** 32 - 1).map(u32),
    ),
    { maxLength: 12 },
  ),
  fc.oneof(
    fc.uint8Array({ maxLength: 40 }).map(bytes => Buffer.from(bytes)),
    fc.constantFrom('web', 'x', '..', 'a/b', 'constructor', 'user.thinfs.dev_id').map(text),
    fc.tuple(fc.constantFrom('web', 'x'), fc.constantFrom('y', 'web')).map(both => {
      return Buffer.concat(both.map(text))
    }),
    fc.constant(Buffer.alloc(0)),
  ),
)
// What ends the session, or begins it.
const opcodes = Object.values(OPCODE).filter(op => op !== OPCODE.INIT && op !== OPCODE.DESTROY)
const request = fc.record({
  opcode: fc.oneof({ weight: 20, arbitrary: fc.constantFrom(...opcodes) }, fc.nat()),
  ino: fc.oneof({ weight: 6, arbitrary: fc.constantFrom(1n, 2n, 3n) }, odd64),
  body,
  resent: fc.boolean(),
  cut: rarely(fc.nat({ max: 60 })),
})

t.test('any request of a kernel is answered once, and the session lives', async t => {
  const inputs = 4000 * EFFORT
  const { kernel, session, volumes, fatal, web } = await served()
  let unique = 0n
  const answers = new Map<string, number>()
  await fc.assert(
    fc.asyncProperty(request, async ({ opcode, ino, body: [fields, rest], resent, cut }) => {
      unique += 2n
      const id = unique | (resent ? 1n << 63n : 0n)
      const whole = Buffer.concat([
        u64(id),
        u64(ino),
        u32(1),
        u32(2),
        u32(3),
        u32(0),
        ...fields,
        rest,
      ])
      const length = Math.min(cut ?? Number.POSITIVE_INFINITY, whole.length + 8)
      kernel.raw(Buffer.concat([u32(whole.length + 8), u32(opcode), whole]).subarray(0, length))
      kernel.run()
      // Without its unique there is nobody to answer; what is too short is refused whatever it is.
      const isWhole = length === whole.length + 8
      const wanted = length < 16 || (isWhole && SILENT.includes(opcode)) ? 0 : 1
      for (let turn = 0; kernel.replies.length < wanted && turn < 500; turn++) {
        await new Promise(resolve => setTimeout(resolve, turn > 20 ? 1 : 0))
      }
      if (fatal.length > 0) throw fatal[0]
      const replies = kernel.replies.splice(0)
      if (replies.length !== wanted || replies.some(reply => reply.unique !== id)) {
        throw new Error(`${replies.length} answers, wanted ${wanted}`)
      }
      const error = wanted === 0 ? 'not answered' : (replies[0]!.error ?? 'done')
      answers.set(error, (answers.get(error) ?? 0) + 1)
    }),
    { ...SEED, numRuns: inputs, endOnFailure: true },
  )
  t.comment(JSON.stringify(Object.fromEntries(answers)))
  t.ok(answers.get('done')! > inputs / 50, 'some do something')
  t.equal((await kernel.ask(OPCODE.GETATTR, ROOT, u32(0), u32(0), u64(0))).error, null)
  t.ok(web > ROOT)
  session.close()
  await volumes.close()
  tally(t, { 'inputs fuzzed': inputs })
})

// --- the control socket ---

/** Answers every method; `hold` keeps answers back. */
async function listening() {
  let asked = 0
  const path = join(folder, 'control.sock')
  const admin = adminOf(async (method, given) => {
    asked++
    // As the daemon hands a request on.
    return { method, request: JSON.parse(JSON.stringify(given ?? null)) }
  })
  const control = await ControlSocket.listen(path, connection => serveAdmin(connection, admin))
  return { control, path, asked: () => asked }
}

async function connected(path: string): Promise<Socket> {
  const socket = connect(path)
  socket.on('error', () => {})
  await once(socket, 'connect')
  return socket
}

/** Whether a client that asks properly gets its answer. */
async function answers(path: string): Promise<boolean> {
  const socket = await connected(path)
  const lines = createInterface({ input: socket })
  const line = once(lines, 'line')
  socket.write('{"jsonrpc":"2.0","id":1,"method":"list"}\n')
  const { id, result } = JSON.parse((await line)[0])
  socket.destroy()
  return id === 1 && result.method === 'list'
}

const json = fc.oneof(fc.json({ maxDepth: 3 }), fc.constantFrom('null', '1e999', '"x"', '[]', '{}'))
const method = fc.oneof(
  fc.constantFrom('create', 'list', 'remove', 'rename', 'message', 'status', 'umount', 'ping'),
  fc.constantFrom('__proto__', 'constructor', 'toString', '$/cancelRequest', '$/setTrace', ''),
  fc.string(),
)
const nested = `${'['.repeat(100_000)}${']'.repeat(100_000)}`
const message = fc.oneof(
  fc.uint8Array({ maxLength: 200 }).map(bytes => Buffer.from(bytes)),
  fc
    .tuple(json, method, json, fc.constantFrom('2.0', '1.0', '__proto__'))
    .map(([id, name, params, version]) =>
      Buffer.from(
        `{"jsonrpc":"${version}","id":${id},"method":${JSON.stringify(name)},"params":${params}}\n`,
      ),
    ),
  fc
    .tuple(fc.constantFrom('create', 'resize'), json, json)
    .map(([name, one, other]) =>
      Buffer.from(
        `{"jsonrpc":"2.0","id":1,"method":"${name}","params":{"name":${one},"size":${other}}}\n`,
      ),
    ),
  json.map(value => Buffer.from(`[${value},${value}]\n`)),
  json.map(value => Buffer.from(`{"jsonrpc":"2.0","id":3,"result":${value}}\n`)),
  fc.constant(Buffer.from(`{"jsonrpc":"2.0","id":1,"method":"list","params":${nested}}\n`)),
  fc.constant(
    Buffer.from(
      `{"jsonrpc":"2.0","id":1,"method":"create","params":{"name":"a","size":1,"x":${nested}}}\n`,
    ),
  ),
)

t.test('any bytes on the control socket; others are served', async t => {
  const inputs = 400 * EFFORT
  const { control, path, asked } = await listening()
  await fc.assert(
    fc.asyncProperty(
      fc.array(message, { minLength: 1, maxLength: 3 }),
      fc.constantFrom('end', 'destroy', 'wait'),
      async (messages, how) => {
        const socket = await connected(path)
        socket.resume()
        for (const bytes of messages) socket.write(bytes)
        if (how === 'end') socket.end()
        if (how === 'destroy') socket.destroy()
        if (!(await answers(path))) throw new Error('no answer')
        socket.destroy()
      },
    ),
    { ...SEED, numRuns: inputs, endOnFailure: true },
  )
  t.ok(asked() > inputs, 'some of it were requests')
  control.close()
  await control.closed
  tally(t, { 'inputs fuzzed': inputs })
})

t.test('requests without end of one who does not read: others are served', async t => {
  const { control, path, asked } = await listening()
  const socket = await connected(path)
  socket.pause()
  const name = 'x'.repeat(10_000)
  const line = (id: number): string =>
    JSON.stringify({ jsonrpc: '2.0', id, method: 'create', params: { name, size: 1 } })
  let sent = 0
  for (; sent < 10_000; sent++) {
    // As much as the socket takes: who has to wait for the server asks no more.
    if (socket.write(`${line(sent)}\n`)) continue
    const drained = once(socket, 'drain').then(() => true)
    const stuck = new Promise<boolean>(resolve => setTimeout(resolve, 200, false))
    if (!(await Promise.race([drained, stuck]))) break
  }
  t.ok(await answers(path))
  // Requests of a chunk that was read, and a few more.
  t.comment(`${sent} sent, ${asked()} carried out`)
  t.ok(sent > asked() && asked() < 200, 'who does not read answers is not asked for more')
  socket.destroy()
  control.close()
  await control.closed
  tally(t, { 'inputs fuzzed': sent })
})

t.test('two requests of one id end the connection, and closing does not wait for both', async t => {
  const { control, path } = await listening()
  const socket = await connected(path)
  socket.resume()
  const closed = once(socket, 'close')
  socket.write(
    '{"jsonrpc":"2.0","id":1,"method":"list"}\n{"jsonrpc":"2.0","id":1,"method":"list"}\n',
  )
  await closed
  t.ok(await answers(path))
  control.close()
  await control.closed
})
