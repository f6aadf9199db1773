import { type Pieces, ThinfsError } from '../base/index.js'

/** A part of a disk that is not known to read as zeros. Bytes. */
export interface Extent {
  offset: number
  length: number
}

/** The epoch of no disk: whoever notes it sends again all that no flush has covered. */
export const NO_EPOCH = -1

/**
 * A disk that answers later, such as one of another machine. Offsets and lengths are whole pages.
 * A write and another call that changes the same bytes are never under way together: the caller
 * sees to it.
 */
export interface RemoteDisk {
  /** Names the disk in messages. */
  readonly path: string
  /**
   * As far as it is known: it may go up at any time, and down where others may cut the disk off.
   */
  readonly size: number
  /**
   * Goes up when the disk may have lost what was written and not flushed: with each connection.
   */
  readonly epoch: number
  /** Whether `zero` is more than a write of zeros: `extents` tells of a hole then, as a rule. */
  readonly makesHoles: boolean
  /** Fills `into`. */
  read(into: Pieces, offset: number): Promise<void>
  /**
   * Writes `from`, which may change meanwhile: then any mix of both is written.
   * @param durable whether it is durable when the call ends, as after a flush, and nothing else
   */
  write(from: Pieces, offset: number, durable?: boolean): Promise<void>
  /** Makes a range read as zeros, and gives its space back where the disk can. */
  zero(offset: number, length: number): Promise<void>
  /** Makes durable what was written since the last change of `epoch`. */
  flush(): Promise<void>
  /** The parts of a range that may hold something, ascending; null where the disk cannot tell. */
  extents(offset: number, length: number): Promise<Extent[] | null>
  /** Asks how large it is; left out: that is told with each connection alone. */
  measure?(): Promise<unknown>
  /** Whether so many clients more can have it at the same time; left out: none can. */
  letsInMore?(clients: number): Promise<boolean>
  close(): void
}

/**
 * A store on a disk has the size that the disk has, and grows as that does.
 * @param size bytes that the store has
 * @throws BAD_ARGUMENT for another size
 */
export function mustHaveSize({ path, measure }: RemoteDisk, size: number, wanted: number): void {
  if (wanted === size) return
  if (wanted < size) throw new ThinfsError('BAD_ARGUMENT', `${path}: does not shrink from ${size}`)
  const how = measure === undefined ? ', and start its server again' : ''
  const detail = `${path}: the disk has ${size} bytes, ${wanted} are wanted: make it larger first${how}`
  throw new ThinfsError('BAD_ARGUMENT', detail)
}

/**
 * A disk must not have become smaller: memory may hold the part that it has lost.
 * @param had bytes that the disk had when it was used last
 * @throws POOL_MISMATCH for one that has become smaller
 */
export function mustBeWhole({ path, size }: { path: string; size: number }, had: number): void {
  if (size >= had) return
  const detail = `${path}: the disk has ${size} bytes, it had ${had}: make it as large again`
  throw new ThinfsError('POOL_MISMATCH', detail)
}
