/**
 * Pools for the life of a callback: what can be done with their volumes, and what is left when they
 * end.
 * Filesystems, loop devices and /proc are the judges.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { open, readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { withPool } from '../../src/testing/index.js'
import { baseOf, leftOf, untilGone } from '../support/ephemeral.js'
import { loopsWithin, needs, run, sh } from '../support/mounted-pool.js'

const withFuse = needs('/dev/fuse')
const withLoops = needs('/dev/fuse', '/dev/loop-control')
const TESTING = join(import.meta.dirname, '../../src/testing/index.ts')

/** The first bytes of a volume's file, as text. */
async function head(path: string, length = 5): Promise<string> {
  const file = await open(path)
  try {
    const { buffer } = await file.read(Buffer.alloc(length), 0, length, 0)
    return buffer.toString()
  } finally {
    await file.close()
  }
}

async function put(path: string, text: string): Promise<void> {
  const file = await open(path, 'r+')
  try {
    await file.write(text, 0)
  } finally {
    await file.close()
  }
}

t.test('volumes, snapshots, and back again', withFuse, async t => {
  let base = ''
  const answer = await withPool({ volumes: { a: '1G', b: 512 } }, async pool => {
    base = baseOf(pool.mountPoint)
    t.ok(pool.reason.length > 0)
    t.equal((await pool.volume('b').info()).size, 512)
    const a = pool.volume('a')
    t.equal(pool.volume('a'), a)
    await t.rejects(a.rollback(), { code: 'BAD_ARGUMENT', message: /no snapshot/ })
    await put(a.path, 'first')
    const first = await a.snapshot()
    await put(a.path, 'other')
    const named = await a.snapshot('named')
    t.same([first.name, named.name], ['a@1', 'named'])
    await put(first.path, 'wrote')
    for (const text of ['third', 'again']) {
      await put(a.path, text)
      await a.rollback()
      t.equal(await head(a.path), 'other', 'to the last one')
    }
    await a.rollback(first)
    t.equal(await head(a.path), 'wrote', 'to another one')
    const names = (await pool.admin.list()).map(({ name }) => name)
    t.same(names, ['a', 'a@1', 'b', 'named'])
    t.match(await a.info(), { origin: 'a@1', size: 2 ** 30 })

    const user = await open(a.path)
    await t.rejects(a.rollback(named), { code: 'VOLUME_BUSY', message: /^a: it is open/ })
    await user.close()
    t.equal(await head(a.path), 'wrote', 'it is as it was')
    await t.rejects(pool.volume('none').snapshot(), { code: 'VOLUME_MISSING' })
    await t.rejects(a.rollback(pool.volume('none')), { code: 'VOLUME_MISSING' })
    await t.rejects(pool.volume('../pool/pool.yaml').attach(), { code: 'VOLUME_MISSING' })
    await t.rejects(pool.create('a', '1G'), { code: 'VOLUME_EXISTS' })
    await t.rejects(pool.create('c', 'much'), { code: 'BAD_ARGUMENT' })
    t.same((await pool.admin.check({ deep: true })).problems, [])
    return 42
  })
  t.equal(answer, 42)
  t.same(leftOf(base), [])
})

t.test('a callback that throws', withFuse, async t => {
  let base = ''
  const failing = withPool(async ({ mountPoint }) => {
    base = baseOf(mountPoint)
    throw new Error('mine')
  })
  await t.rejects(failing, { message: 'mine' })
  t.same(leftOf(base), [])
})

t.test('a mounted filesystem is rolled back', withLoops, async t => {
  let base = ''
  await withPool(async pool => {
    base = baseOf(pool.mountPoint)
    const db = await pool.create('db', '64M')
    const empty = await db.snapshot()
    const [folder, again] = await Promise.all([db.mount(), db.mount()])
    t.equal(again, folder, 'once')
    const file = join(folder, 'file')
    await writeFile(file, 'base')
    const snapshot = await db.snapshot()
    // What dumpe2fs says of its journal tells a filesystem that was frozen from one that was not.
    t.notMatch(await run('dumpe2fs', '-h', snapshot.path), /^Filesystem features:.*needs_recovery/m)
    for (const text of ['one', 'two']) {
      await writeFile(file, text)
      await db.rollback()
      t.equal(await readFile(file, 'utf8'), 'base')
    }
    t.equal(loopsWithin(base).length, 1)

    await writeFile(file, 'three')
    const user = await open(file)
    await t.rejects(db.rollback(), {
      code: 'MOUNT_BUSY',
      message: `${folder} is used by this process`,
    })
    t.equal(await readFile(file, 'utf8'), 'three', 'it is as it was')
    await user.close()

    const copy = await snapshot.mount()
    t.equal(await readFile(join(copy, 'file'), 'utf8'), 'base', 'both at a time')
    await db.rollback(empty)
    t.same(await readdir(folder), ['lost+found'], 'a new filesystem, where it was')
    await db.umount()
    await snapshot.umount()
    t.same(loopsWithin(base), [])
    await run('e2fsck', '-fn', db.path)
  })
  t.same(leftOf(base), [])
})

t.test('a loop device is the same one after a rollback', withLoops, async t => {
  await withPool({ volumes: { disk: '64M' } }, async pool => {
    const disk = pool.volume('disk')
    const device = await disk.attach()
    t.equal(await disk.attach(), device)
    // Through the page cache of the device, which is not that of the file.
    await sh('/', `echo -n first > ${device}`)
    await disk.snapshot()
    await sh('/', `echo -n other > ${device}`)
    await disk.rollback()
    t.equal(await disk.attach(), device)
    t.equal(await sh('/', `head -c 5 ${device}`), 'first')
    const folder = join(baseOf(pool.mountPoint), 'own')
    await run('mkfs.ext4', '-q', '-F', device)
    await sh('/', `mkdir ${folder}; mount ${device} ${folder}`)
    const { path } = await disk.snapshot('frozen')
    t.notMatch(await run('dumpe2fs', '-h', path), /^Filesystem features:.*needs_recovery/m)
    await t.rejects(disk.detach(), {
      code: 'VOLUME_BUSY',
      message: new RegExp(`mounted at ${folder}`),
    })
    await run('umount', folder)
    await disk.detach()
    t.same(loopsWithin(pool.mountPoint), [])
  })
})

t.test(
  'what is left open in this process is told, and taken away all the same',
  withLoops,
  async t => {
    let _base = ''
    let user: Awaited<ReturnType<typeof open>> | undefined
    const leaking = withPool({ volumes: { a: '64M' } }, async pool => {
      _base = baseOf(pool.mountPoint)
      user = await open(join(await pool.volume('a').mount(), 'file'), 'w')
    })
    await t.rejects(leaking, {
      code: 'MOUNT_BUSY',
      message: /cannot be taken away, used by process \d+ \(node\)/,
    })
    await user?.close()
  },
)

/** A process of its own that has a pool with a mounted filesystem, and does `then`. */
async function start(t: Test, then: string) {
  const program = `
import { spawn } from 'node:child_process'
import { withPool } from ${JSON.stringify(TESTING)}
await withPool({ volumes: { a: '64M' } }, async pool => {
  const cwd = await pool.volume('a').mount()
  spawn('sleep', ['1000'], { cwd, stdio: 'ignore', detached: true }).unref()
  process.stdout.write(pool.mountPoint)
  ${then}
})`
  const child = spawn(process.execPath, ['--import=tsx', '--input-type=module', '-e', program], {
    stdio: ['pipe', 'pipe', 'ignore'],
  })
  t.teardown(() => child.kill('SIGKILL'))
  const [mountPoint] = await once(child.stdout!.setEncoding('utf8'), 'data')
  return { child, base: baseOf(mountPoint) }
}

t.test('a process that ends in the middle of it', withLoops, async t => {
  const forever = 'await new Promise(resolve => setTimeout(resolve, 1e9))'
  const killed = await start(t, forever)
  killed.child.kill('SIGKILL')
  await untilGone(t, killed.base)
  const never = await start(t, 'await new Promise(() => {})')
  if (never.child.exitCode === null) await once(never.child, 'exit')
  t.equal(never.child.exitCode, 13, 'a pool does not keep a process alive')
  await untilGone(t, never.base)
})
