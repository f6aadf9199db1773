/** Disks that servers of others have: NBD exports, images of Ceph. */
import { appendFileSync } from 'node:fs'
import { join } from 'node:path'
import { CephRig, POOL } from '../test/dist/rig/ceph.js'
import type { Engine } from './fio.js'
import { type NbdKind, withNbd } from './nbd.js'
import { sparseFile } from './servers.js'

/** OSDs, each of which has a copy of everything. */
const NR_OSDS = 3

export interface RemoteDisk {
  /** How fio reaches it, with no cache of its own. */
  engine: Engine
  /** Its lines of pool.yaml. */
  config: string
}

export interface DiskKind {
  name: string
  /** Runs `use` with disks of so many bytes, which servers have in `folder`. */
  withDisks<T>(
    folder: string,
    sizes: readonly number[],
    use: (disks: RemoteDisk[]) => Promise<T>,
  ): Promise<T>
}

/** Each has a server of its own. */
export const nbdDisks = (kind: NbdKind): DiskKind => ({
  name: kind.name,
  withDisks(folder, sizes, use) {
    const disks: RemoteDisk[] = []
    const next = (): ReturnType<typeof use> => {
      const nr = disks.length
      if (nr === sizes.length) return use(disks)
      return withNbd(kind, sparseFile(join(folder, `disk${nr}`), sizes[nr]!), address => {
        const engine = { options: ['--ioengine=nbd', `--uri=${address}`] }
        disks.push({ engine, config: `data: { nbd: "${address}" }` })
        return next()
      })
    }
    return next()
  },
})

/** Images of one cluster. */
export const cephDisks: DiskKind = {
  name: 'ceph',
  withDisks(folder, sizes, use) {
    return CephRig.with({ osds: NR_OSDS, parent: folder }, async ceph => {
      // The last section is that of clients. thinfs turns the cache off itself.
      appendFileSync(ceph.conf, 'rbd_cache = false\n')
      const disks: RemoteDisk[] = []
      for (const [nr, size] of sizes.entries()) {
        const image = `disk${nr}`
        await ceph.createImage(image, `${size}B`)
        const options = ['--ioengine=rbd', '--clientname=admin', `--pool=${POOL}`]
        const engine = {
          options: [...options, `--rbdname=${image}`],
          env: { CEPH_CONF: ceph.conf },
        }
        const where = `ceph: { conf: ${ceph.conf}, user: admin }`
        disks.push({ engine, config: `data: { rbd: ${POOL}/${image} }\n${where}` })
      }
      return use(disks)
    })
  },
}
