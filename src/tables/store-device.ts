import { bytes } from '../base/index.js'
import type { BlockDevice } from '../device/index.js'
import type { Store } from '../storage/index.js'

/** A store as a block device. */
export class StoreDevice implements BlockDevice {
  readonly gone = false
  readonly #store: Store

  /** @param store stays the caller's to close */
  constructor(store: Store) {
    this.#store = store
  }

  get size(): number {
    return this.#store.size
  }

  read(offset: number, size: number, buffer: Uint8Array, at: number): boolean {
    return this.#store.readNow(buffer, at, size, bytes(offset))
  }

  readLater(offset: number, size: number, buffer: Uint8Array, at: number): Promise<void> {
    return this.#store.readLater(buffer, at, size, bytes(offset))
  }

  write(offset: number, size: number, buffer: Uint8Array, at: number): void {
    this.#store.write(buffer, at, size, bytes(offset))
  }

  discard(offset: number, length: number): Promise<void> {
    return this.#store.punchLater(bytes(offset), bytes(length))
  }

  zero(offset: number, length: number): Promise<void> {
    return this.#store.punchLater(bytes(offset), bytes(length))
  }

  flush(): Promise<void> {
    return this.#store.sync()
  }

  nextData(offset: number): number {
    return this.#store.nextData(bytes(offset))
  }

  nextHole(offset: number): number {
    return this.#store.nextHole(bytes(offset))
  }
}
