import { type Origin, WithOrigin } from '../device/index.js'
import type { OpenSource } from './source.js'
import type { TargetDevice } from './target-device.js'
import type { ThinTarget } from './thin-target.js'

/** A thin target with an external origin: any other device, or file. */
export class ThinWithOrigin extends WithOrigin implements TargetDevice {
  readonly #thin: ThinTarget
  readonly #origin: OpenSource

  /**
   * @param thin closed with this, as is `origin`
   * @throws BAD_ARGUMENT for blocks that one write cannot fill
   */
  constructor(thin: ThinTarget, origin: OpenSource) {
    super(thin, new DeviceOrigin(origin))
    this.#thin = thin
    this.#origin = origin
  }

  get writesWaiting(): number {
    return this.#thin.writesWaiting
  }

  check(): void {}

  resume(): Promise<void> {
    return this.#thin.resume()
  }

  status(): string {
    return this.#thin.status()
  }

  async close(): Promise<void> {
    this.#origin.close()
    await this.#thin.close()
  }
}

/** The bytes from `start` of a device on. */
class DeviceOrigin implements Origin {
  readonly #source: OpenSource

  constructor(source: OpenSource) {
    this.#source = source
  }

  get size(): number {
    return Math.max(this.#source.device.size - this.#source.start, 0)
  }

  read(offset: number, size: number, buffer: Uint8Array, at: number): boolean {
    return this.#source.device.read(this.#source.start + offset, size, buffer, at)
  }

  readLater(offset: number, size: number, buffer: Uint8Array, at: number): Promise<void> {
    return this.#source.device.readLater(this.#source.start + offset, size, buffer, at)
  }

  async nextData(offset: number): Promise<number> {
    const { device, start } = this.#source
    return (await device.nextData(start + offset)) - start
  }

  async nextHole(offset: number): Promise<number> {
    const { device, start } = this.#source
    return (await device.nextHole(start + offset)) - start
  }
}
