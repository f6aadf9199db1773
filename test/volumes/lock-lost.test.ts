// Goal: a pool whose files another host has taken is left alone. Method: a process that shares the
// open file gives its lock up, as a file server does for a host that it cannot reach; then another
// takes it.
import { spawnSync } from 'node:child_process'
import { closeSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { FileStore } from '../../src/storage/index.js'
import { openPool, PoolFiles } from '../../src/volumes/index.js'
import { makePool } from '../support/pool-files.js'

// F_OFD_SETLK is 37, F_UNLCK 2. Source: fcntl(2).
const UNLOCK = `
import fcntl, struct
fcntl.fcntl(3, 37, struct.pack('hhqqi4x', 2, 0, 0, 0, 0))
`

function loseLock(fd: number): void {
  const stdio = ['ignore', 'inherit', 'inherit', fd] as const
  const { status } = spawnSync('python3', ['-c', UNLOCK], { stdio: [...stdio] })
  if (status !== 0) throw new Error(`python3 ended with ${status}`)
}

for (const which of ['data', 'metadata'] as const) {
  t.test(`the lock on the ${which} is lost`, async t => {
    const config = await makePool(t.testdir())
    const files = PoolFiles.open(config)
    files.mustHoldLocks()
    const { volumes, close } = await openPool(config, { files })
    await volumes.create({ name: 'v', size: 1 << 20 })
    await volumes.commit()
    loseLock(files.descriptors[which])
    const other = FileStore.open(config[which].path)
    t.ok(other.lock(), 'another has it')
    const names = join(config.folder, 'volumes.json')
    const left = () => [names, config.metadata.path].map(path => readFileSync(path, 'latin1'))
    const before = left()
    const lost = { code: 'LOCK_LOST', message: new RegExp(`^${config[which].path}: the lock is`) }
    await t.rejects(volumes.create({ name: 'w', size: 1 << 20 }), lost)
    t.equal(volumes.pool.mode, 'fail')
    t.match(volumes.pool.reason, `${config[which].path}: the lock is lost`)
    await close().catch(() => {})
    await t.rejects(openPool(config, { files }), lost, 'nor does the next engine serve it')
    t.ok(
      left().every((content, i) => content === before[i]),
      'nothing was written',
    )
    files.close()
    other.close()
    await (await openPool(config)).close()
  })
}

t.test('a descriptor that the file system knows no more', async t => {
  const config = await makePool(t.testdir())
  const files = PoolFiles.open(config)
  closeSync(files.data.fd)
  const lost = { code: 'LOCK_LOST', message: new RegExp(`^${config.data.path}: the lock is lost`) }
  t.throws(() => PoolFiles.inherit(config, files.descriptors, false), lost)
})
