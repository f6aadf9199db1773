// Goal: a mount that has lost its pool lets go of the disks of other machines. Method: another
// host's record is put where this mount's is; servers that let in one client let in the next one
// then.
import { openSync, writeSync } from 'node:fs'
import t from 'tap'
import { MIB } from '../../src/base/index.js'
import { NbdDisk } from '../../src/nbd/index.js'
import { encodeTenant } from '../../src/tenancy/record.js'
import { initPool, openPool } from '../../src/volumes/index.js'
import { imageOf, serveImages, shortFolder } from '../support/nbd-servers.js'
import { exportsConfig } from '../support/pool-files.js'

const OTHER = {
  ...{ generation: 9, since: 1_795_917_785, mountId: 'f'.repeat(32), address: '' },
  host: { name: 'host7', machineId: 'e'.repeat(32), bootId: 'd'.repeat(32) },
}

t.test('exports are let go of when the tenancy is lost', async t => {
  const folder = shortFolder(t)
  const sizes = { data: 16 * MIB, metadata: 4 * MIB }
  const { data, metadata, state } = await serveImages(t, folder, sizes, ['--filter=limit'])
  const config = exportsConfig(t.testdir(), {
    data: data.address,
    metadata: metadata.address,
    state: state.address,
  })
  await initPool(config)
  const { volumes, close } = await openPool(config)
  await volumes.create({ name: 'v', size: MIB })
  writeSync(openSync(imageOf(folder, 'state'), 'r+'), encodeTenant(OTHER), 0, 4096, 0)
  await t.rejects(volumes.create({ name: 'w', size: MIB }), {
    code: 'FENCED',
    message: 'taken over by host7 at 2026-11-29 02:03:05 UTC',
  })
  t.equal(volumes.pool.mode, 'fail')
  for (const { address } of [data, metadata, state]) {
    const next = await NbdDisk.connect(address)
    await next.read(new Uint8Array(4096), 0)
    next.close()
  }
  await t.rejects(close(), { code: 'FENCED' }, 'nor is it given back')
})
