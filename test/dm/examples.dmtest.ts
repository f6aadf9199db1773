// The scripts in examples/ that run containers, as they are, with an image made here.
import { resolve } from 'node:path'
import t from 'tap'
import { DmHost } from '../support/dm-host.js'
import { makeImage } from '../support/oci-image.js'

const EXAMPLES = resolve(import.meta.dirname, '../../examples')

t.test('examples/containerd.sh, docker-loop-lvm.sh and docker-direct-lvm.sh', async t => {
  const host = await DmHost.start(t)
  makeImage(host.folder, 'image.tar')
  const run = (name: string, reference: string): Promise<string> =>
    host.run('sh', `${EXAMPLES}/${name}`, 'image.tar', reference)
  const containerd = await run('containerd.sh', 'docker.io/library/bb:1')
  t.match(containerd, /Committed[\s\S]*\nhello from a thin device\n/)
  const loop = await run('docker-loop-lvm.sh', 'bb:1')
  t.match(loop, /Storage Driver: devicemapper\n[\s\S]*hello from a thin device\n/)
  const direct = await run('docker-direct-lvm.sh', 'bb:1')
  t.match(
    direct,
    /Pool Name: thinfs_docker_[\s\S]*hello from a thin device\n[\s\S]*thinpool +\S+ +twi-a/,
  )
  t.equal(await host.sh('dmsetup ls'), 'No devices found\n')
})
