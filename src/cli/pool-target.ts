import type { ReceiveTarget } from '../streams/index.js'
import type { Volume, Volumes } from '../volumes/index.js'

/** A volume of a pool that this process has open. */
export class PoolTarget implements ReceiveTarget {
  readonly #volumes: Volumes
  readonly #volume: Volume

  constructor(volumes: Volumes, volume: Volume) {
    this.#volumes = volumes
    this.#volume = volume
  }

  async write(offset: number, content: Uint8Array): Promise<void> {
    await this.#volume.device.write(offset, content.length, Buffer.from(content), 0)
    await this.#settle()
  }

  async discard(offset: number, length: number): Promise<void> {
    await this.#volume.device.discard(offset, length, false)
    await this.#settle()
  }

  resize(size: number): Promise<void> {
    return this.#volumes.sizes.set(this.#volume, size)
  }

  /** As after each request of a mount: the journal is as long as what a commit has not ended. */
  async #settle(): Promise<void> {
    await this.#volumes.pool.settle(() => this.#volumes.commit())
  }
}
