// Goal: LVM's life of a thin pool, with Debian's LVM and its own settings. Method: its commands, on
// a physical volume that is a loop device; filesystems on the volumes; thin_check, by LVM and at
// the end.
import { closeSync, openSync, readSync, writeSync } from 'node:fs'
import t from 'tap'
import { DmHost } from '../../support/dm-host.js'
import { until } from '../../support/mounted-pool.js'

/** Where the superblock names the index block of the metadata space map: docs/FORMAT.md. */
const SPACE_MAP_INDEX = 208

t.test('a pool from pvcreate to pvremove', async t => {
  const host = await DmHost.start(t)
  const disk = await host.loop('pv', '1G')
  const vg = `thinfs_${process.pid}`
  // Only this disk is looked at; the monitor would outlive the test.
  const config = `devices { filter = [ "a|^${disk}$|", "r|.*|" ] } activation { monitoring = 0 }`
  const lvm = async (line: string): Promise<string> => {
    const [command, ...words] = line.replace(/(?<!%)\bVG\b/g, vg).split(' ')
    return await host.run(command!, '--config', config, ...words)
  }
  const columns = async (fields: string): Promise<string[]> => {
    const text = await lvm(`lvs -a --noheadings --separator | -o ${fields} VG`)
    return text
      .trimEnd()
      .split('\n')
      .map(line => line.trim().replaceAll(vg, 'VG'))
  }
  const mapped = async (): Promise<string[]> =>
    (await host.sh('ls /dev/mapper')).trim().replaceAll(vg, 'VG').split('\n')

  await lvm(`pvcreate ${disk}`)
  await lvm(`vgcreate VG ${disk}`)
  await lvm('lvcreate -L 16M -n plain VG')
  t.equal(await host.sh(`readlink /dev/${vg}/plain`), `../mapper/${vg}-plain\n`)
  await lvm('lvcreate -L 200M -T VG/mythinpool')
  await lvm('lvcreate -T VG/mythinpool -V 300M -n lvol1')
  t.same(await mapped(), [
    'control',
    'VG-lvol1',
    'VG-mythinpool',
    'VG-mythinpool-tpool',
    'VG-mythinpool_tdata',
    'VG-mythinpool_tmeta',
    'VG-plain',
  ])
  t.same(await columns('lv_name,lv_attr,lv_size,data_percent'), [
    '[lvol0_pmspare]|ewi-------|4.00m|',
    'lvol1|Vwi-a-tz--|300.00m|0.00',
    'mythinpool|twi-aotz--|200.00m|0.00',
    '[mythinpool_tdata]|Twi-ao----|200.00m|',
    '[mythinpool_tmeta]|ewi-ao----|4.00m|',
    'plain|-wi-a-----|16.00m|',
  ])

  await host.sh(`mkfs.ext4 -q /dev/${vg}/lvol1; mkdir -p m s; mount /dev/${vg}/lvol1 m`)
  await host.sh('echo hello > m/hello')
  await lvm('lvcreate -s --name mysnapshot1 VG/lvol1')
  await lvm('lvchange -ay -K VG/mysnapshot1')
  await host.sh(`echo later > m/later; mount -o ro /dev/${vg}/mysnapshot1 s`)
  t.equal(await host.sh('ls s; cat s/hello'), 'hello\nlost+found\nhello\n')
  t.ok((await columns('lv_name,origin')).includes('mysnapshot1|lvol1'))
  await host.sh('umount s')

  // What is mounted and written to grows, and so do the pool and its metadata.
  const load = host.sh(
    'for i in 1 2 3 4 5 6; do dd if=/dev/urandom of=m/$i bs=1M count=4 conv=fsync status=none; done',
  )
  await lvm('lvextend -L +100M VG/lvol1')
  await lvm('lvextend -L +100M VG/mythinpool')
  await lvm('lvextend --poolmetadatasize +4M VG/mythinpool')
  await load
  t.equal(await host.sh(`blockdev --getsize64 /dev/${vg}/lvol1`), `${400 * 2 ** 20}\n`)
  const sums = await host.sh('sha256sum m/*[0-9a-z] 2>/dev/null || true')
  t.match(await host.sh('dmsetup status'), / \d+\/2048 \d+\/4800 - rw /)
  await lvm('lvrename VG mysnapshot1 kept')
  t.match(await host.sh(`ls /dev/${vg}`), 'kept\nlvol1')

  // The next boot: all tables are gone, and LVM makes them again, with thin_check before.
  await host.sh('umount m')
  await lvm('vgchange -an VG')
  t.same(await mapped(), ['control'])
  await lvm('vgchange -ay VG')
  await host.sh(`e2fsck -fn /dev/${vg}/lvol1 >&2; mount /dev/${vg}/lvol1 m`)
  t.equal(await host.sh('sha256sum m/*[0-9a-z] 2>/dev/null || true'), sums)
  await host.sh('umount m')

  await lvm('lvremove -y VG/kept')
  await lvm('lvchange -an VG/mythinpool')
  await lvm('lvremove -y VG')
  await lvm('vgremove VG')
  await lvm(`pvremove ${disk}`)
  t.same(await mapped(), ['control'])
  t.match(await host.fails(`ls /dev/${vg}`), /No such file/)
})

t.test("Docker's recipe, and a pool that is repaired", async t => {
  const host = await DmHost.start(t)
  const disk = await host.loop('pv', '600M')
  const vg = `thinfs_r${process.pid}`
  const config = `devices { filter = [ "a|^${disk}$|", "r|.*|" ] } activation { monitoring = 0 }`
  const lvm = async (line: string): Promise<string> => {
    const [command, ...words] = line.replace(/(?<!%)\bVG\b/g, vg).split(' ')
    return await host.run(command!, '--config', config, ...words)
  }
  await lvm(`pvcreate ${disk}`)
  await lvm(`vgcreate VG ${disk}`)
  await lvm('lvcreate --wipesignatures y -n thinpool VG -l 60%VG')
  await lvm('lvcreate --wipesignatures y -n thinpoolmeta VG -l 1%VG')
  await lvm('lvconvert -y --zero n -c 512K --thinpool VG/thinpool --poolmetadata VG/thinpoolmeta')
  await lvm('lvcreate -V 100M -T VG/thinpool -n one')
  await host.sh(`printf kept | dd of=/dev/${vg}/one conv=fsync status=none`)
  const table = await host.sh(`dmsetup table ${vg}-thinpool_tmeta`)
  const start = Number(table.trim().split(' ').at(-1)) * 512
  await lvm('vgchange -an VG')

  // The index of the metadata space map is lost: LVM refuses the pool, repairs it, and takes it.
  const file = openSync(`${host.folder}/pv`, 'r+')
  const superblock = Buffer.alloc(4096)
  readSync(file, superblock, 0, superblock.length, start)
  const index = Number(superblock.readBigUInt64LE(SPACE_MAP_INDEX))
  writeSync(file, Buffer.alloc(4096), 0, 4096, start + index * 4096)
  closeSync(file)
  const { status } = await host.attempt('lvchange', '--config', config, '-ay', `${vg}/thinpool`)
  t.not(status, 0, 'damaged')
  await lvm('lvconvert -y --repair VG/thinpool')
  await lvm('vgchange -ay VG')
  t.equal(await host.sh(`dd if=/dev/${vg}/one bs=4 count=1 status=none`), 'kept')
  await lvm('vgremove -f VG')
})

t.test('a pool on stripes that is full: of data, then of metadata', async t => {
  const host = await DmHost.start(t)
  const disks = [await host.loop('pv1', '250G'), await host.loop('pv2', '250G')]
  const vg = `thinfs_f${process.pid}`
  const accepted = disks.map(disk => `"a|^${disk}$|"`).join(', ')
  const config = `devices { filter = [ ${accepted}, "r|.*|" ] } activation { monitoring = 0 }`
  const lvm = (line: string): Promise<string> => {
    const [command, ...words] = line.replace(/\bVG\b/g, vg).split(' ')
    return host.run(command!, '--config', config, ...words)
  }
  const status = (pool = 'p-tpool'): Promise<string> => host.sh(`dmsetup status ${vg}-${pool}`)
  const attributes = async (name: string): Promise<string> =>
    (await lvm(`lvs --noheadings -o lv_attr VG/${name}`)).trim()
  const thin = `/dev/${vg}/a`
  const copy = 'bs=64k oflag=direct status=none'

  await lvm(`pvcreate ${disks.join(' ')}`)
  await lvm(`vgcreate -s 1M VG ${disks.join(' ')}`)
  await lvm('lvcreate -i 2 -I 64 -L 8M --poolmetadatasize 2M -T VG/p')
  await lvm('lvcreate -V 100M -T VG/p -n a')
  t.match(await host.sh(`dmsetup table ${vg}-p_tdata`), /^0 16384 striped 2 128 /)

  // Full, it queues; the writer goes on when the pool has grown.
  await host.sh('dd if=/dev/urandom of=src bs=1M count=16 status=none')
  const writer = host.sh(`dd if=src of=${thin} ${copy}`)
  await until(async () =>
    / 128\/128 - out_of_data_space \S+ queue_if_no_space /.test(await status()),
  )
  t.equal(await attributes('p'), 'twi-aotzD-')
  await lvm('lvextend -L +16M VG/p')
  await writer
  t.match(await status(), / 256\/384 - rw \S+ queue_if_no_space /)
  t.match(await host.sh(`dmsetup table ${vg}-p_tdata`), /^0 16384 striped .*\n16384 32768 striped /)
  await host.sh(`cmp -n 16777216 src ${thin}; cmp -n 16777216 src /dev/mapper/${vg}-p_tdata`)

  await lvm('lvchange --errorwhenfull y VG/p')
  const more = `dd if=/dev/zero of=${thin} ${copy} seek=256 count=200`
  t.match(await host.fails(more), /No space left on device/)
  t.match(await status(), / 384\/384 - out_of_data_space \S+ error_if_no_space /)
  t.equal(await attributes('p'), 'twi-aotzD-')
  await host.sh(`blkdiscard -o 16M -l 8M ${thin}`)
  t.match(await status(), / 256\/384 - rw \S+ error_if_no_space /)
  await host.sh(`dd if=/dev/zero of=${thin} ${copy} seek=300 count=1`)

  // A volume that is made smaller keeps what is mapped behind its end, as in the kernel.
  await lvm('lvreduce -f -L 4M VG/a')
  t.equal(
    await host.sh(`blockdev --getsz ${thin}; dmsetup table ${vg}-a`),
    '8192\n0 8192 thin 7:1002 1\n',
  )
  t.equal(await host.sh(`dmsetup status ${vg}-a`), '0 8192 thin 32896 38527\n')
  await lvm('lvextend -L 40M VG/a')
  await host.sh(`cmp -n 16777216 src ${thin}`)

  // Metadata is full of the bitmaps of much space, and of devices: removing one makes room, or
  // growth.
  await lvm('lvcreate -L 400G -c 64k --poolmetadatasize 2M -T VG/m')
  const message = (words: string): string => `dmsetup message ${vg}-m 0 "${words}"`
  await host.sh(message('create_thin 1'))
  await host.sh(`dmsetup create b --table "0 204800 thin /dev/mapper/${vg}-m 1"`)
  const create = `for i in $(seq 100 200); do ${message('create_thin $i')}; done`
  t.match(await host.fails(create), /No space left on device/)
  t.match(await status('m'), / 512\/512 /)
  await host.sh(`${message('delete 100')}; ${message('create_thin 100')}`)
  const write = `dd if=src of=/dev/mapper/b ${copy} count=1`
  t.match(await host.fails(write), /No space left/)
  t.match(await status('m'), / 512\/512 \S+ - ro /)
  t.equal(await attributes('m'), 'twi-aotzM-')
  await lvm('lvextend --poolmetadatasize +2M VG/m')
  await host.sh(write)
  t.match(await status('m'), / \d+\/1024 1\/6553600 - rw /)
  await host.sh('dmsetup remove b')

  await lvm('vgchange -an VG')
  await lvm('vgchange -ay VG')
  await host.sh(`cmp -n 16777216 src ${thin}`)
  await lvm('vgremove -f VG')
})
