// Goal: what is written to a disk of an NBD server is there, with every server and whatever it can.
// Method: random requests, many in flight, to nbdkit and qemu-nbd, against a copy in memory.
import { readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { errnoOf, KIB, MIB, type NbdAddress, parseNbdAddress } from '../../src/base/index.js'
import { NbdDisk } from '../../src/nbd/index.js'
import { mixed, mustBeHoles } from '../support/disk-mix.js'
import {
  byTcp,
  fakeServer,
  makeCertificates,
  ServerProcess,
  shortFolder,
} from '../support/nbd-servers.js'
import { Random } from '../support/random.js'

const SIZE = 4 * MIB
const PAGE = 4 * KIB

async function connect(t: Test, ...args: Parameters<typeof NbdDisk.connect>): Promise<NbdDisk> {
  const disk = await NbdDisk.connect(...args)
  t.teardown(() => disk.close())
  return disk
}

/** As `connect`, with a limit that a busy machine may miss at first. */
async function connectInTime(t: Test, address: NbdAddress, limit: number): Promise<NbdDisk> {
  for (;;) {
    try {
      return await connect(t, address, { limit })
    } catch (err) {
      if (!['ETIMEDOUT', 'EBUSY'].includes(errnoOf(err))) throw err
    }
  }
}

function image(folder: string): string {
  const path = join(folder, 'image')
  writeFileSync(path, '')
  truncateSync(path, SIZE)
  return path
}

/** Requests of all kinds, 16 in flight at a time, none of which touch each other. */
async function mix(t: Test, disk: NbdDisk, random: Random): Promise<Buffer> {
  const model = Buffer.alloc(SIZE)
  // Some of them with the flags that an NBD request may have.
  const flagged = {
    read: (into: Uint8Array, offset: number) => disk.read(into, offset),
    zero: (offset: number, length: number) => disk.zero(offset, length, random.below(2) === 0),
    write: (from: Uint8Array, offset: number) => disk.write(from, offset, random.below(2) === 0),
  }
  for (let round = 0; round < 12; round++) {
    await mixed(t, flagged, model, random, { inFlight: 16 })
    if (round % 4 === 3) await disk.flush()
  }
  const whole = Buffer.alloc(SIZE, 'before')
  await disk.read(whole, 0)
  t.ok(whole.equals(model), 'all of it')
  const extents = await disk.extents(0, SIZE)
  if (extents === null) return model
  // Most bytes are in none.
  mustBeHoles(t, model, extents)
  return model
}

const SERVERS: Record<string, (t: Test, folder: string) => Promise<ServerProcess>> = {
  'nbdkit memory': (t, folder) => ServerProcess.nbdkit(t, folder, 'memory', `${SIZE}`),
  'nbdkit file': (t, folder) => ServerProcess.nbdkit(t, folder, 'file', image(folder)),
  'nbdkit without structured replies': (t, folder) =>
    ServerProcess.nbdkit(t, folder, '--no-sr', 'memory', `${SIZE}`),
  'nbdkit without zeroing or holes': (t, folder) =>
    ServerProcess.nbdkit(
      t,
      folder,
      ...['--filter=nozero', '--filter=noextents', 'memory', `${SIZE}`, 'zeromode=none'],
    ),
  'nbdkit with blocks of 4 KiB to 64 KiB': (t, folder) =>
    ServerProcess.nbdkit(
      t,
      folder,
      ...['--filter=blocksize-policy', 'memory', `${SIZE}`, 'blocksize-error-policy=error'],
      ...['blocksize-minimum=4k', 'blocksize-preferred=4k', 'blocksize-maximum=64k'],
    ),
  'nbdkit that answers late': (t, folder) =>
    ServerProcess.nbdkit(t, folder, '--filter=delay', 'memory', `${SIZE}`, 'wdelay=3ms'),
  'nbdkit by TCP': (t, folder) => ServerProcess.nbdkit(t, folder, 'memory', `${SIZE}`),
  'qemu-nbd': (t, folder) => ServerProcess.qemuNbd(t, folder, '--format=raw', image(folder)),
}

for (const [seed, [name, start]] of Object.entries(SERVERS).entries()) {
  t.test(name, async t => {
    const folder = shortFolder(t)
    const server = await start(t, folder)
    const { address } = server
    const disk = await connect(t, name.endsWith('TCP') ? await byTcp(t, address) : address)
    t.equal(disk.size, SIZE)
    const model = await mix(t, disk, new Random(seed + 1))
    t.equal(disk.epoch, 1, 'by one connection')
    if (!name.endsWith('file') && !name.startsWith('qemu')) return
    disk.close()
    t.ok(readFileSync(join(folder, 'image')).equals(model), 'and it is in the file')
  })
}

t.test(
  'TLS: the server shows that it is the one that was meant, and so does the client',
  async t => {
    const folder = shortFolder(t)
    makeCertificates(folder)
    const tls = ['--tls=require', `--tls-certificates=${folder}`, '--tls-verify-peer']
    const server = await ServerProcess.nbdkit(t, folder, ...tls, 'memory', `${SIZE}`)
    const { path } = server.address.socket as { path: string }
    const at = (more: string) => parseNbdAddress(`nbds+unix:///?socket=${path}${more}`)
    const right = `&tls-certificates=${folder}`
    const disk = await connect(t, at(right))
    await mix(t, disk, new Random(9))
    const denied = { code: 'IO_ERROR', errno: 'EACCES' }
    await t.rejects(NbdDisk.connect(server.address), { message: /it wants TLS/, errno: 'EPERM' })
    const misnamed = NbdDisk.connect(at(`${right}&tls-hostname=other`))
    await t.rejects(misnamed, { ...denied, message: /; \?tls-hostname=NAME says/ }, 'its name')
    const unknown = { ...denied, message: /; \?tls-certificates=FOLDER has the ca-cert/ }
    await t.rejects(NbdDisk.connect(at('')), unknown, 'an authority that nobody knows')
    const missing = NbdDisk.connect(at('&tls-certificates=/none'))
    await t.rejects(missing, { ...denied, message: /TLS: \/none\/ca-cert.pem: / }, 'no file')
    const plain = await ServerProcess.nbdkit(t, shortFolder(t), '--tls=off', 'memory', `${SIZE}`)
    const { path: other } = plain.address.socket as { path: string }
    const asked = parseNbdAddress(`nbds+unix:///?socket=${other}${right}`)
    await t.rejects(
      NbdDisk.connect(asked),
      { message: /refuses TLS/ },
      'never in plain text instead',
    )
  },
)

t.test('an error is that of its request alone', async t => {
  const args = [
    '--filter=error',
    'memory',
    `${SIZE}`,
    'error-pwrite=ENOSPC',
    'error-pwrite-rate=100%',
  ]
  const server = await ServerProcess.nbdkit(t, shortFolder(t), ...args)
  const disk = await connect(t, server.address)
  const write = disk.write(Buffer.alloc(PAGE, 1), 0)
  const read = disk.read(Buffer.alloc(PAGE), 0)
  await t.rejects(write, { code: 'IO_ERROR', errno: 'ENOSPC', message: /^nbd\+unix:.*ENOSPC/ })
  await read
  await t.rejects(disk.read(Buffer.alloc(PAGE), SIZE), { code: 'IO_ERROR' }, 'past the end')
  await disk.flush()
})

t.test('a server that dies is asked again when it is back', async t => {
  const folder = shortFolder(t)
  const path = image(folder)
  // Reads wait in the server that is killed; the next one has no delay.
  const args = ['--filter=delay', 'file', path, 'rdelay=600', 'wdelay=0']
  const first = await ServerProcess.nbdkit(t, folder, ...args)
  const events: string[] = []
  const disk = await connect(t, first.address, { onConnection: what => events.push(what) })
  await disk.write(Buffer.alloc(SIZE, 3), 0)
  const into = Buffer.alloc(SIZE)
  const reads = Array.from({ length: 16 }, (_, i) =>
    disk.read(into.subarray((i * SIZE) / 16, ((i + 1) * SIZE) / 16), (i * SIZE) / 16),
  )
  t.equal(disk.nrInFlight, 16)
  await first.kill()
  const write = disk.write(Buffer.alloc(PAGE, 4), 0)
  await ServerProcess.nbdkit(t, folder, 'file', path)
  await Promise.all([...reads, write])
  t.ok(into.subarray(PAGE).equals(Buffer.alloc(SIZE - PAGE, 3)))
  t.equal(disk.epoch, 2, 'whoever flushes knows that this may not cover all writes')
  await disk.flush()
  t.ok(readFileSync(path).subarray(0, PAGE).equals(Buffer.alloc(PAGE, 4)))
  t.match(events, [/the connection is lost/, 'connected again'])
})

t.test('a server that is stopped in order is asked again when it is back', async t => {
  const folder = shortFolder(t)
  const path = image(folder)
  const first = await ServerProcess.nbdkit(t, folder, 'file', path)
  const events: string[] = []
  const disk = await connect(t, first.address, { onConnection: what => events.push(what) })
  await disk.write(Buffer.alloc(PAGE, 3), 0)
  // From then on the server answers ESHUTDOWN, and waits for the end of the connection.
  first.stop()
  const write = disk.write(Buffer.alloc(PAGE, 4), PAGE)
  await first.ended()
  await ServerProcess.nbdkit(t, folder, 'file', path)
  await write
  await disk.flush()
  const found = readFileSync(path).subarray(0, 2 * PAGE)
  t.ok(found.equals(Buffer.concat([Buffer.alloc(PAGE, 3), Buffer.alloc(PAGE, 4)])))
  t.match(events.at(-1), 'connected again')
})

t.test('a server that comes back and can do more goes on', async t => {
  const folder = shortFolder(t)
  const path = image(folder)
  const serve = (clients: string): Promise<ServerProcess> =>
    ServerProcess.qemuNbd(t, folder, '--format=raw', `--shared=${clients}`, path)
  const first = await serve('1')
  const disk = await connect(t, first.address)
  await first.kill()
  const write = disk.write(Buffer.alloc(PAGE, 4), 0)
  write.catch(() => {})
  // It says that connections see what others have flushed.
  await serve('2')
  await write
})

t.test('a server that does not come back, or does not answer, has failed for good', async t => {
  const folder = shortFolder(t)
  const gone = await ServerProcess.nbdkit(t, folder, 'memory', `${SIZE}`)
  const lost = await connectInTime(t, gone.address, 300)
  await gone.kill()
  const late = { code: 'IO_ERROR', errno: 'ETIMEDOUT' }
  await t.rejects(lost.read(Buffer.alloc(PAGE), 0), late)
  await ServerProcess.nbdkit(t, folder, 'memory', `${SIZE}`)
  await t.rejects(lost.read(Buffer.alloc(PAGE), 0), late, 'nor is it asked again')
  await t.rejects(lost.flush(), late)

  const args = ['--filter=delay', 'memory', `${SIZE}`, 'rdelay=600']
  const slow = await ServerProcess.nbdkit(t, shortFolder(t), ...args)
  const silent = await connectInTime(t, slow.address, 300)
  await t.rejects(silent.read(Buffer.alloc(PAGE), 0), late)
  await t.rejects(silent.write(Buffer.alloc(PAGE), 0), late)
})

t.test('where no server listens that is said', async t => {
  const folder = shortFolder(t)
  const gone = await ServerProcess.nbdkit(t, folder, 'memory', `${SIZE}`)
  await gone.kill()
  const message = /: connect E.*: no server listens there; is it running\?$/
  await t.rejects(NbdDisk.connect(gone.address), { errno: 'ECONNREFUSED', message })
  const none = parseNbdAddress(`nbd+unix:///?socket=${folder}/none`)
  await t.rejects(NbdDisk.connect(none), { errno: 'ENOENT', message })
})

t.test('a smaller export under the same name is not written to', async t => {
  const folder = shortFolder(t)
  const first = await ServerProcess.nbdkit(t, folder, 'memory', `${SIZE}`)
  const disk = await connect(t, first.address)
  await first.kill()
  const refused = { errno: 'EPROTO', message: /the export has \d+ bytes now, it had \d+: / }
  const write = t.rejects(disk.write(Buffer.alloc(PAGE, 4), 0), refused)
  await ServerProcess.nbdkit(t, folder, 'memory', `${SIZE / 2}`)
  await write
})

t.test('a server that comes back with a larger disk goes on, and the disk is larger', async t => {
  const folder = shortFolder(t)
  const first = await ServerProcess.nbdkit(t, folder, 'memory', `${SIZE}`)
  const disk = await connect(t, first.address)
  await first.kill()
  const write = disk.write(Buffer.alloc(PAGE, 4), 0)
  write.catch(() => {})
  await ServerProcess.nbdkit(t, folder, 'memory', `${2 * SIZE}`)
  await write
  t.equal(disk.size, 2 * SIZE)
  await disk.write(Buffer.alloc(PAGE, 5), 2 * SIZE - PAGE)
})

t.test('closing says goodbye', async t => {
  const server = await ServerProcess.nbdkit(t, shortFolder(t), '--filter=exitlast', 'memory', '1M')
  const disk = await NbdDisk.connect(server.address)
  disk.close()
  await server.ended()
  t.notMatch(server.said, /error/)
  await t.rejects(disk.read(Buffer.alloc(PAGE), 0), { code: 'IO_ERROR', errno: 'ESHUTDOWN' })
})

t.test('one that is abandoned sends nothing any more', async t => {
  let came = 0
  const address = await fakeServer(t, { request: () => void came++ })
  const disk = await NbdDisk.connect(address)
  const gone = { code: 'IO_ERROR', errno: 'ESHUTDOWN' }
  const refused = t.rejects(disk.write(Buffer.alloc(MIB, 1), 0), gone)
  disk.abandon()
  await refused
  await delay(100)
  t.equal(came, 0)
})

t.test('addresses', async t => {
  const of = (text: string) => {
    const { socket, exportName, tls } = parseNbdAddress(text)
    return [socket, exportName, tls]
  }
  t.same(of('nbd://h/'), [{ host: 'h', port: 10809 }, '', null])
  t.same(of('nbd://[::1]:99/a%20b'), [{ host: '::1', port: 99 }, 'a b', null])
  t.same(of('nbd+unix:///x?socket=/run/x%2By'), [{ path: '/run/x+y' }, 'x', null])
  t.same(of('nbds://h/x'), [{ host: 'h', port: 10809 }, 'x', { host: 'h', certificates: null }])
  for (const [text, why] of [
    ['http://h/', /is no address/],
    ['nbd:///x', /has no host/],
    ['nbd+unix:///x', /has no socket/],
    ['nbd://h/x?socket=/y', /socket beside the host/],
    ['nbd://h/x?sockt=/y', /sockt is not known/],
    ['nbd://u:p@h/x', /user name/],
    ['nbd://h/x?tls-certificates=/y', /without TLS/],
    ['nbd://h:99999/', /is no address/],
  ] as const) {
    t.throws(() => parseNbdAddress(text), { code: 'BAD_ARGUMENT', message: why })
  }
})

t.test(
  'a server that takes one client: who has the disk is told of, and is not disturbed',
  async t => {
    const folder = shortFolder(t)
    const file = join(folder, 'disk')
    writeFileSync(file, '')
    truncateSync(file, 1 << 20)
    const limit = ['--filter=limit', 'memory', '1M', 'limit=1']
    const message = /lets in no more clients, it .*: another host has the disk, or it lets in fewer/
    for (const [server, options] of [
      [await ServerProcess.qemuNbd(t, folder, '-f', 'raw', file), { limit: 4000 }],
      [await ServerProcess.nbdkit(t, shortFolder(t), ...limit), {}],
    ] as const) {
      const first = await NbdDisk.connect(server.address, options)
      t.equal(await first.letsInMore(1), false)
      const second = NbdDisk.connect(server.address, options)
      await t.rejects(second, { code: 'POOL_IN_USE', message })
      await first.write(Buffer.alloc(PAGE, 1), 0)
      await first.flush()
      first.close()
      const third = await NbdDisk.connect(server.address)
      const found = Buffer.alloc(PAGE)
      await third.read(found, 0)
      t.ok(found.every(byte => byte === 1))
      third.close()
    }
  },
)

t.test('how many clients a server lets in is found out by trying', async t => {
  const args = ['--filter=limit', 'memory', '1M', 'limit=3']
  const { address } = await ServerProcess.nbdkit(t, shortFolder(t), ...args)
  const disk = await connect(t, address)
  t.equal(await disk.letsInMore(2), true)
  // Those who tried have gone again, as soon as the server has noticed.
  const second = await connect(t, address)
  t.equal(await disk.letsInMore(2), false)
  await second.write(Buffer.alloc(PAGE, 1), 0)
  t.equal(disk.epoch, 1, 'and nobody is disturbed')
})
