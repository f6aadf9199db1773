// Goal: a pool in a folder that GlusterFS keeps on three machines goes from one host to another,
// and what was flushed is there, whatever the first one still tries. Method: hosts as namespaces
// with boot ids of their own; a cable that is taken out; every acknowledged block is looked for,
// and blocks of who had lost the pool; thin_check and check --deep judge what is left.
import t, { type Test } from 'tap'
import { failoverSuite, serversDie } from './rig/failover.js'
import { Gluster, SHARED } from './rig/gluster.js'
import { type Machine, Network } from './rig/machine.js'
import { PoolOn } from './rig/pool-on.js'

const YAML = `pool: shared
data: { size: 1G }
metadata: { size: 16M }
volumes:
  web: { size: 64M }
`
/** The servers give a lock to another host only when the descriptors that had it are dead. */
const ENFORCED = `${YAML}tenancy: { locks: enforced }
`

async function makePool(name: string, host: Machine, yaml: string): Promise<string> {
  const folder = `${SHARED}/${name}`
  await host.sh('mkdir "$1"; printf %s "$2" > "$1/pool.yaml"', folder, yaml)
  await new PoolOn(host, folder).thinfs('init', folder)
  return folder
}

t.test('GlusterFS, three bricks', async t => {
  const network = await Network.make(t)
  const gluster = await Gluster.start(t, network)
  let nrPools = 0
  for (const [what, yaml, inUse] of [
    ['by its locks alone', YAML, /POOL_IN_USE/],
    ['with a record of who has it', ENFORCED, /served by a since .*POOL_IN_USE/],
  ] as const) {
    await t.test(what, t =>
      failoverSuite(
        t,
        network,
        {
          prepare: host => gluster.mountOn(host),
          makePool: (name, [host]) => makePool(`${name}-${nrPools++}`, host, yaml),
          inUse,
          // The servers let go of the locks of a client that says nothing any more.
          takeOver: pool => pool.mount('--wait', '90'),
          async thinCheck({ machine, folder }) {
            await machine.run('thin_check', `${folder}/metadata`)
          },
        },
        {
          'two of three bricks are killed under a writer': (t, hosts) =>
            serversDie(t, hosts, {
              kill: index => gluster.killBrick(gluster.servers[index]!),
              async start() {
                await gluster.startBricks()
                await gluster.healed()
                await gluster.isReachedBy(hosts.a.machine)
              },
            }),
        },
      ),
    )
  }
  await t.test('what the file system says that it clears', async t => {
    const host = await network.machine(t, 'c')
    await gluster.mountOn(host)
    await showsNothingOld(t, host)
  })
})

/**
 * Fills a volume, discards all of it without the blocks being punched, and writes a little to each:
 * whatever else is in them is the last owner's.
 */
async function showsNothingOld(t: Test, host: Machine): Promise<void> {
  const yaml = `pool: old
data: { size: 32M }
metadata: { size: 4M }
discards: nopassdown
volumes:
  web: { size: 32M }
`
  const pool = new PoolOn(host, await makePool('old', host, yaml))
  t.comment(await host.run('python3', '-c', ZERO_RANGE, `${SHARED}/trial`))
  await pool.mount()
  t.equal(
    await host.run('python3', '-c', REUSE, pool.volume),
    '512 blocks, 0 of them with old bytes',
  )
  await pool.umount()
  t.match(await pool.attemptThinfs('check', pool.folder, '--deep'), { status: 0 })
}

/** Says whether fallocate(2) clears what it says that it clears. */
const ZERO_RANGE = `
import ctypes, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
os.pwrite(fd, b'x' * 65536, 0)
os.fsync(fd)
failed = ctypes.CDLL(None).fallocate(fd, 0x11, ctypes.c_long(0), ctypes.c_long(65536))
cleared = os.pread(fd, 65536, 0) == bytes(65536)
print(f'FALLOC_FL_ZERO_RANGE: {"failed" if failed else "cleared" if cleared else "said that it cleared"}')
`

const REUSE = `
import ctypes, os, sys
BLOCK, NR = 65536, 512
fd = os.open(sys.argv[1], os.O_RDWR)
os.pwrite(fd, b'o' * (BLOCK * NR), 0)
os.fsync(fd)
assert ctypes.CDLL(None).fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(BLOCK * NR)) == 0
os.fsync(fd)
for block in range(NR):
    os.pwrite(fd, b'n' * 100, block * BLOCK + 30_000)
os.fsync(fd)
wanted = bytes(30_000) + b'n' * 100 + bytes(BLOCK - 30_100)
wrong = sum(os.pread(fd, BLOCK, block * BLOCK) != wanted for block in range(NR))
print(f'{NR} blocks, {wrong} of them with old bytes')
`
