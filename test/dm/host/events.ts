// Goal: LVM's monitor hears of a pool that fills, and makes it larger. Method: dmeventd, started by
// LVM with the settings of the article about Docker's direct-lvm; it waits in DEV_WAIT, and is
// interrupted.
import { writeFileSync } from 'node:fs'
import t from 'tap'
import { DmHost } from '../../support/dm-host.js'

t.test('dmeventd extends a pool, and who writes to it goes on', async t => {
  const host = await DmHost.start(t)
  const disk = await host.loop('pv', '600M')
  const vg = `thinfs_e${process.pid}`
  await host.sh('mkdir lvm')
  const conf = [
    `devices { filter = [ "a|^${disk}$|", "r|.*|" ] }`,
    'activation { thin_pool_autoextend_threshold = 80',
    'thin_pool_autoextend_percent = 20 }',
  ]
  writeFileSync(`${host.folder}/lvm/lvm.conf`, conf.join('\n'))
  const lvm = (line: string): Promise<string> =>
    host.sh(`export LVM_SYSTEM_DIR=$PWD/lvm; ${line.replaceAll('VG', vg)}`)
  await lvm(`pvcreate ${disk}; vgcreate VG ${disk}`)
  await lvm('lvcreate -L 40M -c 512K -T VG/pool -V 90M -n one 2>&1')
  t.match(await lvm('lvs --noheadings -o seg_monitor VG/pool'), /^ *monitored/)
  // More than the pool has: the writer waits for the monitor, several times.
  await lvm('dd if=/dev/urandom of=/dev/VG/one bs=1M count=85 oflag=direct status=none')
  t.match(await host.sh(`dmsetup status ${vg}-pool-tpool`), / 170\/\d+ - rw /)
  const size = await lvm('lvs --noheadings --units m --nosuffix -o lv_size VG/pool')
  t.ok(Number(size) >= 85, size)
  await lvm('lvremove -y VG; vgremove VG')
})
