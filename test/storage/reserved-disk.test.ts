// Goal: a host reserves an NVMe disk, comes again after it was killed, and leaves nothing when it
// goes. Method: a namespace as NVM Express describes it (2.0, 7.2 to 7.5, 8.19), behind the calls
// as the kernel's drivers/nvme/host/pr.c takes them, in memory.
import t, { type Test } from 'tap'
import { native } from '../../src/native.js'
import { ReservedDisk } from '../../src/storage/index.js'

const [SUCCESS, CONFLICT] = [0, 0x18]

/** A namespace. Hosts are told apart by their descriptors. */
class Namespace {
  readonly keys = new Map<number, bigint>()
  holder: number | null = null

  /** ioctl(2). */
  call(fd: number, command: number, argument: Buffer | number): number {
    if (command === 0x4e40) return 7 // NVME_IOCTL_ID
    if (!Buffer.isBuffer(argument)) throw Object.assign(new Error('ENOTTY'), { code: 'ENOTTY' })
    switch (command) {
      case 0x401870c8: {
        const [old, key] = [argument.readBigUInt64LE(0), argument.readBigUInt64LE(8)]
        return old === 0n ? this.#register(fd, key) : this.#replace(fd, key)
      }
      case 0x401070c9: // IOC_PR_RESERVE
        if (!this.#knows(fd, argument.readBigUInt64LE(0))) return CONFLICT
        if (this.holder !== null && this.holder !== fd) return CONFLICT
        this.holder = fd
        return SUCCESS
      case 0x401070ca: // IOC_PR_RELEASE
        if (!this.#knows(fd, argument.readBigUInt64LE(0))) return CONFLICT
        if (this.holder === fd) this.holder = null
        return SUCCESS
      case 0xc0484e43: // NVME_IOCTL_IO_CMD
        return this.#pass(fd, argument)
    }
    throw Object.assign(new Error('ENOTTY'), { code: 'ENOTTY' })
  }

  #knows(fd: number, key: bigint): boolean {
    return this.keys.get(fd) === key
  }

  #register(fd: number, key: bigint): number {
    if (this.keys.has(fd)) return this.#knows(fd, key) ? SUCCESS : CONFLICT
    this.keys.set(fd, key)
    return SUCCESS
  }

  #replace(fd: number, key: bigint): number {
    if (!this.keys.has(fd)) return CONFLICT
    this.keys.set(fd, key)
    return SUCCESS
  }

  /** RESERVATION REGISTER that ends a registration whatever its key is, and nothing else. */
  #pass(fd: number, command: Buffer): number {
    t.same([command.readUInt8(0), command.readUInt32LE(4), command.readUInt32LE(40)], [0x0d, 7, 9])
    if (!this.keys.delete(fd)) return CONFLICT
    if (this.holder === fd) this.holder = null
    return SUCCESS
  }
}

function namespaceOf(t: Test): Namespace {
  const namespace = new Namespace()
  t.intercept(native, 'file_ioctl_async', {
    value: async (...args: [number, number, Buffer | number]) => namespace.call(...args),
  })
  return namespace
}

const [A, B] = [1001, 1002].map(fd => ({ fd, disk: new ReservedDisk('/dev/nvme0n1', fd) })) as [
  Of,
  Of,
]
interface Of {
  fd: number
  disk: ReservedDisk
}

t.test('a host that was killed registers with another key', async t => {
  const namespace = namespaceOf(t)
  await A.disk.register(1n)
  t.equal(await A.disk.reserve(1n), true)
  await A.disk.register(2n)
  t.equal(await A.disk.reserve(2n), true)
  t.same([...namespace.keys], [[A.fd, 2n]])
})

t.test('a host that releases leaves nothing, and another what it has', async t => {
  const namespace = namespaceOf(t)
  await A.disk.register(1n)
  await A.disk.reserve(1n)
  await B.disk.register(3n)
  t.equal(await B.disk.reserve(3n), false)
  await B.disk.release(3n)
  t.same([[...namespace.keys], namespace.holder], [[[A.fd, 1n]], A.fd])
  await A.disk.release(1n)
  t.same([[...namespace.keys], namespace.holder], [[], null])
})
