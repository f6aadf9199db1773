// Goal: pools, loop devices and filesystems on them are there after a boot, and whatever way the
// system ends, what was written is there after the next one. Method: systemd in a virtual machine
// with this machine's programs. After a boot the journal of the pool is of no use and no page cache
// is left: what is there was durable. ext4 says when it was not unmounted.
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import t from 'tap'
import { runWithin } from '../support/mounted-pool.js'

const ROOT = resolve(import.meta.dirname, '../..')
/** Seconds that a boot may take: each instruction is emulated. */
const BOOT = 850

/** Before units start: the programs where a package puts them. */
const INSTALL = `[Unit]
DefaultDependencies=no
Before=local-fs-pre.target
Wants=local-fs-pre.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'for name in mount.thinfs mount.fuse.thinfs umount.fuse.thinfs; do ln -sf ${ROOT}/bin/thinfs.js /sbin/$name; done; ln -sf ${ROOT}/bin/thinfs.js /usr/local/bin/thinfs; [ -e /usr/local/bin/node ] || ln -s ${process.execPath} /usr/local/bin/node'
[Install]
WantedBy=sysinit.target
`

const SCENARIO = `[Unit]
After=remote-fs.target local-fs.target multi-user.target
[Service]
Type=oneshot
StandardOutput=file:/test/out
StandardError=inherit
ExecStart=/bin/bash -eux /test/scenario
ExecStopPost=/bin/sh -c 'systemctl $(cat /test/ending) --no-block'
TimeoutStartSec=infinity
[Install]
WantedBy=multi-user.target
`

const FSTAB = `/dev/vda /srv ext4 defaults 0 0
/run/thinfs/unit/web /fs/unit ext4 _netdev,nofail,x-systemd.requires=thinfs-attach@unit-web.service 0 0
/srv/line/pool.yaml /mnt/line thinfs noatime,nofail 0 0
/mnt/line/web /fs/line ext4 loop,discard,nofail 0 0
`

t.test('boot, shut down, boot, kill, boot', async t => {
  const folder = mkdtempSync(join(tmpdir(), 'thinfs-boot-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const units = join(folder, 'etc/systemd/system')
  const wants = (target: string, unit: string, name = unit): void => {
    mkdirSync(join(units, `${target}.wants`), { recursive: true })
    symlinkSync(`../${unit}`, join(units, `${target}.wants`, name))
  }
  mkdirSync(units, { recursive: true })
  for (const unit of ['thinfs@.service', 'thinfs-attach@.service']) {
    cpSync(join(ROOT, 'examples', unit), join(units, unit))
  }
  writeFileSync(join(units, 'install.service'), INSTALL)
  writeFileSync(join(units, 'scenario.service'), SCENARIO)
  wants('sysinit.target', 'install.service')
  wants('multi-user.target', 'scenario.service')
  // As Debian has it.
  symlinkSync(
    '/lib/systemd/system/remote-fs.target',
    join(units, 'multi-user.target.wants/remote-fs.target'),
  )

  const disk = join(folder, 'disk')
  await runWithin(60, 'truncate', '-s', '1G', disk)
  await runWithin(60, 'mkfs.ext4', '-q', disk)
  const boot = async (scenario: string, ending: string): Promise<string> => {
    writeFileSync(join(folder, 'scenario'), `${scenario}\necho done\n`)
    writeFileSync(join(folder, 'ending'), ending)
    rmSync(join(folder, 'out'), { force: true })
    await runWithin(BOOT, join(import.meta.dirname, 'vm'), folder, disk)
    const said = readFileSync(join(folder, 'out'), 'utf8')
    const console = readFileSync(join(folder, 'console'), 'utf8')
    if (!said.endsWith('\ndone\n')) throw new Error(`${said}\n${console.slice(-20000)}`)
    return said
  }

  writeFileSync(join(folder, 'etc/fstab'), '')
  await boot(
    `mount /dev/vda /srv
    for pool in unit line; do
      thinfs init /srv/$pool --data-size 256M --volume web=64M --volume hand=64M
      mkdir -p /mnt/$pool
      thinfs mount /srv/$pool /mnt/$pool
      for volume in web hand; do mkfs.ext4 -q -F /mnt/$pool/$volume; done
      thinfs umount /mnt/$pool
    done
    umount /srv`,
    'poweroff',
  )

  writeFileSync(join(folder, 'etc/fstab'), FSTAB)
  wants('multi-user.target', 'thinfs@.service', 'thinfs@unit.service')
  wants('multi-user.target', 'thinfs-attach@.service', 'thinfs-attach@unit-web.service')
  mkdirSync(join(units, 'thinfs-attach@unit-web.service.requires'))
  symlinkSync(
    '../thinfs@.service',
    join(units, 'thinfs-attach@unit-web.service.requires', 'thinfs@unit.service'),
  )
  // By hand, so that no unit knows what stands on what.
  const byHand = `for pool in unit line; do
      mkdir -p /fs/$pool-hand
      mount $(thinfs attach /mnt/$pool hand) /fs/$pool-hand
    done
    if dmesg | grep 'EXT4-fs (loop.*): recovery complete'; then exit 1; fi
    systemctl is-active thinfs@unit mnt-line.mount fs-unit.mount fs-line.mount
    systemctl show -p Type,SubState,StatusText thinfs@unit
    ls /run/thinfs/unit/web`
  const write = (name: string): string =>
    `for fs in unit line unit-hand line-hand; do echo $fs-${name} > /fs/$fs/${name}; done`
  const read = (name: string): string =>
    `for fs in unit line unit-hand line-hand; do [ "$(cat /fs/$fs/${name})" = $fs-${name} ]; done`

  // Not flushed: that is for the shutdown to do.
  const first = await boot(`${byHand}\n${write('first')}`, 'poweroff')
  t.match(first, /(^active\n){4}/m)
  t.match(
    first,
    /^Type=notify\nStatusText=\/srv\/unit\/pool.yaml at \/mnt\/unit\nSubState=running$/m,
  )
  await boot(`${byHand}\n${read('first')}\n${write('second')}`, 'poweroff --force')
  t.pass('after a shutdown in order')
  await boot(
    `${byHand}\n${read('first')}\n${read('second')}
    thinfs umount --recursive /mnt/unit
    thinfs umount --recursive /mnt/line
    for pool in unit line; do thinfs check --deep /srv/$pool; thin_check /srv/$pool/metadata; done`,
    'poweroff',
  )
  t.pass('after SIGTERM and SIGKILL to all processes')
})
