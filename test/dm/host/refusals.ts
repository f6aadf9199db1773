// Where there can be no service: one line that says why, status 1, and nothing is left.
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { basename, resolve } from 'node:path'
import t from 'tap'
import { DmHost } from '../../support/dm-host.js'
import { LET_GO } from '../../support/mount-namespace.js'
import { attempt, logLines } from '../../support/mounted-pool.js'

const PROGRAM = resolve(import.meta.dirname, '../../../bin/thinfs.js')
const DM = `node ${PROGRAM} dm --log-file LOG`

t.test('thinfs dm says why it cannot be, and leaves nothing', async t => {
  const folder = mkdtempSync('/tmp/thinfs-dm-refusals-')
  t.teardown(() => rmSync(folder, { recursive: true }))
  const cases: [why: RegExp, before: string, ...namespace: string[]][] = [
    [/the initial user namespace.*\(NOT_SUPPORTED\)/, '', '--user', '--map-root-user'],
    [
      /has device-mapper: use that \(NOT_SUPPORTED\)/,
      `(cat /proc/misc; echo 236 device-mapper) > ${folder}/misc; mount --bind ${folder}/misc /proc/misc;`,
    ],
    [
      /no \/dev\/loop-control.*\(NOT_SUPPORTED\)/,
      `mkdir ${folder}/dev; mount -t tmpfs none ${folder}/dev; cp -a /dev/null ${folder}/dev; mount --move ${folder}/dev /dev;`,
    ],
  ]
  for (const [why, before, ...namespace] of cases) {
    const line = `mount -t tmpfs none /run; ${before} ${DM.replace('LOG', `${folder}/log`)}; code=$?; ls /run; exit $code`
    // First: what a user namespace copies is locked there.
    const letGo = `${LET_GO} let_go /none; exec unshare -m "$@"`
    const first = ['-m', '--propagation', 'private', 'sh', '-c', letGo, 'sh']
    const { status, stdout, stderr } = await attempt(
      'unshare',
      ...first,
      ...namespace,
      ...['sh', '-c', line],
    )
    t.equal(status, 1, stderr)
    t.match(stderr, why)
    t.equal(stdout.replace('mount\n', ''), '', 'nothing is left in /run')
  }
  t.notOk(existsSync('/proc/self/root/dev/.thinfs-dm'))
})

t.test(
  'a second service, --stop while a device is in use, --status and --stop of none',
  async t => {
    const host = await DmHost.start(t)
    const dm = DM.replace('LOG', host.log)
    t.match(await host.fails(dm), /running already.*\(MOUNT_BUSY\)/)
    const disk = await host.loop('disk', '16M')
    await host.sh(`dmsetup create one --table "0 32768 linear ${disk} 0"`)
    t.match(await host.fails(`mkfs.ext4 -q ${disk}`), /in use/, 'a device below is claimed')
    await host.sh('mkfs.ext4 -q /dev/mapper/one; mkdir m; mount /dev/mapper/one m')
    t.match(await host.fails(`${dm} --stop`), /in use: one.*\(MOUNT_BUSY\)/)
    await host.sh('echo still there > m/a; umount m')
    await host.stopService()
    for (const option of ['--status', '--stop']) {
      t.match(await host.fails(`${dm} ${option}`), /does not run \(NOT_MOUNTED\)/)
    }
    await host.startService()
    const { log } = host
    await host.sh(`losetup -d ${disk}`)
    await host.fails(`dmsetup create none --table "0 32768 linear ${disk} 0"`)
    const said = logLines(log).filter(({ msg }) => msg === 'refused')
    const why = `${basename(disk)} has no file`
    t.match(said, [{ command: 'TABLE_LOAD', err: { message: why } }], 'why, and once')
  },
)
