/** NBD servers for tests: nbdkit and qemu-nbd, and one of our own that says what it is told to. */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import type { Test } from 'tap'
import { type NbdAddress, parseNbdAddress } from '../../src/base/index.js'

/** A folder with a short name: paths of sockets have 107 bytes. */
export function shortFolder(t: Test): string {
  const path = mkdtempSync(join(tmpdir(), 'thinfs-nbd-'))
  t.teardown(() => rmSync(path, { recursive: true, force: true }))
  return path
}

export const unixAddress = (socket: string, more = ''): NbdAddress =>
  parseNbdAddress(`nbd+unix:///?socket=${socket}${more}`)

/** A process that serves, until the test ends. */
export class ServerProcess {
  readonly address: NbdAddress
  readonly #child: ChildProcess
  said = ''

  private constructor(address: NbdAddress, child: ChildProcess) {
    this.address = address
    this.#child = child
    child.stderr?.on('data', text => {
      this.said += text
    })
  }

  /** nbdkit on a unix socket. */
  static nbdkit(t: Test, folder: string, ...args: string[]): Promise<ServerProcess> {
    const socket = join(folder, 'socket')
    const ready = join(folder, 'pid')
    rmSync(ready, { force: true })
    rmSync(socket, { force: true })
    const own = ['--foreground', '--exit-with-parent', '--pidfile', ready, '--unix', socket]
    const address = unixAddress(socket)
    return ServerProcess.#start(t, 'nbdkit', [...own, ...args], { address, ready })
  }

  static qemuNbd(t: Test, folder: string, ...args: string[]): Promise<ServerProcess> {
    const socket = join(folder, 'socket')
    rmSync(socket, { force: true })
    const ready = join(folder, 'pid')
    const own = ['--persistent', '--socket', socket, '--export-name', 'disk', '--pid-file', ready]
    const address = parseNbdAddress(`nbd+unix:///disk?socket=${socket}`)
    return ServerProcess.#start(t, 'qemu-nbd', [...own, ...args], { address, ready })
  }

  static async #start(
    t: Test,
    program: string,
    args: string[],
    { address, ready }: { address: NbdAddress; ready: string },
  ): Promise<ServerProcess> {
    const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'pipe'] })
    const server = new ServerProcess(address, child)
    t.teardown(() => server.kill())
    for (let i = 0; !existsSync(ready); i++) {
      if (child.exitCode !== null || i > 3000) throw new Error(`${program}: ${server.said}`)
      await setTimeout(10)
    }
    return server
  }

  async kill(): Promise<void> {
    const { exitCode, signalCode } = this.#child
    if (exitCode !== null || signalCode !== null) return
    const ended = once(this.#child, 'exit')
    this.#child.kill('SIGKILL')
    await ended
  }

  /** As `systemctl stop`: the server ends when its clients have gone. */
  stop(): void {
    this.#child.kill('SIGTERM')
  }

  /** Resolves when the process has ended by itself. */
  async ended(): Promise<void> {
    if (this.#child.exitCode === null) await once(this.#child, 'exit')
  }
}

/** A server on a unix socket, by a TCP port. */
export async function byTcp(t: Test, { socket }: NbdAddress): Promise<NbdAddress> {
  const proxy = createServer(from => {
    const to = connect(socket)
    from.pipe(to).pipe(from)
    for (const one of [from, to]) one.on('error', () => one.destroy())
  })
  proxy.listen(0, '127.0.0.1')
  await once(proxy, 'listening')
  t.teardown(() => void proxy.close())
  return parseNbdAddress(`nbd://127.0.0.1:${(proxy.address() as AddressInfo).port}/`)
}

/** A certificate authority, and certificates of it for a server at localhost and for a client. */
export function makeCertificates(folder: string): void {
  const openssl = (...args: string[]): void => {
    execFileSync('openssl', args, { cwd: folder, stdio: 'ignore' })
  }
  const key = (name: string): string[] => [
    '-newkey',
    'ec',
    '-pkeyopt',
    'ec_paramgen_curve:P-256',
    '-nodes',
    '-keyout',
    `${name}-key.pem`,
  ]
  openssl('req', '-x509', '-days', '2', '-subj', '/CN=ca', ...key('ca'), '-out', 'ca-cert.pem')
  for (const name of ['server', 'client']) {
    openssl(
      'req',
      ...key(name),
      '-subj',
      '/CN=localhost',
      '-addext',
      'subjectAltName=DNS:localhost',
      '-out',
      `${name}.csr`,
    )
    openssl(
      'x509',
      '-req',
      '-in',
      `${name}.csr`,
      '-days',
      '2',
      '-CA',
      'ca-cert.pem',
      '-CAkey',
      'ca-key.pem',
      '-CAcreateserial',
      '-copy_extensions',
      'copy',
      '-out',
      `${name}-cert.pem`,
    )
  }
}

/** A request, as the server of our own gets it. */
export interface Asked {
  flags: number
  command: number
  cookie: Buffer
  offset: number
  length: number
}

/** What the server of our own says; default: what a good server of an export of 1 MiB does. */
export interface Script {
  hello?: Buffer
  /** @returns the bytes of the answer; undefined: the usual one */
  option?: (option: number) => Buffer | undefined
  /** Answers a request. */
  request?: (asked: Asked, socket: Socket, connection: number) => void
}

export const FAKE_SIZE = 1 << 20

/** A server in this process that says what its script says. */
export async function fakeServer(t: Test, script: Script): Promise<NbdAddress> {
  const path = join(shortFolder(t), 'socket')
  const sockets = new Set<Socket>()
  let connections = 0
  const server: Server = createServer(socket => {
    sockets.add(socket)
    socket.on('error', () => {})
    void serve(socket, script, connections++).catch(() => socket.destroy())
  })
  server.listen(path)
  await once(server, 'listening')
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  return unixAddress(path)
}

export function u(bits: 16 | 32 | 64, value: number): Buffer {
  const buffer = Buffer.alloc(bits / 8)
  if (bits === 64) buffer.writeBigUInt64BE(BigInt(value))
  else buffer.writeUIntBE(value, 0, bits / 8)
  return buffer
}

export const optionReply = (option: number, type: number, body = Buffer.alloc(0)): Buffer =>
  Buffer.concat([
    Buffer.from('0003e889045565a9', 'hex'),
    ...[u(32, option), u(32, type), u(32, body.length), body],
  ])

export const simpleReply = (cookie: Buffer, error = 0): Buffer =>
  Buffer.concat([u(32, 0x67446698), u(32, error), cookie])

export const chunk = (cookie: Buffer, flags: number, type: number, body: Buffer): Buffer =>
  Buffer.concat([u(32, 0x668e33ef), u(16, flags), u(16, type), cookie, u(32, body.length), body])

/** Every usual answer: chunks, and base:allocation as number 7. */
function usual(option: number): Buffer {
  switch (option) {
    case 8:
      return optionReply(8, 1)
    case 10: {
      const context = Buffer.concat([u(32, 7), Buffer.from('base:allocation')])
      return Buffer.concat([optionReply(10, 4, context), optionReply(10, 1)])
    }
    case 7: {
      const info = Buffer.concat([u(16, 0), u(64, FAKE_SIZE), u(16, 0b1101101)])
      return Buffer.concat([optionReply(7, 3, info), optionReply(7, 1)])
    }
    default:
      return optionReply(option, 0x80000001)
  }
}

async function serve(socket: Socket, script: Script, connection: number): Promise<void> {
  const chunks = socket[Symbol.asyncIterator]() as AsyncIterator<Buffer>
  let held = Buffer.alloc(0)
  const take = async (length: number): Promise<Buffer> => {
    while (held.length < length) {
      const { value, done } = await chunks.next()
      if (done) throw new Error('the client has gone')
      held = Buffer.concat([held, value])
    }
    const taken = held.subarray(0, length)
    held = held.subarray(length)
    return taken
  }
  socket.write(script.hello ?? Buffer.concat([Buffer.from('NBDMAGICIHAVEOPT'), u(16, 3)]))
  await take(4)
  for (let option = 0; option !== 7; ) {
    const head = await take(16)
    option = head.readUInt32BE(8)
    await take(head.readUInt32BE(12))
    socket.write(script.option?.(option) ?? usual(option))
  }
  for (;;) {
    const head = await take(28)
    const asked = {
      flags: head.readUInt16BE(4),
      command: head.readUInt16BE(6),
      cookie: Buffer.from(head.subarray(8, 16)),
      offset: Number(head.readBigUInt64BE(16)),
      length: head.readUInt32BE(24),
    }
    if (asked.command === 2) break
    if (asked.command === 1) await take(asked.length)
    if (script.request) script.request(asked, socket, connection)
    else socket.write(chunk(asked.cookie, 1, 0, Buffer.alloc(0)))
  }
  socket.end()
}

/** The three disks of a pool, by the names of their stores. */
export type Exports = Record<'data' | 'metadata' | 'state', ServerProcess>

/** The lines of pool.yaml that name them. */
export const exportLines = (exports: Exports): string =>
  Object.entries(exports)
    .map(([name, { address }]) => `${name}: { nbd: "${address.text}" }\n`)
    .join('')

/** nbdkit with three images in a folder, that of each store by its name. */
export async function serveImages(
  t: Test,
  folder: string,
  sizes: { data: number; metadata: number },
  args: readonly string[] = [],
): Promise<Exports> {
  const [data, metadata, state] = await Promise.all([
    serveImage(t, imageOf(folder, 'data'), sizes.data, args),
    serveImage(t, imageOf(folder, 'metadata'), sizes.metadata, args),
    serveImage(t, imageOf(folder, 'state'), 16 << 20, args),
  ])
  return { data, metadata, state }
}

/** nbdkit with an image, which is made if need be, always at one address. */
export function serveImage(
  t: Test,
  image: string,
  size: number,
  args: readonly string[] = [],
): Promise<ServerProcess> {
  const own = `${image}.d`
  mkdirSync(own, { recursive: true })
  if (!existsSync(image)) {
    writeFileSync(image, '')
    truncateSync(image, size)
  }
  return ServerProcess.nbdkit(t, own, ...args, 'file', image)
}

/** The image behind one of `serveImages`. */
export const imageOf = (folder: string, name: string): string => join(folder, `${name}.img`)
