// The scripts in examples/ run as they are, and leave nothing.
import { resolve } from 'node:path'
import t from 'tap'
import { DmHost } from '../../support/dm-host.js'

const EXAMPLES = resolve(import.meta.dirname, '../../../examples')

t.test('examples/dmsetup.sh and examples/lvm.sh', async t => {
  const host = await DmHost.start(t)
  const dmsetup = await host.run(`${EXAMPLES}/dmsetup.sh`)
  t.match(dmsetup, 'base: hello world, I am a base\nsnap: I am snap1\n805306368\n')
  t.match(dmsetup, "the metadata is the kernel's\n")
  const lvm = await host.run(`${EXAMPLES}/lvm.sh`)
  t.match(lvm, 'old: first, now: second\n')
  t.match(lvm, /\n *pool +twi-aotz-- 300\.00m/)
  t.match(lvm, /second\n/)
  t.equal(await host.sh('dmsetup ls; ls'), 'No devices found\nlog\n')
})
