/** A pool of an ordinary user's test: no loop devices, filesystems by fuse2fs. */
import { dirname, resolve } from 'node:path'
import t from 'tap'
import { needs } from '../support/mounted-pool.js'
import { OrdinaryUser } from '../support/ordinary-user.js'

const LIBRARY = resolve(import.meta.dirname, '../../dist/testing/index.js')

const PROGRAM = `
import { readFile, writeFile } from 'node:fs/promises'
import { withPool } from ${JSON.stringify(LIBRARY)}
await withPool({ volumes: { db: '64M' } }, async pool => {
  const db = pool.volume('db')
  const refusal = await db.attach().catch(err => err)
  const folder = await db.mount()
  const put = text => writeFile(folder + '/file', text)
  const get = () => readFile(folder + '/file', 'utf8')
  await put('base')
  await db.snapshot()
  await put('other')
  await db.rollback()
  const first = await get()
  await put('another')
  await db.rollback()
  const { problems } = await pool.admin.check({})
  const found = { uid: process.getuid(), first, second: await get(), problems }
  console.log(JSON.stringify({ ...found, code: refusal.code, message: refusal.message }))
})`

t.test('an ordinary user', needs('/dev/fuse'), async t => {
  const user = await OrdinaryUser.make(t)
  const found = JSON.parse(await user.sh('node --input-type=module -e "$1"', PROGRAM))
  t.match(found, {
    ...{ uid: user.uid, first: 'base', second: 'base', problems: [] },
    ...{ code: 'NOT_SUPPORTED', message: /loop devices need root; .*fuse2fs/ },
  })
  // What a failure leaves there goes with the namespace.
  await user.root('mount -t tmpfs -o mode=1777 thinfs-test /dev/shm')
  const stays = 'mkdir -p $THINFS_MOUNT/../x/y; chmod 500 $THINFS_MOUNT/../x; echo $THINFS_MOUNT'
  const { status, stdout, stderr } = await user.attempt(`thinfs run -- sh -c '${stays}'`)
  t.match(
    { status, stderr },
    { status: 125, stderr: /\/x\/y: .* cannot be removed.*\(IO_ERROR\)\n$/ },
  )
  const base = dirname(stdout.trim())
  t.equal(await user.sh('ls -A "$1"', base), 'alive\nx', 'what takes memory is gone')
  // Of an owner that was killed the keeper itself tries again.
  const killed = await user.attempt(
    `thinfs run -- sh -c '${stays}; kill -9 $PPID; sleep 1000' || true`,
  )
  const busy = dirname(killed.stdout.trim())
  await user.sh('until [ "$(ls -A "$1" | tail -n +2)" = x ]; do sleep 0.1; done', busy)
  await user.sh('chmod 700 "$1/x"; while [ -e "$1" ]; do sleep 0.1; done', busy)
  // That of an owner who was told is left to the next one.
  await user.sh('chmod 700 "$1/x"; thinfs run -- true; [ ! -e "$1" ]', base)
  t.equal(
    await user.sh('thinfs run --volume v=1M -- sh -c "stat -c %u-%s \\$THINFS_V"'),
    `${user.uid}-1048576`,
  )
})
