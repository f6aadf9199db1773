/**
 * Goal: the disks of a pool on a LUN refuse the writes of a host that another has taken over from,
 * and what was flushed is there for that other. Method: a virtual machine whose kernel has an iSCSI
 * target, and logs in there as two hosts: to the target they are two, and each has device nodes and
 * a page cache of its own. Then three machines: one has the target, and thinfs runs on two; every
 * acknowledged block is looked for, and blocks of who had lost the pool; thin_check and check
 * --deep judge what is left.
 */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { build } from 'rolldown'
import t from 'tap'
import { runWithin } from '../support/mounted-pool.js'
import { DATA, METADATA, poolOnDisks } from './lun/pool-on-disks.js'
import { Lun } from './lun/virtual-hosts.js'

const ROOT = resolve(import.meta.dirname, '../..')
const LUN = join(import.meta.dirname, 'lun')

/**
 * Boots the machine and runs a script there.
 * @returns what it said, and the console where it failed
 */
async function inGuest(folder: string, scenario: string): Promise<string> {
  writeFileSync(join(folder, 'scenario'), `${scenario}\necho done\n`)
  writeFileSync(join(folder, 'role'), 'both\n')
  writeFileSync(join(folder, 'out'), '')
  const disk = join(folder, 'disk')
  await runWithin(60, 'truncate', '-s', '256M', disk)
  await runWithin(850, join(ROOT, 'test/boot/vm'), folder, disk, join(LUN, 'init'))
  const said = readFileSync(join(folder, 'out'), 'utf8')
  if (said.endsWith('\ndone\n')) return said
  throw new Error(`${said}\n${readFileSync(join(folder, 'console'), 'utf8').slice(-20000)}`)
}

t.test('the reservations of two hosts', async t => {
  const folder = mkdtempSync(join(tmpdir(), 'thinfs-lun-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  // One file: the guest, each of whose instructions is emulated, need not compile it.
  writeFileSync(join(folder, 'package.json'), '{"imports":{"#native":"./thinfs.node"}}')
  cpSync(join(ROOT, 'native-shims/build/thinfs.node'), join(folder, 'thinfs.node'))
  await build({
    input: join(LUN, 'reservations.ts'),
    platform: 'node',
    external: [/^#/],
    output: { file: join(folder, 'reservations.mjs') },
    logLevel: 'warn',
  })
  const said = await inGuest(
    folder,
    `${process.execPath} /test/reservations.mjs /dev/sda /dev/sdb /dev/sdc /dev/sdd`,
  )
  t.match(said, /^nobody has them\n(\+ echo done\n)?done$/m)
})

t.test('a pool that thinfs has on one of two machines', async t => {
  const lun = await Lun.make(t)
  await poolOnDisks(t, lun, host => host.sh(CLEAR, DATA, METADATA))
})

/** Sets disks free, whoever has them. */
const CLEAR = `for disk; do
  sg_persist --out --register-ignore --param-sark=1 "$disk"
  sg_persist --out --clear --param-rk=1 "$disk"
done`
