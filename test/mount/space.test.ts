// Goal: who takes how much of a pool is as the rules of its volumes have it, and what programs and
// df see of that. Method: pools of a few MiB, filled through the mount.
import { dirname, join } from 'node:path'
import t from 'tap'
import type { VolumeInfo } from '../../src/volumes/index.js'
import { fill, usedBlocks } from '../support/full-pool.js'
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

const onMount = needs('/dev/fuse')
const onLoop = needs('/dev/fuse', '/dev/loop-control')

async function list(pool: MountedPool): Promise<Map<string, VolumeInfo>> {
  const volumes: VolumeInfo[] = JSON.parse(await thinfs('list', pool.folder, '--json'))
  return new Map(volumes.map(volume => [volume.name, volume]))
}

t.test('a volume with a limit, and one with a reserve', onMount, async t => {
  const yaml = `data: { size: 16M }
volumes: { a: { size: 64M, limit: 2M }, b: { size: 64M, reserve: 4M }, fill: { size: 1G } }`
  const pool = await MountedPool.make(t, yaml)
  const dd = (to: string, ...more: string[]) =>
    attempt('dd', 'if=/dev/zero', `of=${pool.path}/${to}`, 'conv=notrunc,fsync', 'bs=64K', ...more)
  const refused = { status: 1, stderr: /No space left on device/ }

  t.match(await dd('a', 'count=40'), refused, 'at once, though on_full is queue')
  t.equal((await list(pool)).get('a')!.mapped, 2 ** 21)
  t.match(await dd('a', 'seek=100', 'count=1'), refused)
  const events = await thinfs('events', pool.folder, '--since', '1h', '--no-follow')
  t.equal(events.match(/"event":"limit_reached".*"volume":"a"/g)?.length, 1, 'told of once')
  t.match(await thinfs('status', pool.folder), /^warning +a: it maps 2M of its limit of 2M: /m)
  await thinfs('snapshot', pool.folder, 'a', 'a@1')
  t.match(await dd('a', 'count=32'), { status: 0 }, 'what is mapped is written, shared or not')
  await thinfs('snapshot', pool.folder, 'a', 'a@2')
  const exclusive = await thinfs('list', pool.folder, '--exclusive', 'a', 'a@2')
  t.match(exclusive, /^a .* 2M +[\d.]+ +0 /m)
  t.match(exclusive, /^removing all of these gives back 2M$/m)
  const json = await thinfs('list', pool.folder, '--exclusive', '--json', 'a', 'a@1', 'a@2')
  t.match(JSON.parse(json), { together: 2 ** 22, volumes: { length: 3 } })
  const missing = await attemptThinfs('list', pool.folder, '--exclusive', 'z')
  t.match(missing, { status: 1, stderr: /z: no volume has the name \(VOLUME_MISSING\)$/m })
  await pool.sh('fallocate -p -o 0 -l 64K a')
  t.match(await dd('a', 'count=1', 'seek=500'), { status: 0 }, 'what was discarded counts no more')
  t.match(await dd('a', 'count=1', 'seek=501'), refused)
  await thinfs('set', pool.folder, 'a', 'limit=none')
  t.match(await dd('a', 'count=1', 'seek=501'), { status: 0 })
  t.notMatch(await thinfs('status', pool.folder), /^warning/m)

  await thinfs('set', pool.folder, 'on_full=error')
  t.match(await dd('b', 'count=16'), { status: 0 })
  await fill(pool)
  t.equal(await usedBlocks(pool), 256 - 48)
  t.match(await dd('fill', 'count=1', 'seek=5000'), refused)
  t.match(await pool.status(), { mode: 'out_of_data_space', reason: /reserved for volumes/ })
  t.match(await thinfs('status', pool.folder), /^reserved +3M of what is free$/m)
  t.match(await thinfs('list', pool.folder), /^b .* 4M .*$/m)
  await pool.killEngine()
  t.match(await dd('fill', 'count=1', 'seek=5000'), refused)
  const snapshot = await attemptThinfs('snapshot', pool.folder, 'b', 'b@1')
  t.match(snapshot, {
    status: 1,
    stderr: /1048576 bytes more would have to be reserved.*\(NO_DATA_SPACE\)$/m,
  })
  t.match(await dd('b', 'count=48', 'seek=100'), { status: 0 }, 'not one of its writes is refused')
  t.equal(await usedBlocks(pool), 256)
  t.match(await dd('b', 'count=1', 'seek=500'), refused)
  await pool.sh('fallocate -p -o 0 -l 4M fill; sync fill')
  await until(async () => (await usedBlocks(pool)) === 192)
  await thinfs('snapshot', pool.folder, 'b', 'b@1')
  await fill(pool)
  t.match(await dd('b', 'count=16'), { status: 0 }, 'a snapshot shares them')
  const rules = await attemptThinfs('set', pool.folder, 'b', 'limit=1M')
  t.match(rules, { status: 2, stderr: /more than the limit.*\(BAD_ARGUMENT\)$/m })
  await pool.remount()
  t.match((await list(pool)).get('b'), { limit: null, reserve: 2 ** 22 })
  const kept = await attemptThinfs('rollback', pool.folder, 'b', 'b@1')
  t.match(kept, { status: 1, stderr: /would have to be reserved/ }, 'what it was would be kept')
  await thinfs('rollback', pool.folder, 'b', 'b@1', '--no-keep', '--yes')
  t.match((await list(pool)).get('b'), { limit: null, reserve: 2 ** 22 })
  await thinfs('remove', pool.folder, 'fill', '--yes')
  const more = await attemptThinfs('set', pool.folder, 'b', 'reserve=1G')
  t.match(more, { status: 1, stderr: /would have to be reserved.*\(NO_DATA_SPACE\)$/m })
  await thinfs('set', pool.folder, 'b', 'reserve=none')
  t.notMatch(await thinfs('list', pool.folder), /RESERVE/)
  const created = ['create', pool.folder, 'c', '--size', '1G', '--limit', '3M', '--reserve', '2M']
  await thinfs(...created)
  t.match((await list(pool)).get('c'), { limit: 3 * 2 ** 20, reserve: 2 ** 21 })
  await pool.close(t)
})

t.test('discards smaller than a block add up, on ext4', onLoop, async t => {
  const yaml = 'data: { size: 16M }\nvolumes: { a: { size: 64M } }'
  const pool = await MountedPool.make(t, yaml, async file => {
    const folder = dirname(file)
    const base = dirname(folder)
    await sh(base, 'truncate -s 64M disk; mkfs.ext4 -q -m 0 disk; cp pool/pool.yaml .')
    const disk = await run('losetup', '--find', '--show', join(base, 'disk'))
    t.teardown(async () => {
      await attempt('umount', '--lazy', folder)
      await attempt('losetup', '--detach', disk)
    })
    await run('mount', disk, folder)
    await sh(base, 'mv pool.yaml pool/; chmod 600 pool/pool.yaml; chmod 700 pool')
    await thinfs('init', file)
  })
  await sh(pool.plain, 'head -c 256K /dev/urandom > a')
  await pool.sh('dd if=../plain/a of=a conv=notrunc,fsync status=none')
  t.equal(await usedBlocks(pool), 4)
  // Those of each block in an order of its own, but for one piece of the last.
  const punch = (pieces: string) =>
    `for i in ${pieces}; do fallocate -p -o $((i * 4096)) -l 4096 a; done; sync a`
  const first = `$(seq 0 2 63)`
  await pool.sh(punch(first))
  t.equal(await usedBlocks(pool), 4)
  await pool.killEngine()
  const rest = '$(seq 61 -2 1)'
  await pool.sh(punch(rest))
  await until(async () => (await usedBlocks(pool)) === 1)
  await sh(pool.plain, `${punch(first)}; ${punch(rest)}`)
  await pool.sh('cmp -n 262144 a ../plain/a')
  await pool.sh('fallocate -p -o 258048 -l 4096 a; sync a')
  await until(async () => (await usedBlocks(pool)) === 0)
  await pool.close(t)
})
