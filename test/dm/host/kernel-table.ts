// Goal: what `thinfs table` prints activates a pool in the kernel. Method: its script, run by sh
// with Debian's dmsetup and losetup on the service; tables are as a Linux 6.1 prints them, and
// devices have what the volumes had.
import { join, resolve } from 'node:path'
import t from 'tap'
import { DmHost } from '../../support/dm-host.js'
import { expectedOfLvm, lvmImage } from '../../support/foreign-pools.js'

const THINFS = `${process.execPath} ${resolve(import.meta.dirname, '../../../bin/thinfs.js')}`

/** Without the numbers of devices. */
const numbersOut = (text: string): string => text.replace(/\b7:\d+\b/g, '7:N')

/** The last line of a script, which says how to end what it begins. */
const endOf = (script: string): string =>
  /^# To end it: (.*)\n$/m.exec(script)![1]!.replaceAll('# ', '')

t.test('a pool of files, with features', async t => {
  const host = await DmHost.start(t)
  await host.sh(`mkdir pool mnt; cat > pool/pool.yaml <<END
pool: p1
data: { size: 1G }
low_water_mark: 64M
discards: nopassdown
on_full: error
volumes: { web: { size: 64M }, "a b": { size: 1M, id: 7 } }
END
${THINFS} init pool/pool.yaml
head -c 1M /dev/urandom > base.img
${THINFS} create pool ext --external-origin base.img --id 9
${THINFS} mount pool mnt
head -c 3M /dev/urandom | dd of=mnt/web conv=notrunc,fsync status=none`)
  const sum = await host.sh('sha256sum < mnt/web')
  const mounted = await host.sh(`${THINFS} table pool`)
  t.match(mounted, /^# The pool is mounted at .*: thinfs umount comes first\.\n/)
  t.notMatch(mounted, /^[^#]/m, 'of a mounted pool only comments')
  await host.sh(`${THINFS} umount pool; ${THINFS} table pool > script; sh -e script`)
  t.equal(
    numbersOut(await host.sh('dmsetup table')),
    [
      'p1: 0 2097152 thin-pool 7:N 7:N 128 1024 2 no_discard_passdown error_if_no_space ',
      'p1-ext: 0 2048 thin 7:N 9 7:N',
      'p1-thin-7: 0 2048 thin 7:N 7',
      'p1-web: 0 131072 thin 7:N 0\n',
    ].join('\n'),
  )
  t.equal(await host.sh('sha256sum < /dev/mapper/p1-web'), sum)
  await host.sh('cmp base.img /dev/mapper/p1-ext')
  t.match(await host.sh('dmsetup status p1'), / rw no_discard_passdown error_if_no_space - /)
  await host.sh(endOf(await host.sh('cat script')))
  t.equal(
    await host.sh('dmsetup table; losetup -n -O NAME -j pool/data -j base.img'),
    'No devices found\n',
  )

  await t.test('what the kernel would read otherwise is refused', async () => {
    await host.sh(`${THINFS} init small --data-size 64M --block-size 4K`)
    t.match(await host.fails(`${THINFS} table small`), /multiples of 64K alone \(NOT_SUPPORTED\)/)
  })
})

t.test("a pool in LVM's disk, of several parts", async t => {
  const host = await DmHost.start(t)
  lvmImage(join(host.folder, 'disk.img'))
  await host.sh(`${THINFS} adopt disk.img found; ${THINFS} table found > script; sh -e script`)
  for (const [name, size, sum] of expectedOfLvm().get('lv')!) {
    const device = `/dev/mapper/vg_docker-data-${name}`
    t.equal(await host.sh(`blockdev --getsize64 ${device}`), `${size}\n`, name)
    t.equal((await host.sh(`sha256sum < ${device}`)).split(' ')[0], sum, name)
  }
  await host.sh(endOf(await host.sh('cat script')))
})
