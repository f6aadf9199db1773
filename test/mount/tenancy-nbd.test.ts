// Goal: a pool on NBD servers is taken over by another host: what was flushed is there, and nothing
// of the old host arrives afterwards. Method: two hosts on one machine (other-host.ts), and nbdkit,
// which lets in as many connections as one of them makes; the fence starts it anew.
import { existsSync, mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { hostname } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { attemptThinfs, MountedPool, needs, run, until } from '../support/mounted-pool.js'
import { shortFolder } from '../support/nbd-servers.js'
import { OtherHost } from '../support/other-host.js'

/** @param more for dd */
const fill = (file: string, word: string, more: string): string =>
  `dd if=<(yes ${word}) of=${file} bs=64K count=16 iflag=fullblock status=none ${more}`
const flush = 'conv=notrunc,fsync'
const holds = (file: string, word: string): string => `cmp -n 1048576 ${file} <(yes ${word})`

t.test('a pool on NBD servers, taken over by another host', needs('/dev/fuse'), async t => {
  const folder = shortFolder(t)
  mkdirSync(join(folder, 'images'))
  for (const [name, size] of Object.entries({ data: 64, metadata: 4, state: 16 })) {
    writeFileSync(join(folder, 'images', name), '')
    truncateSync(join(folder, 'images', name), size << 20)
  }
  const pidFile = join(folder, 'pid')
  const serve = (socket: string, pid: string, ...filter: string[]): string =>
    `nbdkit --unix ${folder}/${socket} --pidfile ${pid} ${filter[0] ?? ''} file dir=${folder}/images ${filter[1] ?? ''}`
  const script = join(folder, 'serve.sh')
  writeFileSync(
    script,
    `if [ -e ${pidFile} ]; then
  kill -9 $(cat ${pidFile})
  while kill -0 $(cat ${pidFile}) 2> /dev/null; do sleep 0.05; done
  rm -f ${pidFile} ${folder}/socket
fi
${serve('socket', pidFile, '--filter=limit', 'limit=3')}\n`,
  )
  const kill = (pid: string): unknown =>
    existsSync(pid) && process.kill(Number(readFileSync(pid, 'utf8')), 'SIGKILL')
  t.teardown(() => kill(pidFile))
  await run('sh', script)

  const yaml = (socket: string): string =>
    ['data', 'metadata', 'state']
      .map(name => `${name}: { nbd: "nbd+unix:///${name}?socket=${folder}/${socket}" }\n`)
      .join('')
  const fence = `tenancy: { fence: { command: [sh, ${script}], timeout: 60s } }`
  const volumes = 'cache: { size: 8M }\nvolumes:\n  web: { size: 16M }'
  const pool = await MountedPool.make(t, `${yaml('socket')}${fence}\n${volumes}`)
  t.match((await pool.status()).tenancy, { strength: 'connection', generation: 2 })
  const engine = await pool.enginePid()
  await pool.sh(fill('web', 'flushed', flush))

  const b = await OtherHost.start(t, pool.base, 'host-b')
  const [poolB, at] = [join(pool.base, 'pool-b'), join(pool.base, 'b')]
  mkdirSync(poolB)
  mkdirSync(at)
  t.teardown(() => b.attemptThinfs('umount', '--force', at))
  const file = join(poolB, 'pool.yaml')

  // A server that lets in several.
  const other = join(folder, 'other.pid')
  t.teardown(() => kill(other))
  await run('sh', '-c', serve('other', other))
  writeFileSync(file, `pool: test\n${yaml('other')}${fence}\n${volumes}\n`)
  const names = new RegExp(
    `is served by ${hostname()} since 20.*, last sign \\d+ s ago.*POOL_IN_USE`,
  )
  t.match(await b.attemptThinfs('mount', poolB, at), { status: 1, stderr: names })
  t.match(await b.attemptThinfs('init', poolB, '--force'), { status: 1, stderr: names })

  writeFileSync(file, `pool: test\n${yaml('socket')}${fence}\n${volumes}\n`)
  const taken = {
    status: 1,
    stderr: /lets in no more clients.* where a host has it, thinfs mount --take-over .*POOL_IN_USE/,
  }
  t.match(await b.attemptThinfs('mount', poolB, at), taken)

  // Not on its way yet when the engine stops.
  await pool.sh(fill('web', 'late', 'conv=notrunc seek=32'))
  process.kill(engine, 'SIGSTOP')
  await b.thinfs('mount', poolB, at, '--take-over')
  await b.sh(holds(`${at}/web`, 'flushed'))
  await b.sh(fill(`${at}/web`, 'b', flush))
  await b.thinfs('umount', at)
  process.kill(engine, 'SIGCONT')

  await until(async () => (await pool.status()).mode === 'fail')
  t.match((await pool.status()).reason, /taken over by host-b at 20/)
  await until(() => !existsSync(`/proc/${engine}`))
  t.match(await pool.failure('cat web'), /Input\/output error/)
  t.match(await attemptThinfs('umount', pool.folder), { status: 1, stderr: /FENCED/ })
  await b.thinfs('mount', poolB, at)
  await b.sh(holds(`${at}/web`, 'b'))
  await b.thinfs('umount', at)
  const { stdout } = await attemptThinfs('check', pool.folder, '--deep')
  t.match(stdout, / 0 blocks unreadable/)
})
