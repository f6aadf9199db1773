// Goal: over io_uring a volume is what it is over /dev/fuse, and what cannot be the same is said.
// Method: programs that verify what they wrote, checkers of others, and processes that are killed.
// Where the kernel has no FUSE over io_uring, that is what has to be told.
import { createHash, randomBytes } from 'node:crypto'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { URING } from '../../src/fuse/index.js'
import { transportContract } from '../contract/transport.js'
import { KILLED_WRITER, killedWriter } from '../support/full-pool.js'
import {
  attempt,
  attemptThinfs,
  MountedPool,
  needs,
  sh,
  thinfs,
  until,
} from '../support/mounted-pool.js'

const PARAMETER = '/sys/module/fuse/parameters/enable_uring'
const onMount = needs('/dev/fuse')
const hasUring = existsSync(PARAMETER)
const overUring = onMount.skip
  ? onMount
  : { skip: hasUring ? false : 'the kernel has no FUSE over io_uring' }
const onLoop = overUring.skip ? overUring : needs('/dev/fuse', '/dev/loop-control')

if (!onMount.skip && hasUring) {
  const before = readFileSync(PARAMETER, 'latin1')
  t.teardown(() => writeFileSync(PARAMETER, before))
}

const offer = (offered: boolean): void => writeFileSync(PARAMETER, offered ? 'Y' : 'N')

const VERIFY = '--verify=crc32c --verify_fatal=1 --verify_state_save=0 --randseed=7'
const fio = (file: string, options: string): string =>
  `fio --name=v --filename=${file} --ioengine=libaio --direct=1 ${VERIFY} ${options} > ../fio.log 2>&1 || { cat ../fio.log; false; }`

transportContract(URING, { ...overUring, before: () => offer(true) })

async function uringPool(t: Test, yaml: string): Promise<MountedPool> {
  offer(true)
  const pool = await MountedPool.make(t, `transport: uring\n${yaml}`)
  t.match((await pool.status()).mount, { transport: 'uring', whyDev: null })
  return pool
}

t.test('files', overUring, async t => {
  const pool = await uringPool(
    t,
    'data: { size: 512M }\nvolumes: { a: { size: 64M }, b: { size: 32M } }',
  )
  t.match(await thinfs('status', pool.folder), /^transport +uring$/m)
  for (const options of [
    '--rw=randwrite --size=32M --bs=4k --iodepth=1 --io_size=2M',
    '--rw=randwrite --size=16M --bs=4k --iodepth=16',
    '--rw=write --size=64M --bs=1M --iodepth=4',
    '--rw=randwrite --size=16M --bsrange=512-256k --blockalign=512 --iodepth=64',
    '--rw=randwrite --size=32M --bs=16k --iodepth=16 --numjobs=4 --offset_increment=8M --size=8M',
  ]) {
    t.equal(await pool.sh(fio('a', options)), '', options)
  }
  const long = 'ü'.repeat(100)
  for (const script of [
    'printf one > c; mv c d; cat d; truncate -s 5M d; stat -c %s d; rm d',
    'head -c 4M /dev/zero | tr "\\0" x > e; fallocate -p -o 64K -l 128K e; sha256sum e; cp e f; cmp e f; rm e',
    `touch ${long}; ls ${long}; rm ${long}; ls f; rm f`,
    'for i in $(seq 40); do touch n$i; done; ls n* | sort; rm n*',
  ]) {
    await pool.both(t, script)
  }
  t.match(await pool.sh('getfattr -d a'), /^user\.thinfs\.mapped_bytes="67108864"$/m)
  t.equal(await pool.sh('ls'), 'a\nb')
  await pool.close(t)
})

t.test('a program that waits for space is killed at once', overUring, async t => {
  const pool = await uringPool(t, KILLED_WRITER)
  await killedWriter(t, pool)
  await pool.close(t)
})

t.test('a loop device', onLoop, async t => {
  const pool = await uringPool(t, 'data: { size: 512M }\nvolumes: { a: { size: 256M } }')
  const device = await pool.attach('a')
  t.equal(await sh(pool.base, fio(device, '--rw=randwrite --size=64M --bs=64k --iodepth=32')), '')
  const at = join(pool.base, 'ext4')
  const sums = 'find . -type f | sort | xargs sha256sum | sha256sum'
  await sh(pool.base, `mkfs.ext4 -q ${device}; mkdir ext4; mount ${device} ext4`)
  await sh(at, 'for i in $(seq 200); do head -c $((i * 997)) /dev/urandom > f$i; done; sync')
  const sum = await sh(at, sums)
  await sh(at, 'head -c 64M /dev/urandom > big; sync; rm big; fstrim .')
  await sh(pool.base, `umount ext4; e2fsck -fn ${device} > /dev/null`)
  await pool.detach('a')
  await pool.remount()
  const again = await pool.attach('a')
  await sh(pool.base, `mount ${again} ext4`)
  t.equal(await sh(at, sums), sum)
  t.equal((await pool.status()).mount?.transport, 'uring')
  await sh(pool.base, 'umount ext4')
  await pool.detach('a')
  await pool.close(t)
})

// Method: as many writes as the kernel sends wait for space, all from one CPU; what frees space
// comes through the same queue.
t.test('a full pool: who waits for space does not keep out who frees it', overUring, async t => {
  const pool = await uringPool(
    t,
    'data: { size: 16M }\non_full: queue\nvolumes: { a: { size: 16M }, b: { size: 16M } }',
  )
  await pool.sh(
    'head -c 16M /dev/urandom | dd of=a bs=1M oflag=direct conv=notrunc,fsync iflag=fullblock',
  )
  const options = '--rw=randwrite --size=12M --bs=4k --iodepth=700'
  const waiting = pool.sh(`taskset -c 0 ${fio('b', options)}`)
  waiting.catch(() => {})
  await until(async () => (await pool.status()).mode === 'out_of_data_space')
  await pool.sh('taskset -c 0 fallocate -p -o 0 -l 16M a')
  t.equal(await waiting, '')
  await pool.sh('dd if=/dev/zero of=a bs=64K count=64 oflag=direct conv=notrunc,fsync')
  await pool.close(t)

  await sh(pool.folder, 'sed -i s/queue/error/ pool.yaml')
  await pool.mount()
  const full = await pool.failure('dd if=/dev/zero of=a bs=1M oflag=direct conv=notrunc,fsync')
  t.match(full, /No space left on device/)
  await pool.close(t)
})

t.test('an engine that dies ends the mount, and what was flushed is there', overUring, async t => {
  const pool = await uringPool(t, 'data: { size: 256M }\nvolumes: { a: { size: 64M } }')
  await pool.umount()
  const daemon = attemptThinfs('mount', '--foreground', pool.folder, pool.path)
  await until(() => pool.isMounted)
  t.equal((await pool.status()).mount?.transport, 'uring')
  t.match(await attemptThinfs('restart', pool.folder), { status: 1, stderr: /transport uring/ })

  const bytes = randomBytes(1 << 20)
  writeFileSync(join(pool.base, 'bytes'), bytes)
  await pool.sh('dd if=../bytes of=a bs=64K oflag=direct conv=notrunc,fsync')
  // In the midst of reads and writes that are under way.
  const load = attempt(
    ...([
      'env',
      '-C',
      pool.path,
      'fio',
      '--name=x',
      '--filename=a',
      '--offset=16M',
      '--size=32M',
    ] as const),
    ...['--rw=randrw', '--bs=4k', '--iodepth=16', '--ioengine=libaio', '--direct=1'],
    ...['--time_based', '--runtime=60'],
  )
  await until(async () => Number(await pool.sh('stat -c %b a')) * 512 > 2 * bytes.length)
  process.kill(await pool.enginePid(), 'SIGKILL')
  const { status } = await load
  t.not(status, 0)
  t.not(status, 124, 'its callers get errors, and do not hang')
  const ended = await daemon
  t.match(ended, {
    status: 1,
    stderr: /thinfs: the engine ended by SIGKILL; with transport uring .* mount again/,
  })
  t.notOk(pool.isMounted)
  t.equal((await attempt('thin_check', pool.metadata)).status, 0)

  await pool.mount()
  const sum = createHash('sha256').update(bytes).digest('hex')
  t.equal((await pool.sh('head -c 1M a | sha256sum')).split(' ')[0], sum)
  await pool.close(t)
})

t.test(
  'a daemon that dies leaves an engine that serves, and is not taken over',
  overUring,
  async t => {
    const pool = await uringPool(t, 'data: { size: 64M }\nvolumes: { a: { size: 16M } }')
    const { pid } = (await pool.status()).mount!
    process.kill(pid!, 'SIGKILL')
    await until(async () => (await attemptThinfs('list', pool.folder)).status === 0)
    t.equal(await pool.sh(fio('a', '--rw=randwrite --size=16M --bs=4k --iodepth=16')), '')
    t.match((await pool.status()).mount, { pid: null, transport: 'uring' })
    const refused = {
      status: 1,
      stderr: /transport uring: no other engine can take the mount over/,
    }
    t.match(await attemptThinfs('mount', pool.folder, pool.path), refused)
    t.match(await attemptThinfs('restart', pool.folder), refused)
    await pool.close(t)
  },
)

t.test('where the kernel cannot, /dev/fuse serves and the reason is told', onMount, async t => {
  if (hasUring) offer(false)
  const pool = await MountedPool.make(t, 'data: { size: 64M }\nvolumes: { a: { size: 16M } }')
  t.match((await pool.status()).mount, { transport: 'dev', whyDev: null }, 'it was not asked for')
  await pool.umount()
  await pool.mount('-o', 'transport=uring')
  const whyDev = hasUring
    ? 'fuse.enable_uring is off: echo Y > /sys/module/fuse/parameters/enable_uring'
    : 'the kernel has no FUSE over io_uring: Linux 6.14 has, with CONFIG_FUSE_IO_URING'
  t.match((await pool.status()).mount, { transport: 'dev', whyDev })
  const said = pool.log().filter(({ level }) => level >= 40)
  t.match(said, [{ msg: 'transport uring cannot be had: dev serves', reason: whyDev }])
  t.equal(said.length, 1)
  t.match(await thinfs('status', pool.folder), `dev, not uring: ${whyDev}`)
  await pool.killEngine()
  t.match((await pool.status()).mount, { transport: 'dev', whyDev }, 'and so after a death')
  await pool.umount()
  const bad = await attemptThinfs('mount', pool.folder, pool.path, '-o', 'transport=tcp')
  t.match(bad, {
    status: 2,
    stderr: /transport=tcp is not one of .*transport=dev, transport=uring/,
  })
  if (hasUring) {
    offer(true)
    await pool.mount('-o', 'transport=uring,transport=dev')
    t.equal((await pool.status()).mount?.transport, 'dev', 'the last word counts')
  }
  await pool.close(t)
})
