import type { Extent, PoolConfig, VolumeConfig } from '../config/index.js'

/** Where a pool that another program made keeps its metadata, or its data. */
export interface Place {
  /** Absolute. */
  path: string
  /** The parts of it that are the pool's, one behind the other; null: all of it. */
  extents: Extent[] | null
}

/** A pool that another program made, as that program describes it. */
export interface FoundPool {
  /** As its program calls it: `vg/pool`, `docker`. */
  name: string
  metadata: Place
  data: Place
  volumes: Record<string, VolumeConfig>
  /** What its program does with discards. */
  discards: PoolConfig['discards']
  /** The transaction id that its program has noted; null where that is not known. */
  transactionId: number | null
  /** What does not come along, or has to be known: sentences. */
  notes: string[]
}
