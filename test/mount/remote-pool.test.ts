// Goal: a pool that is on NBD servers as a whole is mounted, used, killed, sent and mounted
// elsewhere as a pool in files is. Method: a mount over nbdkit with images, against an ordinary
// file; thin_check and thin_dump judge the images.
import { randomBytes } from 'node:crypto'
import { copyFileSync, mkdirSync, readdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import t from 'tap'
import { MIB } from '../../src/base/index.js'
import {
  attempt,
  attemptThinfs,
  MountedPool,
  needs,
  run,
  thinfs,
  until,
} from '../support/mounted-pool.js'
import { imageOf, serveImage, serveImages, shortFolder } from '../support/nbd-servers.js'
import { thinCheck } from '../support/thin-tools.js'

t.test('a pool on NBD servers', needs('/dev/fuse'), async t => {
  const folder = shortFolder(t)
  const sizes = { data: 64 * MIB, metadata: 4 * MIB }
  const limit = ['--filter=limit']
  const exports = await serveImages(t, folder, sizes, limit)
  const where = (['data', 'metadata', 'state'] as const).flatMap(name => [
    `--${name}`,
    exports[name].address.text,
  ])
  const pool = await MountedPool.prepare(t, '', async file => {
    rmSync(file)
    const planned = await thinfs('init', dirname(file), ...where, '--dry-run')
    t.match(planned, /metadata.*: is there and would be used, 4M/)
    await thinfs('init', dirname(file), ...where)
  })
  await pool.mount()
  await thinfs('create', pool.folder, 'web', '--size', '32M')
  const web = join(pool.path, 'web')
  const plain = join(pool.plain, 'web')
  writeFileSync(plain, '')
  truncateSync(plain, 32 * MIB)
  const random = join(pool.base, 'random')
  writeFileSync(random, randomBytes(8 * MIB))
  const same = async (why: string): Promise<void> => {
    await run('dd', `of=${web}`, 'oflag=nocache', 'conv=notrunc', 'count=0', 'status=none')
    t.equal((await attempt('cmp', web, plain)).status, 0, why)
  }

  await pool.both(t, `dd if=${random} of=web bs=1M seek=3 conv=notrunc,fsync status=none`)
  await thinfs('snapshot', pool.folder, 'web', 'before')
  await pool.both(
    t,
    `dd if=${random} of=web bs=64K count=30 seek=20 skip=90 conv=notrunc status=none`,
  )
  await pool.killEngine()
  await same('what nobody had flushed when the engine was killed')
  t.match(await thinfs('list', pool.folder), /^web .*\n?.*before|before/m)
  await pool.both(t, `dd if=${random} of=web bs=64K count=30 seek=200 conv=notrunc status=none`)
  await thinfs('restart', pool.folder)
  await same('what nobody had flushed when the engine was replaced')

  process.kill((await pool.status()).mount!.pid!, 'SIGKILL')
  await until(() =>
    pool.status().then(
      ({ mount }) => mount!.pid === null,
      () => false,
    ),
  )
  await pool.both(t, `dd if=${random} of=web bs=64K count=30 seek=260 conv=notrunc status=none`)
  await pool.mount()
  await same('what nobody had flushed when another daemon took over')

  await exports.metadata.kill()
  const writing = pool.both(
    t,
    `dd if=${random} of=web bs=64K count=9 seek=330 conv=notrunc,fsync status=none`,
  )
  exports.metadata = await serveImage(t, imageOf(folder, 'metadata'), sizes.metadata, limit)
  await writing
  await same('what was flushed while there was no server of the metadata')

  // What is in use is found in the metadata, and read by way of the mount.
  const stream = join(pool.base, 'stream')
  const mapped = await thinfs('map', pool.folder, 'before')
  const delta = await thinfs('delta', pool.folder, 'before', 'web')
  t.match(mapped, /8M|blocks of 64K mapped/)
  t.match(delta, /blocks of 64K differ/)
  await run(
    'bash',
    '-c',
    `${process.execPath} bin/thinfs.js send ${pool.folder} before > ${stream}`,
  )
  await run(
    'bash',
    '-c',
    `${process.execPath} bin/thinfs.js receive ${pool.folder} again < ${stream}`,
  )
  t.equal((await attempt('cmp', join(pool.path, 'again'), join(pool.path, 'before'))).status, 0)
  await thinfs('message', pool.folder, 'reserve_metadata_snap')
  const snapshot = await thinfs('dump', pool.folder, '-m')
  t.match(snapshot, /<superblock .*<device dev_id="0"/s)
  await thinfs('message', pool.folder, 'release_metadata_snap')
  t.match(await thinfs('check', pool.folder), / metadata blocks in use/)
  await thinfs('remove', pool.folder, 'again', '--yes')

  await pool.umount()
  t.match(await thinfs('check', pool.folder, '--deep'), / 0 blocks unreadable/)
  t.match(thinCheck(imageOf(folder, 'metadata')), { status: 0 })
  const images = { metadata: imageOf(folder, 'metadata'), data: imageOf(folder, 'data') }
  t.same(await pool.strayData(images), [], 'every free block is a hole')
  const { stdout } = await attempt('thin_dump', imageOf(folder, 'metadata'))
  t.equal(
    await thinfs('dump', pool.folder),
    stdout.trimEnd(),
    'thinfs dump, as thin_dump of the image',
  )
  t.equal(await thinfs('map', pool.folder, 'before'), mapped)
  t.equal(await thinfs('delta', pool.folder, 'before', 'web'), delta)
  await run(
    'bash',
    '-c',
    `${process.execPath} bin/thinfs.js send ${pool.folder} before > ${stream}.2`,
  )
  t.equal((await attempt('cmp', stream, `${stream}.2`)).status, 0, 'the same stream, not mounted')
  t.match(await attemptThinfs('status', pool.folder), { status: 0, stdout: /nbd\+unix/ })

  const left = readdirSync(pool.folder)
  t.notOk(
    left.some(name => /^(volumes|journal|data|metadata)/.test(name)),
    'nothing of it is here',
  )
  const elsewhere = join(pool.base, 'elsewhere')
  mkdirSync(elsewhere)
  copyFileSync(join(pool.folder, 'pool.yaml'), join(elsewhere, 'pool.yaml'))
  await thinfs('mount', elsewhere, pool.path)
  t.match(await attemptThinfs('check', pool.folder), {
    status: 1,
    stderr: /is served by process \d+, .*elsewhere\/pool.yaml \(POOL_IN_USE\)/,
  })
  await same('all of it, by way of another folder')
  await thinfs('umount', elsewhere)
  t.match(thinCheck(imageOf(folder, 'metadata')), { status: 0 })
})
