// Goal: dmsetup does what its users know from the kernel. Method: Debian's dmsetup, mkfs and mount
// on the service; what it prints is what a Linux 6.1 printed, with other device numbers. Ends with
// thin_check.
import { readdirSync, readFileSync } from 'node:fs'
import t from 'tap'
import { DmHost } from '../../support/dm-host.js'
import { run, until } from '../../support/mounted-pool.js'

/** `7:4` of a loop device. */
const numberOf = (loop: string): string => `7:${loop.slice('/dev/loop'.length)}`
/** Our minors depend on who else has some: they are told apart by their order. */
const minorsIn = (text: string): string => text.replace(/\b7:(\d{4,})\b/g, '7:N')

t.test('the session of the articles, from an empty file to a snapshot of a snapshot', async t => {
  const host = await DmHost.start(t)
  const data = await host.loop('data.img', '10485761K')
  const metadata = await host.loop('meta.img', '16M')
  const line = `0 20971522 thin-pool ${metadata} ${data} 128 65536 1 skip_block_zeroing`
  await host.sh(`dmsetup create hchen-thin-pool --table "${line}"`)
  t.match(await host.sh('ls -l /dev/mapper/hchen-thin-pool'), /^brw/)
  await host.sh('dmsetup message /dev/mapper/hchen-thin-pool 0 "create_thin 0"')
  const create = 'dmsetup create hchen-thin-volumn-001'
  await host.sh(`${create} --table "0 2097152 thin /dev/mapper/hchen-thin-pool 0"`)
  const made = await host.sh('mkfs.ext4 /dev/mapper/hchen-thin-volumn-001 2>&1')
  t.match(made, /Discarding device blocks: .*done/)
  await host.sh('mkdir -p base && mount /dev/mapper/hchen-thin-volumn-001 base')
  await host.sh('echo "hello world, I am a base" > base/id.txt; sync')
  await host.sh('dmsetup message /dev/mapper/hchen-thin-pool 0 "create_snap 1 0"')
  await host.sh('dmsetup create mysnap1 --table "0 2097152 thin /dev/mapper/hchen-thin-pool 1"')
  await host.sh('mkdir -p mysnap1 && mount /dev/mapper/mysnap1 mysnap1')
  t.equal(await host.sh('ls mysnap1'), 'id.txt\nlost+found\n')
  await host.sh('echo "I am snap1" >> mysnap1/id.txt; echo "I am snap1" > mysnap1/snap1.txt; sync')
  t.equal(
    await host.sh('cat base/id.txt; ls base'),
    'hello world, I am a base\nid.txt\nlost+found\n',
  )
  await host.sh('dmsetup message /dev/mapper/hchen-thin-pool 0 "create_snap 2 1"')
  await host.sh('dmsetup create mysnap2 --table "0 2097152 thin /dev/mapper/hchen-thin-pool 2"')
  await host.sh('mkdir -p mysnap2 && mount /dev/mapper/mysnap2 mysnap2')
  t.equal(await host.sh('ls mysnap2'), 'id.txt\nlost+found\nsnap1.txt\n')
  t.equal(
    minorsIn(await host.sh('dmsetup table')),
    [
      `hchen-thin-pool: 0 20971522 thin-pool ${numberOf(metadata)} ${numberOf(data)} 128 65536 1 skip_block_zeroing `,
      'hchen-thin-volumn-001: 0 2097152 thin 7:N 0',
      'mysnap1: 0 2097152 thin 7:N 1',
      'mysnap2: 0 2097152 thin 7:N 2\n',
    ].join('\n'),
  )
  t.match(await host.fails('dmsetup remove hchen-thin-pool'), /Device or resource busy\n/)
  await host.sh('umount base mysnap1 mysnap2; dmsetup remove mysnap1 mysnap2 hchen-thin-volumn-001')
  await host.sh('dmsetup remove hchen-thin-pool')
  await run('thin_check', '-q', `${host.folder}/meta.img`)
})

/** Suspends a device, and writes to it. The write is under way, and waits for the resumption. */
async function writeWhileSuspended(
  host: DmHost,
  name: string,
): Promise<{ ended: Promise<unknown> }> {
  await host.sh(`dmsetup suspend ${name}`)
  const dd = ['if=/dev/zero', `of=/dev/mapper/${name}`, 'bs=1M', 'count=1', 'oflag=direct']
  const ended = host.sh(`dd ${dd.join(' ')} status=none`)
  const inflight = `cat /sys/block/loop$(dmsetup info -c --noheadings -o minor ${name})/inflight`
  await until(async () => /[1-9]/.test(await host.sh(inflight)))
  return { ended }
}

t.test('suspend, snapshot, growth, rename, deferred removal, and what is printed', async t => {
  const host = await DmHost.start(t)
  const data = await host.loop('data', '64M')
  const metadata = await host.loop('meta', '4M')
  const pool = (sectors: number): string => `0 ${sectors} thin-pool ${metadata} ${data} 128 0`
  await host.sh(`dmsetup create pool --table "${pool(65536)}"`)
  t.equal(
    await host.sh('dmsetup status pool'),
    '0 65536 thin-pool 0 111/1024 0/512 - rw discard_passdown queue_if_no_space - 256 \n',
  )
  const [dataMinor, metadataMinor] = [data, metadata].map(loop => numberOf(loop).slice(2))
  t.equal(
    await host.sh('dmsetup deps pool'),
    `2 dependencies\t: (7, ${dataMinor}) (7, ${metadataMinor})\n`,
  )
  await host.sh('dmsetup message pool 0 create_thin 0')
  t.equal(
    await host.fails('dmsetup message pool 0 create_thin 0'),
    'device-mapper: message ioctl on pool  failed: File exists\nCommand failed.\n',
  )
  t.match(
    await host.fails('dmsetup create t5 --table "0 2048 thin /dev/mapper/pool 5"'),
    /No data available/,
  )
  await host.sh('dmsetup create thin --table "0 40960 thin /dev/mapper/pool 0"')
  t.equal(await host.sh('dmsetup status thin'), '0 40960 thin 0 -\n')
  await host.sh('dmsetup create held --table "0 8192 zero"')
  const { ended: zeroing } = await writeWhileSuspended(host, 'held')
  t.match(await host.fails('timeout 30 dmsetup remove held'), /busy/, 'a write to it waits')
  await host.sh('timeout 30 losetup --list; dmsetup resume held')
  await zeroing
  await host.sh('dmsetup remove held')
  await host.sh(
    'mkfs.ext4 -q /dev/mapper/thin; mkdir -p m s; mount /dev/mapper/thin m; echo 1 > m/a',
  )

  // No write comes between the moment of the snapshot and what is on it: the filesystem is frozen.
  await host.sh('dmsetup suspend thin')
  const writing = host.sh('echo 2 > m/b; sync m/b')
  await host.sh('dmsetup message pool 0 create_snap 1 0')
  t.match(await host.sh('dmsetup info thin'), /State: +SUSPENDED\n/)
  await host.sh('dmsetup resume thin')
  await writing
  await host.sh('dmsetup create snap --table "0 40960 thin /dev/mapper/pool 1"')
  await host.sh('e2fsck -fn /dev/mapper/snap >&2; mount /dev/mapper/snap s')
  t.equal(await host.sh('ls s'), 'a\nlost+found\n')
  t.equal(
    (await host.sh('dmsetup info -c --noheadings -o name,attr,open,segments,events')).trim(),
    ['pool:L--w:2:1:0', 'snap:L--w:1:1:0', 'thin:L--w:1:1:0'].join('\n'),
  )
  t.match(await host.sh('dmsetup ls --tree'), /^snap \(7:\d+\)\n.*pool/)

  // Both grow while they are in use.
  await host.sh(`dmsetup load pool --table "${pool(131072)}"; dmsetup resume pool`)
  t.match(await host.sh('dmsetup status pool'), / \d+\/1024 \d+\/1024 - rw /)
  await host.sh('dmsetup load thin --table "0 81920 thin /dev/mapper/pool 0"; dmsetup resume thin')
  t.equal(await host.sh('blockdev --getsz /dev/mapper/thin'), '81920\n')
  t.match(
    await host.fails(`dmsetup load pool --table "${pool(262144)}"; dmsetup resume pool`),
    /Invalid/,
  )
  await host.sh('dmsetup resume pool')

  await host.sh('dmsetup rename snap other')
  t.equal(await host.sh('ls /dev/mapper'), 'control\nother\npool\nthin\n')
  t.equal(
    await host.fails('dmsetup remove other'),
    'device-mapper: remove ioctl on other  failed: Device or resource busy\nCommand failed.\n',
  )
  await host.sh('dmsetup remove --deferred other')
  t.match(await host.sh('dmsetup info other'), /State: +ACTIVE \(DEFERRED REMOVE\)/)
  await host.sh('dmsetup message other 0 @cancel_deferred_remove; umount s')
  t.match(await host.sh('dmsetup info other'), /State: +ACTIVE\n(.*\n)*Open count: +0/)
  await host.sh('mount /dev/mapper/other s; dmsetup remove --deferred other; umount s')
  await host.sh('for i in $(seq 100); do dmsetup info other >/dev/null || break; sleep 0.1; done')
  t.equal(await host.fails('dmsetup info other'), 'Device does not exist.\nCommand failed.\n')
  await host.sh('dmsetup message pool 0 delete 1')
  await host.sh('umount m; dmsetup remove thin; dmsetup remove pool')
  await run('thin_check', '-q', `${host.folder}/meta`)
})

t.test('requests that wait for a resumption hold up nobody else', async t => {
  const host = await DmHost.start(t)
  const disk = await host.loop('disk', '16M')
  await host.sh(`dmsetup create lin --table "0 32768 linear ${disk} 0"`)
  const { devices } = await host.status()
  const loop = devices[0]!.loop.split('/').at(-1)
  const { ended: writing } = await writeWhileSuspended(host, 'lin')
  t.match(await host.fails('timeout 60 dmsetup remove lin'), /Device or resource busy/)
  await host.sh('dmsetup remove --deferred lin')
  await host.sh('dmsetup message lin 0 @cancel_deferred_remove')
  t.match(await host.sh('timeout 60 losetup --list --noheadings -O NAME'), `/dev/${loop}`)
  await host.sh('dmsetup resume lin')
  await writing
  t.match(await host.sh('dmsetup info lin'), /State: +ACTIVE\n(.*\n)*Open count: +0/)
  await host.sh('dd if=/dev/mapper/lin of=/dev/null bs=1M count=1 status=none; dmsetup remove lin')
})

t.test('linear, striped, zero, error; events; and nothing is left after --stop', async t => {
  const before = readFileSync('/proc/devices', 'utf8')
  const host = await DmHost.start(t)
  const disk = await host.loop('disk', '8M')
  await host.sh('printf 12345678 | dd of=disk bs=512 seek=2048 conv=notrunc status=none')
  const nr = numberOf(disk)
  const lines = [
    `0 8 linear ${disk} 2048`,
    '8 8 zero',
    '16 8 error',
    `24 32 striped 2 16 ${disk} 0 ${disk} 4096`,
  ]
  await host.sh(`dmsetup create mix --table "${lines.join('\n')}"`)
  t.equal(
    await host.sh('dmsetup table mix'),
    `0 8 linear ${nr} 2048\n8 8 zero \n16 8 error \n24 32 striped 2 16 ${nr} 0 ${nr} 4096\n`,
  )
  t.equal(
    await host.sh('dmsetup status mix'),
    `0 8 linear \n8 8 zero \n16 8 error \n24 32 striped 2 ${nr} ${nr} 1 AA\n`,
  )
  t.equal(await host.sh('dd if=/dev/mapper/mix bs=8 count=1 status=none'), '12345678')
  t.match(
    await host.fails('dd if=/dev/mapper/mix bs=4096 skip=2 count=1 iflag=direct'),
    /Input\/output/,
  )
  await host.sh('dd if=/dev/zero of=/dev/mapper/mix bs=4096 skip=1 seek=1 count=1 oflag=direct')
  await host.sh('dmsetup create -r ro --table "0 8 zero"')
  t.match(await host.fails('dd if=/dev/zero of=/dev/mapper/ro count=1'), /not permitted|Read-only/)
  t.match(await host.sh('dmsetup info ro'), /ACTIVE \(READ-ONLY\)/)
  t.equal(await host.sh('dmsetup targets | grep -c thin'), '2\n')

  const waiting = host.sh('dmsetup wait mix 0')
  await host.sh('sleep 0.3; dmsetup rename mix other')
  await waiting
  const interrupted = await host.attempt(
    'timeout',
    '-s',
    'INT',
    '1',
    'dmsetup',
    'wait',
    'other',
    '1',
  )
  t.not(interrupted.status, 0)
  await host.sh('dmsetup create -n bare; dmsetup suspend other')
  const { devices } = await host.status()
  t.same(
    devices.map(({ name, suspended, open }) => ({ name, suspended, open })),
    [
      { name: 'other', suspended: true, open: 0 },
      { name: 'ro', suspended: false, open: 0 },
      { name: 'bare', suspended: false, open: 0 },
    ],
  )
  t.match(await host.run('cat', '/proc/devices'), /^ {2}7 device-mapper$/m)
  await host.stopService()
  t.equal(await host.run('cat', '/proc/devices'), before)
  // Below the service's folder is what dmsetup and LVM made when there was no service.
  const below = readdirSync('/dev/mapper')
    .map(name => `${name}\n`)
    .join('')
  t.equal(await host.sh('ls -A /run /dev/mapper'), `/dev/mapper:\n${below}\n/run:\nmount\n`)
  for (const { loop } of devices) t.match(await host.fails(`losetup ${loop}`), /No such/, loop)
})
