// Goal: a full pool is emptied with what people have for that, fstrim and rm, whatever snapshots
// share and whoever waits; and growing it wakes those who wait. Method: pools of a few MiB, filled
// through the mount, ext4 on a loop device above; e2fsck and checksums judge.
import { copyFileSync, existsSync, readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import t, { type Test } from 'tap'
import { fill, KILLED_WRITER, killedWriter, usedBlocks } from '../support/full-pool.js'
import {
  attempt,
  attemptThinfs,
  MountedPool,
  needs,
  python,
  run,
  sh,
  thinfs,
  until,
} from '../support/mounted-pool.js'

const PROGRAM = resolve(import.meta.dirname, '../../bin/thinfs.js')
const RESIZE = [process.execPath, PROGRAM, 'resize']
const onMount = needs('/dev/fuse', '/dev/loop-control')
const MODES = ['error', 'queue']

for (const onFull of MODES) {
  t.test(`${onFull}: a punch frees whole blocks though its edges are shared`, onMount, async t => {
    const pool = await MountedPool.make(
      t,
      `data: { size: 32M }\nvolumes: { a: { size: 64M }, fill: { size: 1G } }\non_full: ${onFull}`,
    )
    const random = 'dd if=/dev/urandom of=a bs=1M conv=notrunc,fsync status=none'
    await pool.sh(`${random} count=16`)
    await thinfs('snapshot', pool.folder, 'a', 's')
    await pool.sh(`${random} count=10 seek=2; cp a ../plain/a; cp s ../plain/s`)
    await fill(pool)
    t.equal(await usedBlocks(pool), 512)
    // What follows the first 4 KiB of a shared block, 10 MiB that are a's alone, half a shared
    // block.
    await pool.sh('fallocate -p -o 1052672 -l 11567104 a; sync a')
    await sh(pool.plain, 'fallocate -p -o 1052672 -l 11567104 a')
    await until(async () => (await usedBlocks(pool)) < 512 - 150)
    await pool.sh('cmp a ../plain/a; cmp s ../plain/s')
    await pool.close(t)
  })

  t.test(`${onFull}: fstrim of an ext4 that a snapshot shares`, onMount, async t => {
    const pool = await MountedPool.make(
      t,
      `data: { size: 128M }\nvolumes: { a: { size: 512M }, fill: { size: 1G } }\non_full: ${onFull}`,
    )
    const { disk, folder } = await onExt4(t, pool)
    await sh(
      folder,
      `for i in $(seq 60); do head -c $((300000 + i * 7000)) /dev/urandom > f$i; done; sync -f .`,
    )
    await thinfs('snapshot', pool.folder, 'a', 's', '--freeze', folder)
    await sh(folder, 'head -c 20M /dev/urandom > unshared; sync -f .')
    await sh(
      folder,
      'rm unshared; for i in $(seq 2 2 60); do rm f$i; done; sync -f .; sha256sum f* > ../sums',
    )
    await fill(pool)
    const before = await usedBlocks(pool)
    await run('fstrim', folder)
    await until(async () => (await usedBlocks(pool)) < before - 200)
    await until(async () => (await pool.status()).mode === 'write')
    await sh(folder, 'sha256sum --quiet -c ../sums')
    await run('umount', folder)
    await run('e2fsck', '-fn', disk)
    await pool.detach('a')
    await pool.close(t)
  })

  t.test(`${onFull}: a pool that grows under an ext4`, onMount, async t => {
    const pool = await MountedPool.make(
      t,
      `data: { size: 64M }\nvolumes: { a: { size: 1G } }\non_full: ${onFull}`,
    )
    const { disk, folder } = await onExt4(t, pool)
    await sh(folder, 'head -c 16M /dev/urandom > keep; sync keep; sha256sum keep > ../sums')
    let ended = false
    const copy = attempt(
      'dd',
      'if=/dev/zero',
      `of=${folder}/big`,
      'bs=1M',
      'count=100',
      'conv=fsync',
    ).finally(() => {
      ended = true
    })
    await until(async () => (await pool.status()).mode === 'out_of_data_space')
    await sh(pool.folder, 'sed -i s/64M/512M/ pool.yaml')
    await thinfs('restart', pool.folder)
    const { status } = await copy
    t.equal(ended, true)
    if (onFull === 'queue') t.equal(status, 0, 'who waited goes on')
    await until(async () => (await pool.status()).mode === 'write')
    await attempt('umount', folder)
    await attempt('e2fsck', '-fy', disk)
    await run('mount', disk, folder)
    await sh(folder, 'sha256sum --quiet -c ../sums')
    await sh(folder, 'head -c 20M /dev/urandom > after; sync after; rm -f big; sync -f .')
    await run('fstrim', folder)
    await run('umount', folder)
    await run('e2fsck', '-fn', disk)
    await pool.detach('a')
    await pool.close(t)
  })
}

/** An ext4 on volume a, mounted. */
async function onExt4(t: Test, pool: MountedPool): Promise<{ disk: string; folder: string }> {
  const disk = await pool.attach('a')
  await run('mkfs.ext4', '-q', disk)
  const folder = `${pool.base}/ext4`
  await sh(pool.base, 'mkdir ext4')
  await run('mount', disk, folder)
  t.teardown(() => attempt('umount', '--lazy', folder))
  return { disk, folder }
}

t.test('a snapshot does not wait for a write that waits for space', onMount, async t => {
  const pool = await MountedPool.make(
    t,
    'data: { size: 32M }\nvolumes: { a: { size: 64M }, b: { size: 128K }, fill: { size: 1G } }\n' +
      'on_full: queue',
  )
  await pool.sh('dd if=/dev/urandom of=a bs=1M count=4 conv=notrunc,fsync status=none')
  // To grow, it has to zero the rest of a block that a snapshot has as well.
  await pool.sh('head -c 128K /dev/urandom > b; truncate -s 100K b; sync b')
  await thinfs('snapshot', pool.folder, 'b', 'c')
  await fill(pool)
  let ended = false
  const write = attempt(
    'dd',
    'if=/dev/zero',
    `of=${pool.path}/a`,
    'bs=64K',
    'count=1',
    'seek=500',
    'conv=notrunc',
    'oflag=direct',
  ).finally(() => {
    ended = true
  })
  await until(async () => (await pool.status()).writesWaiting === 1)
  const { status, stderr } = await attemptThinfs('snapshot', pool.folder, 'a', 's')
  t.equal(ended, false, 'the write waits still')
  t.equal(status, 0)
  t.match(stderr, /writes wait for space/)
  await pool.sh('cmp -n 4194304 s a')
  const said = join(pool.base, 'said')
  const grow = attempt(
    'bash',
    '-c',
    `exec "$@" 2> ${said}`,
    'bash',
    ...RESIZE,
    pool.folder,
    'b',
    '1M',
  )
  await until(() => existsSync(said) && readFileSync(said, 'utf8') !== '')
  t.match(readFileSync(said, 'utf8'), /^thinfs: the pool is full: this waits for space/)
  await pool.sh('fallocate -p -o 0 -l 1M fill')
  t.equal((await grow).status, 0)
  t.equal((await write).status, 0)
  await pool.close(t)
})

t.test('a program that waits for space is killed at once', onMount, async t => {
  const pool = await MountedPool.make(t, KILLED_WRITER)
  await killedWriter(t, pool)
  await pool.close(t)
})

t.test('a pool whose metadata is full is emptied', onMount, async t => {
  const pool = await MountedPool.make(
    t,
    'data: { size: 64G }\nmetadata: { size: 2M }\nvolumes: { a: { size: 1T } }\non_full: error',
  )
  // Writes far from each other, then snapshots, after each of which writes have nodes copied.
  const program = `
import errno, os, random, subprocess
random.seed(1)
file = os.open('mount/a', os.O_RDWR)
blocks = [random.randrange(2 ** 24) for _ in range(4000)]
def write(blocks):
    for block in blocks: os.pwrite(file, b'x' * 512, block * 65536)
try:
    write(blocks)
    for nr in range(1000):
        command = ['${process.execPath}', '${PROGRAM}', 'snapshot', 'pool', 'a', f't{nr}']
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        write(random.sample(blocks, 60))
except OSError as err:
    assert err.errno == errno.ENOSPC, err
print('full')`
  for (let i = 0; i < 4; i++) {
    await pool.sh(
      'dd if=/dev/urandom of=a bs=4K count=64 seek=$((RANDOM * 1000)) conv=notrunc status=none',
    )
    await thinfs('snapshot', pool.folder, 'a', `s${i}`)
  }
  t.equal(await python(pool.base, program), 'full')
  t.equal((await pool.status()).mode, 'out_of_metadata_space')
  const delta = await thinfs('delta', pool.folder, 'a', 's1', '--format', 'xml')
  const [left, right] = /left="(\d+)" right="(\d+)"/.exec(delta)!.slice(1) as [string, string]
  const tool = ['--thin1', left, '--thin2', right, join(pool.base, 'copy')]
  // The command has held both, which goes as it ends: commits, each with a transaction id.
  const differences = (xml: string): string => xml.replace(/ transaction="\d+"/, '').trim()
  let found = ''
  for (let looks = 0; looks < 100 && found !== differences(delta); looks++) {
    copyFileSync(pool.metadata, join(pool.base, 'copy'))
    found = differences((await attempt('thin_delta', ...tool)).stdout)
  }
  t.equal(differences(delta), found, 'differences are found without any room')
  t.match(await thinfs('map', pool.folder, 'a'), / blocks of 64K mapped, in /)
  await thinfs('rename', pool.folder, 's0', 'first')
  await pool.sh('fallocate -p -o 0 -l 512G a; truncate -s 1G s1; rm s2 t0 t1 t2 t3')
  // As in the kernel, messages are refused until a commit has brought room.
  await until(async () => (await pool.status()).mode === 'write')
  await thinfs('message', pool.folder, 'delete 4')
  await thinfs('snapshot', pool.folder, 'a', 'again')
  const others = (await pool.sh("ls | grep '^t' || true")).split('\n').filter(Boolean)
  await thinfs('remove', '--yes', pool.folder, 'first', 's1', 'again', 'a', ...others)
  await until(async () => (await usedBlocks(pool)) === 0)
  t.equal((await pool.status()).mode, 'write')
  await pool.close(t)
})
