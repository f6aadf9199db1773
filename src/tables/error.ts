import { ThinfsError } from '../base/index.js'
import type { TargetDevice } from './target-device.js'

/** Fails every request; a flush passes. Source: drivers/md/dm-target.c, io_err. */
export class ErrorTarget implements TargetDevice {
  readonly size: number
  readonly gone = false

  /** @param size bytes */
  constructor(size: number) {
    this.size = size
  }

  read(): boolean {
    throw failed()
  }

  async readLater(): Promise<void> {
    throw failed()
  }

  write(): void {
    throw failed()
  }

  discard(): void {
    throw failed()
  }

  zero(): void {
    throw failed()
  }

  async flush(): Promise<void> {}

  nextData(offset: number): number {
    return offset
  }

  nextHole(): number {
    return this.size
  }

  check(): void {}
  async close(): Promise<void> {}
}

const failed = (): ThinfsError => new ThinfsError('IO_ERROR', 'an error target')
