/**
 * The daemon as a process of its own: the built program on a real pool, started by the command
 * line. Says the truth: the kernel's mount and process tables, exit codes, and the log.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import t, { type Test } from 'tap'
import { logLines, readIfThere, statusOf, until } from '../support/mounted-pool.js'

const PROGRAM = fileURLToPath(new URL('../../bin/thinfs.js', import.meta.url))

interface Result {
  code: number
  stdout: string
  stderr: string
}

async function run(program: string, ...args: string[]): Promise<Result> {
  const options = { timeout: 60_000 }
  try {
    return { code: 0, ...(await promisify(execFile)(program, args, options)) }
  } catch (err) {
    return err as unknown as Result
  }
}

const thinfs = (...args: string[]): Promise<Result> => run(process.execPath, PROGRAM, ...args)
const mountTable = (): string => readFileSync('/proc/self/mounts', 'utf8')
/** What has ended and was not waited for yet has no arguments any more. */
const isRunning = (pid: number): boolean => readIfThere(`/proc/${pid}/cmdline`) !== ''

const mountOf = async (pool: string) => (await statusOf(pool)).mount!

async function makePool(t: Test) {
  const folder = realpathSync(mkdtempSync(join(tmpdir(), 'thinfs-')))
  const [pool, mountPoint] = [join(folder, 'pool'), join(folder, 'mount')]
  mkdirSync(mountPoint)
  t.teardown(async () => {
    await run('umount', '--lazy', mountPoint)
    rmSync(folder, { recursive: true, force: true })
  })
  const init = await thinfs('init', pool, '--data-size', '64M', '--volume', 'web=1G')
  t.equal(init.code, 0, init.stderr)
  const mounted = () => mountTable().includes(` ${mountPoint} fuse.thinfs `)
  const log = () => logLines(join(pool, 'thinfs.log'))
  return { folder, pool, mountPoint, mounted, log }
}

async function mountPool(t: Test) {
  const pool = await makePool(t)
  const { code, stdout, stderr } = await thinfs('mount', pool.pool, pool.mountPoint, '--json')
  t.equal(code, 0, stderr)
  const { pid } = JSON.parse(stdout) as { pid: number }
  return { ...pool, pid }
}

t.test('it outlives the command, in a session of its own, and logs for its owner', async t => {
  const { pool, mountPoint, pid, log } = await mountPool(t)
  t.ok(isRunning(pid))
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    .replace(/^.*\) /, '')
    .split(' ')
  t.equal(Number(stat[3]), pid, 'its own session')
  t.equal((await run('ls', mountPoint)).stdout, 'web\n')
  t.equal(statSync(join(pool, 'thinfs.log')).mode & 0o777, 0o600)
  t.equal((await thinfs('umount', mountPoint)).code, 0)
  await until(() => !isRunning(pid))
  t.match(
    log()
      .filter(line => line.name === 'daemon')
      .map(line => line.msg),
    ['engine serves', 'mounted', 'unmounted'],
  )
  t.same(await thinfs('umount', pool).then(({ code }) => code), 1, 'not mounted any more')
})

t.test('where it may, all threads of the engine allocate without waiting for volumes', async t => {
  const { pool, pid } = await mountPool(t)
  const { enginePid } = await mountOf(pool)
  const CAP_SYS_RESOURCE = 24n
  const PF_MEMALLOC_NOIO = 0x80000
  const status = readFileSync(`/proc/${pid}/status`, 'utf8')
  const may = (BigInt(`0x${/^CapEff:\s*(\w+)/m.exec(status)![1]}`) >> CAP_SYS_RESOURCE) & 1n
  const threads = readdirSync(`/proc/${enginePid}/task`)
  t.ok(threads.length > 4, 'those that flush files among them')
  const marked = threads.filter(thread => {
    const stat = readFileSync(`/proc/${enginePid}/task/${thread}/stat`, 'utf8')
    const flags = Number(stat.replace(/^.*\) /, '').split(' ')[6])
    return (flags & PF_MEMALLOC_NOIO) !== 0
  })
  t.equal(marked.length, may ? threads.length : 0)
  t.equal((await thinfs('umount', pool)).code, 0)
})

t.test('an engine killed under load is no error to who reads and writes', async t => {
  const { pool, mountPoint, mounted, log } = await mountPool(t)
  const engine = async (): Promise<number> => (await mountOf(pool)).enginePid
  const file = join(mountPoint, 'web')
  const script =
    'for i in 1 2 3; do dd if=/dev/urandom of="$0.$i" bs=1M count=16 status=none || exit 1; ' +
    'dd if="$0.$i" of="$1" bs=64K seek=$((i * 256)) conv=notrunc,fsync oflag=direct status=none || exit 1; ' +
    'cmp -n 16777216 "$0.$i" "$1" 0 $((i * 16777216)) || exit 1; done'
  const load = spawn('sh', ['-c', script, join(pool, 'random'), file], { stdio: ['ignore', 2, 2] })
  const ended = once(load, 'close')
  for (let death = 1; death <= 3; death++) {
    const pid = await engine()
    process.kill(pid, 'SIGKILL')
    await until(() => !isRunning(pid))
  }
  t.same(await ended, [0, null])
  t.ok(mounted())
  // The load may end before the daemon has noticed the last death.
  await until(() => log().filter(line => /engine died/.test(line.msg)).length >= 3)
  t.equal((await thinfs('umount', pool)).code, 0)
  t.equal((await run('thin_check', join(pool, 'metadata'))).code, 0)
})

t.test(
  'SIGTERM unmounts; while the mount is in use it stays, and the log says for whom',
  async t => {
    const { mountPoint, mounted, pid, log } = await mountPool(t)
    const holder = spawn('sh', ['-c', 'exec 5<"$0"; echo; read -r _', join(mountPoint, 'web')], {
      stdio: ['pipe', 'pipe', 2],
    })
    await once(createInterface({ input: holder.stdout! }), 'line')
    process.kill(pid, 'SIGTERM')
    await until(() => log().some(line => line.msg === 'still mounted'))
    t.match(log().at(-1), { err: { message: `process ${holder.pid} (sh)` } })
    t.ok(mounted())
    holder.stdin!.end()
    await once(holder, 'close')
    process.kill(pid, 'SIGTERM')
    await until(() => !isRunning(pid))
    t.notOk(mounted())
  },
)

/** Writes through the mount and compares what comes back, round after round, until `stop`. */
function load(t: Test, folder: string, file: string): { stop(): Promise<void> } {
  const script =
    'while [ ! -e "$0/stop" ]; do dd if=/dev/urandom of="$0/random" bs=1M count=4 status=none && ' +
    'dd if="$0/random" of="$1" bs=64K conv=notrunc,fsync oflag=direct status=none && ' +
    'cmp -n 4194304 "$0/random" "$1" || exit 1; done'
  const child = spawn('sh', ['-c', script, folder, file], { stdio: ['ignore', 2, 2] })
  const ended = once(child, 'close')
  return {
    async stop() {
      writeFileSync(join(folder, 'stop'), '')
      t.same(await ended, [0, null], 'nobody noticed')
      rmSync(join(folder, 'stop'))
    },
  }
}

t.test('restart puts another engine in the place of the one that serves', async t => {
  const { folder, pool, mountPoint, log } = await mountPool(t)
  const writing = load(t, folder, join(mountPoint, 'web'))
  const first = await mountOf(pool)
  let { enginePid } = first
  for (let restart = 1; restart <= 3; restart++) {
    const { code, stderr } = await thinfs('restart', mountPoint)
    t.equal(code, 0, stderr)
    t.notOk(isRunning(enginePid))
    const mount = await mountOf(pool)
    t.match(mount, { pid: first.pid, since: first.since })
    t.not(mount.enginePid, enginePid)
    enginePid = mount.enginePid
  }
  await writing.stop()
  t.notOk(log().some(line => /died/.test(line.msg)))
  t.equal((await thinfs('umount', pool)).code, 0)
  t.match((await thinfs('restart', pool)).stderr, /not mounted/)
  t.equal((await run('thin_check', join(pool, 'metadata'))).code, 0)
})

t.test('where no engine stays, callers get EIO, until one does again', async t => {
  const { pool, mountPoint, mounted, log } = await mountPool(t)
  const { enginePid } = await mountOf(pool)
  renameSync(join(pool, 'volumes.json'), join(pool, 'volumes.json.good'))
  writeFileSync(join(pool, 'volumes.json'), 'nonsense')
  process.kill(enginePid, 'SIGKILL')
  await until(() => log().some(line => line.msg === 'engine failed'))
  for (const program of ['cat', 'ls', 'stat']) {
    const { code, stderr } = await run(program, join(mountPoint, 'web'))
    t.ok(code > 0)
    t.match(stderr, /Input\/output error/)
  }
  const status = JSON.parse((await thinfs('status', pool, '--json')).stdout)
  t.match(status, { mode: 'fail', reason: /the engine died 6 times .*volumes.json: not JSON/ })
  t.match((await thinfs('restart', pool)).stderr, /volumes.json: not JSON/)
  t.match((await run('cat', join(mountPoint, 'web'))).stderr, /Input\/output error/)

  renameSync(join(pool, 'volumes.json.good'), join(pool, 'volumes.json'))
  const { code, stderr } = await thinfs('restart', pool)
  t.equal(code, 0, stderr)
  t.equal((await run('ls', mountPoint)).stdout, 'web\n')
  t.ok(mounted())
  t.equal((await thinfs('umount', pool)).code, 0)
})

t.test('when the daemon is killed its engine serves, and answers commands', async t => {
  const { folder, pool, mountPoint, mounted, pid, log } = await mountPool(t)
  const { enginePid, since } = await mountOf(pool)
  process.kill(pid, 'SIGKILL')
  await until(() => log().some(line => /daemon is gone/.test(line.msg)))
  const file = join(mountPoint, 'web')
  t.equal((await run('dd', 'if=/dev/zero', `of=${file}`, 'count=1', 'conv=notrunc')).code, 0)
  t.equal((await thinfs('create', mountPoint, 'db', '--size', '1G')).code, 0)
  t.same(await mountOf(pool), {
    mountPoint,
    source: join(pool, 'pool.yaml'),
    pid: null,
    since,
    enginePid,
    transport: 'dev',
    whyDev: null,
    logFile: join(pool, 'thinfs.log'),
  })
  t.match((await thinfs('status', pool)).stdout, /its daemon has died, thinfs mount takes over/)
  t.match((await thinfs('restart', pool)).stderr, /the daemon has died/)
  const other = join(folder, 'other')
  mkdirSync(other)
  const elsewhere = await thinfs('mount', pool, other)
  t.match(elsewhere.stderr, `an engine whose daemon has died; thinfs mount at ${mountPoint} takes`)
  const otherwise = await thinfs('mount', pool, mountPoint, '-o', 'ro')
  t.match(otherwise.stderr, `${mountPoint} is mounted with the options "", not "ro"`)

  const holder = spawn('sh', ['-c', 'exec 5<"$0"; echo; read -r _', file], {
    stdio: ['pipe', 'pipe', 2],
  })
  await once(createInterface({ input: holder.stdout! }), 'line')
  t.match((await thinfs('umount', pool)).stderr, `process ${holder.pid} (sh)`)
  holder.stdin!.end()
  await once(holder, 'close')
  t.ok(mounted())
  t.equal((await thinfs('umount', pool)).code, 0)
  t.notOk(mounted())
  t.equal((await thinfs('mount', pool, mountPoint)).code, 0, 'the pool is free at once')
  t.equal((await run('ls', mountPoint)).stdout, 'db\nweb\n')
  t.equal((await thinfs('umount', pool)).code, 0)
  t.equal((await run('thin_check', join(pool, 'metadata'))).code, 0)
})

t.test('an engine whose daemon is killed while it opens the pool answers afterwards', async t => {
  const { pool, mountPoint, pid, log } = await mountPool(t)
  const { enginePid } = await mountOf(pool)
  const engines = (): number[] =>
    readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ').map(Number)
  process.kill(enginePid, 'SIGKILL')
  await until(() => engines().some(child => child !== 0 && child !== enginePid))
  const engine = engines().find(child => child !== enginePid)!
  process.kill(engine, 'SIGSTOP')
  process.kill(pid, 'SIGKILL')
  await until(() => !isRunning(pid))
  t.notOk(
    log().some(line => line.msg === 'took over'),
    'it has not opened the pool',
  )
  process.kill(engine, 'SIGCONT')
  await until(() => log().some(line => /the daemon is gone/.test(line.msg)))
  t.equal((await run('ls', mountPoint)).stdout, 'web\n')
  t.match(await mountOf(pool), { pid: null, enginePid: engine })
  t.equal((await thinfs('mount', pool, mountPoint)).code, 0, 'and is taken over')
  t.equal((await run('ls', mountPoint)).stdout, 'web\n')
  t.equal((await thinfs('umount', pool)).code, 0)
})

t.test('mounting again where the daemon was killed takes over, and nobody notices', async t => {
  const { folder, pool, mountPoint, pid, log } = await mountPool(t)
  const { since, enginePid } = await mountOf(pool)
  const writing = load(t, folder, join(mountPoint, 'web'))
  let previous = { pid, enginePid }
  for (let death = 1; death <= 2; death++) {
    process.kill(previous.pid, 'SIGKILL')
    await until(() => log().filter(line => /daemon is gone/.test(line.msg)).length === death)
    const { code, stdout, stderr } = await thinfs('mount', pool, mountPoint, '--json')
    t.equal(code, 0, stderr)
    const mount = await mountOf(pool)
    t.match(mount, { pid: JSON.parse(stdout).pid, since })
    t.notOk(isRunning(previous.enginePid))
    t.ok(isRunning(mount.pid!))
    // The next engine is a child of the daemon that took over: it is replaced when it is killed.
    process.kill(mount.enginePid, 'SIGKILL')
    await until(() => !isRunning(mount.enginePid))
    previous = { pid: mount.pid!, enginePid: (await mountOf(pool)).enginePid }
  }
  await writing.stop()
  t.equal((await thinfs('umount', pool)).code, 0)
  t.notOk(existsSync(join(pool, 'hand-over.sock')))
  t.equal((await run('thin_check', join(pool, 'metadata'))).code, 0)
})

t.test('in the foreground it is the command, which ends when the pool is unmounted', async t => {
  const { pool, mountPoint, mounted } = await makePool(t)
  async function foreground(): Promise<{ child: ChildProcess; stderr: Promise<string> }> {
    const child = spawn(process.execPath, [PROGRAM, 'mount', '-f', pool, mountPoint], {
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    const stderr = text(child.stderr)
    await until(() => existsSync(join(pool, 'control.sock')))
    t.match(JSON.parse((await thinfs('status', pool, '--json')).stdout).mount.pid, child.pid)
    return { child, stderr }
  }
  for (const end of [
    () => run('umount', mountPoint),
    () => thinfs('umount', pool),
    (child: ChildProcess) => child.kill('SIGINT'),
  ]) {
    const { child, stderr } = await foreground()
    const ended = once(child, 'close')
    await end(child)
    t.same(await ended, [0, null])
    t.match(await stderr, /INFO.*mounted[\s\S]*unmounted/, 'a log for people')
    t.notOk(mounted())
  }
  t.notOk(existsSync(join(pool, 'thinfs.log')))
})

t.test('a signal before the pool is served ends what was begun', async t => {
  const { pool, mountPoint, mounted } = await makePool(t)
  for (const foreground of [false, true]) {
    for (const [signal, code] of [
      ['SIGINT', 130],
      ['SIGTERM', 143],
    ] as const) {
      // An engine takes long to start; where it does not, the command was too fast, and is asked
      // again.
      let status: number | null = 0
      while (status === 0) {
        const args = [PROGRAM, 'mount', ...(foreground ? ['-f'] : []), pool, mountPoint]
        const child = spawn(process.execPath, args, { stdio: ['ignore', 'ignore', 'pipe'] })
        const [stderr, closed] = [text(child.stderr), once(child, 'close')]
        await until(() => mounted() || child.exitCode !== null)
        child.kill(signal)
        status = (await closed)[0]
        if (status === 0) await thinfs('umount', pool)
        else t.match(await stderr, new RegExp(`mounting .*: ended by ${signal} \\(CANCELLED\\)`))
      }
      t.equal(status, code)
      t.notOk(mounted(), 'nothing is mounted')
      t.same(
        readdirSync(pool).filter(name => /sock|daemon.json/.test(name)),
        [],
      )
    }
  }
  t.equal((await thinfs('mount', pool, mountPoint)).code, 0, 'nobody has the pool')
  t.equal((await thinfs('umount', pool)).code, 0)
})

t.test('a mount whose control socket was removed is unmounted', async t => {
  for (const force of [[], ['--force']]) {
    const { pool, mountPoint, mounted, pid } = await mountPool(t)
    rmSync(join(pool, 'control.sock'))
    const told = `mounted at ${mountPoint} by process ${pid}`
    t.match(
      (await thinfs('restart', pool)).stderr,
      new RegExp(`${told}.*control.sock is gone.*umount`),
    )
    t.match((await thinfs('list', pool)).stderr, `served by process ${pid} at ${mountPoint}`)
    const holder = spawn('sleep', ['60'], { cwd: mountPoint })
    await once(holder, 'spawn')
    const busy = await thinfs('umount', pool)
    t.match(busy, { code: 1, stderr: `process ${holder.pid} (sleep)` })
    if (force.length === 0) {
      holder.kill()
      await once(holder, 'close')
    }
    t.match(await thinfs('umount', pool, ...force), { code: 0, stderr: '' })
    holder.kill()
    t.notOk(mounted())
    t.notOk(isRunning(pid))
    t.equal((await run('thin_check', join(pool, 'metadata'))).code, 0)
  }
})

t.test('files that nobody may write to: umount says so at once', async t => {
  for (const name of ['journal', 'volumes.json']) {
    const { pool, mountPoint, mounted, log } = await mountPool(t)
    const file = join(pool, name)
    const { code } = await run('chattr', '+i', file)
    // tmpfs has no such flag.
    if (code !== 0) return t.pass(file, { skip: 'the file system has no such flag' })
    t.teardown(() => run('chattr', '-i', file))
    // Past the end: the volume's new size belongs into both.
    const size = 20_001 * 65536
    const dd = ['if=/dev/urandom', `of=${mountPoint}/web`, 'bs=64K', 'seek=20000', 'count=1']
    t.equal((await run('dd', ...dd, 'conv=notrunc')).code, 0)
    const { stderr, ...rest } = await thinfs('umount', pool)
    t.match(rest, { code: 1, stdout: '' })
    t.match(stderr, new RegExp(`${name}: operation not permitted; .*chattr.* \\(IO_ERROR\\)\n$`))
    t.equal(stderr.trim().split('\n').length, 1)
    t.notOk(mounted())
    t.equal(log().filter(({ msg }) => /starting another/.test(msg)).length, 0, 'not tried again')
    t.equal((await thinfs('check', pool, '--deep')).code, 0, 'all is committed')
    await run('chattr', '-i', file)
    t.match(await thinfs('mount', pool, mountPoint), { code: 0, stderr: '' })
    t.equal((await run('stat', '-c', '%s', join(mountPoint, 'web'))).stdout, `${size}\n`)
    t.equal((await thinfs('umount', pool)).code, 0)
  }
})

t.test('options that fstab(5) has for all file systems', async t => {
  const { pool, mountPoint, mounted } = await makePool(t)
  const usual = 'defaults,rw,nosuid,nodev,exec,relatime,auto,nofail,_netdev,x-systemd.automount'
  const optionsOf = () =>
    mountTable()
      .split('\n')
      .find(line => line.includes(mountPoint))
  for (const [options, wanted] of [
    [usual, / rw,nosuid,nodev,relatime,/],
    ['ro,noatime,noexec,rw', / rw,nosuid,nodev,noexec,noatime,/],
    ['noexec,exec,noatime,atime,rw,ro', / ro,nosuid,nodev,relatime,/],
  ] as const) {
    t.match(await thinfs('mount', pool, mountPoint, '-o', options), { code: 0, stderr: '' })
    t.match(optionsOf(), wanted, options)
    t.equal((await thinfs('umount', pool)).code, 0)
    t.notOk(mounted())
  }
})

t.test('what cannot be mounted is one line and an exit code', async t => {
  const { folder, pool, mountPoint, mounted } = await makePool(t)
  const fails = async (code: number, wanted: RegExp, ...args: string[]): Promise<void> => {
    const { stderr, ...rest } = await thinfs('mount', pool, mountPoint, ...args)
    t.match(rest, { code, stdout: '' }, stderr)
    t.match(stderr, wanted)
    t.equal(stderr.trim().split('\n').length, 1)
    t.notOk(mounted())
  }
  await fails(2, /nosuch is not one of/, '-o', 'nosuch')
  await fails(2, /log level loud is not one of/, '--log-level', 'loud')
  await fails(1, /the log .*cannot be opened/, '--log-file', join(folder, 'nowhere', 'log'))

  const metadata = join(pool, 'metadata')
  const superblock = readFileSync(metadata).subarray(0, 4096)
  const fd = openSync(metadata, 'r+')
  t.teardown(() => closeSync(fd))
  writeSync(fd, Buffer.from([0xff]), 0, 1, 100)
  await fails(1, /superblock: checksum/)
  writeSync(fd, superblock, 0, 4096, 0)
  chmodSync(metadata, 0o600)
  t.equal((await thinfs('mount', pool, mountPoint)).code, 0, 'repaired')
  const again = await thinfs('mount', pool, mountPoint)
  t.equal(again.code, 1)
  t.match(again.stderr, new RegExp(`served by process \\d+ at ${mountPoint}`))
  t.equal((await thinfs('umount', pool)).code, 0)
})
