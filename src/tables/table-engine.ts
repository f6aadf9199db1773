/**
 * The interface between the device-mapper service and the process that serves its devices' bytes.
 *
 * Devices go by their minor number; nothing here knows names, uuids or ioctls. All arguments and
 * results are JSON: the two are different processes. A failure throws an error with the errno
 * that the kernel's device-mapper gives (`errnoOf`). Sectors are 512 bytes.
 */

/** A part of a file or of a disk. Bytes. */
export interface Extent {
  path: string
  offset: number
  length: number
}

/** A part of a striped range: chunks of several lists of parts in turn. Bytes. */
export interface Stripes {
  stripes: Range[][]
  chunk: number
  offset: number
  length: number
}

/** The parts of a pool's metadata or data, one behind the other. */
export type Range = Extent | Stripes

/** The place of a target's bytes: another device of ours, or files and disks below. */
export type Source = { minor: number /** Sectors. */; start: number } | { extents: Extent[] }

/** One line of a table, parsed: `type` and `params` as the kernel names and orders them. */
export type Target = { /** Sectors. */ start: number /** Sectors. */; length: number } & (
  | { type: 'zero' }
  | { type: 'error' }
  | { type: 'linear'; source: Source }
  | { type: 'striped' /** Sectors. */; chunk: number; stripes: Source[] }
  | {
      type: 'thin-pool'
      metadata: Range[]
      data: Range[]
      /** Sectors. */
      blockSize: number
      /** Blocks. */
      lowWater: number
      skipBlockZeroing: boolean
      ignoreDiscard: boolean
      noDiscardPassdown: boolean
      readOnly: boolean
      errorIfNoSpace: boolean
    }
  | { type: 'thin'; pool: number; devId: number; externalOrigin?: Source }
)

export interface TableEngine {
  /** Adds the file `dm-MINOR`, of size 0 and without a table. */
  create(minor: number): Promise<void>
  /** Removes the file; the device has no opener any more. Closes a pool that it was. */
  remove(minor: number): Promise<void>
  /**
   * Opens what a table names, beside the table that serves: `resume` puts it in its place. A table
   * loaded before and never resumed is dropped.
   */
  load(minor: number, table: Target[], readOnly: boolean): Promise<void>
  /** Drops the table that was loaded and not resumed. */
  clear(minor: number): Promise<void>
  /**
   * Shuts the gate: resolves when no request is under way; later ones wait.
   * @param flush makes what was acknowledged durable first
   */
  suspend(minor: number, flush: boolean): Promise<void>
  /**
   * Puts the loaded table in place, if there is one, and opens the gate. Sizes are checked here: a
   * table may be loaded while the devices below it still have their old ones.
   * @returns bytes
   */
  resume(minor: number): Promise<{ size: number }>
  /** A target's message. @returns its answer, where it has one */
  message(minor: number, sector: number, words: string[]): Promise<string | null>
  /** The status line of each target of the table that serves, without start, length and type. */
  status(minor: number, flush: boolean): Promise<string[]>
}

/** Events that the engine reports to the service. */
export interface TableEvents {
  /** The device's event counter goes up: low water, mode, out of space, needs_check. */
  event(minor: number): void
  /** Nobody has the device's file open any more. */
  closed(minor: number): void
}
