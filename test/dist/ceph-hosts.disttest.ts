// Goal: a pool whose three disks are images of Ceph goes from one host to another, and what was
// flushed is there, whatever the first one still tries: Ceph itself refuses it. Method: as
// gluster.disttest.ts.
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { run } from '../support/mounted-pool.js'
import { CephRig, lacksCeph, POOL } from './rig/ceph.js'
import {
  failoverSuite,
  goOn,
  type Hosts,
  mustHaveLost,
  type Outcome,
  serversDie,
} from './rig/failover.js'
import { Network } from './rig/machine.js'
import { PoolOn } from './rig/pool-on.js'

/** On each host, in its own memory: nothing but pool.yaml. */
const FOLDER = '/run/pool'
const SIZES = { data: '1G', metadata: '16M', state: '16M' } as const

t.test('Ceph', { skip: process.env.CI ? false : lacksCeph() }, async t => {
  const network = await Network.make(t)
  const storage = await network.machine(t, 'storage')
  const ceph = await CephRig.start(t, { osds: 3, netns: storage.netns, address: storage.address })
  await ceph.addUser('host')
  let last = ''
  await failoverSuite(
    t,
    network,
    {
      async prepare() {},
      async makePool(name, hosts) {
        last = name
        const disks: string[] = []
        for (const [disk, size] of Object.entries(SIZES)) {
          await ceph.createImage(`${name}-${disk}`, size)
          disks.push(`${disk}: { rbd: ${POOL}/${name}-${disk} }`)
        }
        const yaml = `pool: shared
${disks.join('\n')}
ceph: { conf: ${ceph.conf}, user: host }
cache: { size: 64M }
volumes:
  web: { size: 64M }
`
        for (const host of hosts) {
          await host.sh('mkdir -p "$1"; printf %s "$2" > "$1/pool.yaml"', FOLDER, yaml)
        }
        await new PoolOn(hosts[0], FOLDER).thinfs('init', FOLDER)
        return FOLDER
      },
      inUse: /POOL_IN_USE/,
      takeOver: pool => pool.mount('--take-over'),
      async thinCheck() {
        const image = join(storage.folder, `${last}-metadata`)
        await ceph.run('rbd', 'export', '--no-progress', `${POOL}/${last}-metadata`, image)
        await run('thin_check', image)
      },
    },
    {
      'two of three OSDs are killed under a writer': (t, hosts) =>
        serversDie(t, hosts, {
          kill: index => ceph.killOsd(index),
          async start() {
            for (const index of [1, 2]) await ceph.startOsd(index)
            await ceph.ready()
          },
        }),
      'a host comes back when Ceph does not refuse it any more': (t, hosts) =>
        comesBackForgiven(t, ceph, hosts),
    },
  )
})

/** The first host's requests have ended long before the cluster would take them again. */
async function comesBackForgiven(t: Test, ceph: CephRig, hosts: Hosts): Promise<Outcome> {
  const { network, a, b, ledger, takeOver } = hosts
  const first = ledger.write(a)
  await first.progress()
  await network.cut(a.machine)
  await takeOver(b)
  const second = ledger.write(b)
  await second.progress()
  t.not((await first.ended).error, null, 'the first host gives up')
  await ceph.emptyBlocklist()
  await network.heal(a.machine)
  await mustHaveLost(t, a, ledger)
  return goOn(t, { a, b, first, second })
}
