// Goal: a volume behind a loop device is a disk that the kernel's filesystems can trust, and that
// gives space back. Method: what mkfs, fstrim, fio and each filesystem's own checker say, and sums
// of files made before everything was unmounted and mounted again.
import { mkdirSync, readFileSync, statSync } from 'node:fs'
import { basename, join } from 'node:path'
import t from 'tap'
import {
  attempt,
  failure,
  MountedPool,
  needs,
  python,
  run,
  sh,
  thinfs,
  until,
} from '../support/mounted-pool.js'

const MIB = 1024 * 1024
const onLoop = needs('/dev/fuse', '/dev/loop-control')

interface Filesystem {
  type: string
  mkfs: string
  /** Mount options for discards while files are removed. */
  discard: string
  /** Reads only; its status tells. */
  check: string
}

const FILESYSTEMS: Filesystem[] = [
  { type: 'ext4', mkfs: 'mkfs.ext4 -q', discard: 'discard', check: 'e2fsck -fn' },
  { type: 'xfs', mkfs: 'mkfs.xfs -q -f', discard: 'discard', check: 'xfs_repair -n' },
  {
    type: 'btrfs',
    mkfs: 'mkfs.btrfs -q -f',
    discard: 'discard=sync',
    check: 'btrfs check --readonly',
  },
]

/** A module that is not loaded yet is not listed; one that cannot be is not there afterwards. */
async function canMount(type: string): Promise<boolean> {
  await attempt('modprobe', type).catch(() => {})
  return readFileSync('/proc/filesystems', 'utf8').split('\n').includes(`\t${type}`)
}

/** Folders of 16 MiB, in files of all sizes, always the same. */
const makeTree = (folder: string, ...names: string[]): Promise<string> =>
  python(
    folder,
    `
import os, random
for name in ${JSON.stringify(names)}:
    random.seed(name)
    size, i = 16 << 20, 0
    while size > 0:
        i += 1
        length = min(size, random.randrange(1 << random.randrange(1, 22)))
        path = f'{name}/{i % 7}/{i % 11}'
        os.makedirs(path, exist_ok=True)
        with open(f'{path}/{i}', 'wb') as file: file.write(random.randbytes(length))
        size -= length
os.sync()`,
  )

const SUMS = 'find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum'

const mapped = async (pool: MountedPool, name: string): Promise<number> => {
  // sync(1) of a filesystem does not reach the server of a FUSE mount, that of a file does.
  await pool.sh(`sync ${name}`)
  return Number(await pool.sh(`stat -c %b ${name}`)) * 512
}
/** What the host's filesystem has given to the data file. */
const hosted = (pool: MountedPool): number => statSync(pool.data).blocks * 512

for (const filesystem of FILESYSTEMS) {
  const { type, mkfs, discard, check } = filesystem
  const mountable = await canMount(type)
  const what = mountable
    ? 'files survive, and trimmed space goes back to the host'
    : 'made and checked only, because this kernel cannot mount it'
  t.test(`${type}: ${what}`, onLoop, async t => {
    const pool = await MountedPool.make(t, 'data: { size: 512M }\nvolumes: { disk: { size: 1G } }')
    const at = join(pool.base, 'fs')
    mkdirSync(at)
    let device = await pool.attach('disk')
    await run('dd', 'if=/dev/urandom', `of=${device}`, 'bs=1M', 'count=64', 'conv=fsync')
    const used = await mapped(pool, 'disk')
    t.equal(used, 64 * MIB)
    // mkfs.btrfs looks at all loop devices; another test may have one whose mount has died.
    await until(async () => {
      const made = await attempt('sh', '-c', `${mkfs} ${device}`)
      if (made.status !== 0 && !/not connected/.test(made.stderr)) throw new Error(made.stderr)
      return made.status === 0
    })
    const empty = await mapped(pool, 'disk')
    // The filesystems reserve different amounts, xfs 64 MiB of zeroed log among it.
    t.ok(empty < used, `mkfs discards what was there: ${empty} bytes are mapped`)

    let sums = ''
    if (mountable) {
      await run('mount', device, at)
      await makeTree(at, 'kept', 'dropped', 'removed')
      const full = await mapped(pool, 'disk')
      t.ok(full >= empty + 48 * MIB, `${full} bytes are mapped`)
      t.ok(hosted(pool) >= 48 * MIB)
      const before = hosted(pool)
      await sh(at, 'rm -r dropped; sync -f .')
      t.match(await run('fstrim', '-v', at), /trimmed/)
      // xfs does not wait for its discards to be done.
      let trimmed = full
      await until(async () => {
        trimmed = await mapped(pool, 'disk')
        return hosted(pool) <= before - 12 * MIB
      })
      t.ok(
        trimmed <= full - 12 * MIB,
        `fstrim: ${trimmed} bytes are mapped, the host has the others`,
      )
      await run('umount', at)
      await run('mount', '-o', discard, device, at)
      await sh(at, 'rm -r removed; sync -f .')
      sums = await sh(at, SUMS)
      await run('umount', at)
      const discarded = await mapped(pool, 'disk')
      t.ok(discarded <= trimmed - 12 * MIB, `mount -o discard: ${discarded} bytes are mapped`)
    }
    await sh('/', `${check} ${device} 2>&1`)
    await pool.detach('disk')
    await pool.remount()

    device = await pool.attach('disk')
    t.ok(await sh('/', `${check} ${device} 2>&1`), check)
    if (mountable) {
      await run('mount', device, at)
      t.equal(await sh(at, SUMS), sums, 'the files after a remount')
      await makeTree(at, 'more')
      await run('umount', at)
    }
    t.ok(await sh('/', `${check} ${pool.path}/disk 2>&1`), `${check} of the file`)
    await pool.detach('disk')
    await pool.close(t)
  })
}

t.test('snapshots of a mounted filesystem', onLoop, async t => {
  const pool = await MountedPool.make(t, 'data: { size: 256M }\nvolumes: { disk: { size: 256M } }')
  const at = (name: string): string => join(pool.base, name)
  const show = async (name: string): Promise<void> => {
    mkdirSync(at(name), { recursive: true })
    await run('mount', await pool.attach(name), at(name))
  }
  await run('mkfs.ext4', '-q', await pool.attach('disk'))
  await show('disk')
  const sums: Record<string, string> = {}
  // One a snapshot of the other, each taken while the filesystem is written to.
  await makeTree(at('disk'), 'first')
  sums.monday = await sh(at('disk'), SUMS)
  await thinfs('snapshot', pool.folder, 'disk', 'monday', '--freeze', at('disk'))
  await show('monday')
  await sh(at('disk'), 'rm -r first/1 first/2; echo changed > first/3/file')
  await makeTree(at('disk'), 'second')
  sums.disk = await sh(at('disk'), SUMS)
  await sh(at('monday'), 'rm -r first/4; echo other > file')
  sums.monday = await sh(at('monday'), SUMS)
  await thinfs('snapshot', pool.folder, 'monday', 'tuesday', '--freeze', at('monday'))
  sums.tuesday = sums.monday
  await makeTree(at('monday'), 'third')
  sums.monday = await sh(at('monday'), SUMS)
  await show('tuesday')
  for (const name of ['disk', 'monday', 'tuesday']) {
    t.equal(await sh(at(name), SUMS), sums[name], name)
    await run('umount', at(name))
    await pool.detach(name)
  }
  await pool.remount()
  await thinfs('remove', pool.folder, 'monday', '--yes')
  for (const name of ['disk', 'tuesday']) {
    await run('e2fsck', '-fn', await pool.attach(name))
    await show(name)
    t.equal(await sh(at(name), SUMS), sums[name], `${name}, the one between removed`)
    await run('umount', at(name))
    await pool.detach(name)
  }
  await pool.close(t)
})

/**
 * Attaches a file of a MountedPool, whose teardown detaches what is left: never by number alone.
 */
const losetup = (...args: string[]): Promise<string> => run('losetup', '--find', '--show', ...args)

for (const dio of ['on', 'off']) {
  t.test(`a loop device with direct I/O ${dio} has what a plain file has`, onLoop, async t => {
    const pool = await MountedPool.make(t, 'data: { size: 96M }\nvolumes: { a: { size: 32M } }')
    await sh(pool.plain, 'truncate -s 32M a')
    const device = await losetup(`--direct-io=${dio}`, join(pool.path, 'a'))
    const queue = (field: string): string =>
      readFileSync(`/sys/block/${basename(device)}/queue/${field}`, 'utf8').trim()
    t.equal(queue('discard_granularity'), '65536')
    const same = async (what: string): Promise<void> => {
      t.equal(await sh(pool.plain, `cmp a ${device}; cmp a ../mount/a`), '', what)
      t.equal(await sh(pool.plain, `dd if=${device} bs=1M iflag=direct status=none | cmp - a`), '')
    }
    await sh(
      pool.plain,
      `head -c 32M /dev/urandom > a; dd if=a of=${device} bs=300K conv=fsync status=none`,
    )
    await same('dd')
    t.equal(await mapped(pool, 'a'), 32 * MIB)
    // Bytes from, bytes long: whole blocks, parts of one, edges on both sides.
    let blocks = 512
    for (const [command, offset, length, unmaps] of [
      ['blkdiscard', 0, MIB, 16],
      ['blkdiscard', 2 * MIB + 512, 4096, 0],
      ['blkdiscard', 3 * MIB - 4096, 2 * MIB + 8192, 32],
      ['blkdiscard -z', 8 * MIB, MIB, 16],
      ['blkdiscard -z', 10 * MIB + 65536 - 512, 65536 + 1024, 1],
    ] as const) {
      await sh('/', `${command} -o ${offset} -l ${length} ${device}`)
      const sectors = `seek=${offset / 512} count=${length / 512}`
      await sh(pool.plain, `dd if=/dev/zero of=a bs=512 ${sectors} conv=notrunc status=none`)
      await same(`${command} at ${offset}`)
      blocks -= unmaps
      t.equal(await mapped(pool, 'a'), blocks * 65536)
    }
    await sh('/', `blkdiscard ${device}`)
    t.equal(await mapped(pool, 'a'), 0)
    // The host gets all of it, behind the commit.
    await until(() => hosted(pool) === 0)
    t.equal(await run('cmp', '-n', String(32 * MIB), device, '/dev/zero'), '')

    // A buffer that is reused before its write has ended would show here.
    const fio = `fio --name=v --filename=${device} --size=32M --rw=randwrite --bs=64k --iodepth=32 --direct=1 --ioengine=libaio --loops=4 --verify=crc32c --verify_fatal=1 --randrepeat=1`
    t.match(await sh('/', fio), /err= 0/, '64 KiB writes, 32 at once')

    await sh('/', `dd if=/dev/urandom of=${device} bs=1M seek=31 count=1 conv=fsync status=none`)
    await thinfs('resize', pool.path, 'a', '48M')
    await run('losetup', '--set-capacity', device)
    t.equal(await run('blockdev', '--getsize64', device), String(48 * MIB))
    await pool.sh('truncate -s 200M a')
    await run('losetup', '--set-capacity', device)
    t.equal(await run('blockdev', '--getsize64', device), String(200 * MIB))
    const sum = await sh('/', `head -c 32M ${device} | sha256sum`)
    await sh('/', `dd if=/dev/urandom of=${device} bs=1M seek=190 count=4 conv=fsync status=none`)
    t.equal(await sh('/', `cmp ${device} ${pool.path}/a`), '')
    await run('losetup', '--detach', device)
    await pool.remount()
    t.equal(await pool.sh('head -c 32M a | sha256sum'), sum)
    await pool.close(t)
  })
}

t.test('a disk on a full pool: no space, and all of it is still there', onLoop, async t => {
  const pool = await MountedPool.make(
    t,
    'data: { size: 32M }\nvolumes: { a: { size: 24M }, b: { size: 24M } }\non_full: error',
  )
  const [a, b] = [await pool.attach('a'), await pool.attach('b')]
  await sh(pool.plain, `head -c 24M /dev/urandom > a; dd if=a of=${a} bs=1M oflag=direct`)
  const dd = `dd if=${pool.plain}/a of=${b} bs=1M`
  t.match(await failure('/', `${dd} oflag=direct`), /No space left on device/)
  t.match(await failure('/', `${dd} conv=fsync`), /No space left on device|Input\/output error/)
  t.equal(await sh('/', `dd if=${a} bs=1M iflag=direct status=none | cmp - ${pool.plain}/a`), '')
  await sh('/', `dd if=${pool.plain}/a of=${a} bs=4K skip=1 count=300 oflag=direct status=none`)
  await sh('/', `blkdiscard ${a}; ${dd} oflag=direct status=none`)
  t.equal(await sh('/', `cmp ${b} ${pool.plain}/a`), '', 'what was discarded can be written to')
  await pool.detach('a')
  await pool.detach('b')
  await pool.close(t)
})
