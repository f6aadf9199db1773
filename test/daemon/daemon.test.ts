/**
 * The daemon, with an engine that serves one empty file (fake-engine.mjs): what happens when
 * engines die, when a mount is busy, when something is left from another time. The kernel's mount
 * table, and programs that use the mount, say what is true.
 *
 * This process is the daemon, so it never looks into a mount: other processes do.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import t, { type Test } from 'tap'
import { ThinfsError } from '../../src/base/index.js'
import type { PoolConfig } from '../../src/config/index.js'
import { connectDaemon, type EngineStart, type SpawnEngine } from '../../src/control/index.js'
import { Daemon, type DaemonOptions } from '../../src/daemon/daemon.js'
import { findPool, lockPool } from '../../src/daemon/index.js'
import { makeLogger } from '../../src/log/index.js'
import { encodeTenant } from '../../src/tenancy/record.js'
import { PoolFiles } from '../../src/volumes/index.js'
import { until } from '../support/mounted-pool.js'

const FAKE_ENGINE = fileURLToPath(new URL('./fake-engine.mjs', import.meta.url))
const log = makeLogger({ process: 'daemon', level: 'silent', file: null, pretty: false })

type Behaviour = 'serve' | 'refuse' | 'vanish' | 'hang' | 'relapse'

/** Runs a program; its trimmed output. */
async function run(program: string, ...args: string[]): Promise<string> {
  const options = { timeout: 60_000, env: { ...process.env, LC_ALL: 'C' } }
  return (await promisify(execFile)(program, args, options)).stdout.trim()
}

const mountTable = (): string => readFileSync('/proc/self/mountinfo', 'utf8')

const engineOf =
  (behaviour: Behaviour): SpawnEngine =>
  (start, fds) =>
    spawn(process.execPath, [FAKE_ENGINE, JSON.stringify({ ...start, behaviour })], {
      stdio: ['ignore', 2, 2, fds.fuse, fds.metadata, fds.data, 'ipc'],
    })

/** A pool of which only the files' names matter, and a folder to mount it on. */
function makePool(t: Test) {
  const folder = realpathSync(mkdtempSync(join(tmpdir(), 'thinfs ')))
  const mountPoint = join(folder, 'mount')
  mkdirSync(mountPoint)
  const file = join(folder, 'pool.yaml')
  writeFileSync(file, '')
  for (const name of ['metadata', 'data']) writeFileSync(join(folder, name), '')
  const config: PoolConfig = {
    file,
    folder,
    pool: 'test',
    data: { path: join(folder, 'data'), size: null },
    metadata: { path: join(folder, 'metadata'), size: 'auto' },
    dataBlockSize: 65536,
    lowWaterMark: { percent: 20 },
    discards: 'passdown',
    onFull: 'queue',
    queueTimeout: 60,
    transport: 'dev',
    spin: 0,
    spinShare: 80,
    volumes: {},
  }
  t.teardown(async () => {
    while (mountTable().includes(` ${mountPoint.replaceAll(' ', '\\040')} `)) {
      await run('umount', '--lazy', mountPoint)
    }
    rmSync(folder, { recursive: true, force: true })
  })
  const options: DaemonOptions = {
    mountPoint,
    mountOptions: [],
    foreground: true,
    logLevel: 'silent',
    logFile: null,
  }
  const files = () =>
    ['control.sock', 'daemon.json', 'committed'].filter(name => existsSync(join(folder, name)))
  const mounted = () => mountTable().includes(` fuse.thinfs ${file.replaceAll(' ', '\\040')} `)
  return { config, options, mountPoint, folder, files, mounted }
}

async function mountPool(t: Test, behaviour: Behaviour = 'serve', more: Partial<PoolConfig> = {}) {
  const pool = makePool(t)
  const daemon = await Daemon.start(
    { ...pool.config, ...more },
    pool.options,
    log,
    engineOf(behaviour),
  )
  const client = (await connectDaemon(pool.config))!
  t.teardown(() => client.close())
  return { ...pool, daemon, client }
}

/** Status of the next engine than `previous`: while that one dies, requests fail or are its own. */
async function nextEngine(client: { status(): Promise<unknown> }, previous: number) {
  for (let attempt = 0; attempt < 100_000; attempt++) {
    const status = (await client.status().catch(() => null)) as { pid: number } | null
    if (status !== null && status.pid !== previous) {
      return status as { pid: number; start: EngineStart }
    }
  }
  throw new Error('there is no other engine')
}

t.test('mounts, answers, unmounts, and leaves nothing behind', async t => {
  const { config, client, daemon, mountPoint, folder, files, mounted } = await mountPool(t)
  t.ok(mounted(), 'the source is the path of pool.yaml')
  t.equal(await run('stat', '-c', '%F %a', mountPoint), 'directory 755')
  t.equal(await run('stat', '-c', '%a', join(folder, 'control.sock')), '600')
  t.same(await client.ping(), { pid: process.pid, mountPoint, stays: null })
  t.match(JSON.parse(readFileSync(join(folder, 'daemon.json'), 'utf8')), {
    pid: process.pid,
    mountPoint,
    since: Number,
  })
  const status = (await client.status()) as unknown as { pid: number; start: EngineStart }
  t.match(status, {
    mount: { mountPoint, pid: process.pid, enginePid: status.pid },
    start: { configFile: config.file, mountPoint, mountOptions: [], negotiated: null },
  })
  await t.rejects(client.create({ name: 'web', size: 1 }), { code: 'VOLUME_EXISTS' })

  await client.umount()
  t.notOk(mounted())
  t.same(files(), ['committed'], 'answered after the engine was done')
  await daemon.ended()
  t.equal(await connectDaemon(config), null)
  rmSync(join(folder, 'committed'))

  const again = await Daemon.start(
    config,
    {
      mountPoint,
      mountOptions: ['ro', 'allow_other'],
      foreground: true,
      logLevel: 'silent',
      logFile: null,
    },
    log,
    engineOf('serve'),
  )
  const options = mountTable()
    .split('\n')
    .find(line => line.includes(config.file.replaceAll(' ', '\\040')))
  t.match(options, / ro[, ].*allow_other/, 'mounts again, read-only')
  await run('umount', mountPoint)
  await again.ended()
  t.same(files(), ['committed'], 'whoever unmounts')
})

t.test('an engine that is killed is replaced, and callers only wait', async t => {
  const { client, daemon, mountPoint } = await mountPool(t)
  let previous = ((await client.status()) as unknown as { pid: number }).pid
  for (let death = 1; death <= 3; death++) {
    const reading = run('cat', join(mountPoint, 'held'))
    await reading
    process.kill(previous, 'SIGKILL')
    const waiting = run('stat', '-c', '%s', join(mountPoint, 'held'))
    const { pid, start } = await nextEngine(client, previous)
    t.same(start.negotiated, { minor: 36 }, 'takes over what was negotiated')
    t.equal(await waiting, '1048576')
    previous = pid
  }
  await client.umount()
  await daemon.ended()
})

t.test('an engine that is killed after the unmount is replaced once more, to commit', async t => {
  const { client, daemon, files, mounted } = await mountPool(t)
  const { pid } = (await client.status()) as unknown as { pid: number }
  process.kill(pid, 'SIGSTOP')
  const unmounting = client.umount()
  // Until the kernel has forgotten the mount; looking at it would wait for the engine.
  await until(() => !mounted())
  process.kill(pid, 'SIGKILL')
  await unmounting
  await daemon.ended()
  t.same(files(), ['committed'])
})

t.test('an engine that dies again and again of itself is given up', async t => {
  const told =
    'echo "$THINFS_EVENT $THINFS_MODE $THINFS_MOUNT_POINT: $THINFS_DETAIL" > "$(dirname "$THINFS_POOL")/told"'
  const pool = await mountPool(t, 'relapse', { hooks: told })
  const { client, daemon, mountPoint, folder, files, mounted } = pool
  const { pid } = (await client.status()) as unknown as { pid: number }
  const failure = t.rejects(daemon.ended(), { code: 'DAEMON_FAILED' })
  process.kill(pid, 'SIGKILL')
  const reason =
    'the engine died 6 times without progress in between, the last time: the engine ended with status 7'
  for (;;) {
    const status = await client.status().catch(() => null)
    if (status?.mode !== 'fail' || status.reason !== reason) continue
    t.match(status, { reason, mount: { mountPoint, pid: process.pid } })
    break
  }
  await t.rejects(client.list(), { code: 'DAEMON_FAILED', message: reason })
  await t.rejects(run('stat', mountPoint), /Input\/output error/, 'no caller hangs')
  t.ok(mounted(), 'it stays to tell')
  await t.rejects(client.umount(), { code: 'DAEMON_FAILED', message: reason })
  t.notOk(mounted())
  await failure
  t.same(files(), [])
  const line = `mode fail ${mountPoint}: ${reason}\n`
  while (!existsSync(join(folder, 'told')) || readFileSync(join(folder, 'told'), 'utf8') !== line) {
    await new Promise(resolve => setTimeout(resolve, 10))
  }
})

t.test('a change that was under way when the engine died is not left waiting', async t => {
  const { client, daemon } = await mountPool(t)
  const { pid } = (await client.status()) as unknown as { pid: number }
  const asked = client.resize({ name: 'a', size: 1 })
  await client.status()
  process.kill(pid, 'SIGKILL')
  await t.rejects(asked, {
    code: 'DAEMON_FAILED',
    message: /whether the request was carried out is not known, look with thinfs list/,
  })
  await nextEngine(client, pid)
  await client.umount()
  await daemon.ended()
})

t.test('an engine that cannot start fails the mount, with its own reason', async t => {
  for (const [behaviour, error] of [
    ['refuse', { code: 'METADATA_CORRUPT', errno: 'EIO', message: 'block 7: checksum' }],
    ['vanish', { code: 'DAEMON_FAILED', message: 'the engine ended with status 7' }],
  ] as const) {
    const { config, options, files, mounted } = makePool(t)
    await t.rejects(Daemon.start(config, options, log, engineOf(behaviour)), error)
    t.notOk(mounted())
    t.same(files(), [])
    const daemon = await Daemon.start(config, options, log, engineOf('serve'))
    t.ok(mounted(), 'and can be tried again')
    await daemon.umount()
  }
})

t.test('a mount that is in use stays, and says who uses it', async t => {
  const { client, daemon, mountPoint, folder, mounted } = await mountPool(t)
  const file = join(mountPoint, 'held')

  async function holder(script: string): Promise<ChildProcess> {
    const child = spawn('sh', ['-c', script, file], { cwd: '/', stdio: ['pipe', 'pipe', 2] })
    t.teardown(() => child.kill('SIGKILL'))
    await once(createInterface({ input: child.stdout! }), 'line')
    return child
  }
  const mmap = [
    'import mmap, sys',
    'f = open(sys.argv[1], "rb")',
    'm = mmap.mmap(f.fileno(), 4096, prot=mmap.PROT_READ)',
    'f.close()',
    'print("held", flush=True)',
    'sys.stdin.read()',
  ]
  writeFileSync(join(folder, 'hold.py'), mmap.join('\n'))
  for (const [what, script] of [
    ['an open file', 'exec 5<"$0"; echo; read -r _'],
    ['a working directory', 'cd "$(dirname "$0")"; echo; read -r _'],
    ['a mapping', `exec python3 "${folder}/hold.py" "$0"`],
  ] as const) {
    const child = await holder(script)
    await t.rejects(
      client.umount(),
      { code: 'MOUNT_BUSY', errno: 'EBUSY', message: `process ${child.pid} (` },
      what,
    )
    t.ok(mounted())
    child.kill('SIGKILL')
    await once(child, 'close')
  }

  const loop = await run('losetup', '--find', '--show', '--read-only', file)
  let attached = true
  const detach = async (): Promise<void> => {
    // Once only: the number may be somebody else's afterwards.
    if (attached) await run('losetup', '--detach', loop)
    attached = false
  }
  t.teardown(detach)
  await t.rejects(client.umount(), { code: 'MOUNT_BUSY', message: `held by ${loop}` })
  await detach()

  await t.resolves(client.umount(), 'free again')
  await daemon.ended()
})

t.test('a lazily unmounted pool is served until its last file is closed', async t => {
  const { client, daemon, mountPoint, files } = await mountPool(t)
  const child = spawn(
    'sh',
    ['-c', 'exec 5<"$0"; echo; read -r _; cat <&5 | wc -c', join(mountPoint, 'held')],
    {
      stdio: ['pipe', 'pipe', 2],
    },
  )
  const lines = createInterface({ input: child.stdout! })
  await once(lines, 'line')
  await run('umount', '--lazy', mountPoint)
  await t.rejects(client.umount(), {
    code: 'MOUNT_BUSY',
    message: /is unmounted here, but used by process \d+ /,
  })
  child.stdin!.end('\n')
  t.match(await once(lines, 'line'), [/\d+/])
  await daemon.ended()
  t.same(files(), ['committed'])
})

t.test('one pool is served once', async t => {
  const { config, options, client, daemon, mountPoint, folder } = await mountPool(t)
  const served = `${config.file} is served by process ${process.pid} at ${mountPoint}`
  mkdirSync(join(folder, 'other'))
  for (const place of [mountPoint, join(folder, 'other')]) {
    await t.rejects(
      Daemon.start(config, { ...options, mountPoint: place }, log, engineOf('serve')),
      { code: 'POOL_IN_USE', errno: 'EBUSY', message: served },
    )
  }
  t.throws(() => lockPool(config), { code: 'POOL_IN_USE' })
  t.equal((await client.ping()).pid, process.pid, 'the first one is not disturbed')

  const second = makePool(t)
  await t.rejects(
    Daemon.start(second.config, { ...options }, log, engineOf('serve')),
    { code: 'MOUNT_FAILED', errno: 'EBUSY', message: `${config.file} is mounted there already` },
    'nor is its mount point',
  )
  await client.umount()
  await daemon.ended()
})

t.test('a host that has the locks is waited for where it loses them when it is gone', async t => {
  const { config, folder } = makePool(t)
  const host = { name: 'host7', machineId: 'e'.repeat(32), bootId: 'd'.repeat(32) }
  const tenant = { generation: 9, since: 1_795_917_785, mountId: 'f'.repeat(32), address: '' }
  writeFileSync(join(folder, 'tenant'), encodeTenant({ ...tenant, host }))
  const held = PoolFiles.open(config)
  t.teardown(() => held.close())
  for (const [locks, patienceMs] of [
    ['enforced', Number.POSITIVE_INFINITY],
    ['advisory', 0],
  ] as const) {
    const inUse = { code: 'POOL_IN_USE', message: /served by host7/, patienceMs }
    t.throws(() => lockPool({ ...config, tenancy: { locks } }), inUse, locks)
  }
})

t.test('what a dead daemon left is replaced', async t => {
  const { config, options, files, folder, mountPoint, mounted } = makePool(t)
  writeFileSync(join(folder, 'daemon.json'), '{"pid":1,')
  writeFileSync(join(folder, 'control.sock'), '')
  // Mounted twice by somebody who ended: nobody answers there any more.
  for (let mounts = 0; mounts < 2; mounts++) {
    await run(
      'sh',
      '-c',
      'exec 3<>/dev/fuse; mount -i -t fuse.thinfs -o fd=3,rootmode=40000,user_id=0,group_id=0 "$0" "$1"',
      config.file,
      mountPoint,
    )
  }
  await t.rejects(run('stat', mountPoint), /not connected/)
  t.equal(findPool(mountPoint), config.file, 'its pool can still be found')
  const daemon = await Daemon.start(config, options, log, engineOf('serve'))
  t.equal(await run('stat', '-c', '%F', mountPoint), 'directory')
  await daemon.umount()
  t.notOk(mounted())
  t.same(files(), ['committed'])
})

t.test('mounting is given up before an engine serves', async t => {
  const { config, options, files, mounted } = makePool(t)
  const ending = new AbortController()
  const starting = Daemon.start(config, options, log, engineOf('hang'), ending.signal)
  await until(() => mounted())
  const reason = new ThinfsError('CANCELLED', 'a signal')
  ending.abort(reason)
  await t.rejects(starting, reason)
  t.notOk(mounted())
  t.same(files(), [])
  const again = Daemon.start(config, options, log, engineOf('serve'), ending.signal)
  await t.rejects(again, reason, 'before it is mounted')
  t.notOk(mounted())
  const daemon = await Daemon.start(config, options, log, engineOf('serve'))
  await daemon.umount()
  await daemon.ended()
})

t.test('what cannot be mounted is refused before anything is touched', async t => {
  const { config, options, folder, files, mounted } = makePool(t)
  writeFileSync(join(folder, 'file'), '')
  const noPool = { ...config, metadata: { ...config.metadata, path: join(folder, 'nothing') } }
  const cases: [
    config: PoolConfig,
    changed: Partial<DaemonOptions>,
    error: { code: string; errno?: string; message?: string | RegExp },
  ][] = [
    [config, { mountPoint: join(folder, 'nowhere') }, { code: 'MOUNT_FAILED', errno: 'ENOENT' }],
    [config, { mountPoint: join(folder, 'file') }, { code: 'MOUNT_FAILED', errno: 'ENOTDIR' }],
    [
      config,
      { mountOptions: ['ro', 'nosuch'] },
      {
        code: 'BAD_ARGUMENT',
        message: 'mount option nosuch is not one of allow_other, ro, transport=',
      },
    ],
    [noPool, {}, { code: 'NOT_A_POOL', errno: 'ENOENT', message: /nothing: no such file/ }],
  ]
  for (const [config, changed, error] of cases) {
    await t.rejects(Daemon.start(config, { ...options, ...changed }, log, engineOf('serve')), error)
    t.notOk(mounted())
    t.same(files(), [])
  }
})

t.test('a pool is found by its file, its folder, its mount point and links to them', async t => {
  const { config, client, daemon, folder, mountPoint } = await mountPool(t)
  const links = mkdtempSync(join(tmpdir(), 'thinfs-'))
  t.teardown(() => rmSync(links, { recursive: true }))
  symlinkSync(mountPoint, join(links, 'mount'))
  symlinkSync(folder, join(links, 'folder'))
  for (const reference of [config.file, folder, mountPoint, join(links, 'mount')]) {
    t.equal(findPool(reference), config.file, reference)
  }
  t.ok(statSync(findPool(join(links, 'folder'))).isFile())
  for (const [reference, message] of [
    [join(folder, 'nowhere'), /nowhere: no such file or folder/],
    [links, /no pool.yaml in that folder, and no pool is mounted there/],
  ] as const) {
    t.throws(() => findPool(reference), { name: 'ThinfsError', code: 'NOT_A_POOL', message })
  }
  await client.umount()
  await daemon.ended()
})
