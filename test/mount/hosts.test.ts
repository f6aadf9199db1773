// Goal: a pool in a folder that other machines have as well keeps nothing of this machine there, and takes
// away nothing of theirs. Method: bindfs, a file system like those of the network; what another machine
// would have left stands in the folder.
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { runtimeFolder } from '../../src/control/index.js'
import { MountedPool, needs, run, thinfs } from '../support/mounted-pool.js'

const YAML = 'data: { size: 16M }\nmetadata: { size: 4M }\nvolumes: { web: { size: 8M } }'
/** What is of the machine that serves the pool. */
const OWN = ['control.sock', 'daemon.json', 'thinfs.log']

t.test('a folder that other machines have', needs('/dev/fuse'), async t => {
  const pool = await MountedPool.prepare(t, YAML, async () => {})
  const below = join(pool.base, 'below')
  mkdirSync(below, { mode: 0o700 })
  await run('mv', join(pool.folder, 'pool.yaml'), below)
  await run('bindfs', below, pool.folder)
  await thinfs('init', pool.folder)
  const own = runtimeFolder(pool.folder)
  t.teardown(() => rmSync(own, { recursive: true }))
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
