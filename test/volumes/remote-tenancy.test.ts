// Goal: a pool on NBD exports is taken by whoever can have all of it, from nobody who uses it, also
// where one of its servers lets in several hosts, or this host knows it by two names. Method:
// nbdkit with and without a limit of clients, and a proxy that is the second name.
import { readFileSync } from 'node:fs'
import t, { type Test } from 'tap'
import { MIB, type NbdAddress } from '../../src/base/index.js'
import { NbdDisk } from '../../src/nbd/index.js'
import { initPool, openPool } from '../../src/volumes/index.js'
import { newMountId } from '../../src/volumes/pool-tenancy.js'
import { until } from '../support/mounted-pool.js'
import { byTcp, imageOf, serveImage, shortFolder } from '../support/nbd-servers.js'
import { exportsConfig } from '../support/pool-files.js'

const SIZES = { data: 16 * MIB, metadata: 4 * MIB, state: 16 * MIB }

/** An nbdkit for each disk; those in `alone` let in one client. */
async function serve(t: Test, alone: (keyof typeof SIZES)[]) {
  const folder = shortFolder(t)
  const address = async (name: keyof typeof SIZES): Promise<NbdAddress> => {
    const args = alone.includes(name) ? ['--filter=limit'] : []
    return (await serveImage(t, imageOf(folder, name), SIZES[name], args)).address
  }
  const [data, metadata, state] = [
    await address('data'),
    await address('metadata'),
    await address('state'),
  ]
  return { folder, addresses: { data, metadata, state } }
}

const mount = () => ({ tenancy: { mountId: newMountId(), fenced: null } })

t.test('a pool is as strong as the weakest of its servers', async t => {
  for (const [alone, strength] of [
    [['data', 'metadata', 'state'], 'connection'],
    [['metadata', 'state'], 'advisory'],
  ] as const) {
    const { addresses } = await serve(t, [...alone])
    const config = exportsConfig(t.testdir(), addresses)
    await initPool(config)
    const { volumes, close } = await openPool(config, mount())
    await until(async () => (await volumes.status()).tenancy?.strength === strength)
    await close()
  }
})

t.test('what another process of this host uses by another name is not taken from it', async t => {
  const { addresses } = await serve(t, [])
  const config = exportsConfig(t.testdir(), addresses)
  await initPool(config)
  const { volumes, close } = await openPool(config, mount())
  const [data, metadata, state] = await Promise.all(
    [addresses.data, addresses.metadata, addresses.state].map(address => byTcp(t, address)),
  )
  const other = { data: data!, metadata: metadata!, state: state! }
  const again = exportsConfig(t.testdir(), other)
  await t.rejects(openPool(again, mount()), { code: 'POOL_IN_USE', message: /is served by/ })
  await volumes.create({ name: 'v', size: MIB })
  await close()
  await (await openPool(again, mount())).close()
})

t.test('a mount that cannot have all of it leaves the record as it is', async t => {
  const { folder, addresses } = await serve(t, ['metadata'])
  const config = exportsConfig(t.testdir(), addresses)
  await initPool(config)
  const record = (): Buffer => readFileSync(imageOf(folder, 'state')).subarray(0, 8192)
  const before = record()
  const other = await NbdDisk.connect(addresses.metadata)
  t.teardown(() => other.close())
  await t.rejects(openPool(config, mount()), { code: 'POOL_IN_USE' })
  t.ok(record().equals(before))
})
