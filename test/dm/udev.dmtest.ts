// Goal: with udevd running, which opens each device that somebody has written to, dmsetup and LVM
// work as well. Method: Debian's udevd and its rules in the namespace of the service, for the
// devices of the service alone: those of this machine are not touched.
import type { ChildProcess } from 'node:child_process'
import t, { type Test } from 'tap'
import { DmHost } from '../support/dm-host.js'
import { until } from '../support/mounted-pool.js'

/** Makes each file of rules end at once for devices that are not the service's. */
const RULES = `
mkdir rules
for file in /lib/udev/rules.d/*; do
  { echo 'KERNEL!="loop1[0-9][0-9][0-9]", GOTO="only_ours"'; cat "$file"; echo 'LABEL="only_ours"'; } \
    > "rules/\${file##*/}"
done
mount --bind rules /lib/udev/rules.d
mkdir -p /dev/disk && mount -t tmpfs thinfs-test /dev/disk
[ ! -d /etc/udev/rules.d ] || mount -t tmpfs thinfs-test /etc/udev/rules.d
`

async function startUdevd(t: Test, host: DmHost): Promise<void> {
  await host.sh(RULES)
  const udevd: ChildProcess = host.spawn('bash', '-c', 'exec -a systemd-udevd udevadm')
  t.teardown(async () => {
    await host.attempt('udevadm', 'settle')
    udevd.kill()
  })
  await until(async () => (await host.attempt('test', '-e', '/run/udev/control')).status === 0)
}

t.test('dmsetup and LVM with udevd', async t => {
  const host = await DmHost.start(t)
  await startUdevd(t, host)
  const disk = await host.loop('pv', '300M')
  const vg = `thinfs_u${process.pid}`
  const config = `--config 'devices { filter = [ "a|^${disk}$|", "r|.*|" ] } activation { monitoring = 0 }'`
  const lvm = (line: string): Promise<string> =>
    host.sh(`${line.replaceAll('VG', vg).replace(' ', ` ${config} `)} 2>&1`)

  // Whoever has written closes it, and udevd looks.
  await host.sh(`for i in $(seq 10); do
    dmsetup create z$i --table "0 2048 zero"
    dd if=/dev/zero of=/dev/mapper/z$i count=1 status=none
    dmsetup remove z$i
  done`)

  await lvm(`pvcreate ${disk}`)
  await lvm(`vgcreate VG ${disk}`)
  await lvm('lvcreate -L 40M -T VG/pool')
  await lvm('lvcreate -V 100M -T VG/pool -n one')
  await host.sh(`mkfs.ext4 -q /dev/${vg}/one; mkdir m; mount /dev/${vg}/one m; echo kept > m/a`)
  const known = await host.sh('udevadm settle; udevadm info --query=property --name=/dev/loop1000')
  t.match(known, /USEC_INITIALIZED=/, 'udevd has seen it')
  await lvm('lvcreate -s VG/one -n later')
  await lvm('lvextend -L +20M VG/one')
  await host.sh('umount m')
  for (let i = 0; i < 5; i++) {
    await lvm('lvcreate -V 100M -T VG/pool -n more')
    await host.sh(`mkfs.ext4 -q /dev/${vg}/more`)
    await lvm('lvremove -f VG/more')
  }
  await lvm('vgchange -an VG')
  await lvm('vgchange -ay VG')
  await host.sh(`mount -o ro /dev/${vg}/one m; grep kept m/a; umount m`)
  await lvm('vgremove -f VG')
  t.equal(await host.sh('dmsetup ls'), 'No devices found\n')
  t.notMatch(await host.sh('dmsetup udevcookies'), /0x/, 'nobody waits for udevd')
})
