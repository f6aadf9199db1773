/**
 * A program with a client of a Ceph cluster, which does what the messages of its parent say, and
 * answers each with its result or error. So a test can kill, stop and cut off a host.
 */
import { CephClient, RbdDisk, RbdLocks } from '../../../src/ceph/index.js'

const disks: RbdDisk[] = []
let client: CephClient | null = null
let locks: RbdLocks | null = null

const commands: Record<string, (...args: never[]) => unknown> = {
  async open(conf: string, user: string, ...images: string[]): Promise<number[]> {
    client = await CephClient.connect({ conf, user })
    for (const image of images) {
      disks.push(
        await RbdDisk.open(client, {
          pool: 'thin',
          namespace: '',
          image,
          text: `rbd:thin/${image}`,
        }),
      )
    }
    return disks.map(({ size }) => size)
  },
  async acquire(previous: string | null): Promise<string> {
    locks = await RbdLocks.acquire(disks, previous)
    void locks.lost.then(({ code, message }) => process.send!({ lost: { code, message } }))
    return locks.address
  },
  owner: () => RbdLocks.owner(disks),
  fence: (address: string) => RbdLocks.fence(disks, address),
  confirm: () => locks!.confirm(),
  write: (disk: number, offset: number, value: number) =>
    disks[disk]!.write(Buffer.alloc(4096, value), offset),
  async read(disk: number, offset: number): Promise<number> {
    const page = Buffer.alloc(4096)
    await disks[disk]!.read(page, offset)
    return page[0]!
  },
  extents: (disk: number) => disks[disk]!.extents(0, disks[disk]!.size),
  flush: (disk: number) => disks[disk]!.flush(),
  async end(): Promise<void> {
    await Promise.all(disks.map(disk => disk.end()))
    await client!.close()
  },
  exit: (status: number) => process.exit(status),
}

process.on('message', ({ id, name, args }: { id: number; name: string; args: never[] }) => {
  const run = async (): Promise<unknown> => commands[name]!(...args)
  run().then(
    result => process.send!({ id, result }),
    ({ code, errno, message }) => process.send!({ id, error: { code, errno, message } }),
  )
})
process.send!({ ready: true })
