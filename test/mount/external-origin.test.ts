/**
 * Goal: a volume on a base image, in a mount: what programs do to it leaves what it leaves in a
 * copy of the image, and the image as it was. Method: the same in the mount and in a plain folder,
 * cmp; an ext4 on a loop device, which mkfs made in the image; a base that was changed.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import {
  attempt,
  attemptThinfs,
  MountedPool,
  needs,
  run,
  sh,
  thinfs,
} from '../support/mounted-pool.js'

const YAML = 'data: {size: 256M}\nmetadata: {size: 4M}'
const sha = async (path: string): Promise<string> => (await run('sha256sum', path)).split(' ')[0]!

t.test('as a copy of its base', needs('/dev/fuse', '/dev/loop-control'), async t => {
  const pool = await MountedPool.prepare(t, YAML, file => thinfs('init', file))
  const { folder, plain, path } = pool
  await sh(
    folder,
    'truncate -s 64M base.img; mkfs.ext4 -q -F -d /usr/share/keyrings base.img 2>&1 || mkfs.ext4 -q -F base.img',
  )
  const base = join(folder, 'base.img')
  const before = await sha(base)
  const yaml = join(folder, 'pool.yaml')
  const config = `${readFileSync(yaml, 'utf8')}volumes: {web: {external_origin: base.img}}\n`
  writeFileSync(yaml, config)
  await pool.mount()
  t.match(await thinfs('list', folder), /^web +0 +64M +0 .* base\.img /m)
  await sh(plain, `cp --sparse=always ${base} web`)
  const same = async (what: string): Promise<void> => {
    await run('cmp', join(path, 'web'), join(plain, 'web'))
    t.pass(what)
  }
  await same('nothing is written yet')
  t.equal(Number(await pool.sh('stat -c %b web')), 0, 'it takes no space')
  const script = `
    dd if=/dev/zero bs=4k count=3 seek=100 conv=notrunc of=web
    printf hello | dd bs=1 seek=12345677 conv=notrunc of=web
    fallocate -z -o 1M -l 1M web
    truncate -s 60M web; truncate -s 70M web
    printf end >> web`
  await pool.both(t, `(${script}) 2>&1 | grep -v copied`)
  await same('written to, cut off, made longer')
  await thinfs('snapshot', folder, 'web', 'web@1')
  await pool.killEngine()
  await pool.both(
    t,
    'head -c 3000000 /dev/zero | tr "\\0" y | dd of=web bs=1M seek=20 conv=notrunc status=none',
  )
  await same('by another engine')
  await thinfs('rollback', folder, 'web', 'web@1', '--no-keep', '--yes')
  await sh(plain, `cp ${path}/web@1 web`)
  await same('rolled back')

  await thinfs('create', folder, 'disk', '--external-origin', base)
  const loop = await pool.attach('disk')
  await sh(
    plain,
    `mkdir at; mount ${loop} at; head -c 5000000 /dev/urandom > at/new; rm -f at/new2; sync -f at
    sha256sum < at/new > sum; umount at; e2fsck -fn ${loop}
    mount -o ro ${loop} at; sha256sum < at/new | cmp - sum; umount at`,
  )
  await pool.detach('disk')
  t.equal(await sha(base), before, 'the base is as it was')

  const send = await attemptThinfs('send', folder, 'disk')
  t.match(send, { status: 1, stdout: '', stderr: /disk: .* lack .* base.img.*NOT_SUPPORTED/ })
  await run('qemu-io', '-r', '-f', 'raw', '-c', 'read 0 512', base)
  const write = await attempt('qemu-io', '-f', 'raw', '-c', 'write 0 512', base)
  t.match(write, { status: 1, stderr: /Failed to get "write" lock/ }, 'the base is locked')

  await pool.umount()
  await sh(folder, 'cp -p base.img kept.img; printf x >> base.img')
  await pool.mount()
  t.match(await pool.failure('head -c 1 disk'), /Input\/output error/)
  t.match(await pool.failure('printf x > disk'), /Input\/output error/)
  const { warnings } = await pool.status()
  t.match(warnings, [
    /^(disk|web|web@1): .*base\.img has 67108865 bytes of .*, not 67108864 bytes of /,
  ])
  await sh(folder, 'cat kept.img > base.img; touch -r kept.img base.img')
  await sh(plain, `mount -o ro ${await pool.attach('disk')} at`)
  const refused = await attemptThinfs('create', folder, 'x', '--external-origin', '/none')
  t.match(refused, { status: 2, stderr: /external origin \/none: no such file.*BAD_ARGUMENT/ })
  for (const own of [join(path, 'web'), join(plain, 'at', 'new')]) {
    const inside = await attemptThinfs('create', folder, 'x', '--external-origin', own)
    t.match(inside, { status: 2, stderr: /it is on a volume of this pool .*BAD_ARGUMENT/ })
  }
  await run('umount', join(plain, 'at'))
  await pool.detach('disk')
  t.match((await attemptThinfs('create', folder, 'x')).stderr, /'--size <size>' not specified/)
  await pool.sh('head -c 1 disk > /dev/null')
  await pool.close(t)
})

t.test('a base that the mount hides', needs('/dev/fuse'), async t => {
  const pool = await MountedPool.prepare(t, YAML, file => thinfs('init', file))
  const base = join(pool.path, 'base.img')
  writeFileSync(base, Buffer.alloc(65536, 'base'))
  await thinfs('create', pool.folder, 'web', '--external-origin', base)
  await pool.mount()
  t.match(await pool.failure('cat web'), /Input\/output error/)
  t.match((await pool.status()).warnings, [/base\.img: hidden by the mount at /])
  await pool.umount()
})
