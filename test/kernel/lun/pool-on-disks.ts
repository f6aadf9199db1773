/** The cases of a pool of thinfs on disks that keep reservations, and that two hosts reach. */
import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Test } from 'tap'
import { failoverSuite, killAll, killEngine, type Scenario } from '../../dist/rig/failover.js'
import { PoolOn } from '../../dist/rig/pool-on.js'
import { Ledger } from '../../dist/rig/writers.js'
import type { Lun, VirtualHost } from './virtual-hosts.js'

export const DATA = '/dev/disk/by-id/data'
export const METADATA = '/dev/disk/by-id/metadata'

const YAML = `pool: lun
data: { path: ${DATA} }
metadata: { path: ${METADATA} }
tenancy: { locks: reservations }
volumes: { web: { size: 64M } }
`

/** @param clear sets both disks free, whoever has reserved them */
export async function poolOnDisks(
  t: Test,
  lun: Lun,
  clear: (host: VirtualHost) => Promise<unknown>,
): Promise<void> {
  await failoverSuite<VirtualHost>(
    t,
    lun,
    {
      async makePool(name, [host]) {
        const folder = join(lun.shared, name)
        mkdirSync(folder)
        t.teardown(() => rmSync(folder, { recursive: true }))
        writeFileSync(join(folder, 'pool.yaml'), YAML)
        await clear(host)
        await new PoolOn(host, folder).thinfs('init', folder, '--force')
        return folder
      },
      async prepare() {},
      takeOver: pool => pool.mount('--take-over'),
      inUse: /served by a since .*POOL_IN_USE/,
      async thinCheck({ machine }) {
        await machine.run('thin_check', METADATA)
      },
    },
    {
      'engines are killed under a writer': enginesKilled,
      'engine and daemon are killed, and another host mounts the pool': notReplaced,
      'the pool is given back': givenBack,
      'a host that lost its power comes again': comesAgain,
      'the disks refuse who has lost them': refused,
    },
  )
}

/** Linux 6.1 sends no request again: a writer may be told of an error, and never waits for ever. */
const enginesKilled: Scenario<VirtualHost> = async (t, { a, ledger }) => {
  let pause = 0
  for (let i = 0; i < 5; i++) {
    const writer = ledger.write(a)
    await writer.progress()
    await killEngine(a)
    await writer.progress()
    const { error, longestPause } = await writer.stop()
    t.ok(error === null || error.errno === 'ECONNABORTED', JSON.stringify(error))
    pause = Math.max(pause, longestPause)
  }
  t.match((await a.status()).warnings, [/an engine has died/])
  return { failovers: 0, pause, last: a }
}

/** Nothing says that a silent host is dead: another one has to fence it, and its own may go on. */
const notReplaced: Scenario<VirtualHost> = async (t, { a, b, ledger, inUse }) => {
  const first = ledger.write(a)
  await first.progress()
  await killAll(t, a, first)
  t.match(await b.attemptMount('--wait', '0'), { status: 1, stderr: inUse })
  await a.endMount()
  await a.mount()
  const second = ledger.write(a)
  await second.progress()
  t.equal((await second.stop()).error, null)
  return { failovers: 0, pause: Ledger.pauseBetween(first, second), last: a }
}

const givenBack: Scenario<VirtualHost> = async (t, { a, b, ledger }) => {
  const first = ledger.write(a)
  await first.progress()
  await first.stop()
  await a.umount()
  await b.mount()
  const second = ledger.write(b)
  await second.progress()
  t.equal((await second.stop()).error, null)
  return { failovers: 1, pause: Ledger.pauseBetween(first, second), last: b }
}

const comesAgain: Scenario<VirtualHost> = async (t, { a, ledger }) => {
  const first = ledger.write(a)
  await first.progress()
  await a.machine.powerOff()
  await first.ended.catch(() => {})
  await a.machine.boot()
  await a.mount()
  const second = ledger.write(a)
  await second.progress()
  t.equal((await second.stop()).error, null)
  return { failovers: 0, pause: Ledger.pauseBetween(first, second), last: a }
}

/** Writes of its system, without thinfs, do not get there either. */
const refused: Scenario<VirtualHost> = async (t, { a, b, ledger }) => {
  const first = ledger.write(a)
  await first.progress()
  const { enginePid } = (await a.status()).mount!
  await a.machine.kill('STOP', enginePid)
  await b.mount('--take-over')
  const second = ledger.write(b)
  await second.progress()
  t.equal((await second.stop()).error, null)
  // From now on nobody who may write does.
  await b.umount()
  const before = await contents(b)
  for (const disk of [DATA, METADATA]) {
    const written = await a.machine.attempt('dd', 'if=/dev/urandom', `of=${disk}`, ...SCRATCH)
    t.match(written, { status: 1, stderr: /error/ }, `${a.machine.name} cannot write to ${disk}`)
  }
  await a.machine.kill('CONT', enginePid)
  t.not((await first.ended).error, null, 'its writer is told')
  t.match(await a.status(), { mode: 'fail', reason: /taken over by b at / })
  await a.endMount()
  t.equal(await contents(b), before, 'nothing has changed on the disks')
  await b.mount()
  return { failovers: 1, pause: Ledger.pauseBetween(first, second), last: b }
}

const SCRATCH = ['bs=4096', 'seek=1', 'count=16', 'oflag=direct', 'conv=notrunc']

/** The hash of all that is on the disks. */
const contents = ({ machine }: PoolOn<VirtualHost>): Promise<string> =>
  machine.sh(
    'for disk; do dd if="$disk" bs=1M iflag=direct status=none; done | sha256sum',
    DATA,
    METADATA,
  )
