import { type Later, type Requester, refused } from '../base/index.js'
import type { BlockDevice } from '../device/index.js'

/** A device before another one, to which every request goes unchanged. */
export class Through implements BlockDevice {
  protected readonly lower: BlockDevice

  constructor(lower: BlockDevice) {
    this.lower = lower
  }

  get size(): number {
    return this.lower.size
  }

  get gone(): boolean {
    return this.lower.gone
  }

  read(offset: number, size: number, buffer: Uint8Array, at: number): boolean {
    return this.lower.read(offset, size, buffer, at)
  }

  readLater(offset: number, size: number, buffer: Uint8Array, at: number): Promise<void> {
    return this.lower.readLater(offset, size, buffer, at)
  }

  write(
    offset: number,
    size: number,
    buffer: Uint8Array,
    at: number,
    requester?: Requester,
  ): Later<void> {
    return this.lower.write(offset, size, buffer, at, requester)
  }

  discard(offset: number, length: number, waits?: boolean, signal?: AbortSignal): Later<void> {
    return this.lower.discard(offset, length, waits, signal)
  }

  zero(offset: number, length: number, signal?: AbortSignal): Later<void> {
    return this.lower.zero(offset, length, signal)
  }

  flush(): Promise<void> {
    return this.lower.flush()
  }

  nextData(offset: number): Later<number> {
    return this.lower.nextData(offset)
  }

  nextHole(offset: number): Later<number> {
    return this.lower.nextHole(offset)
  }
}

/** A volume's device, whose flush is that of the volume: sizes are made durable too. */
export class VolumeDisk extends Through {
  /** Whether the content must not change. */
  readOnly = false
  readonly #flush: () => Promise<void>

  constructor(device: BlockDevice, flush: () => Promise<void>) {
    super(device)
    this.#flush = flush
  }

  override write(
    offset: number,
    size: number,
    buffer: Uint8Array,
    at: number,
    requester?: Requester,
  ): Later<void> {
    this.#mustBeWritable()
    return this.lower.write(offset, size, buffer, at, requester)
  }

  override discard(
    offset: number,
    length: number,
    waits?: boolean,
    signal?: AbortSignal,
  ): Later<void> {
    this.#mustBeWritable()
    return this.lower.discard(offset, length, waits, signal)
  }

  override zero(offset: number, length: number, signal?: AbortSignal): Later<void> {
    this.#mustBeWritable()
    return this.lower.zero(offset, length, signal)
  }

  override flush(): Promise<void> {
    return this.#flush()
  }

  #mustBeWritable(): void {
    if (this.readOnly) throw refused('EROFS', 'a recording begins with what the volume holds')
  }
}
