/**
 * Metadata that another machine has: its disk, and all of it in memory that this process and those
 * that inherit its descriptor have.
 */
import { closeSync } from 'node:fs'
import type { RemoteAddress } from '../base/index.js'
import { type OnLoad, ResidentMemory, ResidentStore } from '../remote/index.js'
import type { DiskClients, DiskOptions } from './disk-clients.js'

export class RemoteMetadata {
  /** The address of the disk. */
  readonly path: string
  /** The descriptor of the memory. */
  readonly fd: number
  readonly isRemoved = false
  readonly #address: RemoteAddress
  readonly #clients: DiskClients
  #store: ResidentStore | null = null

  private constructor(address: RemoteAddress, fd: number, clients: DiskClients) {
    this.#address = address
    this.#clients = clients
    this.path = address.text
    this.fd = fd
  }

  /** With memory of its own, which is empty. */
  static make(address: RemoteAddress, clients: DiskClients): RemoteMetadata {
    return new RemoteMetadata(address, ResidentMemory.create(), clients)
  }

  /** With the memory of another process, by its inherited descriptor. */
  static of(fd: number, address: RemoteAddress, clients: DiskClients): RemoteMetadata {
    return new RemoteMetadata(address, fd, clients)
  }

  /** Null before `open`. */
  get store(): ResidentStore | null {
    return this.#store
  }

  /**
   * Connects, once, and reads what is there.
   * @throws IO_ERROR, NOT_SUPPORTED
   */
  async open(options: DiskOptions & { onLoad?: OnLoad }): Promise<ResidentStore> {
    if (this.#store !== null) return this.#store
    const disk = await this.#clients.connect(this.#address, options)
    try {
      const { onLoad } = options
      this.#store = await ResidentStore.open({ disk, memory: this.fd, ...(onLoad && { onLoad }) })
      return this.#store
    } catch (err) {
      disk.close()
      throw err
    }
  }

  /** The server lets the next one in; and without another process the memory is gone. */
  close(): void {
    this.#store?.close()
    closeSync(this.fd)
  }
}
