/**
 * Goal: examples/qemu-boot.sh, as it is and without root: a PC boots from a volume, writes to it,
 * and what it trims goes back to the pool. Method: rig/boot-image makes the disk; the guest says
 * what it did.
 */
import { execFileSync } from 'node:child_process'
import { chmodSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import t from 'tap'
import { needs } from '../support/mounted-pool.js'
import { OrdinaryUser } from '../support/ordinary-user.js'

const EXAMPLE = resolve(import.meta.dirname, '../../examples/qemu-boot.sh')

t.test('QEMU boots from a snapshot of an image', needs('/dev/fuse'), async t => {
  const folder = mkdtempSync(join(tmpdir(), 'thinfs-boot-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  chmodSync(folder, 0o755)
  const image = join(folder, 'disk.img')
  execFileSync(join(import.meta.dirname, 'rig/boot-image'), [image])
  const user = await OrdinaryUser.make(t)
  const said = await user.sh(`sh ${EXAMPLE} ${image}`)
  t.match(said, 'guest: boot 1, from a disk of 393216 sectors')
  t.match(said, /guest: \/disk: \d{9} bytes trimmed/)
  t.match(said, 'guest: unmounted')
  const [golden, vm] = [...said.matchAll(/^\w+ +\d+ +192M +([\d.]+)M /gm)].map(([, mib]) =>
    Number(mib),
  )
  // The guest's file of 16 MiB came and went.
  t.ok(vm! < golden! + 8, `${golden}, ${vm} MiB`)
  t.equal(await user.sh('ls tmp'), '')
})
