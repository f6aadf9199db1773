/** A pool of an ordinary user's test: no loop devices, filesystems by fuse2fs. */
import { resolve } from 'node:path'
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
  t.equal(
    await user.sh('thinfs run --volume v=1M -- sh -c "stat -c %u-%s \\$THINFS_V"'),
    `${user.uid}-1048576`,
  )
})
