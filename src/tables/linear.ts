import { type Later, refused } from '../base/index.js'
import type { BlockDevice } from '../device/index.js'
import type { OpenSource } from './source.js'
import type { TargetDevice } from './target-device.js'

/** A range of another device. Source: drivers/md/dm-linear.c. */
export class LinearTarget implements TargetDevice {
  readonly size: number
  readonly #lower: BlockDevice
  readonly #start: number
  readonly #source: OpenSource

  /** @param size bytes. @param source is closed with the target */
  constructor(size: number, source: OpenSource) {
    this.size = size
    this.#lower = source.device
    this.#start = source.start
    this.#source = source
  }

  get gone(): boolean {
    return this.#lower.gone
  }

  read(offset: number, size: number, buffer: Uint8Array, at: number): boolean {
    return this.#lower.read(this.#start + offset, size, buffer, at)
  }

  readLater(offset: number, size: number, buffer: Uint8Array, at: number): Promise<void> {
    return this.#lower.readLater(this.#start + offset, size, buffer, at)
  }

  write(offset: number, size: number, buffer: Uint8Array, at: number): Later<void> {
    return this.#lower.write(this.#start + offset, size, buffer, at)
  }

  discard(offset: number, length: number): Later<void> {
    return this.#lower.discard(this.#start + offset, length)
  }

  zero(offset: number, length: number): Later<void> {
    return this.#lower.zero(this.#start + offset, length)
  }

  flush(): Promise<void> {
    return this.#lower.flush()
  }

  async nextData(offset: number): Promise<number> {
    return this.#within(await this.#lower.nextData(this.#start + offset))
  }

  async nextHole(offset: number): Promise<number> {
    return this.#within(await this.#lower.nextHole(this.#start + offset))
  }

  #within(found: number): number {
    return Math.min(found - this.#start, this.size)
  }

  check(): void {
    const end = this.#start + this.size
    if (end > this.#lower.size) {
      throw refused(
        'EINVAL',
        `a linear target ends at byte ${end} of a device of ${this.#lower.size} bytes`,
      )
    }
  }

  async close(): Promise<void> {
    this.#source.close()
  }
}
