/** Where a pool is made, by what folders there are. A tmpfs of a size of our own is one of them. */
import { mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { GIB, MIB } from '../../src/base/index.js'
import { choosePlace } from '../../src/testing/place.js'
import { needs, run } from '../support/mounted-pool.js'

t.test('the first folder in memory that has room', needs('/dev/fuse'), async t => {
  const base = mkdtempSync(join(tmpdir(), 'thinfs-place-'))
  const [small, large, disk] = ['small', 'large', 'disk'].map(name => join(base, name)) as [
    string,
    string,
    string,
  ]
  for (const folder of [small, large, disk]) mkdirSync(folder)
  t.teardown(async () => {
    await run('umount', small, large, disk)
    rmSync(base, { recursive: true })
  })
  await run('mount', '-t', 'tmpfs', '-o', 'size=64M', 'none', small)
  await run('mount', '-t', 'tmpfs', '-o', 'size=512M', 'none', large)
  // Whatever the machine has its folder for temporary files on, this is no tmpfs.
  await run('mount', '-t', 'ramfs', 'none', disk)
  const none = join(base, 'none')
  const missing = `${none} cannot be used (ENOENT)`

  const found = choosePlace(0, [none, small, large, disk])
  t.same(found, { folder: large, reason: `${large} is in memory and has 512M` })
  t.same(choosePlace(GIB, [none, small, large, disk]), {
    folder: disk,
    reason: [
      missing,
      `${small} has 64M left, wanted 1G`,
      `${large} has 512M left, wanted 1G`,
      `${disk} is not in memory`,
    ].join('; '),
  })
  t.equal(choosePlace(300 * MIB, [large, disk]).folder, large)
  t.throws(() => choosePlace(0, [small, none]), {
    code: 'NOT_SUPPORTED',
    message: `no folder for a pool: ${small} has 64M left, wanted 256M; ${missing}`,
  })
  t.same(
    [small, large, disk].flatMap(folder => readdirSync(folder)),
    [],
    'looking leaves nothing',
  )
})
