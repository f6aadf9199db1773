// Goal: Docker's devicemapper driver works as on a kernel with device-mapper, from nothing to
// containers that outlive the engine, Docker and the service. Method: Debian's dockerd and docker,
// with an image made here, on loop-lvm and by Docker's own recipe for direct-lvm. Minutes: npm run
// test:dm.
import { resolve } from 'node:path'
import t, { type Test } from 'tap'
import { DmHost } from '../support/dm-host.js'
import { until } from '../support/mounted-pool.js'
import { makeImage } from '../support/oci-image.js'

/** Writes and flushes for as long as it runs; a failure leaves a file. */
const LOAD =
  'i=0; while :; do dd if=/dev/zero of=/f bs=64k count=20 conv=fsync 2>/dev/null || echo x > /failed; ' +
  'i=$((i+1)); echo $i > /count; done'

/** What Docker has left on a kernel with device-mapper: record.sh beside it. */
const RECORDED = resolve(import.meta.dirname, '../fixtures/docker-devicemapper/linux-6.1.tar.zst')
const SOCKET = 'unix:///run/docker-test.sock'

class Docker {
  readonly host: DmHost
  readonly #options: string

  private constructor(host: DmHost, options: string[]) {
    this.host = host
    this.#options = options.map(option => `--storage-opt ${option}`).join(' ')
  }

  static async start(t: Test, host: DmHost, options: string[]): Promise<Docker> {
    await host.run('dockerd', '--version')
    const docker = new Docker(host, options)
    t.teardown(() => docker.stop())
    await docker.start()
    return docker
  }

  async start(): Promise<void> {
    await this.host.sh(
      `setsid dockerd --data-root ${this.host.folder}/docker --exec-root /run/docker-test \
        -H ${SOCKET} -p ${this.#pidFile} --iptables=false --ip-forward=false --ip-masq=false \
        --bridge=none --storage-driver=devicemapper ${this.#options} \
        >> docker.log 2>&1 < /dev/null &`,
    )
    await until(async () => {
      const { status } = await this.host.attempt('docker', '-H', SOCKET, 'version')
      return status === 0
    })
  }

  /** Waits until it has ended; its containers end with it. */
  async stop(): Promise<void> {
    await this.host.attempt(
      'sh',
      '-c',
      `kill $(cat ${this.#pidFile}); while [ -e ${this.#pidFile} ]; do sleep 0.1; done`,
    )
  }

  get #pidFile(): string {
    return '/run/docker-test.pid'
  }

  /** What `docker` prints. */
  run(line: string): Promise<string> {
    return this.host.sh(`docker -H ${SOCKET} ${line}`)
  }

  names = async (): Promise<string[]> => {
    const list = await this.host.sh('dmsetup ls')
    return list.startsWith('No devices') ? [] : list.trim().split('\n')
  }
}

t.test('loop-lvm: images, containers, deaths and restarts', async t => {
  const host = await DmHost.start(t)
  makeImage(host.folder, 'image.tar')
  const options = ['dm.override_udev_sync_check=true', 'dm.basesize=1G', 'dm.loopdatasize=4G']
  const docker = await Docker.start(t, host, options)
  const info = await docker.run('info 2>/dev/null')
  t.match(info, /Storage Driver: devicemapper\n/)
  t.match(info, /Pool Blocksize: 65.54kB\n/)
  t.match(info, /Data Space Total: 4.295GB\n/)
  await docker.run('load -i image.tar')
  t.equal(await docker.run('run --rm --network none bb:1 /bin/cat /etc/second'), 'second layer\n')

  await docker.run(`run -d --name load --network none bb:1 /bin/sh -c '${LOAD}'`)
  for (let kills = 0; kills < 2; kills++) {
    const { enginePid } = await host.status()
    process.kill(enginePid, 'SIGKILL')
    const before = Number(await docker.run('exec load cat /count'))
    await until(async () => Number(await docker.run('exec load cat /count')) > before + 3)
  }
  t.equal(await docker.run('exec load sh -c "ls /failed 2>/dev/null || echo none"'), 'none\n')
  await docker.run('exec load sh -c "echo inside > /inside"')
  await docker.run('commit load bb:2')
  t.equal(await docker.run('run --rm --network none bb:2 /bin/cat /inside'), 'inside\n')
  t.match(await docker.run('diff load'), /A \/inside/)
  await docker.run('rm -f load')

  await docker.run('run --name kept --network none bb:1 /bin/sh -c "echo kept > /kept"')
  await docker.stop()
  t.same(await docker.names(), [])
  await host.stopService()
  await host.startService()
  await docker.start()
  await docker.run('cp kept:/kept kept')
  t.equal(await host.sh('cat kept'), 'kept\n')
  await docker.run('rm kept')
  await docker.run('rmi bb:2 bb:1')
  t.equal((await docker.names()).length, 1, 'the pool alone')
  await docker.stop()
  t.same(await docker.names(), [])
  await host.sh('thin_check -q docker/devicemapper/devicemapper/metadata')
})

t.test('direct-lvm: by the recipe, with restarts', async t => {
  const host = await DmHost.start(t)
  makeImage(host.folder, 'image.tar')
  // For libudev this file is a running udevd, without which Docker wants to be overridden.
  await host.sh('mkdir -p /run/udev; : > /run/udev/control')
  const disk = await host.loop('disk', '4G')
  const lvm = (line: string): Promise<string> => host.sh(`${line} 2>&1`)
  await lvm(`pvcreate ${disk}`)
  await lvm(`vgcreate thinfsdocker ${disk}`)
  await lvm('lvcreate --wipesignatures y -n thinpool thinfsdocker -l 95%VG')
  await lvm('lvcreate --wipesignatures y -n thinpoolmeta thinfsdocker -l 1%VG')
  await lvm(
    'lvconvert -y --zero n -c 512K --thinpool thinfsdocker/thinpool --poolmetadata thinfsdocker/thinpoolmeta',
  )
  const docker = await Docker.start(t, host, [
    'dm.thinpooldev=/dev/mapper/thinfsdocker-thinpool',
    'dm.use_deferred_removal=true',
    'dm.use_deferred_deletion=true',
    'dm.basesize=1G',
    'dm.fs=ext4',
  ])
  const info = await docker.run('info 2>/dev/null')
  t.match(info, /Pool Name: thinfsdocker-thinpool\n/)
  t.match(info, /Udev Sync Supported: true\n/)
  await docker.run('load -i image.tar')
  const run = 'run --name keep --network none bb:1'
  t.equal(await docker.run(`${run} /bin/sh -c "echo kept > /kept; cat /kept"`), 'kept\n')
  await docker.stop()
  await docker.start()
  t.equal(await docker.run('start -a keep'), 'kept\n')
  await docker.run('rm keep')
  await docker.run('rmi bb:1')
  await docker.stop()
  await lvm('vgchange -an thinfsdocker')
  await lvm('vgchange -ay thinfsdocker')
  t.match(await host.sh('lvs --noheadings -o lv_attr thinfsdocker/thinpool'), /^ *twi-a-/)
  await lvm('lvremove -y thinfsdocker/thinpool')
  await lvm('vgremove thinfsdocker')
  await lvm(`pvremove ${disk}`)
  t.same(await docker.names(), [])
})

t.test('loop-lvm that is full: writers wait until it is extended, and removal frees', async t => {
  const host = await DmHost.start(t)
  makeImage(host.folder, 'image.tar')
  const docker = await Docker.start(t, host, [
    'dm.override_udev_sync_check=true',
    'dm.basesize=1G',
    'dm.loopdatasize=256M',
    'dm.min_free_space=0%',
    'dm.fs=ext4',
  ])
  await docker.run('load -i image.tar')
  const pool = (await docker.names()).map(line => line.split('\t')[0]!).find(n => /-pool$/.test(n))!
  const counts = async (): Promise<{ used: number; of: number; mode: string }> => {
    const words = (await host.sh(`dmsetup status ${pool}`)).split(' ')
    const [used, of] = words[5]!.split('/').map(Number) as [number, number]
    return { used, of, mode: words[7]! }
  }
  const before = await counts()
  const fill = 'dd if=/dev/zero of=/f bs=1M count=300 conv=fsync 2>/dev/null && echo written'
  const container = docker.run(`run --name full --network none bb:1 /bin/sh -c '${fill}'`)
  await until(async () => (await counts()).mode === 'out_of_data_space')
  t.equal(await docker.run("ps --format '{{.Names}}'"), 'full\n', 'it waits')

  // As Docker's documentation has it.
  const table = (await host.sh(`dmsetup table ${pool}`)).trim().split(' ')
  const data = await host.sh(`readlink -f /sys/dev/block/${table[4]}`)
  await host.sh('truncate -s 512M docker/devicemapper/devicemapper/data')
  await host.sh(`losetup -c /dev/${data.trim().split('/').at(-1)}`)
  const longer = table.with(1, String(2 ** 20)).join(' ')
  await host.sh(`dmsetup suspend ${pool}; dmsetup reload ${pool} --table "${longer}"`)
  await host.sh(`dmsetup resume ${pool}`)
  t.equal(await container, 'written\n')
  const full = await counts()
  t.match(full, { of: 8192, mode: 'rw' })
  t.ok(full.used >= before.used + 4800)
  await docker.run('rm full')
  t.match(await counts(), { used: before.used, mode: 'rw' })
  await docker.stop()
  await host.sh('thin_check -q docker/devicemapper/devicemapper/metadata')
})

t.test("a folder that Docker has left on a kernel's device-mapper", async t => {
  const host = await DmHost.start(t)
  await host.sh(`zstd -dc ${RECORDED} | tar -x`)
  const docker = await Docker.start(t, host, ['dm.override_udev_sync_check=true', 'dm.fs=ext4'])
  const names = "--format '{{.Names}}'"
  t.equal(await docker.run(`ps -a ${names} | sort`), 'one\nthree\ntwo\n')
  await docker.run('cp one:/etc/note note')
  await docker.run('cp two:/two two')
  t.equal(await host.sh('cat note two'), 'written by a kernel\ntwo\n')

  const cat = 'run --rm --network none -v /bin/busybox:/bin/busybox'
  const files = '/etc/first /etc/second /etc/changed'
  t.equal(
    await docker.run(`${cat} old:2 /bin/busybox cat ${files} /etc/note`),
    'first layer\nsecond layer\nof the second\nwritten by a kernel\n',
  )
  await host.sh('echo here > here')
  await docker.run('cp here three:/here')
  await docker.run('commit three new:1')
  t.equal(
    await docker.run(`${cat} new:1 /bin/busybox cat /here /etc/second`),
    'here\nsecond layer\n',
  )
  await docker.run('rm one two three')
  await docker.run('rmi new:1 old:2 old:1')
  const [pool] = (await docker.names()).map(line => line.split('\t')[0]!)
  t.match(pool, /-pool$/, 'the pool alone')
  const status = (await host.sh(`dmsetup status ${pool}`)).split(' ')
  t.ok(Number(status[3]) > 18, 'transactions follow those of the kernel')
  await docker.stop()
  await host.sh('thin_check -q docker/devicemapper/devicemapper/metadata')
  const xml = await host.sh('thin_dump docker/devicemapper/devicemapper/metadata')
  t.equal(xml.match(/<device dev_id/g)?.length, 1, 'the base device')
})
