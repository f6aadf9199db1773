// Goal: the packages work where there is neither a compiler nor a clone. Method: `npm pack` and
// scripts/deb make them; npm installs the one, dpkg-deb unpacks the other, both mount a pool;
// lintian judges.
import { mkdirSync, mkdtempSync, readdirSync, realpathSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import t, { type Test } from 'tap'
import { attempt, runWithin } from '../support/mounted-pool.js'

const ROOT = resolve(import.meta.dirname, '../..')
const LIMIT = 900

async function mounts(t: Test, folder: string, thinfs: string): Promise<void> {
  const at = join(folder, 'mnt')
  mkdirSync(at)
  const pool = join(folder, 'pool')
  const program = (...args: string[]) => runWithin(60, thinfs, ...args)
  await program('init', pool, '--data-size', '64M', '--volume', 'web=16M')
  await program('mount', pool, at)
  t.teardown(() => attempt('umount', '--lazy', at))
  t.strictSame(readdirSync(at), ['web'])
  await program('umount', pool)
  t.match(await program('check', pool), /^1 devices/)
}

t.test('npm pack, scripts/deb', async t => {
  const folder = realpathSync(mkdtempSync(join(tmpdir(), 'thinfs-packages-')))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  const said = await runWithin(
    LIMIT,
    'npm',
    '--prefix',
    ROOT,
    'pack',
    ROOT,
    '--pack-destination',
    folder,
  )
  const tarball = join(folder, said.split('\n').at(-1)!)

  await t.test('the tarball, without a compiler', async t => {
    const base = join(folder, 'npm')
    mkdirSync(base)
    const install = ['install', '--global', '--prefix', base, tarball, '--no-audit', '--no-fund']
    await runWithin(LIMIT, 'env', 'CC=false', 'npm', ...install)
    t.strictSame(readdirSync(join(base, 'bin')), ['mount.thinfs', 'thinfs', 'umount.fuse.thinfs'])
    await mounts(t, base, join(base, 'bin/thinfs'))
  })

  for (const architecture of ['amd64', 'arm64']) {
    await t.test(`the Debian package for ${architecture}`, async t => {
      const base = join(folder, architecture)
      mkdirSync(base)
      const made = [`THINFS_TARBALL=${tarball}`, 'DEBEMAIL=thinfs@debian.org']
      await runWithin(LIMIT, 'env', ...made, join(ROOT, 'scripts/deb'), architecture, base)
      const file = join(base, readdirSync(base)[0]!)
      const lintian = ['--allow-root', '--fail-on', 'error', file]
      t.match(await attempt('lintian', ...lintian), { status: 0 })
      await runWithin(60, 'dpkg-deb', '--extract', file, join(base, 'root'))
      const sbin = readdirSync(join(base, 'root/usr/sbin'))
      t.strictSame(sbin, ['mount.fuse.thinfs', 'mount.thinfs', 'umount.fuse.thinfs'])
      if (architecture === (await runWithin(9, 'dpkg', '--print-architecture'))) {
        await mounts(t, base, join(base, 'root/usr/bin/thinfs'))
      }
    })
  }
})
