// Goal: who is killed, service or engine, costs nobody an error or a byte. Method: fio writes and
// verifies a file on ext4 on a thin device while they are killed; clients ask meanwhile. Ends with
// thin_check.
import { readdirSync, readFileSync } from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import t from 'tap'
import { DmHost } from '../../support/dm-host.js'
import { run, until } from '../../support/mounted-pool.js'

const FIO =
  'fio --name=v --filename=m/f --size=24M --bs=4k-64k --rw=randwrite --direct=1 --ioengine=libaio --iodepth=8 --verify=crc32c --verify_fatal=1 --output=/dev/null'

async function prepare(host: DmHost): Promise<void> {
  const data = await host.loop('data', '256M')
  const metadata = await host.loop('meta', '4M')
  await host.sh(`dmsetup create pool --table "0 524288 thin-pool ${metadata} ${data} 128 0"`)
  await host.sh('dmsetup message pool 0 "create_thin 0"')
  await host.sh('dmsetup create thin --table "0 204800 thin /dev/mapper/pool 0"')
  await host.sh('dmsetup create lin --table "0 200000 linear /dev/mapper/thin 8"')
  await host.sh('mkfs.ext4 -q /dev/mapper/lin; mkdir m; mount /dev/mapper/lin m')
}

async function finish(host: DmHost): Promise<void> {
  await host.sh(
    'umount m; e2fsck -fn /dev/mapper/lin; dmsetup remove lin thin; dmsetup remove pool',
  )
  await run('thin_check', '-q', `${host.folder}/meta`)
}

/** Writes and verifies until `act` was done so often. */
async function underLoad(host: DmHost, times: number, act: (round: number) => Promise<void>) {
  const load = host.sh(`until [ -e stop ]; do ${FIO}; done`)
  const acting = (async () => {
    for (let round = 1; round <= times; round++) {
      await act(round)
      await setTimeout(300)
    }
    await host.sh('touch stop')
  })()
  await Promise.all([load, acting])
}

/** Clients, of which each may find nobody for a moment. */
async function use(host: DmHost, round: number): Promise<void> {
  await host.sh(`dmsetup status thin >/dev/null; dmsetup message pool 0 "create_thin ${round}"`)
  await host.sh(`dmsetup create t${round} --table "0 2048 thin /dev/mapper/pool ${round}"`)
  await host.sh(`dmsetup suspend lin; dmsetup resume lin; dmsetup remove t${round}`)
  await host.sh(`dmsetup message pool 0 "delete ${round}"`)
}

t.test('an engine that is killed under load', async t => {
  const host = await DmHost.start(t)
  await prepare(host)
  await underLoad(host, 4, async round => {
    const { enginePid } = await host.status()
    process.kill(enginePid, 'SIGKILL')
    await use(host, round)
  })
  t.match(await host.sh('dmsetup table lin'), /0 200000 linear 7:\d+ 8/)
  await finish(host)
})

t.test('a service that is killed under load, and the next one', async t => {
  const host = await DmHost.start(t)
  await prepare(host)
  await host.sh('dmsetup create -u U1 held --table "0 8 zero"; dmsetup suspend held')
  const { devices } = await host.status()
  await underLoad(host, 3, async round => {
    const { pid, enginePid } = await host.status()
    const using = use(host, round)
    await setTimeout(50 * round)
    process.kill(pid, 'SIGKILL')
    if (round === 1) {
      const said = await host.dmFails('--status')
      t.match(said, `engine ${enginePid} goes on serving`)
      t.match(said, /\(.*\bthin\b.*\).*: start thinfs dm again, it takes over \(NOT_MOUNTED\)/)
    }
    await host.startService()
    await using
  })
  const settled = (list: typeof devices): unknown[] =>
    list.map(({ open: _, ...device }) => device).sort((a, b) => (a.name < b.name ? -1 : 1))
  t.same(settled((await host.status()).devices), settled(devices), 'all devices are as they were')
  t.match(await host.run('cat', '/proc/devices'), /^ {2}7 device-mapper$/m)
  await host.sh('dmsetup resume held; dmsetup remove held')
  await finish(host)
})

t.test('service and engine are killed: the next start clears up', async t => {
  const host = await DmHost.start(t)
  const group = `thinfs_k${process.pid}`
  const uuid = `LVM-${'u'.repeat(64)}`
  await host.sh(`dmsetup create -u ${uuid} ${group}-z --table "0 8192 zero"`)
  t.equal(await host.sh(`readlink /dev/${group}/z`), `../mapper/${group}-z\n`)
  const { pid, enginePid, devices } = await host.status()
  process.kill(pid, 'SIGKILL')
  process.kill(enginePid, 'SIGKILL')
  t.match(
    await host.dmFails('--stop'),
    /were killed; 1 devices.*start thinfs dm again, it clears up/,
  )
  await host.startService()
  t.match(await host.fails(`ls /dev/${group}`), /No such/)
  t.equal(await host.sh('dmsetup ls'), 'No devices found\n')
  for (const { loop } of devices) t.match(await host.fails(`losetup ${loop}`), /No such/)
  await host.sh('dmsetup create z --table "0 8192 zero"; dmsetup remove z')
})

/** Processes that one has started. */
const childrenOf = (pid: number): number[] =>
  readdirSync(`/proc/${pid}/task`).flatMap(task =>
    readFileSync(`/proc/${pid}/task/${task}/children`, 'utf8')
      .split(' ')
      .filter(Boolean)
      .map(Number),
  )

t.test('no engine stays: devices fail, and can be removed; --stop takes down the rest', async t => {
  const host = await DmHost.start(t)
  const { pid } = await host.status()
  await host.sh('dmsetup create a --table "0 8192 zero"; dmsetup create b --table "0 8192 zero"')
  await host.sh('dmsetup create held --table "0 8192 zero"; dmsetup suspend held')
  const read = 'dd if=/dev/mapper/a of=/dev/null count=1 iflag=direct'
  await host.sh(read)
  const reading = host.fails(`while :; do ${read}; done`)
  let ended = false
  const dying = reading.finally(() => {
    ended = true
  })
  while (!ended) {
    for (const engine of childrenOf(pid)) process.kill(engine, 'SIGKILL')
    await setTimeout(20)
  }
  t.match(await dying, /Input\/output error/)
  await host.sh('dmsetup remove b')
  t.match(await host.fails('dmsetup create c --table "0 8 zero"'), /failed/)
  await host.stopService()
  t.match(await host.dmFails('--status'), 'thinfs dm does not run (NOT_MOUNTED)')
  await host.startService()
  await until(async () => (await host.sh('dmsetup ls')) === 'No devices found\n')
})
