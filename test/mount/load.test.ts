// Goal: under load, and under load while the engine is killed, every byte that was acknowledged is
// read back. Method: fio writes blocks that carry their own checksum and place, and verifies them.
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { killServingEngines } from '../support/engine-killer.js'
import { MountedPool, needs, run, sh, thinfs } from '../support/mounted-pool.js'

const onMount = needs('/dev/fuse')
const onLoop = needs('/dev/fuse', '/dev/loop-control')

/** A command that writes, then verifies, and fails at the first wrong block. */
const fio = (file: string, options: string): string =>
  `fio --name=verify --filename=${file} --ioengine=libaio --direct=1 --verify=crc32c ` +
  `--verify_fatal=1 --verify_state_save=0 --rw=randwrite --randseed=7 ${options} > ../fio.log 2>&1 || { cat ../fio.log; false; }`

t.test('requests of every size, many at once', onMount, async t => {
  const pool = await MountedPool.make(t, 'data: { size: 256M }\nvolumes: { a: { size: 96M } }')
  for (const options of [
    '--size=96M --iodepth=16 --bsrange=4k-1M --blockalign=4k',
    '--size=96M --iodepth=16 --bsrange=4k-1M --blockalign=4k --rw=randrw',
    '--size=96M --iodepth=32 --bsrange=512-300k --blockalign=512',
    '--size=96M --iodepth=32 --bs=64k',
    '--size=32M --bs=13k --ioengine=psync --direct=0 --fsync=50',
  ]) {
    t.equal(await pool.sh(fio('a', options)), '', options)
  }
  const sum = await pool.sh('sha256sum a')
  await pool.remount()
  t.equal(await pool.sh('sha256sum a'), sum)
  await pool.close(t)
})

t.test('data blocks of 4 KiB', onMount, async t => {
  const pool = await MountedPool.make(
    t,
    'data: { size: 128M }\ndata_block_size: 4K\nvolumes: { a: { size: 64M } }',
  )
  const options = '--size=64M --iodepth=16 --bsrange=512-256k --blockalign=512'
  t.equal(await pool.sh(fio('a', options)), '')
  await thinfs('snapshot', pool.folder, 'a', 'b')
  const sum = await pool.sh('sha256sum < b')
  t.equal(await pool.sh(fio('a', '--size=32M --bs=4k --iodepth=16')), '', 'sharing is broken')
  await pool.sh('fallocate -p -o 33M -l 20M a; fallocate -p -o 33M -l 20M b')
  await sh(pool.plain, 'cp ../mount/a a; cp ../mount/b b')
  await pool.remount()
  t.equal(await pool.sh('cmp a ../plain/a; cmp b ../plain/b'), '')
  await sh(pool.plain, 'dd if=/dev/zero of=b bs=1M seek=33 count=20 conv=notrunc status=none')
  await pool.sh('cmp b ../plain/b')
  t.not(sum, await pool.sh('sha256sum < b'))
  await pool.close(t)
})

t.test('snapshots stay as they were while their origin is written to', onMount, async t => {
  const pool = await MountedPool.make(t, 'data: { size: 512M }\nvolumes: { a: { size: 64M } }')
  await pool.sh('dd if=/dev/urandom of=a bs=1M count=64 conv=notrunc status=none')
  const load = untilStopped(pool, fio('a', '--size=64M --bsrange=4k-128k --iodepth=16'))
  const sums: string[] = []
  for (let i = 0; i < 4; i++) {
    await thinfs('snapshot', pool.folder, i % 2 ? `a@${i - 1}` : 'a', `a@${i}`)
    sums.push(await pool.sh(`sha256sum a@${i}`))
  }
  await load.stop()
  t.equal(await pool.sh('sha256sum a@*'), sums.join('\n'))
  t.equal(sums[0]!.slice(0, 64), sums[1]!.slice(0, 64), 'of one that was not written to')
  await pool.remount()
  t.equal(await pool.sh('sha256sum a@*'), sums.join('\n'))
  await pool.close(t)
})

t.test('data that is in no cache, and blocks that are shared with it', onMount, async t => {
  const pool = await MountedPool.make(t, 'data: { size: 256M }\nvolumes: { a: { size: 64M } }')
  await pool.sh(`dd if=/dev/urandom of=a bs=1M count=64 conv=notrunc,fsync status=none`)
  await thinfs('snapshot', pool.folder, 'a', 'b')
  const sum = await pool.sh('sha256sum < b')
  const drop = `dd of=${pool.data} oflag=nocache conv=notrunc,fdatasync count=0 status=none`
  const dropped = untilStopped(pool, `${drop}; echo >> ../dropped`)
  for (const options of [
    '--size=64M --iodepth=16 --bs=4k --rw=randrw',
    '--size=64M --iodepth=16 --bsrange=512-200k --blockalign=512 --rw=randrw',
    '--size=64M --iodepth=4 --bs=1M',
  ]) {
    t.equal(await pool.sh(fio('a', options)), '', options)
    await pool.sh('fallocate -p -o 7M -l 9M a')
  }
  await dropped.stop()
  t.ok(Number(await pool.sh('wc -l < ../dropped')) > 3, 'the cache was dropped meanwhile')
  await pool.sh(drop)
  t.equal(await pool.sh('sha256sum < b'), sum)
  await pool.close(t)
})

t.test('an engine that is killed is no error to anybody', onMount, async t => {
  const pool = await MountedPool.make(t, 'data: { size: 256M }\nvolumes: { a: { size: 64M } }')
  // New blocks in every round, so that the journal has something to keep.
  const load = untilStopped(
    pool,
    `fallocate -p -o 0 -l 64M a; ${fio('a', '--size=64M --bs=4k --iodepth=16')}`,
  )
  const names = untilStopped(
    pool,
    'truncate -s 1M b; echo text | dd of=b bs=64K seek=3 conv=notrunc,fsync status=none; mv b c; tail -c 5 c > /dev/null; rm c',
  )
  for (let death = 0; death < 3; death++) await pool.killEngine()
  await names.stop()
  await load.stop()
  await sh(pool.plain, 'cp ../mount/a a')
  await pool.remount()
  t.equal(await pool.sh('cmp a ../plain/a; ls'), 'a')
  await pool.close(t)
})

t.test('nor are twelve that are killed as soon as each has served', onMount, async t => {
  const pool = await MountedPool.make(
    t,
    'data: { size: 256M }\nvolumes: { a: { size: 64M }, b: { size: 1M } }',
  )
  const load = untilStopped(pool, fio('a', '--size=64M --bs=4k --iodepth=16 --fsync=32'))
  await killServingEngines(pool, 12, () =>
    pool.sh('dd if=/dev/urandom of=b bs=4k count=1 oflag=direct conv=notrunc,fsync status=none'),
  )
  await load.stop()
  const deaths = pool.log().filter(({ msg }) => msg === 'engine died, starting another')
  t.equal(deaths.length, 12)
  // The word of an engine that it has served may be on its way when it is killed: that is one death
  // without progress, and the next engine's word ends the count.
  t.ok(Math.max(...deaths.map(({ delayMs }) => Number(delayMs))) <= 100, 'no count went on')
  await pool.close(t)
})

t.test('nor to a filesystem on its loop device', onLoop, async t => {
  const pool = await MountedPool.make(t, 'data: { size: 256M }\nvolumes: { a: { size: 256M } }')
  const { device, at } = await pool.mountExt4('a')
  const load = untilStopped(
    pool,
    `cd ${at}; ${fio('file', '--size=64M --bs=16k --iodepth=16')}; rm file; fstrim .`,
  )
  for (let death = 0; death < 3; death++) await pool.killEngine()
  await load.stop()
  await sh(at, 'seq 1000000 > seq')
  await run('umount', at)
  t.ok(await run('e2fsck', '-fn', device))
  await pool.detach('a')
  await pool.close(t)
})

/** Runs a script in the mount again and again; `stop` waits for the round at hand. */
function untilStopped(pool: MountedPool, script: string): { stop(): Promise<void> } {
  const file = join(pool.base, `stop-${++stops}`)
  const rounds = pool.sh(`until [ -e ${file} ]; do (${script}); done`)
  // What goes wrong meanwhile is for stop() to tell.
  rounds.catch(() => {})
  return {
    async stop() {
      writeFileSync(file, '')
      await rounds
    },
  }
}
let stops = 0
