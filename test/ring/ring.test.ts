import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { closeSync, openSync, readdirSync, readlinkSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { native } from '../../src/native.js'
import { Ring, type RingOptions } from '../../src/ring/index.js'

const EBADF = -9
const EFAULT = -14
const EOPNOTSUPP = -95

const withRing = { skip: process.env.CI ? false : whyNone() }

function whyNone(): string | false {
  try {
    new Ring({ entries: 1 }).close()
    return false
  } catch (err) {
    return (err as Error).message
  }
}

const opened = (t: Test, options: RingOptions): Ring => {
  const ring = new Ring(options)
  t.teardown(() => ring.close())
  return ring
}

/** Waits for `count` completions and gives their results by tag. */
function results(ring: Ring, count: number): Map<number, number> {
  const byTag = new Map<number, number>()
  while (byTag.size < count) {
    ring.wait(1)
    ring.take((tag, result) => byTag.set(tag, result))
  }
  return byTag
}

function fileOf(t: Test, content: Buffer): number {
  const path = join(t.testdir(), 'file')
  writeFileSync(path, content)
  const fd = openSync(path, 'r')
  t.teardown(() => closeSync(fd))
  return fd
}

t.test('reads are those of the file, many under way at a time', withRing, async t => {
  const content = randomBytes(1 << 20)
  const fd = fileOf(t, content)
  const slot = 8192
  const ring = opened(t, { entries: 8, arenaSize: 15 * slot })
  t.equal(ring.capacity, 15)
  const buffer = Buffer.allocUnsafeSlow(15 * slot)
  const address = native.buffer_address(buffer)
  const ranges = fc.array(
    fc.record({
      // Past the end, too.
      offset: fc.integer({ min: 0, max: content.length + slot }),
      length: fc.integer({ min: 0, max: slot }),
    }),
    { minLength: 1, maxLength: ring.capacity },
  )
  fc.assert(
    fc.property(ranges, fc.boolean(), (reads, inArena) => {
      const base = inArena ? ring.arenaAddress : address
      const bytes = inArena ? Buffer.from(ring.arena) : buffer
      reads.forEach(({ offset, length }, i) => {
        ring.read(fd, offset, base + i * slot, length, i)
      })
      const sizes = results(ring, reads.length)
      return reads.every(({ offset, length }, i) => {
        const wanted = content.subarray(offset, offset + length)
        return (
          sizes.get(i) === wanted.length &&
          wanted.equals(bytes.subarray(i * slot, i * slot + wanted.length))
        )
      })
    }),
  )
})

t.test('an offset and a tag are whole, however large', withRing, async t => {
  const path = join(t.testdir(), 'sparse')
  const offset = 2 ** 42 + 4096
  writeFileSync(path, '')
  const fd = openSync(path, 'r+')
  t.teardown(() => closeSync(fd))
  writeSync(fd, 'far away', offset)
  const ring = opened(t, { entries: 1, arenaSize: 4096 })
  ring.read(fd, offset, ring.arenaAddress, 4096, 0xffff_fffe)
  t.same([...results(ring, 1)], [[0xffff_fffe, 8]])
  t.equal(Buffer.from(ring.arena, 0, 8).toString(), 'far away')
})

t.test('what fails fails alone', withRing, async t => {
  const fd = fileOf(t, Buffer.from('abc'))
  const ring = opened(t, { entries: 4, commands: true, arenaSize: 4096 })
  ring.read(-1, 0, ring.arenaAddress, 1, 1)
  ring.read(fd, 0, ring.arenaAddress, 3, 2)
  ring.read(fd, 0, 0, 3, 3)
  // A file that takes no commands.
  const args = ring.command(fd, 1, 0, 0, 4)
  t.same([...ring.words.subarray(args, args + 20)], Array(20).fill(0))
  t.match(Object.fromEntries(results(ring, 4)), { 1: EBADF, 2: 3, 3: EFAULT, 4: EOPNOTSUPP })
  t.equal(Buffer.from(ring.arena, 0, 3).toString(), 'abc')
})

t.test('more than the ring has room for is a mistake', withRing, async t => {
  const [ours, theirs] = native.socket_pair()
  t.teardown(() => [ours, theirs].map(fd => closeSync(fd)))
  const ring = opened(t, { entries: 2, arenaSize: 4096 })
  for (let tag = 0; tag < ring.capacity; tag++) ring.read(ours, 0, ring.arenaAddress, 1, tag)
  t.throws(() => ring.read(ours, 0, ring.arenaAddress, 1, 9), /room/)
  ring.close()
  t.throws(() => ring.read(ours, 0, ring.arenaAddress, 1, 9), /open/)
  const idle = opened(t, { entries: 1 })
  t.throws(() => idle.wait(1), /under way/)
})

t.test('completions are told of in the event loop, or found by looking', withRing, async t => {
  const [ours, theirs] = native.socket_pair()
  t.teardown(() => [ours, theirs].map(fd => closeSync(fd)))
  const ring = opened(t, { entries: 2, arenaSize: 4096 })
  const read = (tag: number): void => ring.read(ours, 0, ring.arenaAddress, 16, tag)
  const told: [tag: number, result: number][] = []
  let woken = (): void => {}
  let wakeUps = 0
  const nextWake = (): Promise<void> =>
    new Promise(resolve => {
      woken = resolve
    })
  ring.watch(() => {
    wakeUps++
    if (ring.poll(0) > 0) ring.take((tag, result) => told.push([tag, result]))
    if (told.length > 0) woken()
  })

  // While the loop sleeps: what writes is another process.
  read(1)
  t.equal(ring.submit(), 0, 'nothing can be read yet')
  t.equal(ring.poll(50), 0)
  const stdio = ['ignore', 'ignore', 'ignore', theirs] as const
  const child = spawn('sh', ['-c', 'sleep 0.2; printf hello >&3'], { stdio: [...stdio] })
  await nextWake()
  t.same(told.splice(0), [[1, 5]])
  await new Promise(resolve => child.on('close', resolve))

  // What had completed when it was submitted.
  writeSync(theirs, 'there already')
  read(2)
  t.equal(ring.submit(), 1)
  await nextWake()
  t.same(told.splice(0), [[2, 13]])

  read(3)
  ring.submit()
  writeSync(theirs, 'again!')
  t.equal(ring.poll(1_000_000), 1)
  ring.take((tag, result) => t.same([tag, result], [3, 6]))

  const before = wakeUps
  for (let i = 0; i < 5; i++) await new Promise(resolve => setImmediate(resolve))
  t.ok(wakeUps - before <= 1, 'who has taken all is not woken again and again')
  ring.unwatch()
  writeSync(theirs, 'x')
  read(4)
  ring.submit()
  ring.watch(() => woken())
  await nextWake()
  ring.take((tag, result) => t.same([tag, result], [4, 1], 'what came while nobody watched'))
})

t.test('closing with reads under way ends them, and all is given back', withRing, async t => {
  const [ours, theirs] = native.socket_pair()
  t.teardown(() => [ours, theirs].map(fd => closeSync(fd)))
  const fd = fileOf(t, randomBytes(1 << 20))
  const ring = new Ring({ entries: 8, arenaSize: 1 << 20 })
  const { arena } = ring
  const before = countRings()
  t.ok(before >= 1)
  for (let i = 0; i < 7; i++) ring.read(ours, 0, ring.arenaAddress, 16, i)
  ring.read(fd, 0, ring.arenaAddress, 1 << 20, 7)
  ring.watch(() => {})
  ring.submit()
  ring.close()
  ring.close()
  t.equal(countRings(), before - 1)
  t.equal(arena.byteLength, 0)
  t.equal(ring.words.length, 0)
  writeSync(theirs, 'x')
  const byte = Buffer.allocUnsafeSlow(1)
  const next = opened(t, { entries: 1 })
  next.read(ours, 0, native.buffer_address(byte), 1, 0)
  t.equal(results(next, 1).get(0), 1, 'the reads of the closed ring take nothing any more')
  t.throws(() => native.ring_enter({} as never, 0, 0, 0, 0), { name: 'TypeError' })
  t.throws(() => native.buffer_address({} as never), { name: 'TypeError' })
  t.throws(() => native.ring_open(0, 0, 0), { name: 'RangeError' })
})

/** io_urings that this process has open. */
function countRings(): number {
  const links = readdirSync('/proc/self/fd').map(fd => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`)
    } catch {
      return ''
    }
  })
  return links.filter(link => link.includes('io_uring')).length
}

// Method: processes of their own, which end at a stage of a ring's life.
t.test('a process can end at any stage, and keeps no ring that is forgotten', withRing, async t => {
  const addon = new URL('../../native-shims/build/thinfs.node', import.meta.url).pathname
  const rings = `fs.readdirSync('/proc/self/fd').filter(fd => { try { return fs.readlinkSync('/proc/self/fd/' + fd).includes('io_uring') } catch {} }).length`
  const stages = {
    open: ['globalThis.r = native.ring_open(8, 1, 1 << 20); process.exit()', ''],
    closed: [
      'const r = native.ring_open(8, 1, 1 << 20); native.ring_close(r.ring); native.ring_close(r.ring)',
      '',
    ],
    'entered after closing': [
      'const r = native.ring_open(8, 0, 0); native.ring_close(r.ring); try { native.ring_enter(r.ring, 0, 0, 0, 0) } catch (e) { console.log(e.code) }',
      'EBADF',
    ],
    collected: [
      `for (let i = 0; i < 20; i++) native.ring_open(8, 1, 1 << 20)
       for (let i = 0; i < 5; i++) { await new Promise(setImmediate); gc() }
       console.log(${rings})`,
      '0',
    ],
    'collected but for its arena': [
      `const { arena } = native.ring_open(8, 1, 1 << 20)
       for (let i = 0; i < 5; i++) { await new Promise(setImmediate); gc() }
       Buffer.from(arena).fill(1)
       console.log(${rings})`,
      '1',
    ],
  }
  for (const [stage, [body, said]] of Object.entries(stages)) {
    const script = `const native = require(${JSON.stringify(addon)}); const fs = require('node:fs');
      (async () => { ${body} })()`
    t.same(await run(['--expose-gc', '-e', script]), { status: 0, said }, stage)
  }
})

async function run(args: string[]): Promise<{ status: number | null; said: string }> {
  const { NODE_OPTIONS: _, ...env } = process.env
  const child = spawn(process.execPath, args, { env, stdio: ['ignore', 'pipe', 'inherit'] })
  let said = ''
  child.stdout.on('data', chunk => {
    said += chunk
  })
  const status = await new Promise<number | null>(resolve => child.on('close', resolve))
  return { status, said: said.trim() }
}

t.test('where io_uring is not allowed the reason is told', async t => {
  const open = native.ring_open
  t.teardown(() => {
    native.ring_open = open
  })
  const cases = [
    ['EPERM', /forbidden/],
    ['ENOSYS', /the kernel has none/],
    ['EINVAL', /too old/],
    ['ENOMEM', /ENOMEM/],
  ] as const
  for (const [code, message] of cases) {
    native.ring_open = () => {
      throw Object.assign(new Error(`${code}: io_uring_setup`), { code })
    }
    t.throws(() => new Ring({ entries: 1 }), { code: 'NOT_SUPPORTED', errno: code, message })
  }
})
