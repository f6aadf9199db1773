// Goal: each request is answered exactly once, with the right bytes, at the right moment. Method: a
// kernel made of queues, whose requests are written here field by field as linux/fuse.h has them.
import fc from 'fast-check'
import t from 'tap'
import { assert, ThinfsError, unlessAborted } from '../../src/base/index.js'
import { type Attributes, type FileSystem, type Negotiated, WAITS } from '../../src/fuse/index.js'
import { Interrupts } from '../../src/fuse/interrupts.js'
import { FuseSession } from '../../src/fuse/session.js'
import { FakeKernel, fileSystem, type Reply, text, u32, u64 } from '../support/fake-kernel.js'

const ATTRIBUTES: Attributes = {
  ino: 5,
  generation: 6,
  size: 2 ** 40 + 1,
  blocks: 2 ** 33 + 8,
  mode: 0o100600,
  nlink: 1,
  uid: 1000,
  gid: 1001,
  atime: 1.5,
  mtime: -1.25,
  ctime: 1_700_000_000.25,
  blockSize: 65536,
}
/** The same as struct fuse_attr: seconds are rounded down, so that nanoseconds are not negative. */
const ATTR = Buffer.concat([
  ...[u64(5), u64(2 ** 40 + 1), u64(2 ** 33 + 8)],
  ...[u64(1), u64(2n ** 64n - 2n), u64(1_700_000_000)],
  ...[u32(500_000_000), u32(750_000_000), u32(250_000_000)],
  ...[u32(0o100600), u32(1), u32(1000), u32(1001), u32(0), u32(65536), u32(0)],
])
const ENTRY = Buffer.concat([u64(5), u64(6), u64(0), u64(0), u32(0), u32(0), ATTR])
const ATTR_REPLY = Buffer.concat([u64(0), u32(0), u32(0), ATTR])

interface Started {
  kernel: FakeKernel
  session: FuseSession
  events: string[]
  fatal: unknown[]
}

function start(methods: Partial<FileSystem>, negotiated?: Negotiated): Started {
  const kernel = new FakeKernel()
  const events: string[] = []
  const fatal: unknown[] = []
  const options = {
    fd: -1,
    // Not copied: `unsettled` may be a getter.
    fileSystem: Object.setPrototypeOf(methods, fileSystem({})) as FileSystem,
    ...(negotiated ? { negotiated } : {}),
    onInitialized: (agreed: Negotiated) => events.push(`initialized ${JSON.stringify(agreed)}`),
    onUnmounted: () => events.push('unmounted'),
    onFatal: (err: unknown) => fatal.push(err),
    onError: (opcode: string, ino: number, err: unknown) =>
      events.push(`${opcode} ${ino} ${(err as Error).message}`),
  }
  const session = new FuseSession(options, null, kernel)
  return { kernel, session, events, fatal }
}

const initIn = (minor: number, flags: number, flags2: number): Buffer =>
  Buffer.concat([u32(7), u32(minor), u32(131072), u32(flags), u32(flags2), Buffer.alloc(44)])
const readIn = (offset: number | bigint, size: number): Buffer =>
  Buffer.concat([u64(5), u64(offset), u32(size), u32(0), u64(0), u32(0), u32(0)])
const writeIn = (offset: number, data: Buffer, size = data.length): Buffer =>
  Buffer.concat([u64(5), u64(offset), u32(size), u32(0), u64(0), u32(0), u32(0), data])

/** Of a connection's first request. */
const FIRST_UNIQUE = 2

t.test('INIT takes of what the kernel offers only what is wanted', async t => {
  const { kernel, events } = start({})
  // What Linux 6.18 offers.
  const reply = await kernel.ask(26, 0, initIn(45, 0x73fffffb, 0x7fd))
  const flags = 0x50448000 + 0x2000 + 0x21
  t.same(
    reply.payload,
    Buffer.concat([
      ...[u32(7), u32(45), u32(131072), u32(flags), u32(512 + 384 * 65536), u32(1048576), u32(1)],
      ...[u32(256), u32(0x80), Buffer.alloc(28)],
    ]),
  )
  t.same(events, [
    `initialized ${JSON.stringify({ minor: 45, flags, flags2: 128, maxReadahead: 131072, maxWrite: 1048576 })}`,
  ])

  const old = await kernel.ask(26, 0, initIn(27, 0x0003fffb, 0xffffffff))
  t.equal(old.payload.readUInt32LE(4), 27)
  t.equal(old.payload.readUInt32LE(20), 131072, 'without MAX_PAGES')
  t.equal(old.payload.readUInt32LE(32), 0, 'flags2 is not there without INIT_EXT')
  const newer = await kernel.ask(26, 0, initIn(99, 0x73fffffb, 0x7fd))
  t.equal(newer.payload.readUInt32LE(4), 45)

  t.equal((await kernel.ask(26, 0, initIn(22, 0, 0))).error, 'EPROTO')
})

t.test('each operation reaches the file system and its answer the kernel', async t => {
  const setattr = (valid: number): Buffer =>
    Buffer.concat([
      ...[u32(valid), u32(0), u64(5), u64(2 ** 33), u64(0), u64(7), u64(2n ** 64n - 8n)],
      ...[u64(0), u32(500_000_000), u32(250_000_000), u32(0), u32(0o640), u32(0), u32(11), u32(12)],
      u32(0),
    ])
  const copy = Buffer.concat([u64(5), u64(1), u64(6), u64(6), u64(2), u64(2 ** 33), u64(0)])
  const opened = Buffer.concat([u64(FIRST_UNIQUE), u32(2), u32(0)])
  const caller = { uid: 1, gid: 2, pid: 3 }
  const cases: {
    opcode: [name: string, number: number]
    body?: Buffer[]
    method: keyof FileSystem
    called: unknown[]
    answer?: unknown
    payload?: Buffer
  }[] = [
    {
      opcode: ['LOOKUP', 1],
      body: [text('wéb')],
      method: 'lookup',
      called: [5, 'wéb', 3],
      answer: ATTRIBUTES,
      payload: ENTRY,
    },
    {
      opcode: ['GETATTR', 3],
      body: [Buffer.alloc(16)],
      method: 'getattr',
      called: [5],
      answer: ATTRIBUTES,
      payload: ATTR_REPLY,
    },
    {
      opcode: ['SETATTR size', 4],
      body: [setattr(0x208)],
      method: 'setattr',
      called: [5, { size: 2 ** 33 }],
      answer: ATTRIBUTES,
      payload: ATTR_REPLY,
    },
    {
      opcode: ['SETATTR owner', 4],
      body: [setattr(7)],
      method: 'setattr',
      called: [5, { mode: 0o640, uid: 11, gid: 12 }],
      answer: ATTRIBUTES,
      payload: ATTR_REPLY,
    },
    {
      opcode: ['SETATTR times', 4],
      body: [setattr(0x30)],
      method: 'setattr',
      called: [5, { atime: 7.5, mtime: -7.75 }],
      answer: ATTRIBUTES,
      payload: ATTR_REPLY,
    },
    {
      opcode: ['SETATTR now', 4],
      body: [setattr(0x1b0)],
      method: 'setattr',
      called: [5, { atime: 'now', mtime: 'now' }],
      answer: ATTRIBUTES,
      payload: ATTR_REPLY,
    },
    {
      opcode: ['MKNOD', 8],
      body: [u32(0o100644), u32(0), u32(0o22), u32(0), text('a')],
      method: 'create',
      called: [5, 'a', 0o100644, caller],
      answer: ATTRIBUTES,
      payload: ENTRY,
    },
    { opcode: ['UNLINK', 10], body: [text('a')], method: 'unlink', called: [5, 'a'] },
    {
      opcode: ['RENAME', 12],
      body: [u64(9), text('a'), text('b')],
      method: 'rename',
      called: [5, 'a', 9, 'b', 0, FIRST_UNIQUE],
    },
    {
      opcode: ['RENAME2', 45],
      body: [u64(9), u32(1), u32(0), text('a'), text('b')],
      method: 'rename',
      called: [5, 'a', 9, 'b', 1, FIRST_UNIQUE],
    },
    {
      opcode: ['OPEN', 14],
      body: [u32(0o100002), u32(0)],
      method: 'open',
      called: [5, 0o100002, FIRST_UNIQUE],
      payload: opened,
    },
    {
      opcode: ['RELEASE', 18],
      body: [u64(8), Buffer.alloc(16)],
      method: 'release',
      called: [5, 8],
    },
    { opcode: ['FSYNC', 20], body: [u64(5), u32(0), u32(0)], method: 'fsync', called: [5, false] },
    {
      opcode: ['FSYNC data', 20],
      body: [u64(5), u32(1), u32(0)],
      method: 'fsync',
      called: [5, true],
    },
    { opcode: ['FSYNCDIR', 30], body: [Buffer.alloc(16)], method: 'syncfs', called: [] },
    { opcode: ['SYNCFS', 50], body: [u64(0)], method: 'syncfs', called: [] },
    { opcode: ['DESTROY', 38], method: 'syncfs', called: [] },
    {
      opcode: ['FALLOCATE', 43],
      body: [u64(5), u64(2 ** 35), u64(2 ** 34), u32(3), u32(0)],
      method: 'fallocate',
      called: [5, 3, 2 ** 35, 2 ** 34],
    },
    {
      opcode: ['LSEEK', 46],
      body: [u64(5), u64(2 ** 35), u32(4), u32(0)],
      method: 'lseek',
      called: [5, 2 ** 35, 4],
      answer: 2 ** 36,
      payload: u64(2 ** 36),
    },
    {
      opcode: ['COPY_FILE_RANGE', 47],
      body: [copy],
      method: 'copyFileRange',
      called: [5, 1, 6, 2, 2 ** 33],
      answer: 4096,
      payload: Buffer.concat([u32(4096), u32(0)]),
    },
    {
      opcode: ['COPY_FILE_RANGE_64', 53],
      body: [copy],
      method: 'copyFileRange',
      called: [5, 1, 6, 2, 2 ** 33],
      answer: 2 ** 33,
      payload: u64(2 ** 33),
    },
    {
      opcode: ['STATFS', 17],
      method: 'statfs',
      called: [],
      answer: {
        blockSize: 65536,
        blocks: 2 ** 34,
        blocksFree: 3,
        blocksAvailable: 2,
        files: 4,
        filesFree: 5,
        nameMax: 255,
      },
      payload: Buffer.concat([
        u64(2 ** 34),
        u64(3),
        u64(2),
        u64(4),
        u64(5),
        u32(65536),
        u32(255),
        u32(65536),
        Buffer.alloc(28),
      ]),
    },
    {
      opcode: ['GETXATTR', 22],
      body: [u32(64), u32(0), text('user.a')],
      method: 'getxattr',
      called: [5, 'user.a'],
      answer: Buffer.from('xyz'),
      payload: Buffer.from('xyz'),
    },
    {
      opcode: ['GETXATTR size', 22],
      body: [u32(0), u32(0), text('user.a')],
      method: 'getxattr',
      called: [5, 'user.a'],
      answer: Buffer.from('xyz'),
      payload: Buffer.concat([u32(3), u32(0)]),
    },
    {
      opcode: ['LISTXATTR', 23],
      body: [u32(64), u32(0)],
      method: 'listxattr',
      called: [5],
      answer: ['user.a', 'user.b'],
      payload: Buffer.from('user.a\0user.b\0'),
    },
    {
      opcode: ['LISTXATTR size', 23],
      body: [u32(0), u32(0)],
      method: 'listxattr',
      called: [5],
      answer: ['user.a'],
      payload: Buffer.concat([u32(7), u32(0)]),
    },
    {
      opcode: ['READ', 15],
      body: [readIn(2 ** 41 + 512, 4096)],
      method: 'read',
      called: [5, 2 ** 41 + 512, 4096],
      answer: 3,
      payload: Buffer.from('abc'),
    },
    {
      opcode: ['WRITE', 16],
      body: [writeIn(2 ** 41, Buffer.from('hello'))],
      method: 'write',
      called: [5, 2 ** 41, 5],
      answer: 5,
      payload: Buffer.concat([u32(5), u32(0)]),
    },
  ]
  for (const {
    opcode,
    body = [],
    method: atOnce,
    called,
    answer,
    payload = Buffer.alloc(0),
  } of cases) {
    const [name, number] = opcode
    for (const late of [false, true]) {
      // What a READ has to wait for has a method of its own.
      const waits = late && atOnce === 'read' ? { read: () => WAITS } : {}
      const method = late && atOnce === 'read' ? 'readLater' : atOnce
      const calls: unknown[][] = []
      const { kernel, events } = start({
        ...waits,
        [method](...given: unknown[]) {
          if (atOnce === 'read') {
            const [, , , target, at] = given as [0, 0, 0, Buffer, number]
            target.write('abc', at)
            given.length = 3
          } else if (method === 'write') {
            const [, , size, source, at] = given as [0, 0, number, Buffer, number]
            t.equal(source.toString('latin1', at, at + size), 'hello')
            given.length = 3
          }
          calls.push(given.filter(argument => !(argument instanceof Interrupts)))
          return late ? Promise.resolve(answer) : answer
        },
      } as Partial<FileSystem>)
      const reply = await kernel.ask(number, 5, ...body)
      const when = late ? 'later' : 'at once'
      t.same({ error: reply.error, calls }, { error: null, calls: [called] }, `${name} ${when}`)
      t.same(reply.payload, payload, `${name} ${when}: payload`)
      t.same(events, [])

      const failing = start({
        ...waits,
        [method]() {
          const err = new ThinfsError('NO_DATA_SPACE', 'full')
          if (late) return Promise.reject(err)
          throw err
        },
      } as Partial<FileSystem>)
      t.match(await failing.kernel.ask(number, 5, ...body), { error: 'ENOSPC' }, `${name}: error`)
      t.same(failing.events, [`${name.split(' ')[0]} 5 full`])
      t.same([failing.kernel.replies, failing.fatal], [[], []], 'nothing else')
    }
  }
})

t.test('CREATE makes the file, then opens it', async t => {
  const calls: unknown[][] = []
  const { kernel } = start({
    create: async (...given) => {
      calls.push(given)
      return ATTRIBUTES
    },
    open: (...given) => {
      calls.push(given)
    },
  })
  const reply = await kernel.ask(35, 1, u32(0o100101), u32(0o100600), u32(0), u32(0), text('new'))
  t.same(calls, [
    [1, 'new', 0o100600, { uid: 1, gid: 2, pid: 3 }],
    [5, 0o100101, FIRST_UNIQUE],
  ])
  t.same(reply.payload, Buffer.concat([ENTRY, u64(FIRST_UNIQUE), u32(2), u32(0)]))
})

t.test('what there is not is refused as Linux file systems do', async t => {
  const { kernel, events } = start({})
  const cases: [name: string, opcode: number, error: string, ...body: Buffer[]][] = [
    ['READLINK', 5, 'EINVAL'],
    ['SYMLINK', 6, 'EPERM', text('a'), text('b')],
    ['MKNOD of a fifo', 8, 'EPERM', u32(0o10644), u32(0), u32(0), u32(0), text('a')],
    ['MKDIR', 9, 'EPERM', u32(0o755), u32(0), text('a')],
    ['RMDIR', 11, 'ENOTDIR', text('a')],
    ['LINK', 13, 'EPERM', u64(5), text('a')],
    ['SETXATTR', 21, 'EOPNOTSUPP', u32(1), u32(0), text('user.a'), Buffer.from('1')],
    ['REMOVEXATTR', 24, 'EOPNOTSUPP', text('user.a')],
    ['GETLK', 31, 'ENOSYS'],
    ['FLUSH', 25, 'ENOSYS', Buffer.alloc(24)],
    ['ACCESS', 34, 'ENOSYS', u32(4), u32(0)],
    ['BMAP', 37, 'ENOSYS'],
    ['IOCTL', 39, 'ENOTTY', u64(1), u32(0), u32(0x5401), u64(0), u32(0), u32(0)],
    ['POLL', 40, 'ENOSYS'],
    ['TMPFILE', 51, 'EOPNOTSUPP'],
    ['STATX', 52, 'ENOSYS'],
    ['an opcode of the future', 54, 'ENOSYS'],
    ['CUSE_INIT', 4096, 'ENOSYS'],
  ]
  for (const [name, opcode, error, ...body] of cases) {
    const reply = await kernel.ask(opcode, 5, ...body)
    t.same([reply.error, reply.payload.length], [error, 0], name)
  }
  for (const opcode of [2, 36, 41, 42]) kernel.request(opcode, 5, u64(1), u64(1))
  kernel.run()
  t.same(kernel.replies, [], 'FORGET, INTERRUPT, NOTIFY_REPLY and BATCH_FORGET are not answered')
  t.same(events, [], 'and nobody is told')
})

t.test('an ioctl is answered when it ends, or when its caller has got a signal', async t => {
  const { kernel } = start({
    ioctl: (ino, { command, argument, input, outputSize, caller, signal }) =>
      command === 1
        ? new Promise(resolve =>
            signal.addEventListener('abort', () => resolve({ errno: 4, output: input })),
          )
        : Promise.resolve({
            errno: 0,
            output: Buffer.from(
              JSON.stringify([ino, argument, `${input}`, outputSize, caller.pid]),
            ),
          }),
  })
  const ioctl = (command: number, input: string): Buffer[] => {
    const bytes = Buffer.from(input)
    return [u64(1), u32(0), u32(command), u64(4096), u32(bytes.length), u32(99), bytes]
  }
  const waiting = kernel.request(39, 5, ...ioctl(1, 'wait'))
  const reply = await kernel.ask(39, 5, ...ioctl(2, 'in'))
  t.same(reply.payload.subarray(16).toString(), '[5,4096,"in",99,3]')
  t.same(reply.payload.readInt32LE(0), 0)
  t.same(kernel.replies, [], 'the other waits, and nobody with it')
  kernel.request(36, 5, u64(waiting))
  kernel.run()
  await new Promise(resolve => setImmediate(resolve))
  const [interrupted] = kernel.replies as [Reply]
  t.same(interrupted.unique, waiting)
  t.same(interrupted.error, null, 'what goes to the memory of the caller goes there all the same')
  t.same(interrupted.payload.readInt32LE(0), -4)
  t.same(interrupted.payload.subarray(16).toString(), 'wait')
  kernel.request(36, 5, u64(waiting))
  t.same((await kernel.ask(39, 5, u64(1), u32(0), u32(2), u64(0), u32(9), u32(0))).error, 'ENOTTY')
})

/** A file system whose writes wait until `end` is called, or their requester gets a signal. */
function waitingWrites() {
  const ends = new Map<number, () => void>()
  const write: FileSystem['write'] = (_ino, offset, size, _source, _at, requester) => {
    const signal = requester!.signal()
    return unlessAborted(
      new Promise<number>(resolve => ends.set(offset, () => resolve(size))),
      signal,
    )
  }
  return { write, ends }
}
const repliesOf = ({ replies }: FakeKernel) => replies.map(({ unique, error }) => [unique, error])
const turn = () => new Promise(resolve => setImmediate(resolve))

t.test('a request that waits ends when its caller has got a signal', async t => {
  const { write, ends } = waitingWrites()
  const { kernel, fatal } = start({ write, getattr: () => ATTRIBUTES })
  const [one, two, three] = [0, 4096, 8192].map(offset =>
    kernel.request(16, 5, ...[writeIn(offset, Buffer.from('bytes'))]),
  ) as [bigint, bigint, bigint]
  kernel.run()
  for (const _ of ['once', 'again']) kernel.request(36, 0, u64(two))
  kernel.run()
  await turn()
  t.same(repliesOf(kernel), [[two, 'EINTR']], 'it alone, and answered once')
  ends.get(0)!()
  await turn()
  kernel.request(36, 0, u64(one))
  kernel.request(36, 0, u64(three | (1n << 63n)))
  kernel.run()
  await turn()
  t.same(
    repliesOf(kernel).slice(1),
    [
      [one, null],
      [three, 'EINTR'],
    ],
    'also one that was sent again',
  )
  const [answered] = kernel.replies.splice(0) as [Reply]
  const at = kernel.requestAs(answered.unique + 1000n, 16, 5, writeIn(0, Buffer.from('bytes')))
  kernel.run()
  await turn()
  t.same(kernel.replies, [], 'a signal is for the request that it names')
  ends.get(0)!()
  await turn()
  t.same(repliesOf(kernel), [[at, null]])
  t.same(fatal, [])
})

t.test('a signal that is known before the request, as it may be with a ring', async t => {
  const { write } = waitingWrites()
  const { kernel } = start({ write, getattr: () => ATTRIBUTES })
  kernel.request(36, 0, u64(1000))
  kernel.request(36, 0, u64(1002))
  kernel.requestAs(1000n, 16, 5, writeIn(0, Buffer.from('bytes')))
  kernel.requestAs(1002n, 3, 5, Buffer.alloc(16))
  kernel.run()
  await turn()
  t.same(
    repliesOf(kernel),
    [
      [1002n, null],
      [1000n, 'EINTR'],
    ],
    'what need not wait is done',
  )
})

t.test('device nodes and symbolic links, where the file system has them', async t => {
  const calls: unknown[] = []
  const { kernel } = start({
    directIo: true,
    open: () => {},
    mknod: (...given) => {
      calls.push(given)
      return { ...ATTRIBUTES, rdev: 0x7e8 }
    },
    symlink: (...given) => {
      calls.push(given)
      return ATTRIBUTES
    },
    readlink: () => '../dm-0',
  })
  const node = await kernel.ask(8, 1, u32(0o60600), u32(0x7e8), u32(0), u32(0), text('a'))
  t.same(node.payload.readUInt32LE(40 + 76), 0x7e8)
  t.same((await kernel.ask(6, 1, text('b'), text('../dm-0'))).payload, ENTRY)
  t.same((await kernel.ask(5, 5)).payload.toString(), '../dm-0')
  t.same(calls, [
    [1, 'a', 0o60600, 0x7e8],
    [1, 'b', '../dm-0'],
  ])
  const opened = await kernel.ask(14, 5, u32(2), u32(0))
  t.same(opened.payload.readUInt32LE(8), 1, 'FOPEN_DIRECT_IO')
})

t.test('directories: pages of stable cookies, read anew from the beginning', async t => {
  let names = ['c', 'name-of-9', 'dd']
  const inode = (name: string): number => ({ c: 30, 'name-of-9': 20, dd: 10 })[name] ?? 40
  const { kernel } = start({
    readdir: () => names.map(name => ({ name, attributes: { ...ATTRIBUTES, ino: inode(name) } })),
    getattr: ino => {
      if (ino === 20) throw new ThinfsError('VOLUME_MISSING', 'gone')
      return { ...ATTRIBUTES, ino, size: 77 }
    },
  })
  const fh = (await kernel.ask(27, 1, u32(0), u32(0))).payload.readBigUInt64LE(0)
  const page = async (opcode: number, cookie: number, size: number, handle = fh) => {
    const body = Buffer.concat([u64(handle), u64(cookie), u32(size), Buffer.alloc(20)])
    const { payload } = await kernel.ask(opcode, 1, body)
    const found: string[] = []
    for (let at = 0; at < payload.length; ) {
      const dirent = at + (opcode === 44 ? 128 : 0)
      const [length, type] = [payload.readUInt32LE(dirent + 16), payload.readUInt32LE(dirent + 20)]
      const name = payload.toString('utf8', dirent + 24, dirent + 24 + length)
      let line = `${name} ${payload.readBigUInt64LE(dirent)} type ${type}`
      if (opcode === 44) {
        line += ` node ${payload.readBigUInt64LE(at)} size ${payload.readBigUInt64LE(at + 48)}`
      }
      found.push(`${line} then ${payload.readBigUInt64LE(dirent + 8)}`)
      at = dirent + Math.ceil((24 + length) / 8) * 8
    }
    t.ok(payload.length <= size)
    return found
  }
  const dots = ['. 1 type 4 then 1', '.. 1 type 4 then 2']
  const all = ['dd 10 type 8 then 11', 'name-of-9 20 type 8 then 21', 'c 30 type 8 then 31']
  t.same(await page(28, 0, 4096), [...dots, ...all])
  t.same(await page(28, 0, 64), dots, 'an entry is whole or not there')
  t.same(await page(28, 2, 71), all.slice(0, 1))
  t.same(await page(28, 11, 4096), all.slice(1))
  t.same(await page(28, 31, 4096), [], 'the end')
  names = ['c', 'b']
  t.same(await page(28, 11, 4096), all.slice(1), 'an open list stays')
  t.same(
    await page(28, 15, 4096, 99n),
    ['c 30 type 8 then 31', 'b 40 type 8 then 41'],
    'taken over',
  )
  t.same(await page(28, 2, 4096, 98n), ['c 30 type 8 then 31', 'b 40 type 8 then 41'])
  names = ['c', 'name-of-9']
  t.same(await page(44, 0, 4096), [
    '. 1 type 4 node 0 size 0 then 1',
    '.. 1 type 4 node 0 size 0 then 2',
    'name-of-9 20 type 8 node 0 size 0 then 21',
    'c 30 type 8 node 30 size 77 then 31',
  ])
  t.equal((await kernel.ask(29, 1, u64(fh), Buffer.alloc(16))).error, null)
  t.equal((await kernel.ask(28, 1, readIn(0, 2 ** 20 + 1))).error, 'EINVAL')
})

t.test('requests are answered in batches that grow while they come back full', async t => {
  const { kernel } = start({ read: (_ino, _offset, size) => size })
  const asked = Array.from({ length: 40 }, () => kernel.request(15, 5, readIn(0, 8)))
  kernel.run()
  t.same(
    kernel.replies.map(reply => reply.unique),
    asked,
  )
  t.same(kernel.batches, [1, 2, 4, 8, 16, 9])
})

t.test('a turn ends after some hundred requests', async t => {
  const { kernel } = start({ read: (_ino, _offset, size) => size })
  for (let i = 0; i < 1000; i++) kernel.request(15, 5, readIn(0, 8))
  kernel.turn()
  const handled = 1000 - kernel.nrQueued
  t.ok(handled >= 256 && handled < 300, `${handled} requests in one turn`)
})

t.test('a request that is sent again gives the handle that it gave before', async t => {
  const handles: number[] = []
  const { kernel } = start({
    open: (_ino, _flags, handle) => {
      handles.push(handle)
    },
  })
  for (const unique of [6n, 2n ** 40n + 8n]) {
    for (const again of [0n, 1n << 63n]) kernel.requestAs(unique + again, 14, 5, u32(0), u32(0))
  }
  kernel.run()
  t.same(handles, [6, 6, 2 ** 40 + 8, 2 ** 40 + 8])
  t.same(
    kernel.replies.map(({ payload }) => payload.readBigUInt64LE()),
    handles.map(BigInt),
  )
})

t.test('all 64 bits of unique come back', async t => {
  const { kernel } = start({ read: (_i, _o, size) => size, fsync: async () => {} })
  const uniques = [0xffff_ffff_ffff_fffen, 0x8000_0000_0000_0002n, 0x1234_5678_9abc_def0n]
  for (const unique of uniques) {
    kernel.requestAs(unique, 15, 5, readIn(0, 8))
    kernel.run()
    kernel.requestAs(unique, 20, 5, u64(5), u32(0), u32(0))
    kernel.run()
    await new Promise(resolve => setImmediate(resolve))
    t.same(
      kernel.replies.splice(0).map(reply => reply.unique),
      [unique, unique],
    )
  }
})

t.test('a request that is sent again may have been done already', async t => {
  const attempts: string[] = []
  const gone = async (): Promise<never> => {
    attempts.push('again')
    throw new ThinfsError('VOLUME_MISSING', 'gone')
  }
  const { kernel } = start({
    create: () => {
      throw new ThinfsError('VOLUME_EXISTS', 'there')
    },
    lookup: () => ATTRIBUTES,
    open() {},
    unlink: gone,
    rename: gone,
  })
  const create = [u32(0), u32(0o100600), u32(0), u32(0), text('new')]
  t.equal((await kernel.ask(35, 1, ...create)).error, 'EEXIST')
  t.equal((await kernel.ask(10, 1, text('a'))).error, 'ENOENT')
  const AGAIN = 1n << 63n
  kernel.requestAs(AGAIN + 2n, 35, 1, ...create)
  kernel.requestAs(AGAIN + 4n, 10, 1, text('a'))
  kernel.requestAs(AGAIN + 6n, 12, 1, u64(1), text('a'), text('b'))
  kernel.run()
  await new Promise(resolve => setImmediate(resolve))
  t.same(
    kernel.replies.map(({ unique, error }) => [unique - AGAIN, error]),
    [
      [2n, null],
      [4n, null],
      [6n, null],
    ],
  )
  t.equal(attempts.length, 3)
})

t.test('replies wait until changes are settled, once for a batch', async t => {
  const log: string[] = []
  const fs = {
    unsettled: false,
    settle() {
      log.push(`settle, ${kernel.replies.length} sent`)
      fs.unsettled = false
    },
    read: (_ino: number, _offset: number, size: number) => size,
    write: (_ino: number, offset: number, size: number) => {
      log.push(`write ${offset}`)
      fs.unsettled = true
      return size
    },
  }
  const { kernel } = start(fs)
  kernel.request(15, 5, readIn(0, 8)) // A batch of one, so that the next has two.
  const sent = [
    kernel.request(15, 5, readIn(0, 8)),
    kernel.request(16, 5, writeIn(1, Buffer.from('a'))),
    kernel.request(16, 5, writeIn(2, Buffer.from('b'))),
    kernel.request(15, 5, readIn(0, 8)),
    kernel.request(16, 5, writeIn(3, Buffer.from('c'))),
  ]
  kernel.run()
  t.same(log, ['write 1', 'settle, 2 sent', 'write 2', 'write 3', 'settle, 3 sent'])
  t.same(
    kernel.replies.slice(1).map(reply => reply.unique),
    sent,
  )
  t.ok(kernel.replies.every(reply => reply.error === null))
})

t.test(
  'while settling takes time nothing is read, and later answers wait with the others',
  async t => {
    let settled = (): void => {}
    let synced = (): void => {}
    let settlings = 0
    const fs = {
      unsettled: false,
      settle() {
        settlings++
        return new Promise<void>(resolve => {
          settled = () => {
            fs.unsettled = false
            resolve()
          }
        })
      },
      write: (_ino: number, _offset: number, size: number) => {
        fs.unsettled = true
        return size
      },
      fsync: () => new Promise<void>(resolve => (synced = resolve)),
    }
    const { kernel } = start(fs)
    const turn = () => new Promise(resolve => setImmediate(resolve))
    const fsync = kernel.request(20, 5, u64(5), u32(0), u32(0))
    kernel.run()
    const first = kernel.request(16, 5, writeIn(0, Buffer.from('a')))
    const second = kernel.request(16, 5, writeIn(0, Buffer.from('b')))
    kernel.run()
    t.notOk(kernel.watched)
    t.equal(kernel.nrQueued, 0, 'the batch of two')
    const third = kernel.request(16, 5, writeIn(0, Buffer.from('c')))
    synced()
    await turn()
    kernel.run()
    t.same([kernel.replies, kernel.nrQueued, settlings], [[], 1, 1])
    settled()
    await turn()
    t.same(
      kernel.replies.splice(0).map(reply => reply.unique),
      [first, second, fsync],
    )
    t.ok(kernel.watched)
    kernel.run()
    t.same([kernel.replies.length, settlings], [0, 2])
    settled()
    await turn()
    t.same(
      kernel.replies.map(reply => reply.unique),
      [third],
    )
  },
)

t.test('answers that come later are settled together', async t => {
  let settlings = 0
  const waiting: (() => void)[] = []
  const fs = {
    unsettled: false,
    settle() {
      settlings++
      fs.unsettled = false
    },
    write: (_ino: number, _offset: number, size: number) =>
      new Promise<number>(resolve => {
        waiting.push(() => {
          fs.unsettled = true
          resolve(size)
        })
      }),
  }
  const { kernel } = start(fs)
  const asked = [1, 2, 3].map(n => kernel.request(16, 5, writeIn(n, Buffer.from('a'))))
  kernel.run()
  t.same(kernel.replies, [])
  for (const done of waiting) done()
  await new Promise(resolve => setImmediate(resolve))
  t.same(
    kernel.replies.map(reply => reply.unique),
    asked,
  )
  t.equal(settlings, 1)
})

t.test('changes that cannot be settled are errors for those who made them', async t => {
  for (const late of [false, true]) {
    const fs = {
      unsettled: false,
      settle() {
        fs.unsettled = false
        const err = Object.assign(new Error('no space for the journal'), { code: 'ENOSPC' })
        if (late) return Promise.reject(err)
        throw err
      },
      write: (_ino: number, _offset: number, size: number) => {
        fs.unsettled = true
        return size
      },
    }
    const { kernel, events } = start(fs)
    const { error, payload } = await kernel.ask(16, 5, writeIn(0, Buffer.from('a')))
    t.same([error, payload.length], ['ENOSPC', 0])
    t.same(events, ['settle 0 no space for the journal'])
  }
})

t.test('a READ that waits for a disk is answered when it comes, and others go on', async t => {
  const done: (() => void)[] = []
  const { kernel } = start({
    read: (_ino, offset, size, target, at) => {
      target.fill('x', at, at + size)
      return offset === 0 ? size : WAITS
    },
    readLater: (_ino, offset, size, target, at) =>
      new Promise(resolve => {
        done.push(() => {
          target.fill(String(offset), at, at + size)
          resolve(size)
        })
      }),
  })
  const asked = [1, 2, 3].map(n => kernel.request(15, 5, readIn(n, 4)))
  kernel.run()
  for (let i = 0; i < 50; i++) kernel.request(15, 5, readIn(0, 4))
  kernel.run()
  t.equal(kernel.replies.splice(0).length, 50)
  for (const finish of done.reverse()) finish()
  await new Promise(resolve => setImmediate(resolve))
  t.same(
    kernel.replies.map(({ unique, payload }) => [unique, payload.toString()]),
    [
      [asked[2], '3333'],
      [asked[1], '2222'],
      [asked[0], '1111'],
    ],
  )
})

// write(2) of two parts is answered short when the second fails, and a loop device takes that for
// success.
t.test('a part of a write that fails behind another is told by the next FSYNC as well', async t => {
  const MIB = 2 ** 20
  const full = (): never => {
    throw new ThinfsError('NO_DATA_SPACE', 'full')
  }
  const ways: Record<string, (size: number) => number | Promise<number>> = {
    'at once': size => (size === MIB ? size : full()),
    later: async size => (size === MIB ? size : full()),
  }
  const [fh, lockOwner] = [5, 2]
  const others: Partial<FileSystem> = { fsync: () => {}, release: () => {} }
  const fsync = (kernel: FakeKernel, of = fh) => kernel.ask(20, 5, u64(of), u32(0), u32(0))
  const write = (kernel: FakeKernel, offset: number, size: number, flags = 0) => {
    const numbers = [u64(fh), u64(offset), u32(size), u32(flags), u64(0), u32(0), u32(0)]
    return kernel.ask(16, 5, ...numbers, Buffer.alloc(size))
  }
  for (const [name, answer] of Object.entries(ways)) {
    await t.test(name, async t => {
      const begin = () => start({ ...others, write: (_i, _o, size) => answer(size) }).kernel
      await t.test('once, and of the same open file', async t => {
        const kernel = begin()
        t.equal((await write(kernel, 0, MIB)).error, null)
        t.equal((await write(kernel, MIB, 4096)).error, 'ENOSPC')
        t.equal((await fsync(kernel, 6)).error, null)
        t.equal((await fsync(kernel)).error, 'ENOSPC')
        t.equal((await fsync(kernel)).error, null)
      })
      await t.test('not when its caller has heard of it', async t => {
        for (const [offset, flags] of [
          [4096, 0],
          [MIB, lockOwner],
        ] as const) {
          const kernel = begin()
          await write(kernel, 0, MIB, flags)
          t.equal((await write(kernel, offset, 4096, flags)).error, 'ENOSPC')
          t.equal((await fsync(kernel)).error, null, `at ${offset}, flags ${flags}`)
        }
      })
      await t.test('nor of a file that is closed', async t => {
        const kernel = begin()
        await write(kernel, 0, MIB)
        await write(kernel, MIB, 4096)
        await kernel.ask(18, 5, u64(fh), u32(0), u32(0), u64(0))
        t.equal((await fsync(kernel)).error, null)
      })
    })
  }
  await t.test(
    'nor of one that a signal has ended: its caller goes on behind the first',
    async t => {
      const { kernel } = start({
        ...others,
        write: (_i, _o, size) => {
          if (size < MIB) throw Object.assign(new Error('interrupted'), { code: 'EINTR' })
          return size
        },
      })
      await write(kernel, 0, MIB)
      t.equal((await write(kernel, MIB, 4096)).error, 'EINTR')
      t.equal((await fsync(kernel)).error, null)
    },
  )
})

t.test('a bug is not answered: it ends the session before anything else is done', async t => {
  const bugs: Record<string, Partial<FileSystem>> = {
    'a false assertion': { write: () => assert(false, 'it is so') as never },
    'a program error': { write: () => (undefined as unknown as Buffer).length },
    'a WRITE that is short': { write: (_i, _o, size) => size - 1 },
    'a WRITE that is short, later': { write: async (_i, _o, size) => size - 1 },
    'a program error, later': { write: async () => (undefined as unknown as Buffer).length },
    'a settling that asserts': {
      unsettled: true,
      write: (_i, _o, size) => size,
      settle: () => assert(false, 'it is so'),
    },
  }
  for (const [name, methods] of Object.entries(bugs)) {
    const { kernel, fatal } = start(methods)
    kernel.request(16, 5, writeIn(0, Buffer.from('abc')))
    kernel.run()
    await new Promise(resolve => setImmediate(resolve))
    kernel.request(16, 5, writeIn(0, Buffer.from('abc')))
    kernel.run()
    t.same([kernel.replies, fatal.length, kernel.watched], [[], 1, false], name)
  }
})

t.test(
  'a reply that nobody waits for is dropped; one that the kernel refuses is a bug',
  async t => {
    const { kernel, fatal } = start({ read: (_i, _o, size) => size })
    const ENOENT = -2
    kernel.results.push(ENOENT)
    kernel.request(15, 5, readIn(0, 8))
    kernel.run()
    t.equal((await kernel.ask(15, 5, readIn(0, 8))).error, null)
    t.same(fatal, [])
    const EINVAL = -22
    kernel.results.push(EINVAL)
    kernel.request(15, 5, readIn(0, 8))
    kernel.run()
    t.match(fatal, [{ message: /the kernel refused a reply: -22/ }])
  },
)

t.test('unmounting ends the session once', async t => {
  const { kernel, events } = start({})
  kernel.unmounted = true
  kernel.run()
  kernel.run()
  t.same(events, ['unmounted'])
  t.notOk(kernel.watched)
})

t.test('a connection that was taken over asks for what was not answered', async t => {
  const negotiated: Negotiated = {
    minor: 45,
    flags: 0,
    flags2: 128,
    maxReadahead: 131072,
    maxWrite: 1048576,
  }
  const { kernel, session, events } = start({}, negotiated)
  t.equal(session.resend(), true)
  t.same(kernel.replies, [{ unique: 0n, error: '7', payload: Buffer.alloc(0) }])
  kernel.results.push(-22)
  t.equal(session.resend(), false, 'an old kernel')
  t.same(events, [])
})

t.test('after close nothing is read, and what is under way is still answered', async t => {
  let finish = (): void => {}
  const { kernel, session } = start({
    fsync: () => new Promise<void>(resolve => (finish = resolve)),
  })
  const unique = kernel.request(20, 5, u64(5), u32(0), u32(0))
  kernel.run()
  session.close()
  kernel.request(20, 5, u64(5), u32(0), u32(0))
  kernel.run()
  finish()
  await new Promise(resolve => setImmediate(resolve))
  t.same(
    kernel.replies.map(reply => reply.unique),
    [unique],
  )
  t.equal(kernel.nrQueued, 1)
})

t.test('requests of wrong sizes are errors and nothing more', async t => {
  const { kernel, fatal } = start({ read: (_i, _o, size) => size, write: (_i, _o, size) => size })
  t.equal((await kernel.ask(15, 5, readIn(0, 2 ** 20 + 1))).error, 'EINVAL')
  t.equal((await kernel.ask(15, 5, readIn(0, 0xffff_ffff))).error, 'EINVAL')
  t.equal((await kernel.ask(16, 5, writeIn(0, Buffer.from('abc'), 4))).error, 'EINVAL')
  t.equal((await kernel.ask(16, 5, writeIn(0, Buffer.alloc(0), 0xffff_ffff))).error, 'EINVAL')
  t.equal((await kernel.ask(1, 1, Buffer.from('no end'))).error, 'EINVAL')
  t.equal((await kernel.ask(1, 1, Buffer.from('not\xffutf8\0', 'latin1'))).error, 'EINVAL')
  t.equal((await kernel.ask(12, 1, u64(1), text('one'), Buffer.from('two'))).error, 'EINVAL')
  const long = start({ getxattr: () => Buffer.alloc(10) })
  const getxattr = [u32(9), u32(0), text('user.a')]
  t.equal((await long.kernel.ask(22, 5, ...getxattr)).error, 'ERANGE')
  t.same(fatal, [])
})

t.test('no bytes throw, hang or go without an answer', async t => {
  const nothing = new Set([2, 36, 41, 42])
  await fc.assert(
    fc.asyncProperty(
      fc.integer({ min: 0, max: 60 }),
      fc.uint8Array({ maxLength: 200 }),
      fc.boolean(),
      fc.integer({ min: 0, max: 240 }),
      async (opcode, body, lies, cut) => {
        const { kernel, fatal } = start({
          read: (_i, _o, size) => size,
          write: (_i, _o, size) => size,
          open() {},
          readdir: () => [{ name: 'a', attributes: ATTRIBUTES }],
        })
        const length = 40 + body.length
        const bytes = Buffer.concat([
          ...[u32(lies ? cut : length), u32(opcode), u64(2), u64(1), Buffer.alloc(16)],
          body,
        ])
        kernel.raw(bytes.subarray(0, Math.max(cut, 1)))
        kernel.run()
        await new Promise(resolve => setImmediate(resolve))
        const whole = Math.min(cut, length) === (lies ? cut : length) && cut >= 40
        const wanted = cut < 16 || (whole && nothing.has(opcode)) ? 0 : 1
        t.same([kernel.replies.length, fatal], [wanted, []], `opcode ${opcode}, ${cut} bytes`)
      },
    ),
    { numRuns: 300 },
  )
})

t.test('it has caught up when what was sent again is handled', async t => {
  const kernel = new FakeKernel()
  const handled: string[] = []
  const options = {
    fd: -1,
    fileSystem: fileSystem({
      getattr(ino) {
        handled.push(`inode ${ino}`)
        return ATTRIBUTES
      },
    }),
    negotiated: { minor: 36, flags: 0, flags2: 0, maxWrite: 1 << 20 } as unknown as Negotiated,
    onInitialized: () => {},
    onCaughtUp: () => void handled.push('caught up'),
    onUnmounted: () => {},
    onFatal: (err: unknown) => t.fail(String(err)),
  }
  new FuseSession(options, null, kernel)
  const getattr = Buffer.alloc(16)
  // More than one turn handles, so that there is always something that waits.
  for (let nr = 1; nr <= 400; nr++) {
    kernel.requestAs((1n << 63n) + BigInt(2 * nr), 3, nr, getattr)
  }
  for (let nr = 401; nr <= 1200; nr++) kernel.request(3, nr, getattr)
  kernel.turn()
  t.ok(handled.length < 400)
  t.notOk(handled.includes('caught up'), 'there is more that was sent again')
  kernel.run()
  const at = handled.indexOf('caught up')
  t.ok(at >= 400 && at < 1200, 'not as late as when nothing waits')
  t.equal(handled.lastIndexOf('caught up'), at, 'once')
})
