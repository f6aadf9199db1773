// Goal: when the host's disk has not one free byte, space that the pool has taken can be given
// back: a pool can be mounted, listed, trimmed, unmounted, its volumes and snapshots removed, in
// any order, by processes that were killed before, too. Method: the pool's folder is a small tmpfs,
// or an ext4 on a loop device, and another file takes what is left of it. (Quotas do not bind root:
// test/pool has EDQUOT.)
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { attempt, MountedPool, needs, run, sh, thinfs, until } from '../support/mounted-pool.js'

const onMount = needs('/dev/fuse', '/dev/loop-control')
const MIB = 2 ** 20

/**
 * What makes the folder of a pool a file system of 64 MiB, and what takes all that is left of it.
 */
const HOSTS: Record<string, { make: (t: Test, base: string) => Promise<void>; fill: string }> = {
  tmpfs: {
    make: async (_t, base) => {
      await sh(base, 'mount -t tmpfs -o size=64M,mode=700 tmpfs pool')
    },
    fill: 'dd if=/dev/zero of=filler bs=1M status=none; dd if=/dev/zero of=filler2 bs=4K status=none',
  },
  ext4: {
    make: async (t, base) => {
      const disk = await makeDisk(t, base)
      await run('mount', disk, join(base, 'pool'))
    },
    fill: 'dd if=/dev/zero of=filler bs=1M status=none; dd if=/dev/zero of=filler2 bs=1K status=none; sync -f .',
  },
}

async function makeDisk(t: Test, base: string): Promise<string> {
  await sh(base, 'truncate -s 64M disk')
  await run('mkfs.ext4', '-q', '-m', '0', join(base, 'disk'))
  const disk = await run('losetup', '--find', '--show', join(base, 'disk'))
  t.teardown(async () => {
    await attempt('umount', '--lazy', join(base, 'pool'))
    await attempt('losetup', '--detach', disk)
  })
  await sh(base, 'chmod 700 pool')
  return disk
}

async function onHost(t: Test, name: string, onFull: string): Promise<MountedPool> {
  const yaml = `data: { size: 1G }\nmetadata: { size: 16M }\non_full: ${onFull}`
  const pool = await MountedPool.make(t, yaml, async file => {
    const base = join(file, '../..')
    await sh(base, 'cp pool/pool.yaml .')
    await HOSTS[name]!.make(t, base)
    await sh(base, 'cp pool.yaml pool/; chmod 600 pool/pool.yaml; chmod 700 pool')
    await thinfs('init', file)
  })
  for (const volume of ['a', 'b', 'c']) await thinfs('create', pool.folder, volume, '--size', '64M')
  await sh(pool.plain, 'head -c 8M /dev/urandom > a')
  await pool.sh(
    'for v in a b c; do dd if=../plain/a of=$v bs=1M conv=notrunc,fsync status=none; done',
  )
  await thinfs('snapshot', pool.folder, 'a', 'a@1')
  await pool.sh('dd if=../plain/a of=a bs=1M count=2 conv=notrunc,fsync status=none')
  return pool
}

const fill = (pool: MountedPool, name: string): Promise<unknown> =>
  attempt('env', '-C', pool.folder, 'bash', '-c', HOSTS[name]!.fill)

/** The volume holds what was written to it. */
const same = (pool: MountedPool): Promise<string> => pool.sh('cmp -n 8388608 a ../plain/a')

/** Bytes of the host's space that the data file has. */
const taken = async (pool: MountedPool): Promise<number> =>
  Number(await run('stat', '--format=%b', pool.data)) * 512

/** What people do about a full disk. */
const REMEDIES: Record<string, (t: Test, pool: MountedPool) => Promise<void>> = {
  'remove a volume': async (_t, pool) => {
    await thinfs('remove', pool.folder, 'b', '--yes')
  },
  'rm a volume': async (_t, pool) => {
    await pool.sh('rm c')
  },
  'remove a snapshot': async (_t, pool) => {
    await thinfs('remove', pool.folder, 'a@1', '--yes')
  },
  'roll back': async (_t, pool) => {
    await thinfs('rollback', pool.folder, 'a', 'a@1', '--no-keep', '--yes')
  },
  trim: async (_t, pool) => {
    await pool.sh('fallocate -p -o 0 -l 4M b; sync b')
  },
  'list, status, df': async (t, pool) => {
    t.match(await thinfs('list', pool.folder), /^a@1 /m)
    t.match(await thinfs('status', pool.folder), /^host +.* left for data/m)
    await run('df', pool.path)
  },
}

async function killBoth(pool: MountedPool): Promise<void> {
  for (const pid of pool.processes()) {
    try {
      process.kill(pid, 'SIGKILL')
    } catch {} // The daemon may have ended with its engine.
  }
  await until(() => pool.processes().length === 0)
  await run('umount', '--lazy', pool.path)
}

for (const name of Object.keys(HOSTS)) {
  for (const [remedy, cure] of Object.entries(REMEDIES)) {
    t.test(`${name}: full, ${remedy}`, onMount, async t => {
      const pool = await onHost(t, name, 'error')
      await fill(pool, name)
      const before = await taken(pool)
      await cure(t, pool)
      if (!remedy.startsWith('list')) await until(async () => (await taken(pool)) < before)
      t.equal((await pool.status()).mode, 'write')
      await same(pool)
      await pool.close(t)
    })
  }

  t.test(`${name}: full, unmount and mount, then with both processes killed`, onMount, async t => {
    const pool = await onHost(t, name, 'error')
    await fill(pool, name)
    await pool.remount()
    await same(pool)
    await fill(pool, name)
    await killBoth(pool)
    await pool.mount()
    await same(pool)
    t.equal((await pool.status()).mode, 'write')
    await fill(pool, name)
    await pool.killEngine()
    await same(pool)
    await pool.umount()
    await thinfs('remove', pool.folder, 'b', '--yes')
    t.notMatch(await thinfs('list', pool.folder), /^b /m)
    await fill(pool, name)
    await pool.mount()
    await fill(pool, name)
    await pool.sh('rm c')
    await fill(pool, name)
    await thinfs('remove', pool.folder, 'a@1', '--yes')
    await pool.killEngine()
    await same(pool)
    await pool.close(t)
  })
}

t.test('writes wait for the host', onMount, async t => {
  const pool = await onHost(t, 'ext4', 'queue')
  await fill(pool, 'ext4')
  let ended = false
  const copy = sh(
    pool.plain,
    'head -c 4M a > ../more; dd if=../more of=../mount/c bs=1M seek=20 conv=notrunc,fsync status=none',
  ).finally(() => {
    ended = true
  })
  await until(async () => (await pool.status()).mode === 'out_of_data_space')
  const { reason, writesWaiting } = await pool.status()
  t.match(reason, /the host's disk is full/)
  t.equal(writesWaiting, 1)
  t.match(
    await thinfs('status', pool.folder),
    /^on full +queue, 60 s at most: 1 writes wait for space$/m,
  )
  const available = await run('df', '--output=avail', '--block-size=1', pool.path)
  t.ok(Number(available.split('\n')[1]) < MIB, 'df shows no more than the host can give')
  t.match(
    pool.log().filter(({ level }) => level === 40),
    [{ msg: /the host's disk has/ }],
    'the log said so before',
  )
  t.equal(ended, false)
  await sh(pool.folder, 'rm filler')
  await copy
  await pool.sh('cmp -n 4194304 --ignore-initial=20971520:0 c ../more')
  await until(async () => (await pool.status()).mode === 'write')
  await same(pool)
  await pool.close(t)
})

t.test('a pool larger than what the host has left is made, and told of', onMount, async t => {
  const pool = await MountedPool.prepare(t, 'data: { size: 1G }', async () => {})
  await sh(pool.base, 'mount -t tmpfs -o size=32M,mode=700 tmpfs plain')
  const folder = join(pool.plain, 'pool')
  const { stderr } = await attempt(
    'node',
    join(import.meta.dirname, '../../bin/thinfs.js'),
    'init',
    folder,
    '--data-size',
    '1G',
  )
  t.match(stderr, /^thinfs: .*\/data: the host's disk has .* left for it\n$/)
})
