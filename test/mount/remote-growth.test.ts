// Goal: a pool on disks of other machines takes what these have become while it is mounted,
// whatever is killed meanwhile, and is kept from disks that have become smaller. Method: a mount
// over nbdkit with images, which is started again on larger ones, against an ordinary file;
// thin_check judges.
import { randomBytes } from 'node:crypto'
import { readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { MIB } from '../../src/base/index.js'
import {
  attempt,
  attemptThinfs,
  MountedPool,
  needs,
  run,
  sh,
  thinfs,
  until,
} from '../support/mounted-pool.js'
import {
  type Exports,
  exportLines,
  imageOf,
  ServerProcess,
  serveImage,
  serveImages,
  shortFolder,
} from '../support/nbd-servers.js'
import { thinCheck } from '../support/thin-tools.js'

const LIMIT = ['--filter=limit']

/** A mounted pool of 16 MiB with a volume of 64 MiB, and its three servers. */
async function farPool(t: Test): Promise<{ pool: MountedPool; exports: Exports; folder: string }> {
  const folder = shortFolder(t)
  const exports = await serveImages(t, folder, { data: 16 * MIB, metadata: 2 * MIB }, LIMIT)
  const more = 'cache: { size: 4M }\non_full: queue\nvolumes: { web: { size: 64M } }'
  const pool = await MountedPool.make(t, `${exportLines(exports)}${more}`)
  writeFileSync(join(pool.plain, 'web'), '')
  truncateSync(join(pool.plain, 'web'), 64 * MIB)
  writeFileSync(join(pool.base, 'random'), randomBytes(24 * MIB))
  return { pool, exports, folder }
}

/** Ends a server and starts it again on an image of that size. */
async function serveAgain(
  t: Test,
  { exports, folder }: { exports: Exports; folder: string },
  name: keyof Exports,
  size: number,
): Promise<void> {
  await exports[name].kill()
  truncateSync(imageOf(folder, name), size)
  exports[name] = await serveImage(t, imageOf(folder, name), size, LIMIT)
}

t.test('larger exports are taken while it is mounted', needs('/dev/fuse'), async t => {
  const far = await farPool(t)
  const { pool, folder } = far
  const random = join(pool.base, 'random')
  const same = async (why: string): Promise<void> => {
    await run(
      'dd',
      `of=${join(pool.path, 'web')}`,
      'oflag=nocache',
      'conv=notrunc',
      'count=0',
      'status=none',
    )
    t.equal((await attempt('cmp', join(pool.path, 'web'), join(pool.plain, 'web'))).status, 0, why)
  }

  t.match(await attemptThinfs('extend', pool.folder, '--data', '+16M'), {
    status: 2,
    stderr: /^thinfs: nbd.* has 16777216 bytes, 33554432 are wanted: .*start its server again.*\n$/,
  })
  t.match(await attemptThinfs('extend', pool.folder, '--metadata', '+2M'), {
    status: 2,
    stderr: /^thinfs: nbd.* has 2097152 bytes, 4194304 are wanted: .*start its server again.*\n$/,
  })

  // 24 MiB into 16: it waits, until there is more.
  const writing = pool.both(t, `dd if=${random} of=web bs=1M conv=notrunc,fsync status=none`)
  await until(async () => (await pool.status()).writesWaiting > 0)
  await serveAgain(t, far, 'data', 40 * MIB)
  await writing
  t.equal((await pool.status()).data.blocks, 640)
  await same('what waited for the larger export')

  await serveAgain(t, far, 'metadata', 6 * MIB)
  await serveAgain(t, far, 'data', 64 * MIB)
  await until(() => pool.log().filter(({ msg }) => /connected again/.test(msg)).length >= 3)
  t.match(await thinfs('extend', pool.folder), /^data: 64M, it was 40M\nmetadata: 6M, it was 2M$/)
  await pool.both(t, `dd if=${random} of=web bs=1M seek=40 conv=notrunc status=none`)
  await pool.killEngine()
  await same('what nobody had flushed of the new part when the engine was killed')
  await sh(pool.path, 'sync -f web')

  await pool.umount()
  t.match(thinCheck(imageOf(folder, 'metadata')), { status: 0 })
  t.match(await thinfs('check', pool.folder, '--deep'), / 0 blocks unreadable/)
  await pool.mount()
  t.ok(readFileSync(join(pool.path, 'web')).equals(readFileSync(join(pool.plain, 'web'))))
  await pool.umount()

  // A server that comes back with less of it.
  await pool.mount()
  const image = imageOf(folder, 'data')
  const smaller = (): Promise<ServerProcess> =>
    ServerProcess.nbdkit(
      t,
      `${image}.d`,
      ...['--filter=limit', '--filter=truncate', 'file', image, 'truncate=32M'],
    )
  const before = readFileSync(image)
  await far.exports.data.kill()
  far.exports.data = await smaller()
  const lost = await pool.failure(`dd if=${random} of=web bs=1M count=1 conv=notrunc,fsync`)
  t.match(lost, /Input\/output error/)
  const { reason } = await pool.status()
  t.match(reason, /the export has 33554432 bytes now, it had 67108864: .* make it as large again/)
  await attemptThinfs('umount', '--force', pool.folder)
  t.match(await attemptThinfs('mount', pool.folder, pool.path), {
    status: 1,
    stderr: /512 blocks, the pool has 1024: the rest of it is missing \(POOL_MISMATCH\)\n$/,
  })
  t.ok(readFileSync(image).equals(before), 'nothing was written')
  await far.exports.data.kill()
  far.exports.data = await serveImage(t, image, 64 * MIB, LIMIT)
  await pool.mount()
  t.ok(readFileSync(join(pool.path, 'web')).equals(readFileSync(join(pool.plain, 'web'))))
  await pool.umount()
})
