/**
 * Contents that are kept between runs: made once under each key, whoever wants them at the same
 * time.
 */
import { chmodSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { readFile, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import t from 'tap'
import { withPool } from '../../src/testing/index.js'
import { needs, run } from '../support/mounted-pool.js'
import { OrdinaryUser } from '../support/ordinary-user.js'

const home = mkdtempSync(join(tmpdir(), 'thinfs-cache-'))
const cache = join(home, 'thinfs')
process.env.XDG_CACHE_HOME = home
t.teardown(() => rmSync(home, { recursive: true }))

t.test('fill makes once what it keeps', needs('/dev/fuse', '/dev/loop-control'), async t => {
  await withPool(async pool => {
    const made: string[] = []
    const fill = async (name: string, key: string, size = '64M') => {
      const volume = await pool.create(name, size)
      const base = await volume.fill(key, async volume => {
        made.push(name)
        await writeFile(join(await volume.mount(), 'file'), key)
      })
      return { volume, base }
    }
    // Two at a time, on different volumes, as two processes are: the lock is the open file's.
    const [first, second] = await Promise.all([fill('a', 'one'), fill('b', 'one')])
    t.equal(made.length, 1)
    await fill('c', 'one')
    t.equal(made.length, 1)
    await fill('d', 'two')
    await fill('e', 'one', '128M')
    t.same(made.slice(1), ['d', 'e'], 'another key, another size')

    await run('cmp', first.volume.path, second.volume.path)
    await run('cmp', first.base.path, second.base.path)
    for (const { volume } of [first, second]) {
      const file = join(await volume.mount(), 'file')
      t.equal(await readFile(file, 'utf8'), 'one')
      await writeFile(file, 'changed')
      await volume.rollback()
      t.equal(await readFile(file, 'utf8'), 'one')
      await volume.umount()
      await run('e2fsck', '-fn', volume.path)
    }
    // What the making left is an image of the volume, with its holes.
    const images = readdirSync(cache)
    t.equal(images.length, 3)
    for (const image of images) {
      const { size, blocks } = statSync(join(cache, image))
      t.ok([64, 128].includes(size / 2 ** 20))
      t.ok(blocks * 512 < 8 * 2 ** 20, 'sparse')
    }
    await t.rejects(
      second.volume.fill('one', () => {}),
      { code: 'HAS_DATA' },
    )

    const broken = await pool.create('f', '64M')
    const failing = broken.fill('three', async volume => {
      await writeFile(volume.path, 'half of it')
      throw new Error('mine')
    })
    await t.rejects(failing, { message: 'mine' })
    t.notOk(readdirSync(cache).some(name => !name.endsWith('.new') && !images.includes(name)))
    const left = readdirSync(cache).find(name => name.endsWith('.new'))!
    writeFileSync(join(cache, left), 'what a process that was killed has left')
    const { volume } = await fill('g', 'three')
    t.equal(await readFile(join(await volume.mount(), 'file'), 'utf8'), 'three')

    chmodSync(cache, 0o777)
    await t.rejects(
      (await pool.create('h', '64M')).fill('one', () => {}),
      { code: 'NOT_TRUSTED' },
    )
  })
})

const FILL = `
import { withPool } from ${JSON.stringify(resolve(import.meta.dirname, '../../dist/testing/index.js'))}
await withPool({ volumes: { v: '1M' } }, async pool => {
  await pool.volume('v').fill('key', () => {})
}).then(() => console.log('filled'), err => console.log(err.code + ': ' + err.message))`

t.test(
  "a cache that is another's is told, with what there is instead",
  needs('/dev/fuse'),
  async t => {
    const user = await OrdinaryUser.make(t)
    const fill = (within = ''): Promise<string> =>
      user.sh(`${within} node --input-type=module -e "$1"`, FILL)
    t.equal(await fill(), 'filled')
    t.equal(await fill('unshare -Urm'), 'filled', "the user's own is his in a namespace as well")
    await user.root('chown 0:0 home/.cache/thinfs/*.img')
    t.match(await fill(), /^IO_ERROR: .*\.img: .*permission denied.*; XDG_CACHE_HOME names another/)
    await user.root('chown -R 0:0 home/.cache')
    t.match(
      await fill(),
      /^IO_ERROR: .*\/thinfs: .*permission denied.*; XDG_CACHE_HOME names another/,
    )
    await user.root('chmod -R go+rX home/.cache')
    const strange = await fill('unshare -Urm')
    t.match(
      strange,
      /^NOT_TRUSTED: .*belongs to user 65534.*; XDG_CACHE_HOME names another place$/m,
    )
    t.equal(await fill('XDG_CACHE_HOME=~/mine'), 'filled')
  },
)
