import { allEnded, type Later } from '../base/index.js'
import type { BlockDevice } from '../device/index.js'

/** A target at work: a device made of the devices below, by a line of a table. */
export interface TargetDevice extends BlockDevice {
  /**
   * Checks that the devices below are large enough, just before the table takes effect.
   * @throws BAD_ARGUMENT
   */
  check(): void
  /** The table takes effect, or goes on after a suspension. */
  resume?(): Promise<void>
  /** Whether the table stays in place, suspended, when `resume` fails. */
  readonly staysWhenRefused?: boolean
  /** The device is suspended; nothing is under way. */
  suspend?(): Promise<void>
  /** Writes that wait for space: no suspension without a flush waits for them. */
  readonly writesWaiting?: number
  /** The status line without start, length and type. @param flush commits first */
  status?(flush: boolean): Later<string>
  /** @throws an error with the kernel's errno */
  message?(text: string): Promise<void>
  /** Releases the devices below. No request follows. */
  close(): Promise<void>
}

/**
 * Does a range part by part. Parts that were begun have ended when the whole has, also where one
 * fails.
 * @param endOf where the part that begins at `from` ends; beyond the range is as well
 * @param use does a part; `done` bytes of the range come before it
 */
export function onParts(
  offset: number,
  size: number,
  endOf: (from: number) => number,
  use: (from: number, length: number, done: number) => Later<void>,
): Later<void> {
  const waits: Promise<void>[] = []
  const end = offset + size
  try {
    for (let from = offset; from < end; ) {
      const length = Math.min(end, endOf(from)) - from
      const used = use(from, length, from - offset)
      if (used instanceof Promise) waits.push(used)
      from += length
    }
  } catch (err) {
    if (waits.length === 0) throw err
    waits.push(Promise.reject(err))
  }
  if (waits.length > 0) return allEnded(waits)
}
