import { constants } from 'node:os'
import type { FileSystem, FuseDevice } from '../../src/fuse/index.js'
import type { Slots } from '../../src/fuse/slots.js'

export const u32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32LE(value)
  return bytes
}
export const u64 = (value: number | bigint): Buffer => {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64LE(BigInt(value))
  return bytes
}
export const text = (value: string): Buffer => Buffer.from(`${value}\0`)

/** What a reply says; `error` is an errno's name, null for success. */
export interface Reply {
  unique: bigint
  error: string | null
  payload: Buffer
}

const ERRNO_NAMES = new Map(Object.entries(constants.errno).map(([name, nr]) => [nr, name]))
ERRNO_NAMES.set(constants.errno.EOPNOTSUPP, 'EOPNOTSUPP')

/**
 * The kernel's end of a connection, made of queues: requests are written by hand, byte for byte.
 */
export class FakeKernel implements FuseDevice {
  /** In the order in which they arrived. */
  readonly replies: Reply[] = []
  /** Sizes of the batches that were read. */
  readonly batches: number[] = []
  unmounted = false
  /** What the next writes return instead of 0. */
  readonly results: number[] = []
  #queue: Buffer[] = []
  #onReadable: (() => void) | null = null
  #lastUnique = 0

  /** Queues a request. @returns its unique */
  request(opcode: number, ino: number, ...body: Buffer[]): bigint {
    this.#lastUnique += 2
    return this.requestAs(BigInt(this.#lastUnique), opcode, ino, ...body)
  }

  requestAs(unique: bigint, opcode: number, ino: number, ...body: Buffer[]): bigint {
    const rest = Buffer.concat([u64(unique), u64(ino), u32(1), u32(2), u32(3), u32(0), ...body])
    this.raw(Buffer.concat([u32(rest.length + 8), u32(opcode), rest]))
    return unique
  }

  raw(bytes: Buffer): void {
    this.#queue.push(bytes)
  }

  /** Lets the session handle what waits, as long as it watches. */
  run(): void {
    while (this.watched && (this.#queue.length > 0 || this.unmounted)) this.turn()
  }

  /** Says once that there is something to read. */
  turn(): void {
    this.#onReadable?.()
  }

  /** Handles one request and returns its reply, waiting for it when it comes later. */
  async ask(opcode: number, ino: number, ...body: Buffer[]): Promise<Reply> {
    const unique = this.request(opcode, ino, ...body)
    this.run()
    for (;;) {
      const at = this.replies.findIndex(reply => reply.unique === unique)
      if (at >= 0) return this.replies.splice(at, 1)[0]!
      await new Promise(resolve => setImmediate(resolve))
    }
  }

  get watched(): boolean {
    return this.#onReadable !== null
  }

  get nrQueued(): number {
    return this.#queue.length
  }

  readonly slots = null

  read(slots: Slots, count: number, places: Uint32Array, lengths: Uint32Array): number {
    if (this.unmounted && this.#queue.length === 0) return -1
    const batch = this.#queue.splice(0, count)
    batch.forEach((bytes, i) => {
      places[i] = i * slots.size
      bytes.copy(slots.buffer, places[i])
      lengths[i] = bytes.length
    })
    if (batch.length > 0) this.batches.push(batch.length)
    return batch.length
  }

  write(buffer: Buffer, at: number, length: number): number {
    const result = this.results.shift() ?? 0
    if (result !== 0) return result
    if (buffer.readUInt32LE(at) !== length) return -constants.errno.EINVAL
    const error = buffer.readInt32LE(at + 4)
    this.replies.push({
      unique: buffer.readBigUInt64LE(at + 8),
      error: error === 0 ? null : (ERRNO_NAMES.get(-error) ?? String(error)),
      payload: Buffer.from(buffer.subarray(at + 16, at + length)),
    })
    return 0
  }

  async writeLater(buffer: Buffer): Promise<number> {
    return this.write(buffer, 0, buffer.length)
  }

  watch(onReadable: () => void): void {
    this.#onReadable = onReadable
  }

  unwatch(): void {
    this.#onReadable = null
  }

  flush(): void {}

  close(): void {
    this.unwatch()
  }
}

const refuse = (): never => {
  throw Object.assign(new Error('nothing here'), { code: 'ENOENT' })
}

/** A file system that has nothing, but for the methods given. */
export function fileSystem(methods: Partial<FileSystem>): FileSystem {
  return {
    unsettled: false,
    settle() {},
    statfs: refuse,
    lookup: refuse,
    getattr: refuse,
    setattr: refuse,
    readdir: refuse,
    create: refuse,
    unlink: refuse,
    rename: refuse,
    open: refuse,
    release: refuse,
    read: refuse,
    readLater: refuse,
    write: refuse,
    fallocate: refuse,
    lseek: refuse,
    copyFileRange: refuse,
    fsync: refuse,
    syncfs: refuse,
    getxattr: refuse,
    listxattr: refuse,
    ...methods,
  }
}
