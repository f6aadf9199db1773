/**
 * Data that another machine has: an export of an NBD server, and the cache in front of it. The
 * cache is memory that this process and those that inherit its descriptor have; the connection is
 * that of the process which opens the pool.
 */
import { closeSync, fstatSync } from 'node:fs'
import { type NbdAddress, PAGE_SIZE, ThinfsError } from '../base/index.js'
import type { PoolConfig } from '../config/index.js'
import { CacheMemory, RemoteStore } from '../remote/index.js'

/** Bytes that the server gives back at least: the most that a slot of the cache has. */
const GRANULE_MAX = 64 * 1024

export interface RemoteDataOptions {
  /** Bytes. */
  dataBlockSize: number
  readOnly: boolean
  /** The connection ended, or there is one again: a sentence. */
  onConnection?: (what: string) => void
}

export class RemoteData {
  /** The address of the export. */
  readonly path: string
  /** The descriptor of the cache. */
  readonly fd: number
  /**
   * Tells the cache from all others of this boot: what a journal says of writes that nobody has
   * flushed is true of this one alone.
   */
  readonly cacheId: string
  readonly isRemoved = false
  readonly #address: NbdAddress
  #store: RemoteStore | null = null

  private constructor(address: NbdAddress, fd: number) {
    this.#address = address
    this.path = address.text
    this.fd = fd
    const { dev, ino } = fstatSync(fd)
    this.cacheId = `${dev} ${ino}`
  }

  /** With a cache of its own, which is empty. */
  static make({ data, cache }: PoolConfig): RemoteData {
    return new RemoteData(data.nbd!, CacheMemory.create(cache!.size))
  }

  /** With the cache of another process, by its inherited descriptor. */
  static of(fd: number, { data }: PoolConfig): RemoteData {
    return new RemoteData(data.nbd!, fd)
  }

  /**
   * Connects, once.
   * @throws IO_ERROR, NOT_SUPPORTED
   */
  async open({ dataBlockSize, readOnly, onConnection }: RemoteDataOptions): Promise<RemoteStore> {
    if (this.#store !== null) return this.#store
    // Most commands have no use for it.
    const { NbdDisk } = await import('../nbd/index.js')
    const told = (what: string): void => onConnection?.(`${this.path}: ${what}`)
    const disk = await NbdDisk.connect(this.#address, { onConnection: told })
    try {
      if (disk.isReadOnly && !readOnly) {
        const detail = `${this.path}: the server gives it to be read only`
        throw new ThinfsError('IO_ERROR', detail, { errno: 'EROFS' })
      }
      if (disk.minBlock > PAGE_SIZE) {
        const detail = `${this.path}: the server wants requests of ${disk.minBlock} bytes at least, ${PAGE_SIZE} are sent`
        throw new ThinfsError('NOT_SUPPORTED', detail)
      }
      const granule = Math.min(dataBlockSize, GRANULE_MAX)
      this.#store = await RemoteStore.open({ disk, cache: this.fd, granule })
      return this.#store
    } catch (err) {
      disk.close()
      throw err
    }
  }

  /** The server lets the next one in; and without another process the cache is gone. */
  close(): void {
    this.#store?.close()
    closeSync(this.fd)
  }
}
