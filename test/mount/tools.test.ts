// Goal: ordinary programs cannot tell a volume from a file of any other filesystem. Method: the
// same commands run in the mount and in a folder of the host, and must leave the same and print the
// same.
import { join } from 'node:path'
import t, { type Test } from 'tap'
import {
  attemptThinfs,
  dataRanges,
  MountedPool,
  needs,
  python,
  sh,
  thinfs,
} from '../support/mounted-pool.js'
import { thinDump } from '../support/thin-tools.js'

const KIB = 1024
const MIB = 1024 * KIB
const BLOCK = 64 * KIB
const onMount = needs('/dev/fuse')

/** Features that each transport lacks: docs/TRANSPORTS.md has the reasons. */
const CANNOT = {
  dev: [],
  'fuse-native': [
    'SEEK_HOLE',
    'copy_file_range',
    'fstat of a removed file',
    'names that are not UTF-8',
  ],
} as const
type Feature = (typeof CANNOT)['fuse-native'][number]

/** A test over each transport that has all of `features`. */
function onEach(
  title: string,
  features: readonly Feature[],
  test: (t: Test, make: (yaml: string) => Promise<MountedPool>) => Promise<void>,
): void {
  for (const [transport, cannot] of Object.entries(CANNOT)) {
    if (features.some(feature => (cannot as readonly Feature[]).includes(feature))) continue
    t.test(`${transport}: ${title}`, onMount, t =>
      test(t, yaml => MountedPool.make(t, `transport: ${transport}\n${yaml}`)),
    )
  }
}

/** Volumes and plain files of the same names have the same size and bytes. */
const sameContent = (t: Test, pool: MountedPool): Promise<void> =>
  pool.both(t, "sha256sum *; stat -c '%s %n' *")

onEach('ls, du, df and stat: the space of what was written', [], async (t, make) => {
  const pool = await make('data: { size: 64M }\nvolumes: { a: { size: 1G } }')
  await sh(pool.plain, 'truncate -s 1G a')
  const tools = "ls -ls a | cut -d ' ' -f 1,3-6; du -k a; du -b a; stat -c '%s %b %B %a %h %u %F' a"
  await sh(pool.plain, 'chmod 600 a')
  await pool.both(t, tools)
  for (const script of [
    'dd if=/dev/urandom of=a bs=64K count=16 seek=160 conv=notrunc,fsync status=none',
    'dd if=/dev/urandom of=a bs=64K count=1 seek=16383 conv=notrunc,fsync status=none',
    'fallocate -p -o 10551296 -l 128K a && sync a',
  ]) {
    await pool.both(t, script)
    await pool.both(t, tools)
  }
  const used = 15 * BLOCK
  t.equal(
    (await pool.sh('df -B1 --output=size,used,avail,fstype .')).split('\n')[1]!.trim(),
    `${64 * MIB} ${used} ${64 * MIB - used} fuse.thinfs`,
  )
  t.equal(await pool.sh("stat -f -c '%S %s %b %f %a %l' ."), '65536 65536 1024 1009 1009 255')
  await pool.both(t, 'ls -A; ls -d .; find . -type f -size +1000M; test ! -x a')
  t.equal(await pool.sh("stat -c '%F %a' ."), 'directory 755')
  await pool.close(t)
})

onEach('dd, fallocate and truncate leave what they leave in a plain file', [], async (t, make) => {
  const pool = await make('data: { size: 256M }\nvolumes: { a: { size: 32M } }')
  await sh(pool.base, 'head -c 48M /dev/urandom > random')
  await sh(pool.plain, 'truncate -s 32M a')
  // The seed makes the same list in every run; sizes are such that blocks are cut anywhere.
  let seed = 20261121
  const random = (below: number): number => {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0
    return Math.floor((seed / 2 ** 32) * below)
  }
  const dd = (unit: number, flags: string): string => {
    const count = 1 + random((2 * MIB) / unit)
    const seek = random((30 * MIB) / unit)
    return `dd if=../random of=a bs=${unit} count=${count} skip=${random(16)} seek=${seek} conv=notrunc ${flags} status=none`
  }
  const range = (unit: number): string =>
    `-o ${unit * random((30 * MIB) / unit)} -l ${unit * (1 + random((3 * MIB) / unit))}`
  const operations = [
    () => dd(1 + random(3 * BLOCK), ''),
    () => dd(4 * KIB * (1 + random(300)), 'oflag=direct'),
    () => dd(BLOCK, 'oflag=direct,dsync'),
    () => `fallocate -p ${range(4 * KIB)} a`,
    () => `fallocate -p ${range(1)} a`,
    () => `fallocate -z -n ${range(512)} a`,
    () => `fallocate -n ${range(BLOCK)} a`,
    () => `fallocate ${range(4 * KIB)} a`,
    () => `truncate -s ${8 * MIB + random(24 * MIB)} a`,
  ]
  for (let round = 0; round < 4; round++) {
    const script = Array.from({ length: 25 }, () => operations[random(operations.length)]!())
    await Promise.all([pool.sh(script.join('\n')), sh(pool.plain, script.join('\n'))])
    await sameContent(t, pool)
    await pool.both(t, 'dd if=a bs=1M iflag=direct status=none | sha256sum')
  }
  await pool.remount()
  await sameContent(t, pool)
  await pool.sh('fallocate -p -o 0 -l 32M a; truncate -s 0 a')
  t.equal((await pool.status()).data.usedBlocks, 0)
  t.equal(
    await pool.sh('truncate -s 8M a; fallocate -l 8M a; stat -c %b a'),
    '16384',
    'preallocated',
  )
  t.equal(await pool.sh('cmp -n 8388608 a /dev/zero; df --output=iused . | tail -1'), '    2')
  t.match(await pool.failure('fallocate -l 300M a'), /No space left on device/)
  t.match(await pool.failure('fallocate -c -o 0 -l 64K a'), /not supported/)
  await pool.close(t)
})

onEach('holes survive cp and tar, in and out', ['SEEK_HOLE'], async (t, make) => {
  const pool = await make('data: { size: 256M }\non_full: error')
  // Data where blocks begin, end, and in their middle; holes of any length between.
  const islands = [
    [0, 4],
    [60, 72],
    [640, 704],
    [5000, 5500],
    [20476, 20480],
  ] as const
  const writes = islands.map(
    ([begin, end]) =>
      `dd if=/dev/urandom of=a bs=1K seek=${begin} count=${end - begin} conv=notrunc status=none`,
  )
  await sh(pool.plain, `truncate -s 20M a\n${writes.join('\n')}\nsync a`)
  const blocks = new Set<number>()
  for (const [begin, end] of islands) {
    for (let kib = begin; kib < end; kib += 4) blocks.add(Math.floor((kib * KIB) / BLOCK))
  }
  const holds = async (name: string): Promise<void> => {
    t.equal(
      await pool.sh(`cmp ${name} ${pool.plain}/a; stat -c %b ${name}`),
      `${blocks.size * 128}`,
    )
    const found = new Set<number>()
    for (const [begin, end] of await dataRanges(join(pool.path, name))) {
      t.equal(begin % BLOCK, 0)
      for (let at = begin; at < end; at += BLOCK) found.add(at / BLOCK)
    }
    t.same(found, blocks, `SEEK_DATA and SEEK_HOLE of ${name}`)
  }
  await pool.sh(`cp --sparse=always ${pool.plain}/a always; cp --sparse=auto ${pool.plain}/a auto`)
  await pool.sh(`tar -S -C ${pool.plain} -c a | tar -S -x --no-same-owner; cp --sparse=always a b`)
  for (const name of ['always', 'auto', 'a', 'b']) await holds(name)
  await sh(pool.plain, 'cp --sparse=auto ../mount/auto b; cmp a b; test $(stat -c %b b) -lt 4096')
  await sh(pool.plain, 'rm b; tar -S -C ../mount -c b | tar -S -x; cmp a b')
  await sh(pool.plain, 'test $(stat -c %b b) -lt 4096')
  t.match(await pool.failure('cp --sparse=never /dev/zero zero'), /No space left on device/)
  await pool.sh('rm zero')
  await pool.close(t)
})

onEach(
  'copy_file_range shares whole blocks and copies the rest',
  ['copy_file_range'],
  async (t, make) => {
    const pool = await make(
      'data: { size: 64M }\nvolumes: { a: { size: 8M }, b: { size: 8M }, c: { size: 8M } }',
    )
    await sh(pool.base, 'head -c 5M /dev/urandom > random')
    await sh(pool.plain, 'truncate -s 8M a b c')
    await pool.both(t, 'dd if=../random of=a bs=1M conv=notrunc,fsync status=none')
    await pool.both(t, 'dd if=../random of=c bs=1M skip=3 count=1 conv=notrunc,fsync status=none')
    const copy = (source: string, from: number, target: string, to: number, length: number) => `
import os
source, target = os.open('${source}', os.O_RDONLY), os.open('${target}', os.O_RDWR)
print(os.copy_file_range(source, target, ${length}, ${from}, ${to}))`
    for (const [source, from, target, to, length] of [
      ['a', BLOCK, 'b', 2 * BLOCK, 6 * MIB],
      ['a', 0, 'a', 7 * MIB, 3 * BLOCK],
    ] as const) {
      const program = copy(source, from, target, to, length)
      t.equal(await python(pool.path, program), await python(pool.plain, program))
    }
    await sameContent(t, pool)
    await pool.umount()
    const { devices } = thinDump(pool.metadata)
    const a = devices.get(0)!.mappings
    const b = devices.get(1)!.mappings
    for (let block = 1; block < 80; block++) {
      t.equal(b.get(block + 1)?.dataBlock, a.get(block)?.dataBlock, `block ${block} is shared`)
    }
    t.equal(b.size, 79)
    for (const block of [0, 1, 2]) {
      t.equal(a.get(7 * 16 + block)?.dataBlock, a.get(block)?.dataBlock, 'within one volume')
    }
    await pool.mount()
    // What is shared comes apart when either side is written to.
    await pool.both(t, 'dd if=/dev/zero of=a bs=1000 seek=100 count=300 conv=notrunc status=none')
    await pool.both(t, 'fallocate -p -o 1M -l 100K b; sync a b')
    await pool.both(t, 'dd if=../random of=a bs=4K seek=1792 count=3 conv=notrunc status=none')
    await sameContent(t, pool)

    // Unaligned ones, alike and not, onto what was shared, and past the end.
    for (const [source, from, target, to, length] of [
      ['a', 1000, 'b', 1000 + 3 * BLOCK, 3 * BLOCK + 5],
      ['a', 12345, 'c', 54321, 2 * MIB],
      ['b', 2 * MIB - 1, 'a', 0, BLOCK + 2],
      ['c', 0, 'b', 7 * MIB + 512, MIB],
      ['a', BLOCK + 7, 'c', 8 * MIB, 4 * BLOCK + 1],
    ] as const) {
      const program = copy(source, from, target, to, length)
      t.equal(
        await python(pool.path, program),
        await python(pool.plain, program),
        `${from} to ${to}`,
      )
      await sameContent(t, pool)
    }
    await pool.remount()
    await sameContent(t, pool)
    await pool.close(t)
  },
)

onEach(
  'truncate, cp, mv, rm: the names are the volumes',
  ['fstat of a removed file'],
  async (t, make) => {
    const pool = await make('data: { size: 64M }')
    await pool.both(
      t,
      'truncate -s 5M a; truncate -s 1M b; head -c 1M /dev/urandom | cat > /dev/null',
    )
    const names = async (): Promise<string[]> =>
      JSON.parse(await thinfs('list', pool.folder, '--json')).map((v: { name: string }) => v.name)
    t.same(await names(), ['a', 'b'])
    await pool.both(t, 'seq 300000 > a; cp a "c d"; mv b e; truncate -s 3M a; truncate -s 8M a')
    await pool.both(t, 'cat a | sha256sum; wc -c *; test ! -e b; ls')
    await pool.both(t, 'mv a "c d"; ls; sha256sum *; mv -n e "c d"; ls; mv -T "c d" ünïcödé; ls')
    await pool.both(t, 'touch -d 2020-01-02T03:04:05Z e; stat -c %Y e; chmod 640 e; stat -c %a e')
    t.same(await names(), ['e', 'ünïcödé'])
    await pool.remount()
    await sameContent(t, pool)
    await pool.both(t, 'stat -c %a e')

    // A file that is open outlives its name.
    const unlinked = `
import os
file = os.open('ünïcödé', os.O_RDWR)
before = os.pread(file, 1 << 24, 0)
os.unlink('ünïcödé')
print(os.path.exists('ünïcödé'), os.pread(file, 1 << 24, 0) == before, os.fstat(file).st_nlink)
os.pwrite(file, b'x' * 70000, 65000)
print(os.pread(file, 70000, 65000) == b'x' * 70000)
os.close(file)`
    t.equal(await python(pool.path, unlinked), 'False True 0\nTrue')
    await pool.sh('rm e; sync .')
    t.same(await names(), [])
    t.equal((await pool.status()).data.usedBlocks, 0)
    await pool.close(t)
  },
)

onEach('getfattr: what thinfs knows of a volume', [], async (t, make) => {
  const pool = await make('data: { size: 64M }\nvolumes: { web: { size: 10G } }')
  await pool.sh('head -c 1M /dev/urandom | dd of=web conv=notrunc,fsync bs=1M status=none')
  await thinfs('snapshot', pool.path, 'web', 'snap', '--id', '77')
  await pool.sh('dd if=/dev/urandom of=web bs=64K count=2 seek=1 conv=notrunc,fsync status=none')
  const attributes = async (name: string): Promise<Record<string, string>> =>
    Object.fromEntries(
      (await pool.sh(`getfattr -d ${name}`))
        .split('\n')
        .flatMap(line => [/^user\.thinfs\.(\w+)="(.*)"$/.exec(line)])
        .flatMap(found => (found ? [[found[1]!, found[2]!]] : [])),
    )
  t.match(await attributes('web'), {
    dev_id: '0',
    mapped_bytes: String(MIB),
    exclusive_bytes: String(2 * BLOCK),
    created: /^\d{4}-\d\d-\d\dT[\d:.]+Z$/,
    creation_time: '0',
    snapshotted_time: '1',
  })
  t.match(await attributes('snap'), { dev_id: '77', origin: 'web', mapped_bytes: String(MIB) })
  t.match(await pool.failure('setfattr -n user.mine -v 1 web'), /not supported/)
  t.match(await pool.failure('setfattr -x user.thinfs.origin snap'), /not supported/)
  t.match(await pool.failure('getfattr -n user.none web'), /No such attribute/)
  await pool.close(t)
})

onEach('what is written to a memory map is there', [], async (t, make) => {
  const pool = await make('data: { size: 64M }\nvolumes: { a: { size: 16M } }')
  await sh(pool.plain, 'truncate -s 16M a')
  await pool.both(t, 'seq 100000 | dd of=a conv=notrunc status=none')
  const program = `
import mmap, random
random.seed(3)
with open('a', 'r+b') as file:
    memory = mmap.mmap(file.fileno(), 16 << 20)
    for _ in range(40):
        at = random.randrange(4096, (16 << 20) - 70000)
        memory[at:at + 70000] = random.randbytes(70000)
    memory.flush()`
  await Promise.all([python(pool.path, program), python(pool.plain, program)])
  await pool.both(t, 'dd if=a bs=1M iflag=direct status=none | sha256sum')
  await pool.remount()
  await sameContent(t, pool)
  // Direct writes are seen by a map that was read before.
  const reader = `
import mmap, os, subprocess
file = os.open('a', os.O_RDONLY)
memory = mmap.mmap(file, 16 << 20, mmap.MAP_SHARED, mmap.PROT_READ)
before = memory[0:4096]
subprocess.run('dd if=/dev/zero of=a bs=4K count=1 oflag=direct conv=notrunc status=none', shell=True, check=True)
print(before != bytes(4096), memory[0:4096] == bytes(4096))`
  t.equal(await python(pool.path, reader), 'True True')
  await pool.close(t)
})

onEach('qemu-img converts, maps and compares', ['SEEK_HOLE'], async (t, make) => {
  const pool = await make('data: { size: 64M }\nvolumes: { disk: { size: 32M } }')
  await sh(
    pool.plain,
    `truncate -s 32M raw
     dd if=/dev/urandom of=raw bs=64K seek=3 count=20 conv=notrunc status=none
     dd if=/dev/urandom of=raw bs=4K seek=8014 count=5 conv=notrunc status=none
     qemu-img convert -O qcow2 raw qcow2`,
  )
  const { plain } = pool
  await pool.sh(`qemu-img convert -n -O raw ${plain}/qcow2 disk`)
  await pool.sh(`qemu-img convert -n -t none -T none -O raw ${plain}/qcow2 disk`)
  await pool.sh(`qemu-img convert -O raw ${plain}/qcow2 made`)
  for (const name of ['disk', 'made']) {
    t.match(await pool.sh(`qemu-img compare -f raw ${name} ${plain}/qcow2`), /identical/)
    await pool.sh(`cmp ${name} ${plain}/raw`)
    await sh(plain, `rm -f back; qemu-img convert -T none -f raw -O qcow2 ../mount/${name} back`)
    t.match(await sh(plain, 'qemu-img compare back raw'), /identical/)
    const map: { start: number; length: number; data: boolean }[] = JSON.parse(
      await pool.sh(`qemu-img map --output=json -f raw ${name}`),
    )
    const extents = map.filter(({ data }) => data)
    // qemu-img writes to the first block of a file that it makes, to find out about alignment.
    const first = name === 'made' ? [[0, 1]] : []
    t.same(
      extents.map(({ start, length }) => [start / BLOCK, length / BLOCK]),
      [...first, [3, 20], [500, 2]],
    )
  }
  await pool.close(t)
})

onEach('names that a volume cannot have', ['names that are not UTF-8'], async (t, make) => {
  const pool = await make('data: { size: 64M }\nvolumes: { a: { size: 1M } }')
  const long = 'n'.repeat(254)
  await pool.sh(`truncate -s 1M ${long}x; mv ${long}x ${long}y; rm ${long}y`)
  // What mv makes of EINVAL.
  const MOVED = 'to a subdirectory of itself'
  for (const [what, name, touch, mv] of [
    ['256 bytes', `${long}xy`, 'File name too long', 'File name too long'],
    ['a control character', "$'a\\tb'", 'Invalid argument', MOVED],
    ['a newline', "$'a\\nb'", 'Invalid argument', MOVED],
    ['invalid UTF-8', "$'a\\xff'", 'Invalid argument', 'Invalid argument'],
    ['a reserved prefix', '.thinfs-x', 'Invalid argument', MOVED],
    ['the name of a device without one', 'thin-7', 'Invalid argument', MOVED],
    ['a folder', 'dir/a', 'No such file or directory', 'No such file or directory'],
    ['a volume as folder', 'a/b', 'Not a directory', 'Not a directory'],
  ] as const) {
    t.match(await pool.failure(`touch ${name}`), touch, `touch: ${what}`)
    t.match(await pool.failure(`mv a ${name}`), mv, `mv: ${what}`)
  }
  for (const name of [`${long}xy`, 'a\nb', 'dir/a', 'thin-7']) {
    const { status, stderr } = await attemptThinfs('create', pool.folder, name, '--size', '1M')
    t.match(stderr, /^thinfs: ".*": .*; a name is 1 to 255 bytes of UTF-8[^\n]*\n$/)
    t.equal(status, 2)
  }
  t.match(await pool.failure('mkdir b'), /Operation not permitted/)
  t.equal(await pool.sh('ls -A'), 'a')
  await pool.close(t)
})

onEach('a volume is for its owner alone', [], async (t, make) => {
  const pool = await make('data: { size: 64M }\nvolumes: { a: { size: 1M } }')
  const other = 'setpriv --reuid=65534 --regid=65534 --clear-groups'
  t.equal(await pool.sh('umask 0; truncate -s 1M b; stat -c "%a %u %g" a b'), '600 0 0\n600 0 0')
  const denied = async (script: string): Promise<void> =>
    void t.match(await sh(pool.plain, `! ${other} ${script} 2>&1`), /Permission denied/, script)
  await denied('ls ../mount')
  await denied('stat ../mount/a')
  await pool.umount()
  await pool.mount('-o', 'allow_other')
  t.equal(await sh(pool.plain, `${other} ls ../mount`), 'a\nb')
  await denied('dd if=../mount/a of=/dev/null')
  await denied('truncate -s 0 ../mount/a')
  await pool.close(t)
})
