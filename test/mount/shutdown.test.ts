// Goal: what ends a system, or lets it sleep, harms no pool: SIGTERM to all processes unmounts what
// stands on a pool, then the pool; SIGKILL after that finds nothing undone. Method: the signals,
// real filesystems, and python for the socket of a service manager.
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as delay } from 'node:timers/promises'
import t, { type Test } from 'tap'
import {
  attemptThinfs,
  loopsWithin,
  MountedPool,
  needs,
  readIfThere,
  run,
  sh,
  thinfs,
  until,
} from '../support/mounted-pool.js'

const onLoop = needs('/dev/fuse', '/dev/loop-control')
const onMount = needs('/dev/fuse')
const YAML = 'data: { size: 128M }\nvolumes: { web: { size: 64M }, db: { size: 64M } }'
const PROGRAM = join(import.meta.dirname, '../../bin/thinfs.js')

/** A pool with an ext4 on its volume `web`, mounted at `at`. */
async function withFilesystem(t: Test): Promise<{ pool: MountedPool; at: string }> {
  const pool = await MountedPool.make(t, YAML)
  const { at } = await pool.mountExt4('web')
  return { pool, at }
}

function signal(pool: MountedPool, name: NodeJS.Signals): void {
  for (const pid of pool.processes()) process.kill(pid, name)
}

/** What the volume's filesystem has; it needs no recovery. */
async function fileIn(t: Test, pool: MountedPool, at: string): Promise<string> {
  await pool.mount()
  const device = await pool.attach('web')
  t.notMatch(await run('dumpe2fs', '-h', device), /needs_recovery/)
  await run('mount', device, at)
  const text = readFileSync(join(at, 'file'), 'utf8')
  await thinfs('umount', pool.folder, '--recursive')
  return text
}

t.test(
  'SIGTERM to all processes: filesystem, loop device and pool, in this order',
  onLoop,
  async t => {
    const { pool, at } = await withFilesystem(t)
    // Nobody flushes that. An image on the filesystem is a disk, too.
    await sh(
      at,
      `mkdir inner; truncate -s 32M image; mkfs.ext4 -q image; mount -o loop image inner
    echo inner > inner/file; echo kept > file; fsfreeze -f .`,
    )
    signal(pool, 'SIGTERM')
    await until(() => pool.processes().length === 0)
    t.notOk(pool.isMounted)
    t.strictSame(loopsWithin(pool.base), [])
    t.equal(await fileIn(t, pool, at), 'kept\n')
    await pool.close(t)
  },
)

t.test('what somebody has mounted over a filesystem is left, and named', onLoop, async t => {
  const { pool, at } = await withFilesystem(t)
  await run('mount', '-t', 'tmpfs', 'thinfs-test', at)
  await sh(at, 'echo precious > file')
  for (const args of [
    ['umount', pool.folder, '--recursive'],
    ['umount-volume', pool.folder, 'web'],
  ]) {
    const { status, stderr } = await attemptThinfs(...args)
    const line = `thinfs: ${at}: a tmpfs is mounted over it: umount ${at} first (VOLUME_BUSY)\n`
    t.same({ status, stderr }, { status: 1, stderr: line })
  }
  t.equal(await sh(at, 'cat file'), 'precious')
  await run('umount', at)
  // One on another of the pool's volumes is the pool's as well.
  const device = await pool.attach('db')
  await run('mkfs.ext4', '-q', device)
  await run('mount', device, at)
  await thinfs('umount', pool.folder, '--recursive')
  t.strictSame(loopsWithin(pool.base), [])
  await pool.close(t)
})

t.test('umount takes all away that stands on a pool, or nothing', onLoop, async t => {
  const { pool, at } = await withFilesystem(t)
  // Mounted last, it would be the first to go.
  const { at: other } = await pool.mountExt4('db', 'other')
  const mounts = () => sh(pool.base, 'grep -F "$PWD/" /proc/self/mountinfo')
  const before = await mounts()
  const loops = loopsWithin(pool.base)
  const refused = async (stderr: RegExp, ...args: string[]): Promise<void> => {
    t.match(await attemptThinfs(...args), { status: 1, stderr })
    t.equal(await mounts(), before)
    t.strictSame(loopsWithin(pool.base), loops)
  }
  const recursive = ['umount', pool.folder, '--recursive']
  const whileHeld = async (cwd: string, act: (by: string) => Promise<void>): Promise<void> => {
    const holder = spawn('sleep', ['1000'], { cwd })
    t.teardown(() => holder.kill('SIGKILL'))
    await once(holder, 'spawn')
    await act(`process ${holder.pid} \\(sleep\\)`)
    holder.kill('SIGKILL')
    await once(holder, 'close')
  }
  await whileHeld(at, by =>
    refused(new RegExp(`${at}: in use by ${by} .VOLUME_BUSY`), ...recursive),
  )
  await whileHeld(pool.path, by => refused(new RegExp(`held by ${by} .MOUNT_BUSY`), ...recursive))
  await sh(pool.base, 'mkdir again; mount --bind other again')
  const both = await mounts()
  await whileHeld(other, async by => {
    const { stderr } = await attemptThinfs('umount-volume', pool.folder, 'db')
    t.match(stderr, new RegExp(`${other}: in use by ${by}`))
    t.equal(await mounts(), both)
  })
  await thinfs(...recursive)
  t.strictSame(loopsWithin(pool.base), [])
  t.notOk(pool.isMounted)
  await pool.close(t)
})

t.test('what is in use stays, and is named; SIGKILL costs nothing of it', onLoop, async t => {
  const { pool, at } = await withFilesystem(t)
  await sh(at, 'echo kept > file; sync -f file')
  const holder = spawn('sleep', ['1000'], { cwd: at })
  t.teardown(() => holder.kill('SIGKILL'))
  await once(holder, 'spawn')
  const by = `${at}: in use by process ${holder.pid} (sleep)`
  const { status, stderr } = await attemptThinfs('umount', pool.folder, '--recursive')
  t.same({ status, stderr }, { status: 1, stderr: `thinfs: ${by} (VOLUME_BUSY)\n` })
  signal(pool, 'SIGTERM')
  await until(() =>
    pool.log().some(({ msg, err }) => msg === 'still mounted' && JSON.stringify(err).includes(by)),
  )
  t.equal(await sh(at, 'cat file'), 'kept')
  signal(pool, 'SIGKILL')
  holder.kill('SIGKILL')
  await once(holder, 'close')
  await until(() => pool.processes().length === 0)
  // The stale device is named, and goes when nobody uses it.
  const list = await thinfs('attached')
  const device = new RegExp(`^(/dev/loop\\d+) +web +${pool.folder}/pool.yaml.*STALE.*${at}`, 'm')
  t.match(list, device)
  const [, stale] = device.exec(list)!
  t.match(await attemptThinfs('attached', pool.folder, '--gc'), {
    status: 0,
    stdout: '',
    stderr: `thinfs: stale, but ${stale} is mounted at ${at}\n`,
  })
  await run('umount', at)
  // A mount namespace that another test has made meanwhile keeps the filesystem for as long as it
  // lasts; the kernel detaches the device then, if it has been told to.
  let gone = ''
  await until(async () => {
    gone += await thinfs('attached', pool.folder, '--gc')
    return !loopsWithin(pool.base).includes(stale!)
  })
  t.match(gone, new RegExp(`^(${stale})?$`))
  await pool.mount()
  await run('mount', await pool.attach('web'), at)
  t.equal(await sh(at, 'cat file'), 'kept')
  await thinfs('umount', pool.folder, '--recursive')
  await pool.close(t)
})

t.test('stopped for a while, a pool goes on where it was', onMount, async t => {
  const pool = await MountedPool.make(t, YAML)
  await sh(pool.plain, 'head -c 32M /dev/urandom > a')
  const pids = pool.processes()
  const isStopped = (pid: number) => /^State:\s+T/m.test(readIfThere(`/proc/${pid}/status`))
  const write = (): Promise<unknown[]> => {
    // It goes to the mount itself: this process would wait with it.
    const dd = 'cd "$0"; exec dd if=../plain/a of=web bs=64K conv=notrunc,fsync'
    return once(spawn('sh', ['-c', dd, pool.path], { stdio: 'ignore' }), 'close')
  }
  // One begins before, and may be half-way; the other can only wait.
  const ended = [write()]
  signal(pool, 'SIGSTOP')
  await until(() => pids.every(isStopped))
  ended.push(write())
  // Longer than the periods of commits and of looks.
  await delay(2500)
  signal(pool, 'SIGCONT')
  t.strictSame(await Promise.all(ended), [
    [0, null],
    [0, null],
  ])
  t.equal(await pool.sh('cmp -n 33554432 web ../plain/a'), '')
  t.strictSame(pool.processes(), pids)
  t.notOk(pool.log().some(({ msg }) => /died|failed/.test(msg)))
  await pool.close(t)
})

/** A service manager's socket, and the messages that come there. */
async function manager(t: Test, name: string): Promise<() => Promise<string>> {
  const program = `import socket, sys
name = sys.argv[1]
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind('\\0' + name[1:] if name[0] == '@' else name)
print('bound', flush=True)
while True: print(s.recv(4096).decode().replace('\\n', '|'), flush=True)`
  const python = spawn('python3', ['-c', program, name], { stdio: ['ignore', 'pipe', 'inherit'] })
  t.teardown(() => python.kill('SIGKILL'))
  const lines = createInterface(python.stdout)[Symbol.asyncIterator]()
  const next = async () => (await lines.next()).value as string
  t.equal(await next(), 'bound')
  return next
}

t.test('Type=notify: a service manager is told', onMount, async t => {
  const pool = await MountedPool.prepare(t, YAML, file => thinfs('init', file))
  for (const socket of [join(pool.base, 'notify'), `@thinfs-test-${process.pid}`]) {
    const next = await manager(t, socket)
    const daemon: ChildProcess = spawn(
      process.execPath,
      [PROGRAM, 'mount', '-f', pool.folder, pool.path],
      { stdio: 'ignore', env: { ...process.env, NOTIFY_SOCKET: socket } },
    )
    const ended = once(daemon, 'close')
    t.equal(await next(), `READY=1|STATUS=${pool.folder}/pool.yaml at ${pool.path}`)
    t.ok(pool.isMounted)
    const engine = readFileSync(`/proc/${await pool.enginePid()}/environ`, 'utf8')
    t.notMatch(engine, 'NOTIFY_SOCKET', 'the engine is not told of it')
    daemon.kill('SIGHUP')
    t.match(await next(), /^RELOADING=1\|MONOTONIC_USEC=\d+$/)
    t.equal(await next(), 'READY=1')
    await pool.umount()
    t.equal(await next(), 'STOPPING=1')
    t.strictSame(await ended, [0, null])
  }
  await pool.close(t)
})
