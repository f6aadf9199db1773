/**
 * Data that another machine has: its disk, and the cache in front of it. The
 * cache is memory that this process and those that inherit its descriptor have; the connection is
 * that of the process which opens the pool.
 */
import { closeSync, fstatSync } from 'node:fs'
import type { RemoteAddress } from '../base/index.js'
import type { PoolConfig } from '../config/index.js'
import { CacheMemory, RemoteStore } from '../remote/index.js'
import type { DiskClients } from './disk-clients.js'

/** Bytes that the server gives back at least: the most that a slot of the cache has. */
const GRANULE_MAX = 64 * 1024

export interface RemoteDataOptions {
  /** Bytes. */
  dataBlockSize: number
  readOnly: boolean
  /**
   * The connection ended, or there is one again; writes wait, or the disk is silent: a sentence.
   */
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
  readonly #address: RemoteAddress
  /** Bytes that may be acknowledged and not durable at most; undefined: as the cache has it. */
  readonly #dirty: number | undefined
  readonly #clients: DiskClients
  #store: RemoteStore | null = null

  private constructor({ data, cache }: PoolConfig, fd: number, clients: DiskClients) {
    const address = data.remote!
    this.#address = address
    this.#dirty = cache?.dirty
    this.#clients = clients
    this.path = address.text
    this.fd = fd
    const { dev, ino } = fstatSync(fd)
    this.cacheId = `${dev} ${ino}`
  }

  /** With a cache of its own, which is empty. */
  static make(config: PoolConfig, clients: DiskClients): RemoteData {
    return new RemoteData(config, CacheMemory.create(config.cache!.size), clients)
  }

  /** With the cache of another process, by its inherited descriptor. */
  static of(fd: number, config: PoolConfig, clients: DiskClients): RemoteData {
    return new RemoteData(config, fd, clients)
  }

  /**
   * Connects, once.
   * @throws IO_ERROR, NOT_SUPPORTED
   */
  async open({ dataBlockSize, readOnly, onConnection }: RemoteDataOptions): Promise<RemoteStore> {
    if (this.#store !== null) return this.#store
    const disk = await this.#clients.connect(this.#address, {
      readOnly,
      ...(onConnection && { onConnection }),
    })
    try {
      const granule = Math.min(dataBlockSize, GRANULE_MAX)
      this.#store = await RemoteStore.open({
        ...{ disk, cache: this.fd, granule, dirty: this.#dirty },
        onWait: what => onConnection?.(`${this.path}: ${what}`),
      })
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
