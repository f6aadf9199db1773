import { ThinfsError } from '../base/index.js'

/** A part of a disk that is not known to read as zeros. Bytes. */
export interface Extent {
  offset: number
  length: number
}

/**
 * A disk that answers later, such as one of another machine. Offsets and lengths are whole pages.
 * A write and another call that changes the same bytes are never under way together: the caller
 * sees to it.
 */
export interface RemoteDisk {
  /** Names the disk in messages. */
  readonly path: string
  readonly size: number
  /**
   * Goes up when the disk may have lost what was written and not flushed: with each connection.
   */
  readonly epoch: number
  /** Whether `zero` is more than a write of zeros: `extents` tells of a hole then, as a rule. */
  readonly makesHoles: boolean
  /** Fills `into`. */
  read(into: Uint8Array, offset: number): Promise<void>
  /** Writes `from`, which may change meanwhile: then any mix of both is written. */
  write(from: Uint8Array, offset: number): Promise<void>
  /** Makes a range read as zeros, and gives its space back where the disk can. */
  zero(offset: number, length: number): Promise<void>
  /** Makes durable what was written since the last change of `epoch`. */
  flush(): Promise<void>
  /** The parts of a range that may hold something, ascending; null where the disk cannot tell. */
  extents(offset: number, length: number): Promise<Extent[] | null>
  close(): void
}

/** A disk has the size that it has. @throws BAD_ARGUMENT for another */
export function mustHaveSize({ path, size }: { path: string; size: number }, wanted: number): void {
  if (wanted === size) return
  const detail = `${path}: the disk has ${size} bytes, ${wanted} are wanted`
  throw new ThinfsError('BAD_ARGUMENT', detail)
}
