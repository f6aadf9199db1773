// Goal: a pool whose three disks are on a machine that speaks NBD goes from one host to another,
// and what was flushed is there, whatever the first one still tries. Method: as
// gluster.disttest.ts, with servers that let in one client at a time, and a command that starts
// them anew.
import { readFileSync } from 'node:fs'
import t, { type Test } from 'tap'
import { GIB, MIB } from '../../src/base/index.js'
import { run, until } from '../support/mounted-pool.js'
import { failoverSuite, type Hosts, type Outcome } from './rig/failover.js'
import { type Machine, Network } from './rig/machine.js'
import { NbdServers } from './rig/nbd.js'
import { PoolOn } from './rig/pool-on.js'

/** On each host, in its own memory: nothing but pool.yaml. */
const FOLDER = '/run/pool'

for (const kind of ['nbdkit', 'qemu-nbd'] as const) {
  t.test(kind, async t => {
    const network = await Network.make(t)
    const storage = await network.machine(t, 'storage')
    const disks = { data: GIB, metadata: 16 * MIB, state: 16 * MIB }
    const servers = new NbdServers(storage, kind, disks)
    t.teardown(() => servers.stop())
    await failoverSuite(
      t,
      network,
      {
        async prepare() {},
        async makePool(_name, hosts) {
          await servers.start()
          for (const host of hosts) await writeYaml(host, servers, servers.fence)
          await new PoolOn(hosts[0], FOLDER).thinfs('init', FOLDER)
          return FOLDER
        },
        inUse: /POOL_IN_USE/,
        takeOver: pool => pool.mount('--take-over'),
        async thinCheck() {
          await run('thin_check', servers.fileOf('metadata'))
        },
      },
      {
        'a host that cannot be fenced': (t, hosts) => staysOut(t, servers, hosts),
        'a host comes back when nobody has the pool': comesBackLate,
      },
    )
  })
}

/** @param fence null: none */
async function writeYaml(
  host: Machine,
  servers: NbdServers,
  fence: readonly string[] | null,
  timeout = '60s',
): Promise<void> {
  const disk = (name: string): string => `${name}: { nbd: "${servers.addressOf(name)}" }`
  const tenancy = fence
    ? `tenancy: { fence: { command: ${JSON.stringify(fence)}, timeout: ${timeout} } }`
    : ''
  const yaml = `pool: shared
${['data', 'metadata', 'state'].map(disk).join('\n')}
cache: { size: 64M }
${tenancy}
volumes:
  web: { size: 64M }
`
  await host.sh('mkdir -p "$1"; printf %s "$2" > "$1/pool.yaml"', FOLDER, yaml)
}

/**
 * The servers let the first host in again, which has much to write, and still has time to. The
 * other has left by then, and no lock is in the way.
 */
async function comesBackLate(
  t: Test,
  { network, a, b, ledger, takeOver }: Hosts,
): Promise<Outcome> {
  await ledger.fill(a, 'flushed')
  await ledger.fill(a, 'lost')
  await network.cut(a.machine)
  await takeOver(b)
  await ledger.fill(b, 'flushed')
  await b.umount()
  await network.heal(a.machine)
  t.equal(await a.errnoOfWrite(ledger.staleNumber()), 'EIO')
  await until(async () => (await a.status()).mode === 'fail')
  await a.endMount()
  await b.mount()
  return { failovers: 2, pause: 0, last: b }
}

/** Nothing is changed, and the host that has the pool is not disturbed. */
async function staysOut(t: Test, servers: NbdServers, { a, b, ledger }: Hosts): Promise<Outcome> {
  const writer = ledger.write(a)
  await writer.progress()
  const record = (): string => readFileSync(servers.fileOf('state')).toString('latin1', 0, 4096)
  const before = record()
  for (const [why, fence, stderr] of [
    ['there is no command', null, /POOL_IN_USE/],
    ['it fails', ['false'], /TOOL_FAILED/],
    ['it is missing', ['/run/nowhere'], /TOOL_FAILED/],
    ['it hangs', ['sleep', '1000'], /TOOL_FAILED/],
  ] as const) {
    await writeYaml(b.machine, servers, fence, '3s')
    t.match(await b.attemptMount('--take-over'), { status: 1, stderr }, why)
    t.equal(record(), before, 'the record is as it was')
  }
  await writer.progress()
  const { error, longestPause } = await writer.stop()
  t.equal(error, null)
  return { failovers: 0, pause: longestPause, last: a }
}
