import type { DevId } from '../base/index.js'

/**
 * The handles that have devices open. Adding and dropping are idempotent: the kernel resends a
 * request, with the same handle, to the next process.
 */
export class OpenHandles {
  readonly #byDevice = new Map<DevId, Set<number>>()

  add(devId: DevId, handle: number): void {
    const handles = this.#byDevice.get(devId)
    if (handles) handles.add(handle)
    else this.#byDevice.set(devId, new Set([handle]))
  }

  drop(devId: DevId, handle: number): void {
    const handles = this.#byDevice.get(devId)
    handles?.delete(handle)
    if (handles?.size === 0) this.#byDevice.delete(devId)
  }

  /** Drops all of a device. */
  forget(devId: DevId): void {
    this.#byDevice.delete(devId)
  }

  count(devId: DevId): number {
    return this.#byDevice.get(devId)?.size ?? 0
  }

  /** Every handle with its device. */
  *all(): Generator<[DevId, number]> {
    for (const [devId, handles] of this.#byDevice) {
      for (const handle of handles) yield [devId, handle]
    }
  }
}
