// Goal: one host has a pool on images; another is told who, or fences it. Method: two hosts in this
// process, whose ceph.conf are two files of one cluster, with the library of test/ceph.
import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import t, { type Test } from 'tap'
import { MIB, SYSTEM_CLOCK } from '../../src/base/index.js'
import { parseConfig } from '../../src/config/index.js'
import type { Tenancy } from '../../src/tenancy/index.js'
import { PoolFiles } from '../../src/volumes/pool-files.js'
import { newMountId, tenancyOf } from '../../src/volumes/pool-tenancy.js'
import { FakeCluster, useFakeCeph } from '../support/fake-ceph.js'

useFakeCeph(t)

/** A host of a cluster. */
class Host {
  readonly files: PoolFiles
  readonly mountId = newMountId()
  readonly said: string[] = []
  readonly #config: ReturnType<typeof parseConfig>

  constructor(t: Test, of: FakeCluster, name: string, readOnly = false) {
    const conf = of.file(`${name}.conf`)
    writeFileSync(conf, '')
    const disks = ['data', 'metadata', 'state'].map(disk => `${disk}: { rbd: thin/${disk} }`)
    const text = `pool: shared\n${disks.join('\n')}\nceph: { conf: ${conf}, user: host }\n`
    this.#config = parseConfig(text, of.file('pool.yaml'), of.file('pool.yaml'))
    this.files = PoolFiles.open(this.#config, readOnly)
    t.teardown(() => this.files.close())
  }

  tenancy(takeOver?: 'fence', takesOver = false): Promise<Tenancy | null> {
    return tenancyOf(this.#config, this.files, {
      mount: { mountId: this.mountId, fenced: null, ...(takeOver && { takeOver }) },
      ...{ takesOver, clock: SYSTEM_CLOCK, warn: () => {} },
      onConnection: what => void this.said.push(what),
    })
  }
}

const cluster = (t: Test): FakeCluster => {
  const of = new FakeCluster(t)
  for (const name of ['data', 'metadata', 'state']) of.make(name, 16 * MIB)
  return of
}

const GRANULE = { dataBlockSize: 64 * 1024 }

t.test('a second host is told who has it; a third fences it', async t => {
  const of = cluster(t)
  const [a, b, c, reader] = ['a', 'b', 'c', 'd'].map(name => new Host(t, of, name, name === 'd'))
  const first = (await a!.tenancy())!
  t.equal(first.strength, 'enforced')
  await a!.files.openData(GRANULE)
  await first.confirm()
  const served = { code: 'POOL_IN_USE', message: /is served by .* since/ }
  await t.rejects(b!.tenancy(), served)
  await t.rejects(reader!.tenancy(), served, 'one that only reads')
  t.notMatch(of.calls, /break/)

  const second = (await c!.tenancy('fence'))!
  await c!.files.openData(GRANULE)
  t.equal(second.tenant.generation, first.tenant.generation + 1)
  t.match(c!.said, [/is fenced/])
  const entries = readFileSync(of.file('blocklist'), 'utf8').trim().split('\n')
  t.equal(entries.at(-1), `${first.tenant.address} ${365 * 86400}`)
  await t.rejects(first.confirm(), { code: 'FENCED' })
  t.equal((await first.lost).code, 'FENCED')
  await second.confirm()
  await second.release()
})

t.test('a host that Ceph has found dead is refused for a year: it may only sleep', async t => {
  const of = cluster(t)
  const [a, b, c] = ['a', 'b', 'c'].map(name => new Host(t, of, name))
  const { tenant } = (await a!.tenancy())!
  // The library breaks its lock, and has it refused for an hour.
  rmSync(of.file('thin.state.lock'))
  writeFileSync(of.file('blocklist'), `${tenant.address} 3600\n`)
  const second = (await b!.tenancy())!
  const entries = (): string[] => readFileSync(of.file('blocklist'), 'utf8').trim().split('\n')
  t.equal(entries().at(-1), `${tenant.address} ${365 * 86400}`)
  const before = entries()
  await second.release()
  rmSync(of.file('thin.state.lock'))
  await c!.tenancy()
  t.same(entries(), before, 'one that has given it back is not')
})

t.test('an engine of a mount that another host has taken over does not go on', async t => {
  const of = cluster(t)
  const [a, b] = [new Host(t, of, 'a'), new Host(t, of, 'b')]
  const tenancy = (await a.tenancy())!
  await t.rejects(b.tenancy(undefined, true), { code: 'FENCED', message: /taken over by/ })
  await tenancy.release()
})

t.test('a lock that is taken away is noticed before the next superblock', async t => {
  const of = cluster(t)
  const a = new Host(t, of, 'a')
  const tenancy = (await a.tenancy())!
  writeFileSync(of.file('thin.state.lock'), '10.0.0.9:0/9')
  await t.rejects(tenancy.confirm(), { code: 'FENCED', message: /10\.0\.0\.9/ })
  const disk = await a.files.connectState()
  await t.rejects(disk!.write(Buffer.alloc(4096), 0), { code: 'FENCED' }, 'and nothing is sent')
})
