import type { Extent, PoolConfig, VolumeConfig } from '../config/index.js'

/** A file that holds the metadata, or the data, of a pool that another program made. */
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
  /** `snapshotOf` may name a volume that is not among them. */
  volumes: Record<string, VolumeConfig>
  /** Its program's treatment of discards. */
  discards: PoolConfig['discards']
  /** Bytes; null where its program has not noted it. */
  dataBlockSize: number | null
  /** The transaction id that its program has noted; null where that is not known. */
  transactionId: number | null
  /** Warnings for the person who adopts it, such as of volumes that are left out: sentences. */
  notes: string[]
}
