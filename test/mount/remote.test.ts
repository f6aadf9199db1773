// Goal: a pool whose data an NBD server has is a pool as any other: what was flushed is on the
// server, what is freed is a hole there, a killed engine loses nothing of what nobody has flushed,
// and a server that dies is waited for. Method: a mount over nbdkit and a file, against an ordinary
// file.
import { randomBytes } from 'node:crypto'
import { readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { MIB } from '../../src/base/index.js'
import type { PoolStatus } from '../../src/volumes/index.js'
import { attempt, MountedPool, needs, run, thinfs, until } from '../support/mounted-pool.js'
import { ServerProcess, shortFolder } from '../support/nbd-servers.js'

const SIZE = 64 * MIB

const status = async ({ folder }: MountedPool): Promise<PoolStatus> =>
  JSON.parse(await thinfs('status', folder, '--json'))

t.test('a pool with its data on an NBD server', needs('/dev/fuse'), async t => {
  const folder = shortFolder(t)
  const image = join(folder, 'image')
  writeFileSync(image, '')
  truncateSync(image, SIZE)
  const serve = (): Promise<ServerProcess> =>
    ServerProcess.nbdkit(t, folder, '--filter=limit', 'file', image, 'limit=1')
  let server = await serve()
  const yaml = `data: { nbd: "${server.address.text}" }
metadata: { size: 4M }
cache: { size: 8M }
volumes:
  web: { size: 32M }`
  const pool = await MountedPool.make(t, yaml)
  const web = join(pool.path, 'web')
  const plain = join(pool.plain, 'web')
  writeFileSync(plain, '')
  truncateSync(plain, 32 * MIB)
  const same = async (why: string): Promise<void> => {
    // From the server, or from the cache in front of it.
    await run('dd', `of=${web}`, 'oflag=nocache', 'conv=notrunc', 'count=0', 'status=none')
    t.equal((await attempt('cmp', web, plain)).status, 0, why)
  }

  // More than the cache has, at the edges of pages and in their middle.
  const random = join(pool.base, 'random')
  writeFileSync(random, randomBytes(24 * MIB))
  await pool.both(t, `dd if=${random} of=web bs=1M conv=notrunc,fsync status=none`)
  await pool.both(
    t,
    "printf 'a few bytes' | dd of=web bs=1 seek=70001 conv=notrunc,fsync status=none",
  )
  await same('what was written')
  t.ok(statSync(image).blocks * 512 >= 24 * MIB, 'is on the server')

  await thinfs('snapshot', pool.folder, 'web', 'before')
  await pool.both(t, 'fallocate --punch-hole --offset 1M --length 12M web')
  await pool.both(t, "printf 'more' | dd of=web bs=1 seek=20000000 conv=notrunc,fsync status=none")
  await same('what was written beside a snapshot')
  await thinfs('remove', pool.folder, 'before', '--yes')
  await run('sync', '--file-system', web)
  await until(() => statSync(image).blocks * 512 < 14 * MIB)

  await pool.both(
    t,
    `dd if=${random} of=web bs=64K count=30 seek=20 skip=90 conv=notrunc status=none`,
  )
  const { cache: before } = await status(pool)
  t.ok(before!.sentBytes >= 24 * MIB)
  // The daemon gives the next engine the counters that it was asked for last.
  await thinfs('stats', pool.folder)
  await pool.killEngine()
  const { cache: after } = await status(pool)
  t.ok(after!.sentBytes >= before!.sentBytes, 'an engine that died has counted')
  await same('what nobody had flushed when the engine was killed')

  process.kill((await pool.status()).mount!.pid!, 'SIGKILL')
  // In between nobody answers.
  await until(() =>
    pool.status().then(
      ({ mount }) => mount!.pid === null,
      () => false,
    ),
  )
  await pool.both(t, `dd if=${random} of=web bs=64K count=30 seek=60 conv=notrunc status=none`)
  await pool.mount()
  await same('what nobody had flushed when another daemon took over')

  await server.kill()
  const writing = pool.both(
    t,
    'dd if=/dev/zero of=web bs=4K count=900 seek=11 conv=notrunc,fsync status=none',
  )
  server = await serve()
  await writing
  await same('what was written while there was no server')
  t.ok(
    pool.log().some(({ msg }) => /connected again/.test(msg)),
    'the log tells of it',
  )

  const stats = await thinfs('stats', pool.folder)
  t.match(stats, /^CACHE +hit\/s +miss\/s .*\ntest +\d/m, 'the cache has a table of its own')
  const { cache } = await status(pool)
  t.equal(cache!.reconnects, 1)
  t.ok(cache!.misses > 0 && cache!.hits > 0 && cache!.flushes > 0 && cache!.dirtyLimit >= MIB)
  const metrics = await thinfs('metrics', pool.folder)
  t.match(metrics, /^thinfs_pool_cache_reconnects_total\{.*\} 1$/m)

  await pool.umount()
  const check = await thinfs('check', pool.folder, '--deep')
  t.match(check, / 0 blocks unreadable, 0 free ones hold data/)
  await pool.mount()
  t.ok(readFileSync(web).equals(readFileSync(plain)), 'all of it, after another mount')
  await pool.umount()
})
