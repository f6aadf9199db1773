import type { TargetDevice } from './target-device.js'

/** Reads as zeros and forgets what is written. Source: drivers/md/dm-zero.c. */
export class ZeroTarget implements TargetDevice {
  readonly size: number
  readonly gone = false

  /** @param size bytes */
  constructor(size: number) {
    this.size = size
  }

  read(_offset: number, size: number, buffer: Uint8Array, at: number): boolean {
    buffer.fill(0, at, at + size)
    return true
  }

  async readLater(offset: number, size: number, buffer: Uint8Array, at: number): Promise<void> {
    this.read(offset, size, buffer, at)
  }

  write(): void {}
  discard(): void {}
  zero(): void {}
  async flush(): Promise<void> {}

  nextData(): number {
    return this.size
  }

  nextHole(offset: number): number {
    return offset
  }

  check(): void {}
  async close(): Promise<void> {}
}
