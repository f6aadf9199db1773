// Goal: through fuse-native and libfuse 2 a volume is what it is through /dev/fuse, discards among
// it, and what cannot be the same is said. Method: the suite of all transports; programs and
// checkers of others.
import { readdirSync, readFileSync, readlinkSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { FUSE_NATIVE } from '../../src/fuse/index.js'
import { transportContract } from '../contract/transport.js'
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

const MIB = 1024 * 1024
const onMount = needs('/dev/fuse')
const onLoop = needs('/dev/fuse', '/dev/loop-control')

transportContract(FUSE_NATIVE, onMount)

async function nativePool(t: Test, yaml: string): Promise<MountedPool> {
  const pool = await MountedPool.make(t, `transport: fuse-native\n${yaml}`)
  t.match((await pool.status()).mount, { transport: 'fuse-native', whyDev: null })
  return pool
}

t.test('a loop device with ext4: what is trimmed goes back to the host', onLoop, async t => {
  const pool = await nativePool(t, 'data: { size: 256M }\nvolumes: { disk: { size: 512M } }')
  t.match(await thinfs('status', pool.folder), /^transport +fuse-native$/m)
  const device = await pool.attach('disk')
  await thinfs('resize', pool.folder, 'disk', '768M')
  await run('losetup', '--set-capacity', device)
  t.equal(await run('blockdev', '--getsize64', device), String(768 * MIB))
  await sh(pool.base, `mkfs.ext4 -q ${device}; mkdir ext4; mount ${device} ext4`)
  const at = join(pool.base, 'ext4')
  await sh(at, 'head -c 8M /dev/urandom > kept; head -c 64M /dev/urandom > dropped; sync -f .')
  const full = statSync(pool.data).blocks * 512
  const sums = await sh(at, 'sha256sum kept')
  await sh(at, 'rm dropped; sync -f .; fstrim .')
  await pool.sh('sync disk')
  await until(() => statSync(pool.data).blocks * 512 <= full - 60 * MIB)

  await thinfs('snapshot', pool.folder, 'disk', 'before')
  await sh(at, 'head -c 4M /dev/urandom > kept; sync -f .')
  await run('umount', at)
  await sh('/', `e2fsck -fn ${device} > /dev/null`)
  await pool.detach('disk')
  const before = await pool.attach('before')
  await sh(pool.base, `e2fsck -fy ${before} > /dev/null || test $? -eq 1; mount ${before} ext4`)
  t.equal(await sh(at, 'sha256sum kept'), sums, 'the snapshot is as it was')
  await run('umount', at)
  await pool.detach('before')
  await pool.close(t)
})

t.test('files', onMount, async t => {
  const pool = await nativePool(t, 'data: { size: 256M }\nvolumes: { a: { size: 64M } }')
  await pool.umount()
  await pool.mount('-o', 'allow_other')
  const fio = (options: string): Promise<string> =>
    pool.sh(
      `fio --name=v --filename=a --ioengine=libaio --direct=1 --verify=crc32c --verify_fatal=1 --verify_state_save=0 ${options} > ../fio.log 2>&1 || { cat ../fio.log; false; }`,
    )
  for (const options of [
    '--rw=randwrite --size=16M --bsrange=512-256k --blockalign=512 --iodepth=32',
    '--rw=randwrite --bs=4k --size=2M --numjobs=8 --offset_increment=4M',
  ]) {
    t.equal(await fio(options), '', options)
  }
  const long = 'ü'.repeat(100)
  for (const script of [
    'printf one > c; mv c d; cat d; truncate -s 5M d; stat -c %s d; rm d',
    'head -c 4M /dev/zero | tr "\\0" x > e; fallocate -p -o 64K -l 128K e; sha256sum e',
    'fallocate -z -o 1M -l 64K e; fallocate -l 6M e; sha256sum e; cp e f; cmp e f; rm e f',
    `for i in $(seq 40); do touch n$i; done; touch ${long}; ls | grep -v a; rm n* ${long}`,
    'touch -d @1000000000 t; stat -c %Y t; touch -m -d @1100000000 t; stat -c %Y t; rm t',
    'setpriv --regid 1000 --clear-groups touch g; stat -c %g g; chown 7:8 g; chmod 640 g; stat -c "%a %u %g" g; chown :9 g; stat -c "%u %g" g; rm g',
  ]) {
    await pool.both(t, script)
  }
  t.match(await pool.sh('getfattr -d a'), /^user\.thinfs\.mapped_bytes="25165824"$/m)
  const size = `
import os
try: os.getxattr('a', 'user.thinfs.none')
except OSError as err: print(err.strerror)
print(len(os.getxattr('a', 'user.thinfs.mapped_bytes')), len(os.listxattr('a')) > 3)`
  t.equal(await python(pool.path, size), 'No data available\n8 True')
  for (const command of ['mkdir d', 'ln -s a b', 'ln a b', 'mkfifo b']) {
    t.match(await pool.failure(command), /Operation not permitted/, command)
  }
  t.match(await pool.failure('touch $(printf "\\377")'), /Invalid argument/)
  t.equal(await pool.sh('stat -f -c "%S %b" .'), '65536 4096')

  const removed = `
import os
fd = os.open('r', os.O_RDWR | os.O_CREAT)
os.unlink('r')
os.pwrite(fd, b'text', 100000)
os.fsync(fd)
print(os.pread(fd, 4, 100000).decode(), os.listdir())
try: os.fstat(fd)
except OSError as err: print(err.strerror)`
  const found = "text ['a']\nNo such file or directory"
  t.equal(await python(pool.path, removed), found, 'removed while it is open')
  // What libfuse 2 cannot do, as docs/TRANSPORTS.md has it.
  const limits = `
import ctypes, os
fd = os.open('a', os.O_RDWR)
print(os.lseek(fd, 0, os.SEEK_HOLE) == 64 << 20)
libc = ctypes.CDLL(None, use_errno=True)
print(libc.renameat2(-100, b'a', -100, b'z', 1), os.strerror(ctypes.get_errno()))`
  t.equal(await python(pool.path, limits), 'True\n-1 Invalid argument')

  const engine = await pool.enginePid()
  const closed = readdirSync(`/proc/${engine}/fd`).flatMap(fd => {
    if (readlinkSync(`/proc/${engine}/fd/${fd}`) !== '/dev/fuse') return []
    const info = readFileSync(`/proc/${engine}/fdinfo/${fd}`, 'utf8')
    return [(Number.parseInt(/flags:\s*(\d+)/.exec(info)![1]!, 8) & 0o2000000) !== 0]
  })
  t.same(closed, [true, true], "the connection and libfuse's duplicate are closed on exec")
  await pool.close(t)
})

t.test('what waits for space or for a disk keeps nobody else', onMount, async t => {
  const pool = await nativePool(
    t,
    'data: { size: 16M }\non_full: queue\nvolumes: { a: { size: 16M } }',
  )
  const full = 'bs=1M oflag=direct conv=notrunc,fsync iflag=fullblock status=none'
  await pool.sh(`head -c 16M /dev/urandom > ../bytes; dd if=../bytes of=a ${full}`)
  const waiting = pool.sh(
    'for i in $(seq 8); do dd if=../bytes of=b$i bs=1M count=1 status=none & done; wait',
  )
  waiting.catch(() => {})
  await until(async () => (await pool.status()).writesWaiting > 4)
  await pool.sh('cmp ../bytes a; fallocate -p -l 12M a')
  t.equal(await waiting, '')

  await pool.umount()
  await run('dd', `of=${pool.data}`, 'oflag=nocache', 'conv=notrunc,fdatasync', 'count=0')
  await pool.mount()
  t.equal(await pool.sh('cmp -n 1M ../bytes b8; cmp -i 12M ../bytes a'), '', 'cold reads')
  await pool.close(t)
})

// Names that change below the mount: libfuse keeps the kernel's cache by name.
t.test('a name that gets another file while the first is open', onMount, async t => {
  const pool = await nativePool(t, 'data: { size: 64M }\nvolumes: { a: { size: 1M } }')
  await pool.sh('printf old | dd of=a conv=notrunc status=none')
  const script =
    'exec 3<a; head -c 3 <&3; : > ../open; until [ -e ../go ]; do sleep 0.02; done; cat a'
  const holder = attempt('env', '-C', pool.path, 'bash', '-c', script)
  await until(() => readdirSync(pool.base).includes('open'))
  await thinfs('rename', pool.folder, 'a', 'b')
  await thinfs('create', pool.folder, 'a', '--size', '1M')
  t.match(await pool.failure('cat a'), /Stale file handle/)
  t.equal(await pool.sh('head -c 3 b'), 'old', 'it has its own under its new name')
  writeFileSync(join(pool.base, 'go'), '')
  t.match(await holder, { stdout: /^old/, stderr: /Stale file handle/ })
  await until(async () => (await attempt('head', '-c', '3', join(pool.path, 'a'))).status === 0)
  t.equal(await pool.sh('cat a | tr -d "\\0"'), '', 'the new one is empty')
  await pool.close(t)
})

t.test('an engine that dies ends the mount, and what was flushed is there', onMount, async t => {
  const pool = await nativePool(t, 'data: { size: 64M }\nvolumes: { a: { size: 16M } }')
  t.match(await attemptThinfs('restart', pool.folder), {
    status: 1,
    stderr: /transport fuse-native: no other engine/,
  })
  await pool.sh('head -c 1M /dev/zero | tr "\\0" x | dd of=a conv=notrunc,fsync status=none')
  process.kill(await pool.enginePid(), 'SIGKILL')
  await until(() => !pool.isMounted && pool.processes().length === 0)
  t.equal((await attempt('thin_check', pool.metadata)).status, 0)
  await pool.mount()
  t.equal(await pool.sh('head -c 1M /dev/zero | tr "\\0" x | cmp -n 1M - a'), '')
  const holding = attempt('env', '-C', pool.path, 'tail', '-f', 'a')
  await until(() => pool.sh('fuser -s a && echo yes || true').then(said => said === 'yes'))
  await thinfs('umount', '--force', pool.folder)
  t.notOk(pool.isMounted)
  t.ok(await holding, 'who held the mount is not left waiting')
  await pool.close(t)
})

t.test('what cannot be had is said in one line, and nothing is mounted', onMount, async t => {
  const pool = await MountedPool.prepare(t, 'data: { size: 16M }', file => thinfs('init', file))
  // thinfs as it is installed, without the package.
  const without = join(pool.base, 'without')
  await sh(
    process.cwd(),
    `mkdir -p ${without}/native-shims ${without}/node_modules; cp -r bin dist package.json ${without}
    cp -r native-shims/build ${without}/native-shims; ln -s "$PWD/node_modules/@node-rs" ${without}/node_modules`,
  )
  const mount = (program: string): string =>
    `${process.execPath} ${program}/bin/thinfs.js mount ${pool.folder} ${pool.path} -o transport=fuse-native`
  const library = join(process.cwd(), 'node_modules/fuse-native/prebuilds/linux-x64/libfuse.so')
  for (const [command, said] of [
    [mount(without), /the package fuse-native is not installed: npm install/],
    [`LD_PRELOAD=${library} ${mount(process.cwd())}`, /cannot get between fuse-native and libfuse/],
  ] as const) {
    const { status, stderr } = await attempt('sh', '-c', command)
    t.equal(status, 1)
    t.match(stderr, said)
    t.match(stderr, /^thinfs: .*transport fuse-native/)
    t.equal(stderr.trim().split('\n').length, 1)
    t.notOk(pool.isMounted)
  }
  await pool.close(t)
})
