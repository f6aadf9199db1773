// Goal: an ioctl is answered as the kernel answers it, byte for byte. Method: what a Linux 6.1 has
// said to each line of test/fixtures/dm/linux-6.1.txt (record.c beside it has asked) is compared
// with what we say.
import { readFileSync, renameSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { errnoOf } from '../../src/base/index.js'
import { commandOf, DM_COMMAND } from '../../src/dm/abi.js'
import { type Answer, NoDevice } from '../../src/dm/ioctls.js'
import { makeRig, type Rig } from '../support/dm-machine.js'
import { errno, get } from '../support/tables.js'

const RECORDING = new URL('../fixtures/dm/linux-6.1.txt', import.meta.url)
/** Set by the kernel for udev, of which we have none. */
const UEVENT_GENERATED = 0x2000

/** A caller's buffer, made of a line as record.c makes it. */
function bufferOf(line: string): { nr: number; buffer: Buffer } {
  const [command, ...fields] = line.split('|')
  const buffer = Buffer.alloc(65536)
  buffer.writeUInt32LE(4, 0)
  buffer.writeUInt32LE(buffer.length, 12)
  buffer.writeUInt32LE(312, 16)
  let at = 312
  for (const field of fields) {
    const key = field.slice(0, field.indexOf('='))
    const value = field.slice(field.indexOf('=') + 1)
    if (key === 'name') buffer.write(value, 48)
    else if (key === 'uuid') buffer.write(value, 176)
    else if (key === 'flags') buffer.writeUInt32LE(Number.parseInt(value, 16), 28)
    else if (key === 'event') buffer.writeUInt32LE(Number(value), 32)
    else if (key === 'size') buffer.writeUInt32LE(Number(value), 12)
    else if (key === 'new') buffer.write(value, at)
    else if (key === 'version') {
      value.split('.').forEach((part, i) => {
        buffer.writeUInt32LE(Number(part), 4 * i)
      })
    } else if (key === 'dev') {
      const [major, minor] = value.split(':').map(Number) as [number, number]
      buffer.writeUInt32LE((minor & 0xff) | (major << 8) | ((minor & ~0xff) << 12), 40)
    } else if (key === 'msg') {
      const [sector] = value.split(' ', 1) as [string]
      buffer.writeBigUInt64LE(BigInt(sector), at)
      buffer.write(value.slice(sector.length + 1), at + 8)
    } else {
      const [start, length, type] = value.split(' ') as [string, string, string]
      const params = value.slice(`${start} ${length} ${type} `.length)
      buffer.writeBigUInt64LE(BigInt(start), at)
      buffer.writeBigUInt64LE(BigInt(length), at + 8)
      buffer.write(type, at + 24)
      buffer.write(params, at + 40)
      const next = Math.ceil((40 + params.length + 1) / 8) * 8
      buffer.writeUInt32LE(next, at + 20)
      buffer.writeUInt32LE(buffer.readUInt32LE(20) + 1, 20)
      at += next
    }
  }
  return { nr: (DM_COMMAND as Record<string, number>)[command!] ?? 99, buffer }
}

function ask(
  { ioctls }: Pick<Rig, 'ioctls'>,
  line: string,
  signal = new AbortController().signal,
): Promise<Answer> {
  const { nr, buffer } = bufferOf(line)
  return ioctls.call(nr, buffer.subarray(0, 312), {
    pid: 1,
    signal,
    readBehind: async length => buffer.subarray(312, 312 + length),
  })
}

/** As record.c prints it. */
function textOf({ errno, header, payload }: Answer): string {
  if (errno !== 0) return `errno ${errno} version 4.47`
  const text = (at: number): string => header.toString('utf8', at, header.indexOf(0, at))
  const dev = header.readUInt32LE(40)
  const size = header.readUInt32LE(12)
  const words = [
    ...['flags', header.readUInt32LE(28).toString(16), 'targets', header.readUInt32LE(20)],
    ...['open', header.readInt32LE(24), 'event', header.readUInt32LE(32)],
    ...['dev', `${(dev >>> 8) & 0xfff}:${(dev & 0xff) | ((dev >>> 12) & ~0xff)}`],
    ...['name', `'${text(48)}'`, 'uuid', `'${text(176)}'`],
    ...['size', size, 'payload', (payload ?? Buffer.alloc(0)).toString('hex')],
  ]
  return words.join(' ')
}

/** The kernel's answer, of a kernel without udev. */
const expected = (answer: string): string =>
  answer.replace(
    /^flags (\w+)/,
    (_, flags) => `flags ${(Number.parseInt(flags, 16) & ~UEVENT_GENERATED).toString(16)}`,
  )

t.test('each ioctl is answered as the kernel answers it', async t => {
  const rig = makeRig(t.testdir())
  t.teardown(() => rig.tables.close())
  const lines = readFileSync(RECORDING, 'utf8').split('\n')
  let compared = 0
  for (let i = 0; i < lines.length; i++) {
    const line = lines[i]!
    if (line === '' || line.startsWith('#')) continue
    const answer = textOf(await ask(rig, line))
    t.same({ answer }, { answer: expected(lines[++i]!.slice(2)) }, line)
    compared++
  }
  t.ok(compared > 100)
  t.same(rig.devices.table.all(), [])
  const claims = rig.machine.log.filter(entry => /claim/.test(entry)).map(e => e.split(' ')[0])
  t.equal(claims.filter(c => c === 'claim').length, claims.filter(c => c === 'unclaim').length)
})

t.test('who waits for an event gets it, or is interrupted, or sees the device go', async t => {
  const rig = makeRig(t.testdir())
  t.teardown(() => rig.tables.close())
  await ask(rig, 'DEV_CREATE|name=a')
  const controller = new AbortController()
  const interrupted = ask(rig, 'DEV_WAIT|name=a', controller.signal)
  const waiting = ask(rig, 'DEV_WAIT|name=a')
  controller.abort()
  t.equal((await interrupted).errno, 4, 'EINTR')
  rig.devices.table.byName('a')!.event()
  t.match(textOf(await waiting), /event 1/)
  const last = ask(rig, 'DEV_WAIT|name=a|event=1')
  await ask(rig, 'DEV_REMOVE|name=a')
  t.match(textOf(await last), /event 2/, 'as in the kernel: an event, and success')
})

t.test(
  'a table that a new engine cannot serve gives errors, and keeps no other waiting',
  async t => {
    const folder = t.testdir()
    const rig = makeRig(folder)
    for (const [name, line] of [
      ['gone', '0 16 linear 254:16 0'],
      ['above', '0 16 linear 253:0 0'],
      ['sound', '0 16 zero '],
    ]) {
      await ask(rig, `DEV_CREATE|name=${name}`)
      await ask(rig, `TABLE_LOAD|name=${name}|t=${line}`)
      await ask(rig, `DEV_SUSPEND|name=${name}`)
    }
    await rig.tables.close()
    const disk = join(folder, 'data')
    renameSync(disk, `${disk}.away`)
    const next = rig.again()
    t.teardown(() => next.close())
    const unserved: string[] = []
    rig.devices.onUnserved = ({ name }) => unserved.push(name)
    await rig.devices.replay(next)
    t.same(unserved, ['gone'])
    const read = async (minor: number): Promise<Buffer> => get(next.device(minor), 0, 512)
    t.equal((await read(2))[0], 0)
    for (const minor of [0, 1]) await t.rejects(read(minor), errno('EIO'))
    t.equal(next.device(1).size, 16 * 512)

    renameSync(`${disk}.away`, disk)
    await next.load(0, [...rig.devices.table.get(0)!.live!.sent], false)
    await next.resume(0)
    t.equal((await read(1))[0], 0, 'until it is loaded again')
  },
)

t.test('a device that is open stays, or goes with its last close', async t => {
  const rig = makeRig(t.testdir())
  t.teardown(() => rig.tables.close())
  const { machine, devices } = rig
  await ask(rig, 'DEV_CREATE|name=a')
  await ask(rig, 'TABLE_LOAD|name=a|t=0 8 zero ')
  await ask(rig, 'DEV_SUSPEND|name=a')
  machine.open.add(0)
  t.match(textOf(await ask(rig, 'DEV_STATUS|name=a')), /open 1/)
  t.equal((await ask(rig, 'DEV_REMOVE|name=a')).errno, 16)
  t.match(textOf(await ask(rig, 'DEV_REMOVE|name=a|flags=20000')), /flags 20000/)
  await ask(rig, 'TARGET_MSG|name=a|msg=0 @cancel_deferred_remove')
  machine.close(0)
  t.match(textOf(await ask(rig, 'DEV_STATUS|name=a')), /open 0/, 'the removal was cancelled')
  machine.open.add(0)
  await ask(rig, 'DEV_REMOVE|name=a|flags=20000')
  machine.close(0)
  await ask(rig, 'TABLE_CLEAR|name=a')
  t.equal((await ask(rig, 'DEV_STATUS|name=a')).errno, 6)
  t.same(devices.table.all(), [])
})

t.test('a removal does not wait for requests that wait', async t => {
  const rig = makeRig(t.testdir())
  t.teardown(() => rig.tables.close())
  const { machine } = rig
  const detaches = (): string[] => machine.log.filter(line => line.startsWith('detach'))
  for (const [minor, table] of ['0 8 zero ', '0 8 linear 253:0 0'].entries()) {
    await ask(rig, `DEV_CREATE|name=d${minor}`)
    await ask(rig, `TABLE_LOAD|name=d${minor}|t=${table}`)
    await ask(rig, `DEV_SUSPEND|name=d${minor}`)
  }
  machine.open.add(1)
  machine.requests.add(1)
  t.equal((await ask(rig, 'DEV_REMOVE|name=d1')).errno, 16, 'EBUSY while they are under way')
  machine.requests.delete(1)
  await ask(rig, 'DEV_SUSPEND|name=d0|flags=2')
  t.equal((await ask(rig, 'DEV_REMOVE|name=d1')).errno, 16, 'EBUSY on a suspended device')
  t.same(detaches(), [], 'its loop device was left alone')
  machine.open.delete(1)
  t.equal((await ask(rig, 'DEV_REMOVE|name=d1')).errno, 0)
})

t.test('a table that names its own device is refused', async t => {
  const rig = makeRig(t.testdir())
  t.teardown(() => rig.tables.close())
  await ask(rig, 'DEV_CREATE|name=a')
  await ask(rig, 'DEV_CREATE|name=b')
  t.equal((await ask(rig, 'TABLE_LOAD|name=a|t=0 8 linear 253:0 0')).errno, 22)
  await ask(rig, 'TABLE_LOAD|name=a|t=0 8 zero ')
  await ask(rig, 'DEV_SUSPEND|name=a')
  await ask(rig, 'TABLE_LOAD|name=b|t=0 8 linear 253:0 0')
  await ask(rig, 'DEV_SUSPEND|name=b')
  t.equal((await ask(rig, 'TABLE_LOAD|name=a|t=0 8 linear 253:1 0')).errno, 22)
})

t.test('a client that lies about its buffer, and one that is gone, get an error', async t => {
  const rig = makeRig(t.testdir())
  t.teardown(() => rig.tables.close())
  await ask(rig, 'DEV_CREATE|name=a')
  const caller = { pid: 1, signal: new AbortController().signal }
  const fault = Object.assign(new Error('gone'), { code: 'EFAULT' })
  const call = async (line: string, change: (buffer: Buffer) => void): Promise<number> => {
    const { nr, buffer } = bufferOf(line)
    change(buffer)
    const readBehind = async (length: number): Promise<Buffer> => {
      if (length > buffer.length - 312) throw fault
      return buffer.subarray(312, 312 + length)
    }
    const told: string[] = []
    const { errno } = await rig.ioctls.call(
      nr,
      buffer.subarray(0, 312),
      { ...caller, readBehind },
      (command, err) => told.push(`${command}: ${(err as Error).message}`),
    )
    t.equal(told.length, 1, `${line}: ${told}`)
    return errno
  }
  const load = 'TABLE_LOAD|name=a|t=0 8 zero |t=8 8 zero '
  const cases: [what: string, errno: number, line: string, change: (buffer: Buffer) => void][] = [
    ['data_size beyond the buffer', 14, load, b => b.writeUInt32LE(70_000, 12)],
    ['a version to come', 22, load, b => b.writeUInt32LE(99, 4)],
    ['a version to come', 22, 'VERSION', b => b.writeUInt32LE(5, 0)],
    ['a command to come', 25, 'WHAT', () => {}],
    ['data_size of 4 GiB', 12, load, b => b.writeUInt32LE(0xffff_ffff, 12)],
    ['data_size 0', 22, load, b => b.writeUInt32LE(0, 12)],
    ['data_start beyond data_size', 22, load, b => b.writeUInt32LE(65_600, 16)],
    ['data_start within the header', 22, load, b => b.writeUInt32LE(8, 16)],
    ['data_start of 4 GiB', 22, load, b => b.writeUInt32LE(0xffff_fff0, 16)],
    ['more targets than there are', 22, load, b => b.writeUInt32LE(3, 20)],
    ['4 billion targets', 22, load, b => b.writeUInt32LE(0xffff_ffff, 20)],
    ['next of 0', 22, load, b => b.writeUInt32LE(0, 312 + 20)],
    ['next that leads outside', 22, load, b => b.writeUInt32LE(0xffff_fff8, 312 + 20)],
    ['next that is odd', 22, load, b => b.writeUInt32LE(43, 312 + 20)],
    ['parameters without an end', 22, load, b => b.fill(0x61, 312 + 88)],
    ['a length of 2^64-1', 22, load, b => b.fill(0xff, 312 + 8, 312 + 16)],
    ['a type of 16 letters', 22, load, b => b.fill(0x61, 312 + 24, 312 + 40)],
    ['a name without an end', 6, 'DEV_STATUS', b => b.fill(0x61, 48, 176)],
    ['a name that is not UTF-8', 22, 'DEV_CREATE', b => b.fill(0xff, 48, 60)],
    ['a new name without an end', 22, 'DEV_RENAME|name=a', b => b.fill(0x61, 312)],
    ['a new name of 200 letters', 22, 'DEV_RENAME|name=a', b => b.fill(0x61, 312, 512)],
    ['a message without an end', 22, 'TARGET_MSG|name=a|msg=0 x', b => b.fill(0x61, 312)],
    ['no message', 22, 'TARGET_MSG|name=a', b => b.writeUInt32LE(316, 12)],
  ]
  for (const [what, errno, line, change] of cases) t.equal(await call(line, change), errno, what)
  t.match(textOf(await ask(rig, 'DEV_STATUS|name=a')), /flags 0 targets 0/, 'nothing was loaded')
  for (const name of ['.', '..', 'control', 'a/b']) {
    t.equal((await ask(rig, `DEV_CREATE|name=${name}`)).errno, 22, name)
  }
})

t.test('only a device that is not there is asked for as a matter of course', async t => {
  const rig = makeRig(t.testdir())
  t.teardown(() => rig.tables.close())
  await ask(rig, 'DEV_CREATE|name=a')
  const told = async (line: string): Promise<unknown> => {
    const { nr, buffer } = bufferOf(line)
    const signal = new AbortController().signal
    const readBehind = async (length: number) => buffer.subarray(312, 312 + length)
    return new Promise(resolve => {
      const caller = { pid: 1, signal, readBehind }
      void rig.ioctls.call(nr, buffer.subarray(0, 312), caller, (_, err) => resolve(err))
    })
  }
  const asked = await told('DEV_STATUS|name=b')
  const detached = await told('TABLE_LOAD|name=a|t=0 8 linear 254:99 0')
  t.same([asked, detached].map(errnoOf), ['ENXIO', 'ENXIO'])
  t.ok(asked instanceof NoDevice)
  t.notOk(detached instanceof NoDevice, 'as of a loop device without a file')
})

t.test('commands have the names of their numbers', async t => {
  t.equal(commandOf(17), 'GET_TARGET_VERSION')
  t.equal(commandOf(18), null)
})
