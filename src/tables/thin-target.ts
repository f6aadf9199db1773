import { bytes, type DevId, type Later, ThinfsError } from '../base/index.js'
import { type ThinDevice, thinStatus } from '../pool/index.js'
import type { LivePool, LivePools } from './live-pool.js'
import type { TargetDevice } from './target-device.js'

/** A thin device of a pool that is open. Source: drivers/md/dm-thin.c. */
export class ThinTarget implements TargetDevice {
  readonly size: number
  readonly #live: LivePool
  readonly #pools: LivePools
  readonly #devId: DevId
  #device: ThinDevice | null = null
  #generation = -1

  /**
   * @param size bytes
   * @throws DEVICE_MISSING
   */
  constructor(size: number, live: LivePool, devId: DevId, pools: LivePools) {
    live.openThin(devId)
    this.size = size
    this.#live = live
    this.#devId = devId
    this.#pools = pools
  }

  /** Bytes of a data block. */
  get blockSize(): number {
    return this.#live.pool.blockSize
  }

  isMapped(offset: number, size: number): boolean {
    return this.#thin.isMapped(offset, size)
  }

  get gone(): boolean {
    return !this.#live.pool.metadata.hasDevice(this.#devId)
  }

  read(offset: number, size: number, buffer: Uint8Array, at: number): boolean {
    if (this.#live.gate.isShut) return false
    return this.#thin.read(offset, size, buffer, at)
  }

  async readLater(offset: number, size: number, buffer: Uint8Array, at: number): Promise<void> {
    const { gate } = this.#live
    await gate.pass()
    await gate.track(this.#thin.readLater(offset, size, buffer, at))
  }

  write(offset: number, size: number, buffer: Uint8Array, at: number): Later<void> {
    const { gate } = this.#live
    if (gate.isShut) {
      const held = Buffer.from(buffer.subarray(at, at + size))
      return gate.pass().then(() => this.write(offset, size, held, 0))
    }
    const written = this.#thin.write(offset, size, buffer, at)
    return written instanceof Promise ? this.#settledLater(written) : this.#settle()
  }

  discard(offset: number, length: number): Promise<void> {
    if (this.#live.pool.discards === 'ignore') {
      throw new ThinfsError('NOT_SUPPORTED', 'ignore_discard')
    }
    return this.zero(offset, length)
  }

  async zero(offset: number, length: number): Promise<void> {
    await this.#live.gate.pass()
    // Discards are how a full pool is emptied: they do not wait for space.
    const done = this.#thin.discard(offset, length, false)
    await (done instanceof Promise ? this.#settledLater(done) : this.#settle())
  }

  async flush(): Promise<void> {
    const { gate } = this.#live
    await gate.pass()
    await gate.track(this.#live.pool.commit())
  }

  nextData(offset: number): Later<number> {
    return this.#thin.nextData(offset)
  }

  nextHole(offset: number): Later<number> {
    return this.#thin.nextHole(offset)
  }

  get writesWaiting(): number {
    const { pool } = this.#live
    return pool.space.writesWaitingOf(this.#thin)
  }

  check(): void {}

  async resume(): Promise<void> {
    this.#thin.size = bytes(this.size)
  }

  status(): string {
    return thinStatus(this.#live.pool, this.#devId)
  }

  async close(): Promise<void> {
    this.#live.closeThin(this.#devId)
    await this.#pools.release(this.#live)
  }

  /** The pool may have been opened anew, or gone back to a commit without the device. */
  get #thin(): ThinDevice {
    const { generation, pool } = this.#live
    if (this.#device !== null && this.#generation === generation && !this.#device.gone) {
      return this.#device
    }
    this.#device = pool.devices.get(this.#devId, bytes(this.size))
    this.#generation = generation
    return this.#device
  }

  #settledLater(request: Promise<void>): Promise<void> {
    return this.#live.gate.track(request.then(() => this.#settle()))
  }

  /** Settles changes before they are acknowledged. */
  #settle(): Later<void> {
    const { pool } = this.#live
    if (pool.unsettled) return pool.settle()
  }
}
