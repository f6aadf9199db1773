// Goal: of the hosts that reach a pool one serves it. Another one is told by which, takes the pool
// over when that was fenced, and finds what was flushed; the old one answers nothing and writes
// nothing. Method: two hosts on one machine (other-host.ts); the fence takes the locks of the old
// one away, as a file server does, and leaves its processes alone.
import { spawn } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { hostname } from 'node:os'
import { dirname, join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { runtimeFolder } from '../../src/control/index.js'
import {
  attemptThinfs,
  logLines,
  MountedPool,
  needs,
  thinfs,
  until,
} from '../support/mounted-pool.js'
import { OtherHost } from '../support/other-host.js'

/**
 * Takes the OFD locks of the engine, whose number is in a file beside this, away. F_OFD_SETLK is
 * 37, F_UNLCK 2, pidfd_open 434, pidfd_getfd 438. Sources: fcntl(2), pidfd_getfd(2).
 */
const UNLOCK = `
import ctypes, fcntl, struct, sys
libc = ctypes.CDLL(None)
pidfd = libc.syscall(434, int(open(sys.argv[0] + '.engine').read()), 0)
for fd in (4, 5):
    own = libc.syscall(438, pidfd, fd, 0)
    fcntl.fcntl(own, 37, struct.pack('hhqqi4x', 2, 0, 0, 0, 0))
`

/** Host b, and a pool that this host serves. */
async function served(t: Test, fence: string[]) {
  const yaml = `data: { size: 64M }
metadata: { size: 4M }
tenancy: { fence: { command: ${JSON.stringify(fence)}, timeout: 60s } }
volumes:
  web: { size: 16M }`
  const pool = await MountedPool.make(t, yaml, async file => {
    const text = readFileSync(file, 'utf8').replace('BASE', dirname(dirname(file)))
    writeFileSync(file, text)
    await thinfs('init', file)
  })
  const at = join(pool.base, 'b')
  mkdirSync(at)
  const b = await OtherHost.start(t, pool.base, 'host-b')
  t.teardown(() => b.attemptThinfs('umount', '--force', at))
  const run = runtimeFolder(pool.folder)
  t.teardown(() => rmSync(run, { recursive: true, force: true }))
  return { pool, b, at, tenant: join(pool.folder, 'tenant'), file: join(pool.folder, 'pool.yaml') }
}

/** Writes a word over the first MiB of a volume, and flushes. */
const fill = (file: string, word: string): string =>
  `dd if=<(yes ${word}) of=${file} bs=64K count=16 iflag=fullblock conv=notrunc,fsync status=none`
const holds = (file: string, word: string): string => `cmp -n 1048576 ${file} <(yes ${word})`

t.test('a host that does not fence the one that serves is refused', needs('/dev/fuse'), async t => {
  const { pool, b, at, tenant, file } = await served(t, ['sh', '-c', 'echo no such plug; exit 1'])
  const names = new RegExp(
    `pool.yaml is served by ${hostname()} since 20.*UTC, last sign \\d+ s ago; .*POOL_IN_USE`,
  )
  const { tenancy } = await pool.status()
  t.match(tenancy, { host: hostname(), strength: 'advisory', generation: 2 })
  t.match(await thinfs('status', pool.folder), /^tenancy +advisory: .* generation 2$/m)
  const metrics = await thinfs('metrics', pool.folder)
  t.match(metrics, /^thinfs_pool_tenancy_generation\{.*strength="advisory"\} 2$/m)
  t.match(await b.attemptThinfs('mount', pool.folder, at), { status: 1, stderr: names })
  const before = readFileSync(tenant, 'latin1').slice(0, 4096)
  const over = ['mount', pool.folder, at, '--take-over']
  const yaml = readFileSync(file, 'utf8')
  const fails = { status: 1, stderr: /status 1: no such plug.*nothing is changed \(TOOL_FAILED\)/ }
  t.match(await b.attemptThinfs(...over), fails)
  writeFileSync(file, yaml.replace(/tenancy: .*/, 'tenancy: {}'))
  const none = /has no tenancy.fence.command .*--old-host-is-off \(POOL_IN_USE\)/
  t.match(await b.attemptThinfs(...over), { status: 1, stderr: none })
  t.equal(readFileSync(tenant, 'latin1').slice(0, 4096), before, 'nothing is changed')
  await pool.sh(fill('web', 'still'))
  // Power is lost: the host itself goes on when it is up again, another one has to be told.
  await pool.kill()
  await pool.mount()
  await pool.kill()
  t.match(await b.attemptThinfs('mount', pool.folder, at), { status: 1, stderr: names })
  await b.thinfs('mount', pool.folder, at, '--take-over', '--old-host-is-off')
  await b.sh(holds(`${at}/web`, 'still'))
  await b.thinfs('umount', at)
  // It was given back.
  await pool.mount()
  t.match((await pool.status()).tenancy, { generation: 5 })
  await pool.umount()
  const said = logLines(join(runtimeFolder(pool.folder), 'thinfs.log')).filter(({ msg }) =>
    /the pool (is|was)/.test(msg),
  )
  t.match(said.at(-2), { msg: "the pool is this host's", strength: 'advisory', generation: 5 })
  t.match(said.at(-1), { msg: 'the pool was given back' })
})

for (const signal of ['SIGCONT', 'SIGKILL'] as const) {
  t.test(
    `taken over from an engine that was stopped, and then gets ${signal}`,
    needs('/dev/fuse'),
    async t => {
      const { pool, b, at } = await served(t, ['python3', 'BASE/unlock.py'])
      const engine = await pool.enginePid()
      writeFileSync(join(pool.base, 'unlock.py'), UNLOCK)
      writeFileSync(join(pool.base, 'unlock.py.engine'), String(engine))
      const onB = `${at}/web`

      await pool.sh(fill('web', 'flushed'))
      // It notices nothing meanwhile, and is in the middle of writing names.
      await pool.sh('truncate -s 1M moved')
      const moves = ['-c', 'while mv moved moving && mv moving moved; do :; done']
      const mover = spawn('sh', moves, { cwd: pool.path, stdio: 'ignore' })
      t.teardown(() => mover.kill('SIGKILL'))
      await delay(100)
      process.kill(engine, 'SIGSTOP')
      await b.thinfs('mount', pool.folder, at, '--take-over')
      await b.sh(holds(onB, 'flushed'))
      await b.sh(fill(onB, 'b'))
      await b.thinfs('snapshot', at, 'web', 'of-b')
      process.kill(engine, signal)

      t.match(await pool.failure(fill('web', 'old')), /Input\/output error/)
      await until(async () => (await pool.status()).mode === 'fail')
      await until(() => !existsSync(`/proc/${engine}`))
      t.match(await pool.failure(fill('web', 'old')), /Input\/output error/)
      t.match(await pool.failure('cat web'), /Input\/output error/, 'what is here is old')
      const { reason, mount } = await pool.status()
      t.match(
        reason,
        /(lock is lost|taken over).* now served by host-b since 20.*, last sign \d+ s ago$/,
      )
      t.equal(mount!.enginePid, 0, 'no engine follows')
      t.match(await attemptThinfs('restart', pool.folder), {
        status: 1,
        stderr: /FENCED|LOCK_LOST/,
      })

      const metrics = await thinfs('metrics', pool.folder)
      t.match(metrics, /^thinfs_pool_mode\{.*mode="fail"\} 1$/m)

      await b.sh(holds(onB, 'b'))
      await b.sh(fill(onB, 'later'))
      const status = JSON.parse(await b.thinfs('status', at, '--json'))
      t.match(status, { mode: 'write', tenancy: { host: 'host-b', generation: 3 } })
      t.match(await attemptThinfs('umount', pool.folder), { status: 1, stderr: /FENCED|LOCK_LOST/ })
      t.notOk(pool.isMounted)
      await b.sh(holds(onB, 'later'))
      await b.thinfs('umount', at)
      t.match(await thinfs('list', pool.folder), /^of-b /m)
      await pool.close(t)
    },
  )
}
