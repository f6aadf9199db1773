/**
 * An image of a Ceph cluster as a disk.
 *
 * The cluster has what it acknowledged on the disks of all replicas, and librbd sends again what a
 * connection has lost: there is one epoch.
 */
import {
  type Bytes,
  bytes,
  copyPieces,
  fillPieces,
  lengthOf,
  type Pieces,
  piecesOf,
  ThinfsError,
} from '../base/index.js'
import { native, type RbdHandle } from '../native.js'
import type { RemoteDisk } from '../remote/index.js'
import type { CephClient } from './ceph-client.js'

/** RBD_FEATURE_FAST_DIFF, and what it may be: RBD_FLAG_OBJECT_MAP_INVALID, …FAST_DIFF_INVALID. */
const FAST_DIFF = 1 << 4
const EXCLUSIVE_LOCK = 1 << 2
const INVALID = 0b11
/** Bytes that are zeroed in one request. */
const SPAN_MAX = 1024 * 1024 * 1024

/** Memory for requests in several pieces: bytes, and how many are kept. */
const SCRATCH = 1024 * 1024
const SCRATCHES = 16

export interface RbdName {
  pool: string
  /** Of the pool; empty: the default one. */
  namespace: string
  image: string
  /** As it was written; for messages. */
  text: string
}

/** A range that may hold something. Bytes. */
interface Extent {
  offset: number
  length: number
}

export interface RbdOptions {
  readOnly?: boolean
  /** The image has another size now. */
  onResized?: (size: number) => void
}

export class RbdDisk implements RemoteDisk {
  readonly path: string
  readonly epoch = 1
  readonly makesHoles = true
  readonly client: CephClient
  #image: RbdHandle | null = null
  #size = bytes(0)
  #features = 0
  #flags = 0
  #isLocked = false
  #closing: Promise<void> | null = null
  readonly #scratch: Buffer[] = []

  /** @throws IO_ERROR; NOT_SUPPORTED for an image that cannot be locked */
  static async open(
    client: CephClient,
    { pool, namespace, image, text }: RbdName,
    { readOnly = false, onResized = () => {} }: RbdOptions = {},
  ): Promise<RbdDisk> {
    const disk = new RbdDisk(client, text)
    const tag = client.changeTag(() => void disk.measure().then(onResized, () => {}))
    disk.#image = await client.call(text, () =>
      native.rbd_open(client.handle, pool, namespace, image, readOnly, tag),
    )
    client.add(disk)
    try {
      await disk.measure()
      if (readOnly || (disk.#features & EXCLUSIVE_LOCK) !== 0) return disk
      const name = [pool, namespace, image].filter(part => part !== '').join('/')
      const how = `rbd feature enable ${name} exclusive-lock object-map fast-diff`
      const detail = `${text}: the image has no exclusive-lock, without which nobody keeps other hosts off it: ${how}`
      throw new ThinfsError('NOT_SUPPORTED', detail)
    } catch (err) {
      await disk.end()
      throw err
    }
  }

  private constructor(client: CephClient, path: string) {
    this.client = client
    this.path = path
  }

  get size(): Bytes {
    return this.#size
  }

  async read(into: Pieces, offset: number): Promise<void> {
    const pieces = piecesOf(into)
    const length = lengthOf(pieces)
    if (length === 0) return
    const read = (content: Uint8Array): Promise<void> =>
      this.client.ask(this.path, 'read', length, tag =>
        native.rbd_read(this.#handle, tag, content, offset),
      )
    if (pieces.length === 1) return read(pieces[0]!)
    await this.#together(length, async content => {
      await read(content)
      fillPieces(pieces, content)
    })
  }

  /** @param durable librbd may have a cache of its own, such as a persistent one: it is flushed */
  write(from: Pieces, offset: number, durable = false): Promise<void> {
    const pieces = piecesOf(from)
    const length = lengthOf(pieces)
    if (length === 0) return Promise.resolve()
    const write = (content: Uint8Array): Promise<void> =>
      this.client.ask(this.path, 'write', 0, tag =>
        native.rbd_write(this.#handle, tag, content, offset),
      )
    const written =
      pieces.length === 1
        ? write(pieces[0]!)
        : this.#together(length, content => {
            copyPieces(pieces, content)
            return write(content)
          })
    return durable ? written.then(() => this.flush()) : written
  }

  /** Objects that become empty are removed. A discard would leave what is not a whole object. */
  async zero(offset: number, length: number): Promise<void> {
    for (let at = 0; at < length; at += SPAN_MAX) {
      const size = Math.min(SPAN_MAX, length - at)
      await this.client.ask(this.path, 'write zeroes', 0, tag =>
        native.rbd_zero(this.#handle, tag, offset + at, size),
      )
    }
  }

  flush(): Promise<void> {
    return this.client.ask(this.path, 'flush', 0, tag => native.rbd_flush(this.#handle, tag))
  }

  /** By objects, of an image with an object map: others would have to be asked one by one. */
  async extents(offset: number, length: number): Promise<Extent[] | null> {
    await this.measure()
    if ((this.#features & FAST_DIFF) === 0 || (this.#flags & INVALID) !== 0) return null
    const found = await this.client.call(this.path, () =>
      native.rbd_extents(this.#handle, offset, length),
    )
    const extents: Extent[] = []
    for (let i = 0; i < found.length; i += 2) {
      extents.push({ offset: found[i]!, length: found[i + 1]! })
    }
    return extents
  }

  /** Asks the cluster how large the image is, and what it can tell. @returns the size */
  async measure(): Promise<number> {
    const [size, features, flags] = await this.client.call(this.path, () =>
      native.rbd_status(this.#handle),
    )
    this.#features = features!
    this.#flags = flags!
    this.#size = bytes(size!)
    return size!
  }

  // --- the exclusive lock ---

  /**
   * Takes the lock, which no other client gets by asking. Where its holder is dead, this takes up
   * to 30 seconds, and the cluster refuses that client then.
   * @param previous the address of a client of this host that has ended: its lock is broken at once
   * @returns this client's address
   * @throws POOL_IN_USE with the other's address, IO_ERROR
   */
  async lock(previous: string | null = null): Promise<string> {
    if (previous !== null && (await this.owner()) === previous) await this.breakLock(previous)
    try {
      await this.client.call(this.path, () => native.rbd_lock(this.#handle))
    } catch (err) {
      if (!(err instanceof ThinfsError) || err.errno !== 'EROFS') throw err
      const owner = await this.owner()
      const whose = owner === null ? 'another client has' : `the client at ${owner} has`
      const detail = `${this.path}: ${whose} the image's lock`
      throw new ThinfsError('POOL_IN_USE', detail, { cause: err })
    }
    const owner = await this.owner()
    if (owner === null) {
      throw new ThinfsError('IO_ERROR', `${this.path}: the image's lock was taken away at once`)
    }
    this.#isLocked = true
    return owner
  }

  get isLocked(): boolean {
    return this.#isLocked
  }

  /** The address of the client that has the lock, as the cluster says; null for none. */
  async owner(): Promise<string | null> {
    const [owner] = await this.client.call(this.path, () => native.rbd_lock_owners(this.#handle))
    return owner ?? null
  }

  /**
   * Takes the lock from a client, which the cluster refuses from then on. Nothing if it has none.
   */
  async breakLock(owner: string): Promise<void> {
    try {
      await this.client.call(this.path, () => native.rbd_lock_break(this.#handle, owner))
    } catch (err) {
      // Somebody else has it, or nobody.
      if (!(err instanceof ThinfsError) || !['EBUSY', 'ENOENT'].includes(err.errno)) throw err
    }
  }

  /** Gives the lock up. */
  async unlock(): Promise<void> {
    if (!this.#isLocked) return
    this.#isLocked = false
    await this.client.call(this.path, () => native.rbd_unlock(this.#handle))
  }

  /** As `end`, without waiting for it. */
  close(): void {
    void this.end()
  }

  /** Gives the lock up and closes the image, as far as the cluster answers. Throws nothing. */
  end(): Promise<void> {
    this.#closing ??= this.#end()
    return this.#closing
  }

  // --- inside ---

  get #handle(): RbdHandle {
    if (this.#image !== null && this.#closing === null) return this.#image
    const detail = `${this.path}: the disk was closed`
    throw new ThinfsError('IO_ERROR', detail, { errno: 'ESHUTDOWN' })
  }

  /** Calls `use` with memory for what is in several pieces. New memory costs more than the copy. */
  async #together(length: number, use: (content: Uint8Array) => Promise<void>): Promise<void> {
    const found = this.#scratch.at(-1)
    const memory =
      found !== undefined && found.length >= length
        ? this.#scratch.pop()!
        : Buffer.allocUnsafeSlow(Math.max(length, SCRATCH))
    try {
      await use(memory.subarray(0, length))
    } finally {
      // A client that has failed may still be using it.
      const isOurs = this.client.failure === null && memory.length === SCRATCH
      if (isOurs && this.#scratch.length < SCRATCHES) this.#scratch.push(memory)
    }
  }

  async #end(): Promise<void> {
    await this.client.idle()
    // A client that has failed waits for nothing, and its images end with the process. Closing one
    // gives its lock up.
    if (this.client.failure === null) await native.rbd_close(this.#image!).catch(() => {})
    this.#isLocked = false
    this.client.remove(this)
  }
}
