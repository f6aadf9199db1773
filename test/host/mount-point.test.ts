// Goal: nobody mounts a pool over what its server needs. Method: folders, bind mounts and loop
// devices that the kernel makes; what is refused is named.
import { mkdirSync, mkdtempSync, realpathSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { mustNotCover } from '../../src/host/index.js'
import { attempt, needs, run } from '../support/mounted-pool.js'

function folders(t: Test): { base: string; mountPoint: string; pool: string } {
  const base = realpathSync(mkdtempSync(join(tmpdir(), 'thinfs-cover-')))
  t.teardown(() => rmSync(base, { recursive: true }))
  const [mountPoint, pool] = [join(base, 'mount'), join(base, 'pool')]
  for (const folder of [mountPoint, pool]) mkdirSync(folder)
  return { base, mountPoint, pool }
}

t.test('a folder, one above it, and the same by another name', needs(), async t => {
  const { base, mountPoint, pool } = folders(t)
  const file = join(pool, 'data')
  t.doesNotThrow(() => mustNotCover(mountPoint, [pool, file]))
  await run('mount', '--bind', pool, mountPoint)
  t.teardown(() => attempt('umount', mountPoint))
  for (const folder of [pool, base, mountPoint]) {
    const message = new RegExp(`^${folder}: a mount there would hide ${file}, `)
    t.throws(() => mustNotCover(folder, [file]), { code: 'BAD_ARGUMENT', message })
  }
})

t.test(
  'a device on a volume of the mount, and a filesystem on it',
  needs('/dev/loop-control'),
  async t => {
    const { mountPoint, base } = folders(t)
    const volume = join(mountPoint, 'volume')
    writeFileSync(volume, '')
    truncateSync(volume, 16 << 20)
    const device = await run('losetup', '--find', '--show', volume)
    t.teardown(() => attempt('losetup', '--detach', device))
    await run('mkfs.ext4', '-q', device)
    const inside = join(base, 'inside')
    mkdirSync(inside)
    await run('mount', device, inside)
    t.teardown(() => attempt('umount', inside))
    for (const needed of [device, inside, join(inside, 'not', 'there')]) {
      t.throws(() => mustNotCover(mountPoint, [needed]), {
        code: 'BAD_ARGUMENT',
        message: `${needed} is on a volume of the pool itself (${volume}): move it elsewhere`,
      })
    }
    t.doesNotThrow(() => mustNotCover(inside, [volume]))
  },
)
