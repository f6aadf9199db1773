/** Changes as the journal has them: noted one by one, written many at a time, and made again. */
import {
  type Bytes,
  type DataBlock,
  type DevId,
  layout,
  readU64,
  ThinfsError,
  type VirtualBlock,
  viewOf,
  writeU64,
} from '../base/index.js'
import { CHANGES, FRAME, writeFrame } from './journal-frames.js'

export const CHANGE = layout('JournalChange', 32, {
  kind: [0, 'u32', '1 map, 2 unmap, 3 mark shared, 4 extend, 5 open, 6 close, 7 move'],
  time: [4, 'u32', 'map: time of the mapping'],
  devId: [8, 'u64', 'thin device; move: virtual block, of all devices'],
  first: [
    16,
    'u64',
    'map: virtual block; unmap: begin; mark shared: other device; extend: size; open, close: handle; ' +
      'move: data block',
  ],
  second: [24, 'u64', 'map: data block; unmap: end; move: data block in its place'],
})

const MAP = 1
const UNMAP = 2
const MARK_SHARED = 3
const EXTEND = 4
const OPEN = 5
const CLOSE = 6
const MOVE = 7

/** The receiver of replayed changes. */
export interface ChangeTarget {
  map(devId: DevId, vblock: VirtualBlock, dataBlock: DataBlock, time: number): void
  unmap(devId: DevId, begin: VirtualBlock, end: VirtualBlock): void
  markShared(one: DevId, other: DevId): void
  extend(devId: DevId, size: Bytes): void
  open(devId: DevId, handle: number): void
  close(devId: DevId, handle: number): void
  move(vblock: VirtualBlock, from: DataBlock, to: DataBlock): void
}

/** Changes that are noted and not written yet, as the frame that they will be. */
export class PendingChanges {
  #frame = Buffer.alloc(64 * 1024)
  #view = new DataView(this.#frame.buffer)
  #used: number = FRAME.size
  #vital = false

  get isEmpty(): boolean {
    return this.#used === FRAME.size
  }

  /** Whether there are others than how often devices are open. */
  get vital(): boolean {
    return this.#vital
  }

  map(devId: number, vblock: number, dataBlock: number, time: number): void {
    this.#note(MAP, time, devId, vblock, dataBlock)
  }

  unmap(devId: number, begin: number, end: number): void {
    this.#note(UNMAP, 0, devId, begin, end)
  }

  markShared(one: number, other: number): void {
    this.#note(MARK_SHARED, 0, one, other, 0)
  }

  extend(devId: number, size: number): void {
    this.#note(EXTEND, 0, devId, size, 0)
  }

  open(devId: number, handle: number): void {
    this.#note(OPEN, 0, devId, handle, 0)
  }

  close(devId: number, handle: number): void {
    this.#note(CLOSE, 0, devId, handle, 0)
  }

  move(vblock: number, from: number, to: number): void {
    this.#note(MOVE, 0, vblock, from, to)
  }

  /** A copy of them as a CHANGES frame. */
  frame(): Buffer {
    writeFrame(this.#frame, CHANGES, this.#used - FRAME.size)
    return Buffer.from(this.#frame.subarray(0, this.#used))
  }

  /** Forgets all. */
  clear(): void {
    this.#used = FRAME.size
    this.#vital = false
  }

  #note(kind: number, time: number, devId: number, first: number, second: number): void {
    if (kind !== OPEN && kind !== CLOSE) this.#vital = true
    if (this.#used + CHANGE.size > this.#frame.length) this.#enlarge()
    const at = this.#used
    this.#view.setUint32(at + CHANGE.at.kind, kind, true)
    this.#view.setUint32(at + CHANGE.at.time, time, true)
    writeU64(this.#view, at + CHANGE.at.devId, devId)
    writeU64(this.#view, at + CHANGE.at.first, first)
    writeU64(this.#view, at + CHANGE.at.second, second)
    this.#used = at + CHANGE.size
  }

  #enlarge(): void {
    const larger = Buffer.alloc(this.#frame.length * 2)
    this.#frame.copy(larger, 0, 0, this.#used)
    this.#frame = larger
    this.#view = new DataView(larger.buffer)
  }
}

/** Replays frames of changes in order. @throws POOL_MISMATCH for a change that is not known */
export function replay(changes: readonly Buffer[], target: ChangeTarget): void {
  for (const payload of changes) {
    const view = viewOf(payload)
    for (let at = 0; at + CHANGE.size <= payload.length; at += CHANGE.size) {
      const kind = view.getUint32(at + CHANGE.at.kind, true)
      const devId = readU64(view, at + CHANGE.at.devId) as DevId
      const first = readU64(view, at + CHANGE.at.first)
      const second = readU64(view, at + CHANGE.at.second)
      const time = view.getUint32(at + CHANGE.at.time, true)
      if (kind === MAP) target.map(devId, first as VirtualBlock, second as DataBlock, time)
      else if (kind === UNMAP) target.unmap(devId, first as VirtualBlock, second as VirtualBlock)
      else if (kind === MARK_SHARED) target.markShared(devId, first as DevId)
      else if (kind === EXTEND) target.extend(devId, first as Bytes)
      else if (kind === OPEN) target.open(devId, first)
      else if (kind === CLOSE) target.close(devId, first)
      else if (kind === MOVE) {
        target.move(devId as number as VirtualBlock, first as DataBlock, second as DataBlock)
      } else throw new ThinfsError('POOL_MISMATCH', `change of kind ${kind}, wanted 1 to ${MOVE}`)
    }
  }
}
