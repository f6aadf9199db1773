// Goal: containerd's devmapper snapshotter works as on a kernel with device-mapper, and its
// containers do not notice the engine's death. Method: Debian's containerd and ctr, with an image
// made here; ends with thin_check. It takes a minute: npm run test:dm.
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { DmHost } from '../support/dm-host.js'
import { until } from '../support/mounted-pool.js'
import { makeImage } from '../support/oci-image.js'

const IMAGE = 'docker.io/library/bb:1'
/** Writes and flushes for as long as it runs; a failure leaves a file. */
const LOAD =
  'i=0; while :; do dd if=/dev/zero of=/f bs=64k count=20 conv=fsync 2>/dev/null || echo x > /failed; ' +
  'i=$((i+1)); echo $i > /count; done'

interface Containerd {
  host: DmHost
  /** What `ctr` prints. */
  ctr(line: string): Promise<string>
}

async function containerd(t: Test): Promise<Containerd> {
  const host = await DmHost.start(t)
  await host.run('containerd', '--version')
  const { folder } = host
  const socket = join(folder, 'containerd.sock')
  writeFileSync(
    join(folder, 'config.toml'),
    `
version = 2
root = "${folder}/root"
state = "/run/containerd-state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "${socket}"
[plugins."io.containerd.snapshotter.v1.devmapper"]
  root_path = "${folder}/devmapper"
  pool_name = "containers"
  base_image_size = "128MB"
  discard_blocks = true
[plugins."io.containerd.internal.v1.opt"]
  path = "${folder}/opt"
`,
  )
  const data = await host.loop('data', '1G')
  const metadata = await host.loop('meta', '16M')
  const table = `0 2097152 thin-pool ${metadata} ${data} 128 1024 1 skip_block_zeroing`
  await host.sh(`dmsetup create containers --table "${table}"`)
  const pid = await host.sh(
    'setsid containerd -c config.toml > containerd.log 2>&1 < /dev/null & echo $!',
  )
  t.teardown(async () => {
    await host.attempt('sh', '-c', `kill ${pid}; while kill -0 ${pid}; do sleep 0.1; done`)
  })
  const ctr = (line: string): Promise<string> => host.sh(`ctr -a ${socket} ${line}`)
  await until(async () => (await host.attempt('ctr', '-a', socket, 'version')).status === 0)
  return { host, ctr }
}

t.test('layers, snapshots, containers', async t => {
  const { host, ctr } = await containerd(t)
  const top = makeImage(host.folder, 'image.tar')
  const snapshots = (line: string): Promise<string> =>
    ctr(`snapshots --snapshotter devmapper ${line}`)
  const names = async (): Promise<string> =>
    (await host.sh('dmsetup ls')).replace(/\t.*/g, '').trim()
  t.match(await ctr('plugins ls'), /devmapper .* ok/)
  await ctr('images import --snapshotter devmapper image.tar')
  t.equal((await snapshots('ls')).match(/Committed/g)?.length, 2)
  t.equal(await names(), 'containers', 'committed layers are not active')

  await snapshots(`prepare work ${top}`)
  await host.sh('mkdir m')
  /** Of what it prints, which ends with an option that is left out. */
  const deviceOf = async (snapshot: string): Promise<string> =>
    /\/dev\/mapper\/\S+/.exec(await snapshots(`mounts ${host.folder}/m ${snapshot}`))![0]
  await host.sh(`mount ${await deviceOf('work')} m; echo new > m/new; umount m`)
  await snapshots('commit done work')
  t.match(await snapshots('usage'), /done/)
  await snapshots('prepare again done')
  const again = await host.sh(
    `mount ${await deviceOf('again')} m; cat m/new m/etc/second; umount m`,
  )
  t.equal(again, 'new\nsecond layer\n', 'a commit has what was written')
  await snapshots('rm again')
  await snapshots('rm done')

  const run = 'run --snapshotter devmapper'
  const said = await ctr(`${run} --rm ${IMAGE} one /bin/sh -c 'cat /etc/second; echo x > /x'`)
  t.equal(said, 'second layer\n')

  await ctr(`${run} -d ${IMAGE} two /bin/sh -c '${LOAD}'`)
  const inside = (line: string): Promise<string> =>
    ctr(`tasks exec --exec-id e${Math.random()} two /bin/sh -c '${line}'`)
  for (let kills = 0; kills < 2; kills++) {
    const { enginePid } = await host.status()
    process.kill(enginePid, 'SIGKILL')
    const before = Number(await inside('cat /count'))
    await until(async () => Number(await inside('cat /count')) > before + 3)
  }
  t.equal(await inside('ls /failed 2>/dev/null || echo none'), 'none\n')
  await ctr('tasks kill -s KILL two')
  await until(async () => /STOPPED/.test(await ctr('tasks ls')))
  await ctr('containers rm two')
  await until(async () => (await names()) === 'containers')
  t.match(await host.sh('dmsetup status containers'), / rw discard_passdown /)
  await host.sh('dmsetup remove containers; thin_check -q meta')
})
