// Goal: a server that does not keep to the protocol, or stops anywhere, does no harm: no wrong
// bytes, no wait without end. Method: a server in this process that says one thing wrong, or all of
// a reply up to each of its bytes.
import type { Socket } from 'node:net'
import t, { type Test } from 'tap'
import { KIB } from '../../src/base/index.js'
import { NbdDisk } from '../../src/nbd/index.js'
import {
  type Asked,
  chunk,
  FAKE_SIZE,
  fakeServer,
  optionReply,
  type Script,
  simpleReply,
  u,
} from '../support/nbd-servers.js'

const PAGE = 4 * KIB
const NONE = Buffer.alloc(0)
/** Milliseconds that nothing here takes. */
const LIMIT = 60_000

async function connect(t: Test, script: Script): Promise<NbdDisk> {
  const disk = await NbdDisk.connect(await fakeServer(t, script), { limit: LIMIT })
  t.teardown(() => disk.close())
  return disk
}

const only = (option: number, reply: Buffer) => (asked: number) =>
  asked === option ? reply : undefined
const info = (size: bigint, flags = 1): Buffer => {
  const body = Buffer.alloc(12)
  body.writeBigUInt64BE(size, 2)
  body.writeUInt16BE(flags, 10)
  return optionReply(7, 3, body)
}
const blocks = (min: number, max: number): Buffer =>
  optionReply(7, 3, Buffer.concat([u(16, 3), u(32, min), u(32, min), u(32, max)]))
const DONE = optionReply(7, 1)

const PROTOCOL = { code: 'IO_ERROR', errno: 'EPROTO' }

const NEGOTIATIONS: [what: string, script: Script, wanted: { code: string; errno: string }][] = [
  ['no NBD', { hello: Buffer.from('HTTP/1.1 400 Bad Request') }, PROTOCOL],
  [
    'the oldstyle negotiation',
    { hello: Buffer.concat([Buffer.from('NBDMAGIC'), Buffer.alloc(144)]) },
    { code: 'NOT_SUPPORTED', errno: 'EOPNOTSUPP' },
  ],
  [
    'newstyle that is not fixed',
    { hello: Buffer.concat([Buffer.from('NBDMAGICIHAVEOPT'), u(16, 0)]) },
    { code: 'NOT_SUPPORTED', errno: 'EOPNOTSUPP' },
  ],
  ['a reply without magic', { option: only(8, Buffer.alloc(20)) }, PROTOCOL],
  ['a reply to another option', { option: only(8, optionReply(7, 1)) }, PROTOCOL],
  [
    'a reply of 4 GiB',
    { option: only(8, Buffer.concat([optionReply(8, 1).subarray(0, 16), u(32, 0xffffffff)])) },
    PROTOCOL,
  ],
  ['no size', { option: only(7, DONE) }, PROTOCOL],
  [
    'an export of 2^63 bytes',
    { option: only(7, Buffer.concat([info(2n ** 63n), DONE])) },
    PROTOCOL,
  ],
  [
    'blocks of 3 bytes',
    { option: only(7, Buffer.concat([info(4096n), blocks(3, PAGE), DONE])) },
    PROTOCOL,
  ],
  [
    'blocks larger than payloads',
    { option: only(7, Buffer.concat([info(4096n), blocks(4096, 512), DONE])) },
    PROTOCOL,
  ],
  [
    'infos without end',
    { option: only(7, Buffer.concat(Array.from({ length: 2000 }, () => info(4096n)))) },
    PROTOCOL,
  ],
  [
    'no such export',
    { option: only(7, optionReply(7, 0x80000006, Buffer.from('gone\n\x1b[2J'))) },
    { code: 'IO_ERROR', errno: 'ENOENT' },
  ],
]

t.test('a negotiation that goes wrong', async t => {
  for (const [what, script, wanted] of NEGOTIATIONS) {
    const address = await fakeServer(t, script)
    await t.rejects(NbdDisk.connect(address, { limit: LIMIT }), wanted, what)
  }
  const silent = await fakeServer(t, { hello: NONE })
  await t.rejects(NbdDisk.connect(silent, { limit: 3000 }), { code: 'POOL_IN_USE' })
})

const data = (offset: number, bytes: Buffer): Buffer => Buffer.concat([u(64, offset), bytes])
const ofRead = (offset: number): Buffer => Buffer.alloc(PAGE, 1 + offset / PAGE)

/** Wrong answers to a READ of a page at PAGE. */
const ANSWERS: Record<string, (asked: Asked) => Buffer> = {
  'no magic': () => Buffer.alloc(64),
  'a simple reply where chunks were agreed on': ({ cookie }) =>
    Buffer.concat([simpleReply(cookie), ofRead(PAGE)]),
  'another number': () => chunk(u(64, 77), 1, 0, NONE),
  'a number of 64 bits': ({ cookie }) =>
    chunk(Buffer.concat([u(32, 1), cookie.subarray(4)]), 1, 0, NONE),
  'no bytes at all': ({ cookie }) => chunk(cookie, 1, 0, NONE),
  'fewer bytes': ({ cookie }) => chunk(cookie, 1, 1, data(PAGE, Buffer.alloc(512))),
  'more bytes': ({ cookie }) => chunk(cookie, 1, 1, data(PAGE, Buffer.alloc(2 * PAGE))),
  'bytes of another place': ({ cookie }) => chunk(cookie, 1, 1, data(0, ofRead(0))),
  'bytes that go on behind': ({ cookie }) => chunk(cookie, 1, 1, data(PAGE + 512, ofRead(PAGE))),
  'bytes twice and a gap': ({ cookie }) =>
    Buffer.concat([
      chunk(cookie, 0, 1, data(PAGE, Buffer.alloc(PAGE / 2))),
      chunk(cookie, 1, 1, data(PAGE + 512, Buffer.alloc(PAGE / 2))),
    ]),
  'a hole of 4 GiB': ({ cookie }) =>
    chunk(cookie, 1, 2, Buffer.concat([u(64, PAGE), u(32, 0xffffffff)])),
  'a hole in a few bytes': ({ cookie }) => chunk(cookie, 1, 2, u(64, PAGE)),
  'runs of holes': ({ cookie }) =>
    chunk(cookie, 1, 5, Buffer.concat([u(32, 7), u(32, PAGE), u(32, 0)])),
  'a chunk of a type that nobody knows': ({ cookie }) => chunk(cookie, 1, 99, Buffer.alloc(9)),
  'an empty chunk with a body': ({ cookie }) => chunk(cookie, 1, 0, Buffer.alloc(9)),
  'an error that is cut short': ({ cookie }) =>
    chunk(cookie, 1, 0x8001, Buffer.concat([u(32, 5), u(16, 100)])),
  'a body of 4 GiB': ({ cookie }) =>
    Buffer.concat([chunk(cookie, 1, 0x8001, NONE).subarray(0, 16), u(32, 0xffffffff)]),
}

t.test('an answer that is none ends everything, and fills in nothing', async t => {
  for (const [what, answer] of Object.entries(ANSWERS)) {
    const disk = await connect(t, {
      request: (asked, socket) => {
        if (asked.command === 0) socket.write(answer(asked))
      },
    })
    await Promise.all([
      t.rejects(disk.flush(), PROTOCOL, 'what else was in flight'),
      t.rejects(disk.read(Buffer.alloc(PAGE), PAGE), PROTOCOL, what),
    ])
    await t.rejects(disk.write(Buffer.alloc(PAGE), 0), PROTOCOL, 'and all that comes later')
    t.equal(disk.epoch, 1, 'no other connection would be better')
  }
})

t.test('runs of holes have to make sense', async t => {
  for (const body of [
    Buffer.concat([u(32, 7), u(32, 0), u(32, 0)]),
    Buffer.concat([u(32, 7), u(32, FAKE_SIZE), u(32, 0), u(32, 512), u(32, 0)]),
    Buffer.concat([u(32, 8), u(32, FAKE_SIZE), u(32, 0)]),
    Buffer.alloc(13),
  ]) {
    const disk = await connect(t, {
      request: ({ cookie }, socket) => socket.write(chunk(cookie, 1, 5, body)),
    })
    await t.rejects(disk.extents(0, FAKE_SIZE), PROTOCOL)
  }
})

t.test('a server may answer in parts, in any order, and tell of holes', async t => {
  const held: (() => void)[] = []
  const disk = await connect(t, {
    request: (asked, socket) => {
      const { cookie, offset } = asked
      held.unshift(() => {
        const end = data(offset + 2 * KIB, Buffer.alloc(2 * KIB, 1 + offset / PAGE))
        const hole = Buffer.concat([u(64, offset), u(32, 2 * KIB)])
        socket.write(chunk(cookie, 0, 1, end))
        socket.write(chunk(cookie, 0, 2, hole))
        socket.write(chunk(cookie, 1, 0, NONE))
      })
      if (held.length === 8) for (const answer of held) answer()
    },
  })
  const pages = Array.from({ length: 8 }, () => Buffer.alloc(PAGE, 'before'))
  await Promise.all(pages.map((page, i) => disk.read(page, i * PAGE)))
  for (const [i, page] of pages.entries()) {
    t.ok(page.equals(Buffer.concat([Buffer.alloc(2 * KIB), Buffer.alloc(2 * KIB, 1 + i)])))
  }
})

t.test('an error of one chunk is that of the request', async t => {
  const disk = await connect(t, {
    request: ({ cookie, offset, length }, socket) => {
      const text = Buffer.from('disk on fire')
      const error = Buffer.concat([u(32, 5), u(16, text.length), text, u(64, offset)])
      socket.write(chunk(cookie, 0, 0x8002, error))
      socket.write(chunk(cookie, 1, 1, data(offset, Buffer.alloc(length))))
    },
  })
  const failed = disk.read(Buffer.alloc(PAGE), 0)
  await t.rejects(failed, { code: 'IO_ERROR', errno: 'EIO', message: /disk on fire/ })
})

t.test('a connection that ends at any byte of an answer: it is asked again', async t => {
  const whole = (asked: Asked): Buffer =>
    Buffer.concat([
      chunk(asked.cookie, 0, 2, Buffer.concat([u(64, PAGE), u(32, 8)])),
      chunk(asked.cookie, 1, 1, data(PAGE + 8, Buffer.alloc(8, 7))),
    ])
  const { length } = whole({ cookie: u(64, 0) } as Asked)
  let cut = 0
  const disk = await connect(t, {
    request: (asked: Asked, socket: Socket) => {
      if (cut < length) socket.end(whole(asked).subarray(0, cut++))
      else socket.write(whole(asked))
    },
  })
  const into = Buffer.alloc(16, 'before')
  await disk.read(into, PAGE)
  t.equal(disk.epoch, length + 1)
  t.ok(into.equals(Buffer.concat([Buffer.alloc(8), Buffer.alloc(8, 7)])))
})
