// Goal: a host's disk that is full, or that stops taking writes, costs those who write an error and
// nobody anything else. Method: the pool's files are on a small ext4 on a loop device, whose own
// file is sparse in a tmpfs. Another file fills the ext4; or the tmpfs, then flushes fail. What was
// flushed is compared with a file that is elsewhere.
import { basename, join } from 'node:path'
import t, { type Test } from 'tap'
import {
  attempt,
  MountedPool,
  needs,
  python,
  run,
  sh,
  thinfs,
  until,
} from '../support/mounted-pool.js'

const onMount = needs('/dev/fuse', '/dev/loop-control')
const MIB = 2 ** 20

/** A pool whose folder is a small ext4, and the loop device that this is on. */
async function onSmallDisk(t: Test): Promise<{ pool: MountedPool; disk: string }> {
  let disk = ''
  const yaml = 'data: { size: 256M }\nmetadata: { size: 4M }\non_full: error'
  const pool = await MountedPool.make(t, yaml, async file => {
    const folder = join(file, '..')
    const base = join(folder, '..')
    await sh(base, 'mkdir host; mount -t tmpfs -o size=72M tmpfs host; cp pool/pool.yaml .')
    await sh(base, 'truncate -s 64M host/disk; mkfs.ext4 -q -b 4096 -m 0 host/disk')
    disk = await run('losetup', '--find', '--show', join(base, 'host/disk'))
    t.teardown(() => letGo(folder, disk))
    await run('mount', '-o', 'errors=remount-ro', disk, folder)
    await sh(base, 'mv pool.yaml pool/; sync -f pool')
    await thinfs('init', file)
  })
  await thinfs('create', pool.folder, 'a', '--size', '128M')
  return { pool, disk }
}

/** Before what the loop device is on goes away, and with it the way to find the device. */
async function letGo(folder: string, disk: string): Promise<void> {
  await attempt('umount', '--lazy', folder)
  await attempt('losetup', '--detach', disk)
}

/** Copies of what is written: the same bytes at the same places in a plain file. */
async function writeBoth(pool: MountedPool, at: number, mib: number): Promise<void> {
  const random = join(pool.plain, `random-${at}`)
  await sh(pool.plain, `head -c ${mib}M /dev/urandom > ${random}`)
  for (const file of [join(pool.path, 'a'), join(pool.plain, 'a')]) {
    await run('dd', `if=${random}`, `of=${file}`, 'bs=1M', `seek=${at}`, 'conv=notrunc,fsync')
  }
}

/**
 * The volume holds what the plain file does. To close a file flushes, and may fail: that is not
 * asked.
 */
async function same(t: Test, pool: MountedPool, mib: number): Promise<void> {
  const program = `
import os
def content(path):
    file = os.open(path, os.O_RDONLY)
    return [os.pread(file, ${MIB}, i * ${MIB}) for i in range(${mib})]
found, wanted = content('mount/a'), content('plain/a')
print([i for i in range(${mib}) if found[i] != wanted[i] or len(found[i]) < ${MIB}])`
  t.equal(await python(pool.base, program), '[]', 'MiB that differ')
}

t.test("a full host's disk", onMount, async t => {
  const { pool } = await onSmallDisk(t)
  await writeBoth(pool, 0, 16)
  await sh(pool.folder, 'cat /dev/zero > filler || true; sync')

  const writer = `
import errno, os, time
file = os.open('a', os.O_RDWR)
errors = set()
end = time.time() + 3
block = 1024
while time.time() < end:
    block += 1
    try:
        os.pwrite(file, b'x' * 4096, block * 65536)
    except OSError as err:
        errors.add(errno.errorcode[err.errno])
        time.sleep(0.01)
print(','.join(sorted(errors)))`
  t.equal(await run('env', '-C', pool.path, 'python3', '-c', writer), 'ENOSPC')
  await same(t, pool, 16)
  const { mode, reason } = await pool.status()
  t.match(mode, /^out_of_(meta)?data_space$/)
  t.match(reason, /ENOSPC/)

  await sh(pool.folder, 'rm filler')
  await writeBoth(pool, 4, 20)
  await same(t, pool, 24)
  t.equal((await pool.status()).mode, 'write')
  await pool.remount()
  await same(t, pool, 24)
  await pool.close(t)
})

/** What makes a host stop taking writes, and what ends that. */
const FAILURES: Record<string, (disk: string, pool: MountedPool) => [stop: string, mend: string]> =
  {
    'disk takes no more writes': (_, pool) => {
      const filler = join(pool.base, 'host', 'filler')
      return [`cat /dev/zero > ${filler} || true`, `rm ${filler}`]
    },
    'filesystem becomes read-only': disk => [
      `echo 1 > /sys/fs/ext4/${basename(disk)}/trigger_fs_error`,
      'true',
    ],
  }

for (const [what, of] of Object.entries(FAILURES)) {
  t.test(`a host's ${what}`, onMount, async t => {
    const { pool, disk } = await onSmallDisk(t)
    const [stop, mend] = of(disk, pool)
    await writeBoth(pool, 0, 16)
    await sh(pool.base, stop)
    const write = ['if=/dev/urandom', `of=${join(pool.path, 'a')}`, 'bs=1M', 'count=4', 'seek=32']
    const outcome = await attempt('dd', ...write, 'conv=notrunc,fsync')
    t.not(outcome.status, 0)
    t.match(outcome.stderr, /Input\/output error|Read-only file system/)
    await until(async () => ['read_only', 'fail'].includes((await pool.status()).mode))
    const again = await attempt('dd', ...write, 'conv=notrunc,fsync')
    t.not(again.status, 0, 'and so does every flush that follows')

    await sh(pool.base, mend)
    await pool.umount()
    // ext4 has stopped at the first error: it is mounted anew, as after a power cut.
    await until(async () => (await attempt('umount', pool.folder)).status === 0)
    await attempt('e2fsck', '-fy', disk)
    await run('mount', disk, pool.folder)
    await pool.mount()
    t.equal((await pool.status()).mode, 'write')
    await same(t, pool, 16)
    await writeBoth(pool, 16, 4)
    await same(t, pool, 20)
    await pool.close(t)
  })
}
