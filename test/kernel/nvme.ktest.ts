/**
 * Goal: the disks of a pool on NVMe namespaces refuse the writes of a host that another has taken over
 * from, and what was flushed is there for that other. Method: as in lun.ktest.ts, with the target for
 * NVMe of a kernel that keeps reservations.
 */
import t from 'tap'
import { DATA, METADATA, poolOnDisks } from './lun/pool-on-disks.js'
import { Lun } from './lun/virtual-hosts.js'

// From Linux 6.13 on.
process.env.RIG_KERNEL = 'trixie-backports'

/** Sets disks free, whoever has them. Source: linux/pr.h, IOC_PR_REGISTER and IOC_PR_CLEAR. */
const CLEAR = `
import fcntl, os, struct, sys
for path in sys.argv[1:]:
    fd = os.open(path, os.O_RDWR)
    fcntl.ioctl(fd, 0x401870c8, struct.pack('QQII', 0, 1, 1, 0))
    fcntl.ioctl(fd, 0x401070cd, struct.pack('QII', 1, 0, 0))
`

t.test('a pool that thinfs has on one of two machines', async t => {
  const lun = await Lun.make(t, 'nvme')
  await poolOnDisks(t, lun, host => host.run('python3', '-c', CLEAR, DATA, METADATA))
})
