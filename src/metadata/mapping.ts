/** The place of a thin device's block, as the value of its tree: 40 bits of block, 24 of time. */
import type { DataBlock } from '../base/index.js'
import type { ValueRefs } from './btree/tree.js'
import type { DataSpaceMap } from './space/data-space-map.js'

/** A record to be filled, so that looking up allocates nothing. */
export interface Mapping {
  dataBlock: DataBlock
  /** Time of the pool when the mapping was made. */
  time: number
}

export const mappedBlock = (view: DataView, at: number): DataBlock =>
  (view.getUint32(at + 4, true) * 256 + view.getUint8(at + 3)) as DataBlock

export const mappedTime = (view: DataView, at: number): number =>
  view.getUint32(at, true) & 0xff_ffff

export function readMapping(view: DataView, at: number, out: Mapping): void {
  out.dataBlock = mappedBlock(view, at)
  out.time = mappedTime(view, at)
}

/** @param time up to MAX_TIME */
export function writeMapping(view: DataView, at: number, dataBlock: DataBlock, time: number): void {
  view.setUint32(at, time, true)
  view.setUint8(at + 3, dataBlock % 256)
  view.setUint32(at + 4, Math.floor(dataBlock / 256), true)
}

/** A leaf of a device's tree counts once for each of its data blocks. */
export class MappingRefs implements ValueRefs {
  readonly readsNoNode = true
  readonly #data: DataSpaceMap

  constructor(data: DataSpaceMap) {
    this.#data = data
  }

  inc(view: DataView, at: number): void {
    this.#data.inc(mappedBlock(view, at))
  }

  dec(view: DataView, at: number): void {
    this.#data.dec(mappedBlock(view, at))
  }
}
