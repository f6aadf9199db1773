import {
  type Clock,
  heldRequester,
  type Later,
  type Requester,
  ThinfsError,
  unlessAborted,
} from '../base/index.js'
import type { BlockDevice } from '../device/index.js'
import { Through } from './through.js'

/** Ranges of bytes, [offset, length]. */
type Ranges = [number, number][]

/** The faults that an Injector injects. */
export interface Faults {
  readErrors: Ranges
  /** For all that changes content: a write, zeros, a discard. */
  writeErrors: Ranges
  ignoreFlushes: boolean
  /** Milliseconds. */
  latencyMs: number
}

export const noFaults = (): Faults => ({
  readErrors: [],
  writeErrors: [],
  ignoreFlushes: false,
  latencyMs: 0,
})

/** Whether nothing is injected. */
export const isNone = (faults: Faults): boolean =>
  faults.readErrors.length === 0 &&
  faults.writeErrors.length === 0 &&
  !faults.ignoreFlushes &&
  faults.latencyMs === 0

/**
 * A device that fails, lies and is slow on demand, as dm-dust, dm-flakey and dm-delay are. A
 * request that fails has changed nothing. A slow one waits on its own: nothing of another volume
 * waits for it.
 */
export class Injector extends Through {
  /** As of the moment when a request is carried out, after its latency. */
  faults = noFaults()
  readonly #name: () => string
  readonly #clock: Clock
  readonly #ignored: () => Later<void>

  /**
   * @param name of the volume, for messages
   * @param ignored is told of each flush that was not done
   */
  constructor(
    lower: BlockDevice,
    parts: { name: () => string; clock: Clock; ignored: () => Later<void> },
  ) {
    super(lower)
    this.#name = parts.name
    this.#clock = parts.clock
    this.#ignored = parts.ignored
  }

  override read(offset: number, size: number, buffer: Uint8Array, at: number): boolean {
    if (this.faults.latencyMs > 0) return false
    this.#mustNotMeet(this.faults.readErrors, 'read', offset, size)
    return this.lower.read(offset, size, buffer, at)
  }

  override async readLater(
    offset: number,
    size: number,
    buffer: Uint8Array,
    at: number,
  ): Promise<void> {
    await this.#latency()
    this.#mustNotMeet(this.faults.readErrors, 'read', offset, size)
    if (this.lower.read(offset, size, buffer, at)) return
    await this.lower.readLater(offset, size, buffer, at)
  }

  override write(
    offset: number,
    size: number,
    buffer: Uint8Array,
    at: number,
    requester?: Requester,
  ): Later<void> {
    if (this.faults.latencyMs === 0) return this.#write(offset, size, buffer, at, requester)
    const held = Buffer.from(buffer.subarray(at, at + size))
    const signal = requester?.signal()
    return this.#latency(signal).then(() =>
      this.#write(offset, size, held, 0, heldRequester(signal)),
    )
  }

  override async discard(
    offset: number,
    length: number,
    waits?: boolean,
    signal?: AbortSignal,
  ): Promise<void> {
    if (this.faults.latencyMs > 0) await this.#latency(signal)
    this.#mustNotMeet(this.faults.writeErrors, 'discard', offset, length)
    await this.lower.discard(offset, length, waits, signal)
  }

  override async zero(offset: number, length: number, signal?: AbortSignal): Promise<void> {
    if (this.faults.latencyMs > 0) await this.#latency(signal)
    this.#mustNotMeet(this.faults.writeErrors, 'zero', offset, length)
    await this.lower.zero(offset, length, signal)
  }

  override async flush(): Promise<void> {
    if (this.faults.latencyMs > 0) await this.#latency()
    if (this.faults.ignoreFlushes) await this.#ignored()
    else await this.lower.flush()
  }

  #write(
    offset: number,
    size: number,
    buffer: Uint8Array,
    at: number,
    requester: Requester | undefined,
  ): Later<void> {
    this.#mustNotMeet(this.faults.writeErrors, 'write', offset, size)
    return this.lower.write(offset, size, buffer, at, requester)
  }

  /** @param signal ends the wait with its reason */
  #latency(signal?: AbortSignal): Promise<void> {
    const { latencyMs } = this.faults
    const over = new Promise<void>(resolve => this.#clock.after(latencyMs, resolve))
    return unlessAborted(over, signal)
  }

  #mustNotMeet(ranges: Ranges, what: string, offset: number, length: number): void {
    for (const [from, size] of ranges) {
      if (offset >= from + size || offset + length <= from) continue
      const detail = `${this.#name()}: injected: ${what} of ${length} bytes at ${offset}`
      throw new ThinfsError('IO_ERROR', detail)
    }
  }
}
