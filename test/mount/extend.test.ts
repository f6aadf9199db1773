// Goal: a pool that is full to its last block of data, or of metadata, is dug out by `thinfs
// extend`: who waits goes on, whatever is killed meanwhile; and one with autoextend does not come
// to that. Method: pools of a few MiB, filled through the mount; dd and cmp judge, and thin_check
// at the end.
import { readFileSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import t, { type Test } from 'tap'
import { connectDaemon } from '../../src/control/index.js'
import { fill } from '../support/full-pool.js'
import {
  attempt,
  attemptThinfs,
  MountedPool,
  needs,
  readIfThere,
  sh,
  thinfs,
  until,
} from '../support/mounted-pool.js'

const onMount = needs('/dev/fuse')

/**
 * A mounted pool whose folder is a tmpfs: flushes cost nothing, and its size is all that the host
 * has.
 */
function onTmpfs(t: Test, yaml: string, size = '1G'): Promise<MountedPool> {
  return MountedPool.make(t, yaml, async file => {
    const folder = dirname(file)
    const base = dirname(folder)
    await sh(base, `cp pool/pool.yaml .; mount -t tmpfs -o size=${size},mode=700 tmpfs pool`)
    t.teardown(() => attempt('umount', '--lazy', folder))
    await sh(base, `sed -i 's#BASE#${base}#' pool.yaml; mv pool.yaml pool/`)
    await thinfs('init', file)
  })
}

t.test('data: writes that wait go on, though the engine is killed meanwhile', onMount, async t => {
  const pool = await onTmpfs(
    t,
    'data: { size: 16M } # small\nvolumes: { a: { size: 64M }, fill: { size: 1G } }\non_full: queue',
  )
  await fill(pool)
  await sh(pool.plain, 'head -c 12M /dev/urandom > random')
  const copy = attempt(
    'dd',
    `if=${join(pool.plain, 'random')}`,
    `of=${join(pool.path, 'a')}`,
    'bs=1M',
    'conv=notrunc,fsync',
  )
  await until(async () => (await pool.status()).writesWaiting > 0)
  await thinfs('extend', pool.folder, '--data', '+4M')
  t.equal((await pool.status()).data.blocks, 320)
  await until(async () => (await pool.status()).writesWaiting > 0)
  const pid = await pool.enginePid()
  const extended = attemptThinfs('extend', pool.folder, '--data', '64M')
  process.kill(pid, 'SIGKILL')
  t.match(await extended, { status: 0, stderr: '' })
  t.equal((await copy).status, 0)
  await pool.sh('cmp -n 12582912 ../plain/random a')
  const { mode, data } = await pool.status()
  t.same([mode, data.blocks], ['write', 1024])
  t.match(readFileSync(join(pool.folder, 'pool.yaml'), 'utf8'), 'data: { size: 64M } # small\n')
  await pool.close(t)
})

t.test('metadata: to its last block, and both at once', onMount, async t => {
  const pool = await onTmpfs(
    t,
    'data: { size: 256M }\nmetadata: { size: 2M }\nvolumes: { a: { size: 1G } }\non_full: error',
  )
  const daemon = (await connectDaemon({ file: '', folder: pool.folder }))!
  t.teardown(() => daemon.close())
  const file = await open(join(pool.path, 'a'), 'r+')
  t.teardown(() => file.close())
  const write = async (block: number): Promise<void> => {
    await file.write(Buffer.alloc(4096, block % 251), 0, 4096, block * 65536)
  }
  // Some twenty leaves, which a write to each of them copies once a snapshot shares them.
  for (let i = 0; i < 2000; i++) await write(i * 8)
  const isFull = (err: NodeJS.ErrnoException): true => {
    t.match(err, { code: /^(ENOSPC|NO_METADATA_SPACE)$/ })
    return true
  }
  let full = false
  for (let i = 0; !full; i++) {
    await daemon.snapshot({ origin: 'a', name: `s${i}` }).catch(isFull)
    for (let leaf = 0; leaf < 20 && !full; leaf++) {
      full = await write(leaf * 800 + i * 8).then(() => false, isFull)
    }
  }
  await thinfs('extend', pool.folder, '--metadata', '+2M', '--data', '1G')
  t.match(await pool.status(), {
    mode: 'write',
    metadata: { blocks: 1024 },
    data: { blocks: 16384 },
  })
  await write(8)
  await daemon.snapshot({ origin: 'a', name: 'after' })
  await file.sync()
  t.match(
    readFileSync(join(pool.folder, 'pool.yaml'), 'utf8'),
    'data: { size: 1G }\nmetadata: { size: 4M }\n',
  )
  await file.close()
  await pool.close(t)
})

t.test('autoextend: no write waits or fails, though engines are killed', onMount, async t => {
  const pool = await onTmpfs(
    t,
    `data: { size: 16M, autoextend: { threshold: 80%, percent: 50%, max: 80M } }
metadata: { size: 2M, autoextend: { threshold: 50% } }
volumes: { a: { size: 1G } }
on_full: error`,
  )
  await sh(pool.plain, 'head -c 60M /dev/urandom > random')
  const copy = attempt(
    'dd',
    `if=${join(pool.plain, 'random')}`,
    `of=${join(pool.path, 'a')}`,
    'bs=64K',
    'conv=notrunc,fsync',
  )
  for (const blocks of [256, 384, 576]) {
    await until(async () => (await pool.status()).data.blocks > blocks)
    await pool.killEngine()
  }
  t.equal((await copy).status, 0)
  await pool.sh('cmp -n 62914560 ../plain/random a')
  const { data, mode, warnings } = await pool.status()
  t.same([data.blocks, mode, warnings], [1280, 'write', []])
  t.equal((await sh(pool.folder, 'stat -c %s data')).trim(), String(80 * 2 ** 20))

  const more = await attempt('dd', 'if=/dev/zero', `of=${pool.path}/a`, 'bs=1M', 'seek=100')
  t.match(more, { status: 1, stderr: /No space left on device/ })
  t.match((await pool.status()).warnings, [/data: autoextend has come to its max/])
  const told = pool.log().filter(({ msg }) => /come to its max/.test(msg))
  t.equal(told.length, 1)
  await pool.sh('fallocate -p -o 0 -l 1G a; sync a')
  await until(async () => (await pool.status()).mode === 'write')
  await until(async () => (await pool.status()).warnings.length === 0)
  await pool.close(t)
})

t.test(
  'set: writes that wait fail at once, and an engine that follows knows it',
  onMount,
  async t => {
    const pool = await onTmpfs(
      t,
      'data: { size: 16M }\nvolumes: { a: { size: 64M }, fill: { size: 1G } }',
    )
    await fill(pool)
    const write = () =>
      attempt('dd', 'if=/dev/zero', `of=${pool.path}/a`, 'bs=64K', 'count=1', 'conv=notrunc')
    const waits = async (): Promise<boolean> => (await pool.status()).writesWaiting === 1
    const first = write()
    await until(waits)
    await thinfs('set', pool.folder, 'on_full=error')
    t.match(await first, { status: 1, stderr: /No space left on device/ })
    t.match(readIfThere(join(pool.folder, 'pool.yaml')), /^on_full: error$/m)
    await pool.killEngine()
    t.match(await pool.status(), { onFull: 'error', queueTimeout: 60 })
    t.match(await write(), { status: 1, stderr: /No space left on device/ })

    await thinfs('set', pool.folder, 'on_full=queue', 'queue_timeout=0')
    const second = write()
    await until(waits)
    t.match(
      await thinfs('status', pool.folder),
      /^on full +queue, for ever: 1 writes wait for space$/m,
    )
    await thinfs('set', pool.folder, 'queue_timeout=1')
    t.match(await second, { status: 1, stderr: /No space left on device/ })
    t.match(await thinfs('status', pool.folder, '--dm'), /error_if_no_space/)
    await pool.close(t)
  },
)

t.test('hooks: each event runs the command, and one that hangs hangs nothing', onMount, async t => {
  const yaml = `data: { size: 16M }
volumes: { fill: { size: 1G } }
on_full: error
hooks: |
  echo "$THINFS_EVENT $THINFS_MODE $THINFS_DATA_SIZE $THINFS_POOL_NAME" >> BASE/events
  echo "$THINFS_DATA_USED" > BASE/used
  ls -l /proc/$$/fd > BASE/descriptors
  if test "$THINFS_EVENT" = extended_data; then echo $$ > BASE/pid; exec sleep 55; fi`
  const pool = await onTmpfs(t, yaml)
  const events = join(pool.base, 'events')
  const lines = () => readIfThere(events).split('\n').slice(0, -1)
  await fill(pool)
  await until(() => lines().length === 1)
  t.same(lines(), ['low_water_data write 16777216 test'])
  t.ok(Number(readIfThere(join(pool.base, 'used'))) >= 12 * 2 ** 20)
  const descriptors = readIfThere(join(pool.base, 'descriptors'))
  t.notMatch(descriptors, new RegExp(`/dev/fuse|${pool.folder}`), 'it keeps nothing of the mount')
  const full = ['if=/dev/zero', `of=${pool.path}/fill`, 'bs=64K', 'seek=300', 'count=1']
  t.match(await attempt('dd', ...full), { status: 1, stderr: /No space left/ })
  await until(() => lines().length === 2)
  t.same(lines()[1], 'full_data out_of_data_space 16777216 test')
  await pool.sh('fallocate -p -o 0 -l 8M fill; sync fill')
  await until(() => lines().length === 3)
  t.same(lines()[2], 'mode write 16777216 test')
  await pool.sh('dd if=/dev/zero of=fill bs=64K count=80 conv=notrunc,fsync status=none')
  await until(() => lines().length === 4)
  t.match(lines()[3], /^low_water_data write/, 'it was better meanwhile')

  await thinfs('extend', pool.folder, '--data', '32M')
  await until(() => lines().length === 5)
  t.same(lines()[4], 'extended_data write 33554432 test')
  await until(() => readIfThere(join(pool.base, 'pid')).endsWith('\n'))
  const pid = Number(readIfThere(join(pool.base, 'pid')))
  t.teardown(() => {
    try {
      process.kill(pid, 'SIGKILL')
    } catch {} // Its minute is over.
  })
  await pool.remount()
  t.equal((await pool.status()).data.blocks, 512)
  await pool.close(t)
})

t.test("autoextend: no further than the host's disk can hold", onMount, async t => {
  const yaml = 'data: { size: 8M, autoextend: { percent: 100% } }\nvolumes: { a: { size: 1G } }'
  const pool = await onTmpfs(t, yaml, '40M')
  const size = async () => (await pool.status()).data.blocks
  await pool.sh('dd if=/dev/urandom of=a bs=64K count=200 conv=notrunc,fsync status=none')
  t.equal(await size(), 256)
  await pool.sh('dd if=/dev/urandom of=a bs=64K seek=200 count=30 conv=notrunc,fsync status=none')
  t.equal(await size(), 512)
  await pool.sh('dd if=/dev/urandom of=a bs=64K seek=230 count=200 conv=notrunc,fsync status=none')
  t.equal(await size(), 512)
  const why = /data: autoextend has stopped: the host's disk has \d+ bytes left/
  t.match((await pool.status()).warnings, [why])
  t.match(pool.log().filter(({ msg }) => why.test(msg)).length, 1)
  await pool.close(t)
})
