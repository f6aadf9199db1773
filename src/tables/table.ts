import { allEnded, type Later, ThinfsError } from '../base/index.js'
import type { BlockDevice } from '../device/index.js'
import { onParts, type TargetDevice } from './target-device.js'

/** Targets one behind the other, as one device. Requests that cross a border are split there. */
export class Table implements BlockDevice {
  readonly targets: readonly TargetDevice[]
  /** Bytes. */
  readonly size: number
  readonly readOnly: boolean
  /** The sector at which each target begins; one more at the end. */
  readonly #begins: Float64Array

  constructor(targets: readonly TargetDevice[], readOnly: boolean) {
    this.targets = targets
    this.readOnly = readOnly
    this.#begins = new Float64Array(targets.length + 1)
    for (const [i, { size }] of targets.entries()) this.#begins[i + 1] = this.#begins[i]! + size
    this.size = this.#begins[targets.length]!
  }

  get gone(): boolean {
    return false
  }

  /** Whether the table is in place although its `resume` has failed. */
  get staysWhenRefused(): boolean {
    return this.targets.some(target => target.staysWhenRefused === true)
  }

  /** Writes that wait for space in pools. */
  get writesWaiting(): number {
    let waiting = 0
    for (const target of this.targets) waiting += target.writesWaiting ?? 0
    return waiting
  }

  /** The target that has byte `offset`; undefined past the end. */
  targetAt(offset: number): TargetDevice | undefined {
    return offset < this.size ? this.targets[this.#indexAt(offset)] : undefined
  }

  read(offset: number, size: number, buffer: Uint8Array, at: number): boolean {
    this.#mustHave(offset, size)
    const end = offset + size
    for (let i = this.#indexAt(offset), from = offset; from < end; i++) {
      const length = Math.min(end, this.#begins[i + 1]!) - from
      const target = this.targets[i]!
      if (!target.read(from - this.#begins[i]!, length, buffer, at + (from - offset))) return false
      from += length
    }
    return true
  }

  async readLater(offset: number, size: number, buffer: Uint8Array, at: number): Promise<void> {
    this.#mustHave(offset, size)
    await this.#onEach(offset, size, (target, from, length, done) =>
      target.readLater(from, length, buffer, at + done),
    )
  }

  write(offset: number, size: number, buffer: Uint8Array, at: number): Later<void> {
    this.#mustBeWritable(offset, size)
    const i = this.#indexAt(offset)
    if (offset + size <= this.#begins[i + 1]!) {
      return this.targets[i]!.write(offset - this.#begins[i]!, size, buffer, at)
    }
    return this.#onEach(offset, size, (target, from, length, done) =>
      target.write(from, length, buffer, at + done),
    )
  }

  discard(offset: number, length: number): Later<void> {
    this.#mustBeWritable(offset, length)
    return this.#onEach(offset, length, (target, from, size) => target.discard(from, size))
  }

  zero(offset: number, length: number): Later<void> {
    this.#mustBeWritable(offset, length)
    return this.#onEach(offset, length, (target, from, size) => target.zero(from, size))
  }

  async flush(): Promise<void> {
    await allEnded(this.targets.map(target => target.flush()))
  }

  nextData(offset: number): Promise<number> {
    return this.#next(offset, (target, from) => target.nextData(from))
  }

  nextHole(offset: number): Promise<number> {
    return this.#next(offset, (target, from) => target.nextHole(from))
  }

  /** @throws BAD_ARGUMENT when what is below has become too small */
  check(): void {
    for (const target of this.targets) target.check()
  }

  async resume(): Promise<void> {
    for (const target of this.targets) await target.resume?.()
  }

  async suspend(): Promise<void> {
    for (const target of this.targets) await target.suspend?.()
  }

  async close(): Promise<void> {
    await allEnded(this.targets.map(target => target.close()))
  }

  async #next(
    offset: number,
    find: (target: TargetDevice, from: number) => Later<number>,
  ): Promise<number> {
    for (let i = this.#indexAt(offset), from = offset; from < this.size; i++) {
      const begin = this.#begins[i]!
      const found = begin + (await find(this.targets[i]!, from - begin))
      if (found < this.#begins[i + 1]!) return found
      from = this.#begins[i + 1]!
    }
    return this.size
  }

  #indexAt(offset: number): number {
    let low = 0
    let high = this.targets.length
    while (high - low > 1) {
      const middle = (low + high) >>> 1
      if (this.#begins[middle]! <= offset) low = middle
      else high = middle
    }
    return low
  }

  /** Calls `use` for each target that a range touches, in their order; see `onParts`. */
  #onEach(
    offset: number,
    size: number,
    use: (target: TargetDevice, from: number, length: number, done: number) => Later<void>,
  ): Later<void> {
    let i = this.#indexAt(offset) - 1
    return onParts(
      offset,
      size,
      () => this.#begins[++i + 1]!,
      (from, length, done) => use(this.targets[i]!, from - this.#begins[i]!, length, done),
    )
  }

  /** A table may have become shorter while a request waited. */
  #mustHave(offset: number, size: number): void {
    if (offset + size > this.size) {
      throw new ThinfsError('IO_ERROR', `byte ${offset + size} of a device of ${this.size} bytes`)
    }
  }

  #mustBeWritable(offset: number, size: number): void {
    this.#mustHave(offset, size)
    if (this.readOnly) {
      throw new ThinfsError('IO_ERROR', 'the table is read-only', { errno: 'EROFS' })
    }
  }
}
