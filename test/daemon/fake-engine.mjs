/**
 * An engine for the daemon's tests: a mount of one empty file `held`, served with the least of the
 * FUSE protocol, by the native addon alone. Its behaviour comes with its start parameters:
 *
 *   serve    serves, and has got past all that an engine can die of; on unmount writes `committed` in the pool's folder and ends with status 0
 *   refuse   says why it fails, and ends
 *   vanish   ends without a word
 *   hang     says that it has started, and nothing more
 *   relapse  serves the first time; when it takes over, ends without a word
 */
import { writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import {
  createMessageConnection,
  IPCMessageReader,
  IPCMessageWriter,
  ResponseError,
} from 'vscode-jsonrpc/node'

const native = createRequire(import.meta.url)('../../native-shims/build/thinfs.node')
const start = JSON.parse(process.argv[2])
const fuse = 3
const SLOT = 1 << 20
const ENOENT = 2
const ENOSYS = 38
const held = { ino: 2, mode: 0o100600, size: 1 << 20 }
const root = { ino: 1, mode: 0o40755, size: 0 }

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => {})
const connection = createMessageConnection(
  new IPCMessageReader(process),
  new IPCMessageWriter(process),
)
connection.onRequest('status', () => ({ pid: process.pid, mode: 'write', reason: null, start }))
connection.onRequest('create', () => {
  throw new ResponseError(-32000, 'web: taken', { code: 'VOLUME_EXISTS', errno: 'EEXIST' })
})
connection.onRequest('resize', () => new Promise(() => {}))
connection.listen()

await connection.sendNotification('started')
const ready = async () => {
  await connection.sendNotification('ready', { negotiated: { minor: 36 } })
  await connection.sendNotification('served')
}
if (start.behaviour === 'refuse') {
  const reason = { message: 'block 7: checksum', code: 'METADATA_CORRUPT', errno: 'EIO' }
  process.send({ jsonrpc: '2.0', method: 'failed', params: reason }, () => process.exit(1))
} else if (start.behaviour === 'vanish' || (start.behaviour === 'relapse' && start.negotiated)) {
  process.send({ jsonrpc: '2.0', method: 'started' }, () => process.exit(7))
} else if (start.behaviour !== 'hang') {
  // Watched for as long as the object is there.
  globalThis.watch = native.poll_watch(fuse, serve)
  if (start.negotiated !== null) await ready()
}

function serve() {
  const arena = Buffer.alloc(SLOT + 4096)
  const lengths = new Uint32Array(1)
  const count = native.fuse_read(fuse, arena, arena.length, 1, lengths, 1, 0)
  if (count < 0) {
    writeFileSync(join(dirname(start.configFile), 'committed'), String(process.pid))
    process.exit(0)
  }
  if (count > 0) handle(arena.subarray(0, lengths[0]))
}

function handle(request) {
  const opcode = request.readUInt32LE(4)
  const node = request.readUInt32LE(16) === 2 ? held : root
  switch (opcode) {
    case 1: // LOOKUP
      return request.toString('latin1', 40, request.length - 1) === 'held'
        ? reply(request, Buffer.concat([entryHead(held), attributes(held)]))
        : fail(request, ENOENT)
    case 3: // GETATTR
      return reply(request, Buffer.concat([Buffer.alloc(16), attributes(node)]))
    case 14: // OPEN
    case 27: // OPENDIR
      return reply(request, Buffer.alloc(16))
    case 15: // READ
      return reply(request, Buffer.alloc(request.readUInt32LE(40 + 16)))
    case 17: // STATFS
      return reply(request, Buffer.alloc(80))
    case 18: // RELEASE
    case 20: // FSYNC
    case 25: // FLUSH
    case 28: // READDIR
    case 29: // RELEASEDIR
      return reply(request, Buffer.alloc(0))
    case 26: // INIT
      reply(request, initialised())
      return void ready()
    case 2: // FORGET
    case 36: // INTERRUPT
    case 42: // BATCH_FORGET
      return
    default:
      return fail(request, ENOSYS)
  }
}

function initialised() {
  const out = Buffer.alloc(64)
  out.writeUInt32LE(7, 0)
  out.writeUInt32LE(36, 4)
  out.writeUInt32LE(1 << 16, 8) // max_readahead
  out.writeUInt16LE(16, 16) // max_background
  out.writeUInt32LE(SLOT, 20) // max_write
  return out
}

function entryHead({ ino }) {
  const out = Buffer.alloc(40)
  out.writeUInt32LE(ino, 0)
  return out
}

function attributes({ ino, mode, size }) {
  const out = Buffer.alloc(88)
  out.writeUInt32LE(ino, 0)
  out.writeUInt32LE(size, 8)
  out.writeUInt32LE(mode, 60)
  out.writeUInt32LE(1, 64) // nlink
  out.writeUInt32LE(4096, 80) // blksize
  return out
}

function fail(request, errno) {
  reply(request, Buffer.alloc(0), -errno)
}

function reply(request, body, error = 0) {
  const out = Buffer.alloc(16 + body.length)
  out.writeUInt32LE(out.length, 0)
  out.writeInt32LE(error, 4)
  request.copy(out, 8, 8, 16) // unique
  body.copy(out, 16)
  native.fuse_write(fuse, out, 0, out.length)
}
