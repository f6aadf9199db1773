import { execFile } from 'node:child_process'
import {
  closeSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import t from 'tap'
import { native } from '../src/native.js'

const ADDON = new URL('../native-shims/build/thinfs.node', import.meta.url).pathname
/** Runs a script in a process of its own; `native` is the addon, `pair` two connected sockets. */
const script = async (body: string, ...flags: string[]): Promise<string> => {
  const head = `
    const native = require(${JSON.stringify(ADDON)})
    const fs = require('node:fs')
    const pair = native.socket_pair()
    const turn = () => new Promise(resolve => setImmediate(resolve))
    `
  // tap's own modules would handle the exceptions.
  const args = [
    '-u',
    'NODE_OPTIONS',
    process.execPath,
    ...flags,
    '-e',
    `${head};(async () => {${body}})()`,
  ]
  const { stdout } = await promisify(execFile)('env', args, { timeout: 20_000 })
  return stdout.trim()
}

t.test('errors are those of node:fs: code, errno, syscall', async t => {
  const badFd = { code: 'EBADF', errno: -9 }
  t.throws(() => native.file_read(-1, Buffer.alloc(1), 0, 1, 0), { ...badFd, syscall: 'pread' })
  t.throws(() => native.file_write(-1, Buffer.alloc(1), 0, 1, 0), { ...badFd, syscall: 'pwrite' })
  t.throws(() => native.file_allocate(-1, 0, 0, 1), { ...badFd, syscall: 'fallocate' })
  const [done] = native.file_allocate_async(-1, 0, Float64Array.of(0, 1))
  await t.rejects(done!, { ...badFd, syscall: 'fallocate' })
  t.throws(() => native.file_seek(-1, 0, 0), { ...badFd, syscall: 'lseek' })
  t.throws(() => native.file_lock(-1, true), { ...badFd, syscall: 'fcntl' })
  t.throws(() => native.file_lock_range(-1, true, 0, 1), { ...badFd, syscall: 'fcntl' })
  t.throws(() => native.fuse_read(-1, Buffer.alloc(9), 9, 1, new Uint32Array(1), 1, 0), badFd)
  t.equal(native.fuse_write(-1, Buffer.alloc(1), 0, 1), -9)
  t.throws(() => native.poll_watch(-1, () => {}), { code: 'EBADF' })
  t.throws(() => native.mount_attach('a', '/none', 'none', 0, ''), {
    code: 'ENOENT',
    syscall: 'mount',
  })
})

t.test('what is not in the buffer is not touched', async t => {
  const buffer = Buffer.alloc(8)
  const cases = [
    [-1, 1],
    [0, 9],
    [8, 1],
    [9, 0],
    [0, -1],
    [2 ** 53, 1],
    [1, 2 ** 53],
  ] as const
  for (const [at, length] of cases) {
    t.throws(() => native.file_read(0, buffer, at, length, 0), { name: 'RangeError' })
    t.throws(() => native.file_write(1, buffer, at, length, 0), { name: 'RangeError' })
    t.throws(() => native.fuse_write(1, buffer, at, length), { name: 'RangeError' })
  }
  for (const [slotSize, slots] of [
    [0, 1],
    [-1, 1],
    [5, 2],
    [1, 3],
    [2 ** 53, 1],
  ] as const) {
    const read = () => native.fuse_read(0, buffer, slotSize, slots, new Uint32Array(2), 1, 0)
    t.throws(read, { name: 'RangeError' }, `${slots} slots of ${slotSize}`)
  }
  t.throws(() => native.file_read('0' as unknown as number, buffer, 0, 1, 0), { name: 'TypeError' })
  t.throws(() => native.file_seek(2 ** 32, 0, 0), { name: 'RangeError' })
  t.throws(() => native.mount_attach('a\0b', '/none', 'none', 0, ''), { name: 'TypeError' })
  t.throws(() => native.mount_attach('a', '/'.repeat(5000), 'none', 0, ''), {
    code: 'ENAMETOOLONG',
  })
})

t.test('a watch calls back while there is something to read, and microtasks run', async t => {
  const [ours, theirs] = native.socket_pair()
  t.teardown(() => {
    closeSync(ours)
    closeSync(theirs)
  })
  const received: string[] = []
  const watch = await new Promise<ReturnType<typeof native.poll_watch>>(resolve => {
    const handle = native.poll_watch(ours, () => {
      const byte = Buffer.alloc(1)
      readSync(ours, byte)
      received.push(byte.toString())
      queueMicrotask(() => {
        received.push(`microtask of ${byte}`)
        if (received.length === 4) resolve(handle)
      })
    })
    writeSync(theirs, 'ab')
  })
  t.same(received, ['a', 'microtask of a', 'b', 'microtask of b'])
  native.poll_unwatch(watch)
  native.poll_unwatch(watch)
  writeSync(theirs, 'c')
  await new Promise(resolve => setImmediate(resolve))
  t.equal(received.length, 4)
})

t.test('a socket that sends no descriptor', async t => {
  const [ours, theirs] = native.socket_pair()
  writeSync(theirs, 'a')
  t.equal(native.socket_receive_descriptor(ours), -1)
  closeSync(theirs)
  t.equal(native.socket_receive_descriptor(ours), -1)
  closeSync(ours)
})

t.test('a process can end at any stage of a watch, and keeps none that is forgotten', async t => {
  const stages = {
    watching: `native.poll_watch(pair[0], () => {}); process.exit()`,
    'in the callback': `native.poll_watch(pair[0], () => process.exit()); fs.writeSync(pair[1], 'a')`,
    stopped: `native.poll_unwatch(native.poll_watch(pair[0], () => {}))`,
    'stopped, exiting at once': `native.poll_unwatch(native.poll_watch(pair[0], () => {})); process.exit()`,
    'stopped in the callback': `const w = native.poll_watch(pair[0], () => native.poll_unwatch(w)); fs.writeSync(pair[1], 'a')`,
    'with fallocate under way': `native.file_allocate_async(1, 0, Float64Array.of(0, 1))[0].catch(() => {}); process.exit()`,
    'in a worker': `
      const { Worker } = require('node:worker_threads')
      const body = "const native = require(process.argv[2]); native.poll_watch(+process.argv[3], () => {}); require('node:worker_threads').parentPort.postMessage(1); setInterval(() => {}, 1e6)"
      const worker = new Worker(body, { eval: true, argv: [${JSON.stringify(ADDON)}, pair[0]] })
      worker.once('message', () => worker.terminate())`,
  }
  for (const [stage, body] of Object.entries(stages)) {
    t.equal(await script(`console.log('begun'); ${body}`), 'begun', stage)
  }
  // A watch that is not collected would keep the process from ending.
  const collected = `
    native.poll_watch(pair[0], () => {})
    await turn()
    gc()
    console.log('collected')`
  t.equal(await script(collected, '--expose-gc'), 'collected')
  const thrown = `
    process.once('uncaughtException', err => { console.log(err.message); process.exit() })
    native.poll_watch(pair[0], () => { throw new Error('out of the callback') })
    fs.writeSync(pair[1], 'a')`
  t.equal(await script(thrown), 'out of the callback')
})

t.test('a descriptor crosses from socket to socket', async t => {
  const folder = mkdtempSync(join(tmpdir(), 'thinfs-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const path = join(folder, 'socket')
  const socket = native.socket_bind(path)
  t.teardown(() => closeSync(socket))
  t.equal(statSync(path).mode & 0o777, 0o600)
  t.throws(() => native.socket_bind(path), { code: 'EADDRINUSE' })
  t.throws(() => native.socket_bind('x'.repeat(200)), { code: 'ENAMETOOLONG' })
  t.throws(() => native.socket_receive_descriptor(socket), { code: 'EAGAIN' })
  t.throws(() => native.socket_send_descriptor(join(folder, 'none'), 0), { code: 'ENOENT' })
  writeFileSync(join(folder, 'file'), 'crossed')
  const sent = openSync(join(folder, 'file'), 'r')
  native.socket_send_descriptor(path, sent)
  closeSync(sent)
  const received = native.socket_receive_descriptor(socket)
  t.equal(readFileSync(received, 'utf8'), 'crossed')
  closeSync(received)
})
