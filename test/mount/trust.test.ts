// Goal: nobody gets thinfs, run by root or by another user, to read or write what he may not.
// Method: folders prepared by one user and used by another, links where thinfs keeps its files, and
// the kernel's own view of what is left: owners, modes, mount options.
import {
  chmodSync,
  chownSync,
  lstatSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import t, { type Test } from 'tap'
import {
  attempt,
  attemptThinfs,
  MountedPool,
  needs,
  type Outcome,
} from '../support/mounted-pool.js'

const PROGRAM = resolve(import.meta.dirname, '../../bin/thinfs.js')
const onMount = needs('/dev/fuse')
/** To be somebody else. */
const asRoot = needs()
const NOBODY = 65534
const NOBODY_ELSE = 65533

/** thinfs run by another user. */
const thinfsAs = (uid: number, ...args: string[]): Promise<Outcome> =>
  attempt(
    'setpriv',
    ...[`--reuid=${uid}`, `--regid=${uid}`, '--clear-groups'],
    ...[process.execPath, PROGRAM, ...args],
  )

/** A folder for all that a test makes, as open as /tmp. */
function sharedFolder(t: Test): string {
  const base = realpathSync(mkdtempSync(join(tmpdir(), 'thinfs-trust-')))
  t.teardown(() => rmSync(base, { recursive: true }))
  chmodSync(base, 0o1777)
  return base
}

/** A small pool in a folder of a user's, made by himself. */
async function poolOf(t: Test, base: string, uid: number): Promise<string> {
  const pool = join(base, `pool-${uid}`)
  const { status, stderr } = await thinfsAs(uid, 'init', pool, '--data-size', '16M')
  t.equal(status, 0, stderr)
  return pool
}

async function refused(t: Test, why: RegExp, run: Promise<Outcome>, what: string): Promise<void> {
  const { status, stdout, stderr } = await run
  t.match({ status, stdout }, { status: 1, stdout: '' }, what)
  t.match(stderr, /^thinfs: [^\n]+ \(NOT_TRUSTED\)\n$/, what)
  t.match(stderr, why, what)
}

t.test('init makes a folder and files for their owner alone', asRoot, async t => {
  const base = sharedFolder(t)
  for (const uid of [0, NOBODY]) {
    const pool = await poolOf(t, base, uid)
    t.equal(lstatSync(pool).mode & 0o7777, 0o700)
    for (const name of readdirSync(pool)) {
      const { mode, uid: owner } = lstatSync(join(pool, name))
      t.same([mode & 0o7777, owner], [0o600, uid], name)
    }
    t.match(await thinfsAs(uid, 'list', pool), { status: 0, stderr: '' })
  }
})

t.test('root does not follow what another user has written', asRoot, async t => {
  const base = sharedFolder(t)
  const pool = await poolOf(t, base, NOBODY)
  const disk = join(base, 'precious')
  writeFileSync(disk, 'precious', { mode: 0o600 })
  // What a pool.yaml could make root do.
  writeFileSync(join(pool, 'pool.yaml'), `pool: p\ndata: { path: ${disk}, size: 16M }\n`)
  const commands = [
    ['create', pool, 'x', '--size', '1M'],
    ['mount', pool, base],
    ['init', join(pool, 'pool.yaml')],
  ]
  for (const command of commands) {
    await refused(
      t,
      /pool\.yaml: belongs to user 65534, wanted root/,
      thinfsAs(0, ...command),
      command[0]!,
    )
  }
  t.equal(readFileSync(disk, 'utf8'), 'precious')

  // Root reads what is the user's own, and nothing else.
  const copy = await poolOf(t, base, NOBODY_ELSE)
  await thinfsAs(NOBODY_ELSE, 'create', copy, 'web', '--size', '1M')
  const before = readdirSync(copy)
  t.match(await thinfsAs(0, 'list', copy), { status: 0, stderr: '', stdout: /^web /m })
  for (const command of [['status'], ['check'], ['check', '--deep']]) {
    t.match(await thinfsAs(0, ...command, copy), { status: 0, stderr: '' }, command.join(' '))
  }
  t.same(readdirSync(copy), before)
  writeFileSync(join(copy, 'pool.yaml'), 'pool: p\ndata: { path: /etc/shadow, size: 16M }\n')
  const shadow = /^thinfs: \/etc\/shadow: belongs to user 0, in a copy of user 65533 /
  await refused(t, shadow, thinfsAs(0, 'status', copy), 'status')

  // Root's own data in another's hands.
  const own = await poolOf(t, base, 0)
  chownSync(join(own, 'data'), NOBODY, NOBODY)
  await refused(t, /data: belongs to user 65534/, thinfsAs(0, 'list', own), 'data')
  chownSync(join(own, 'data'), 0, 0)
  t.match(await thinfsAs(0, 'list', own), { status: 0 })
})

t.test('files of a mounted pool, and what is in their places', onMount, async t => {
  const pool = await MountedPool.make(t, 'data: { size: 16M }\nvolumes: { a: { size: 1M } }')
  await pool.sh('seq 1000 | dd of=a conv=notrunc,fsync status=none')
  t.same(
    readdirSync(pool.folder).filter(
      name => (lstatSync(join(pool.folder, name)).mode & 0o7777) !== 0o600,
    ),
    ['pool.yaml'],
    'all but what the user wrote are for their owner alone',
  )
  const options = (): string[] => {
    const lines = readFileSync('/proc/self/mountinfo', 'utf8').split('\n')
    return lines.find(line => line.split(' ')[4] === pool.path)!.split(/[ ,]/)
  }
  for (const option of ['nosuid', 'nodev', 'default_permissions']) {
    t.ok(options().includes(option), option)
  }
  t.notOk(options().includes('allow_other'))
  await pool.umount()

  const target = join(pool.base, 'target')
  writeFileSync(target, 'precious')
  const log = join(pool.folder, 'thinfs.log')
  rmSync(log)
  symlinkSync(target, log)
  const mount = attemptThinfs('mount', pool.folder, pool.path)
  await refused(t, /thinfs\.log: is not a regular file/, mount, 'a log that is a link')
  rmSync(log)
  // Data and metadata are where the user wants them.
  for (const path of [pool.data, pool.metadata]) {
    renameSync(path, `${path}.there`)
    symlinkSync(`${path}.there`, path)
  }
  // A socket that is in the way goes, and what it led to stays.
  symlinkSync(target, join(pool.folder, 'control.sock'))
  await pool.mount('-o', 'allow_other')
  t.ok(options().includes('allow_other'))
  t.ok(options().includes('default_permissions'))
  t.equal(await pool.sh('wc -l < a'), '1000')
  t.equal(readFileSync(target, 'utf8'), 'precious')
  await pool.umount()
})
