import { METADATA_BLOCK_SIZE, readU64 } from '../../base/index.js'
import { NODE, NODE_INTERNAL } from '../format.js'

/** A metadata block as the checker reads it, with a node's fields. */
export class Node {
  readonly buffer = new Uint8Array(METADATA_BLOCK_SIZE)
  readonly view = new DataView(this.buffer.buffer)

  get isInternal(): boolean {
    return this.view.getUint32(NODE.at.flags, true) === NODE_INTERNAL
  }
  get nrEntries(): number {
    return this.view.getUint32(NODE.at.nrEntries, true)
  }
  get maxEntries(): number {
    return this.view.getUint32(NODE.at.maxEntries, true)
  }
  get valueSize(): number {
    return this.view.getUint32(NODE.at.valueSize, true)
  }
  key(i: number): number {
    return readU64(this.view, NODE.size + 8 * i)
  }
  /** Byte offset of value `i`: the values start after the room for all keys. */
  valueAt(i: number): number {
    return NODE.size + 8 * this.maxEntries + this.valueSize * i
  }
  u64(i: number): number {
    return readU64(this.view, this.valueAt(i))
  }
}
