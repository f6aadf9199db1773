import { type Later, refused, ThinfsError } from '../base/index.js'
import type { BlockDevice } from '../device/index.js'
import { Gate } from './gate.js'
import type { Table } from './table.js'

/**
 * A device whose table can be replaced while it is open: device-mapper's mapped device. Requests
 * that come while it is suspended wait at its gate.
 */
export class GatedDevice implements BlockDevice {
  readonly minor: number
  readonly #gate = new Gate()
  #live: Table | null = null
  #loaded: Table | null = null
  #gone = false

  constructor(minor: number) {
    this.minor = minor
  }

  get gone(): boolean {
    return this.#gone
  }

  /** Bytes; of the table that serves. */
  get size(): number {
    return this.#live?.size ?? 0
  }

  /** The table that serves; null before the first. */
  get live(): Table | null {
    return this.#live
  }

  get isSuspended(): boolean {
    return this.#gate.isShut
  }

  // --- requests ---

  read(offset: number, size: number, buffer: Uint8Array, at: number): boolean {
    if (this.#gate.isShut) return false
    return this.#table.read(offset, size, buffer, at)
  }

  async readLater(offset: number, size: number, buffer: Uint8Array, at: number): Promise<void> {
    await this.#gate.pass()
    await this.#gate.track(this.#table.readLater(offset, size, buffer, at))
  }

  write(offset: number, size: number, buffer: Uint8Array, at: number): Later<void> {
    if (this.#gate.isShut) {
      const held = Buffer.from(buffer.subarray(at, at + size))
      return this.#gate.pass().then(() => this.write(offset, size, held, 0))
    }
    const written = this.#table.write(offset, size, buffer, at)
    return written instanceof Promise ? this.#gate.track(written) : written
  }

  async discard(offset: number, length: number): Promise<void> {
    await this.#gate.pass()
    await this.#gate.track(promised(() => this.#table.discard(offset, length)))
  }

  async zero(offset: number, length: number): Promise<void> {
    await this.#gate.pass()
    await this.#gate.track(promised(() => this.#table.zero(offset, length)))
  }

  async flush(): Promise<void> {
    await this.#gate.pass()
    // Without a table nothing was acknowledged.
    if (this.#live !== null) await this.#gate.track(this.#live.flush())
  }

  async nextData(offset: number): Promise<number> {
    await this.#gate.pass()
    return this.#table.nextData(offset)
  }

  async nextHole(offset: number): Promise<number> {
    await this.#gate.pass()
    return this.#table.nextHole(offset)
  }

  // --- tables ---

  /** Puts a table beside the one that serves, and closes an earlier one that was never used. */
  async load(table: Table): Promise<void> {
    const unused = this.#loaded
    this.#loaded = table
    await unused?.close()
  }

  async clear(): Promise<void> {
    const unused = this.#loaded
    this.#loaded = null
    await unused?.close()
  }

  /**
   * Resolves when no request is under way; later ones wait. Requests that wait for space in a pool
   * count only with `flush`, which also makes everything that was acknowledged durable.
   */
  async suspend(flush: boolean): Promise<void> {
    if (this.#gate.isShut) return
    this.#gate.shut()
    await this.#gate.drain(() => (flush ? 0 : (this.#live?.writesWaiting ?? 0)))
    await this.#live?.suspend()
    // A device that cannot flush is suspended all the same: its users hear of the error.
    if (flush) await this.#live?.flush().catch(() => {})
  }

  /**
   * Puts the loaded table in place, if there is one, and opens the gate. When that table does not
   * fit it is closed, and the device stays suspended with the one that it had; a pool's table stays
   * in place, and the device suspended.
   * @throws BAD_ARGUMENT without a table, or when it does not fit
   */
  async resume(): Promise<void> {
    const next = this.#loaded
    if (next !== null) {
      await this.suspend(false)
      this.#loaded = null
      const old = this.#live
      try {
        next.check()
        await next.resume()
      } catch (err) {
        if (next.staysWhenRefused) this.#live = next
        await (next.staysWhenRefused ? old : next)?.close().catch(() => {})
        throw err
      }
      this.#live = next
      await old?.close().catch(() => {})
    } else {
      if (this.#live === null) throw refused('EINVAL', 'the device has no table')
      await this.#live.resume()
    }
    this.#gate.open()
  }

  /** Ends the device. Requests that wait are errors. */
  async close(): Promise<void> {
    this.#gone = true
    this.#gate.refuse()
    try {
      await this.clear()
    } finally {
      const live = this.#live
      this.#live = null
      await live?.close()
    }
  }

  get #table(): Table {
    if (this.#live === null) throw new ThinfsError('IO_ERROR', 'the device has no table')
    return this.#live
  }
}

/** The result of `work` as a promise, which rejects where `work` throws. */
async function promised(work: () => Later<void>): Promise<void> {
  await work()
}
