// Goal: a pool in a folder that other machines have as well keeps nothing of this machine there,
// and takes away nothing of theirs; where the folder is gone, commands still say how the pool is,
// and end its mount. Method: bindfs, a file system like those of the network; what another machine
// would have left stands in the folder; bindfs is killed.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { runtimeFolder } from '../../src/control/index.js'
import {
  attemptThinfs,
  MountedPool,
  mountsWithin,
  needs,
  run,
  thinfs,
  until,
} from '../support/mounted-pool.js'

const YAML = 'data: { size: 16M }\nmetadata: { size: 4M }\nvolumes: { web: { size: 8M } }'
/** What is of the machine that serves the pool. */
const OWN = ['control.sock', 'daemon.json', 'thinfs.log']

/** A pool whose folder is a mount of bindfs, and the process that serves that. */
async function make(t: Test, yaml: string) {
  const pool = await MountedPool.prepare(t, yaml, async () => {})
  const below = join(pool.base, 'below')
  mkdirSync(below, { mode: 0o700 })
  await run('mv', join(pool.folder, 'pool.yaml'), below)
  const server = spawn('bindfs', ['-f', below, pool.folder], { stdio: 'inherit' })
  await until(() => mountsWithin(pool.folder).length > 0)
  await thinfs('init', pool.folder)
  const own = runtimeFolder(pool.folder)
  t.teardown(() => rmSync(own, { recursive: true, force: true }))
  return { pool, below, server }
}

t.test('a folder that other machines have', needs('/dev/fuse'), async t => {
  const { pool, below } = await make(t, YAML)
  for (const name of OWN) writeFileSync(join(below, name), 'of another machine')
  await pool.mount()
  t.equal((await pool.status()).mount!.mountPoint, pool.path)
  await pool.killEngine()
  process.kill((await pool.status()).mount!.pid!, 'SIGKILL')
  await pool.sh("printf 'text' | dd of=web conv=notrunc,fsync status=none")
  await thinfs('umount', pool.folder)
  t.notOk(pool.isMounted)
  for (const name of OWN) {
    t.equal(readFileSync(join(below, name), 'utf8'), 'of another machine', name)
  }
})

t.test('a folder that nobody serves any more', needs('/dev/fuse'), async t => {
  const { pool, server } = await make(t, `${YAML}\ntenancy: {}`)
  await pool.mount()
  await pool.sh("printf 'text' | dd of=web conv=notrunc,fsync status=none")
  const ended = once(server, 'exit')
  server.kill('SIGKILL')
  await ended
  t.match(await pool.failure('echo > web; sync web'), /Input\/output error/)
  await until(async () => (await pool.status()).mode === 'fail')
  for (const name of [pool.folder, join(pool.folder, 'pool.yaml'), pool.path]) {
    t.match(await thinfs('status', name), /^mode +fail: .*ENOTCONN/m, name)
  }
  t.match(await thinfs('pools'), new RegExp(`^test +${pool.path} .* fail +${pool.folder}`, 'm'))
  t.match(await attemptThinfs('umount', pool.path), { status: 1, stderr: /\(FENCED\)/ })
  t.notOk(pool.isMounted)
  t.match(await attemptThinfs('status', pool.folder), { status: 1, stderr: /not connected/ })
  await run('umount', pool.folder)
})
