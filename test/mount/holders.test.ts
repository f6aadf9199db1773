// Goal: whoever holds a mount or a loop device is named, no command waits for him, and what failed
// has changed nothing. Method: holders of each kind, made by other programs; each command has 20 s.
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { unmount } from '../../src/host/index.js'
import { namespaceCommand } from '../support/mount-namespace.js'
import {
  attempt,
  attemptThinfs,
  MountedPool,
  needs,
  run,
  sh,
  thinfs,
  until,
} from '../support/mounted-pool.js'

const onLoop = needs('/dev/fuse', '/dev/loop-control')
const onMount = needs('/dev/fuse')
const YAML = 'data: { size: 128M }\nvolumes: { web: { size: 64M }, db: { size: 64M } }'

/** A process that a test ends, at the latest when it ends itself. */
async function holder(t: Test, program: string, ...args: string[]): Promise<ChildProcess> {
  const child = spawn(program, args, { stdio: ['pipe', 'pipe', 2], cwd: '/' })
  t.teardown(() => child.kill('SIGKILL'))
  await once(child.stdout!, 'data')
  return child
}

async function end(child: ChildProcess): Promise<void> {
  const closed = once(child, 'close')
  child.kill('SIGKILL')
  await closed
}

/** A process in a mount namespace with copies of the pool's mounts, which no unmount reaches. */
const namespace = (t: Test, pool: MountedPool): Promise<ChildProcess> =>
  holder(t, ...namespaceCommand(pool.base, 'private'))

async function refused(t: Test, line: string | RegExp, ...args: string[]): Promise<void> {
  const { status, stderr } = await attempt(
    'timeout',
    '20',
    process.execPath,
    'bin/thinfs.js',
    ...args,
  )
  t.equal(status, 1, `${args.join(' ')}: ${stderr}`)
  t.match(stderr, /^thinfs: [^\n]+\n$/)
  t.match(stderr, line)
}

t.test('another filesystem mounted over the pool is named, and stays', onMount, async t => {
  const pool = await MountedPool.make(t, YAML)
  await run('mount', '-t', 'tmpfs', 'none', pool.path)
  t.teardown(() => attempt('umount', pool.path))
  await pool.sh('echo precious > file')
  const why = `thinfs: ${pool.path}: a tmpfs is mounted over it: umount ${pool.path} first (MOUNT_BUSY)`
  for (const force of [[], ['--force']]) await refused(t, why, 'umount', pool.folder, ...force)
  t.equal(await pool.sh('cat file'), 'precious')
  await run('umount', pool.path)
  t.equal(await pool.sh('ls'), 'db\nweb', 'the pool is as before')
  await thinfs('umount', pool.folder)
})

t.test('a mount in another namespace: umount names it, and the mount stays', onMount, async t => {
  const pool = await MountedPool.make(t, YAML)
  const other = await namespace(t, pool)
  await refused(t, `of process ${other.pid} (sleep) (MOUNT_BUSY)`, 'umount', pool.folder)
  t.ok(pool.isMounted)
  t.equal(await pool.sh('echo alive > web; head -c 5 web'), 'alive')
  await end(other)
  await pool.close(t)
})

t.test('umount waits for a namespace that is about to let go', onMount, async t => {
  const pool = await MountedPool.make(t, YAML)
  const other = await namespace(t, pool)
  // It looks at the namespaces before it returns its promise.
  const ended = unmount(pool.path)
  await end(other)
  await ended
  t.notOk(pool.isMounted)
  await until(async () => (await attemptThinfs('check', pool.folder)).status === 0)
  await pool.close(t)
})

t.test('so it does for one that has copies of what stands on the pool', onLoop, async t => {
  const pool = await MountedPool.make(t, YAML)
  await pool.mountExt4('web')
  const other = await namespace(t, pool)
  const ended = thinfs('umount', pool.folder, '--recursive')
  // It has looked once by then, and looks for 3 s.
  await delay(1500)
  await end(other)
  await ended
  t.notOk(pool.isMounted)
  await pool.close(t)
})

t.test('umount --force: what was acknowledged is there, and the pool is free', onMount, async t => {
  const pool = await MountedPool.make(t, YAML)
  const other = await namespace(t, pool)
  const open = await holder(t, 'sh', '-c', 'exec 5<>"$0/db"; echo; exec sleep 1000', pool.path)
  await sh(pool.plain, 'head -c 8M /dev/urandom > a')
  await pool.sh('dd if=../plain/a of=web bs=1M conv=notrunc status=none')
  await thinfs('umount', pool.folder, '--force')
  t.notOk(pool.isMounted)
  await pool.mount()
  await pool.sh('cmp -n 8388608 web ../plain/a')
  await end(open)
  await end(other)
  await pool.close(t)
})

t.test('umount --force without a daemon', onMount, async t => {
  const pool = await MountedPool.make(t, YAML)
  const other = await namespace(t, pool)
  process.kill((await pool.status()).mount!.pid!, 'SIGKILL')
  await pool.sh('echo alive > web')
  // In between nobody answers.
  await until(() =>
    pool.status().then(
      ({ mount }) => mount!.pid === null,
      () => false,
    ),
  )
  await refused(t, `of process ${other.pid} (sleep) (MOUNT_BUSY)`, 'umount', pool.folder)
  await thinfs('umount', pool.folder, '--force')
  await pool.mount()
  t.equal(await pool.sh('head -c 5 web'), 'alive')
  await end(other)
  await pool.close(t)
})

t.test(
  'a bind mount holds, and a shell in the mount; the command itself does not',
  onMount,
  async t => {
    const pool = await MountedPool.make(t, YAML)
    const bind = join(pool.base, 'bind')
    mkdirSync(bind)
    await run('mount', '--bind', pool.path, bind)
    await refused(t, `held by the mount at ${bind} (MOUNT_BUSY)`, 'umount', pool.folder)
    await run('umount', bind)
    const program = join(process.cwd(), 'bin/thinfs.js')
    const { stderr } = await attempt(
      'sh',
      '-c',
      'cd "$1"; "$0" "$2" umount .; :',
      process.execPath,
      pool.path,
      program,
    )
    t.match(stderr, /held by process \d+ \(sh\) \(MOUNT_BUSY\)\n$/)
    await pool.close(t)
  },
)

t.test('a loop device that is used: detach and umount name by whom', onLoop, async t => {
  const pool = await MountedPool.make(t, YAML)
  const device = await pool.attach('web')
  const at = join(pool.base, 'fs')
  mkdirSync(at)
  const detach = ['detach', pool.folder, 'web']

  await run('mkswap', '--quiet', device)
  await run('swapon', device)
  t.teardown(() => attempt('swapoff', device))
  await refused(t, `web: ${device} is used as swap (VOLUME_BUSY)`, ...detach)
  await refused(t, `held by ${device} (used as swap) (MOUNT_BUSY)`, 'umount', pool.folder)
  await run('swapoff', device)

  const upper = await run('losetup', '--find', '--show', device)
  await refused(t, `web: ${device} is below ${upper} (VOLUME_BUSY)`, ...detach)
  await refused(t, `held by ${device} (below ${upper}) (MOUNT_BUSY)`, 'umount', pool.folder)
  await run('losetup', '--detach', upper)

  const open = await holder(t, 'sh', '-c', 'exec 5<"$0"; echo; exec sleep 1000', device)
  await refused(t, `web: ${device} is open by process ${open.pid} (sleep) (VOLUME_BUSY)`, ...detach)
  await end(open)

  await run('mkfs.ext4', '-q', device)
  await run('mount', device, at)
  const other = await namespace(t, pool)
  await run('umount', at)
  await refused(
    t,
    new RegExp(`mounted at ${at} in mount namespace \\d+ of process ${other.pid} `),
    ...detach,
  )
  t.match(readFileSync(`/sys/block/${basename(device)}/loop/backing_file`, 'utf8'), pool.path)
  await end(other)
  await pool.detach('web')
  await pool.close(t)
})

t.test('a device is found by its volume, whatever the name', onLoop, async t => {
  const pool = await MountedPool.make(t, YAML)
  const device = await pool.attach('web')
  await thinfs('rename', pool.folder, 'web', 'www')
  t.equal(await pool.attach('www'), device)
  await pool.detach('www')
  t.equal(await run('losetup', '--list', '--noheadings', '--associated', `${pool.path}/www`), '')

  const [db, www] = [await pool.attach('db'), await pool.attach('www')]
  await thinfs('detach', pool.folder, www)
  await pool.sh('rm db')
  await refused(t, 'db: no volume has the name (VOLUME_MISSING)', 'detach', pool.folder, 'db')
  await refused(t, `held by ${db} (MOUNT_BUSY)`, 'umount', pool.folder)
  await thinfs('detach', pool.folder, db)

  const foreign = await run('losetup', '--find', '--show', pool.data)
  await refused(t, `${foreign}: it is on no volume of `, 'detach', pool.folder, foreign)
  await run('losetup', '--detach', foreign)
  await pool.close(t)
})

t.test('the filesystem of another volume is not frozen', onLoop, async t => {
  const pool = await MountedPool.make(t, YAML)
  await refused(
    t,
    'web: no filesystem is mounted from',
    'snapshot',
    pool.folder,
    'web',
    's',
    '--freeze',
  )
  const { device, at } = await pool.mountExt4('db')
  const { status, stderr } = await attemptThinfs(
    'snapshot',
    pool.folder,
    'web',
    's',
    '--freeze',
    at,
  )
  t.equal(status, 2)
  t.match(stderr, `${at}: its filesystem is ${device} (ext4), not on web (BAD_ARGUMENT)`)
  await refused(t, 's: no volume has the name', 'attach', pool.folder, 's')
  await thinfs('snapshot', pool.folder, 'db', 's', '--freeze')
  t.notMatch(await run('dumpe2fs', '-h', `${pool.path}/s`), /needs_recovery/)
  await run('umount', at)
  await pool.detach('db')
  await pool.close(t)
})

t.test('a mount that would hide the files of the pool is refused', onMount, async t => {
  const pool = await MountedPool.make(t, YAML)
  await pool.umount()
  const bind = join(pool.base, 'bind')
  mkdirSync(bind)
  await run('mount', '--bind', pool.folder, bind)
  for (const place of [pool.folder, pool.base, bind]) {
    const { status, stderr } = await attemptThinfs('mount', pool.folder, place)
    t.equal(status, 2, place)
    t.match(stderr, `${place}: a mount there would hide ${pool.folder}, which the pool needs`)
  }
  await run('umount', bind)
  await pool.close(t)
})

t.test('SIGHUP opens the log again, and nothing else', onMount, async t => {
  const pool = await MountedPool.make(t, YAML)
  const { pid, enginePid } = (await pool.status()).mount!
  await sh(pool.folder, 'mv thinfs.log old.log')
  process.kill(pid!, 'SIGHUP')
  const opened = async (process: number) => {
    const links = await run('sh', '-c', `readlink /proc/${process}/fd/*`)
    return links.split('\n').includes(join(pool.folder, 'thinfs.log'))
  }
  await until(async () => (await opened(pid!)) && (await opened(enginePid)))
  await thinfs('create', pool.folder, 'new', '--size', '1M')
  t.ok(pool.isMounted)
  t.ok(pool.log().some(({ msg }) => msg === 'volume created'))
  await pool.close(t)
})
