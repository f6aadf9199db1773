import { type Later, ThinfsError } from '../base/index.js'
import type { BlockDevice } from '../device/index.js'

/** What a line of a table makes of the devices below it. */
export interface TargetDevice extends BlockDevice {
  /**
   * Looks whether what is below is large enough, just before the table takes effect.
   * @throws BAD_ARGUMENT
   */
  check(): void
  /** The table takes effect, or goes on after a suspension. */
  resume?(): Promise<void>
  /** The device is suspended; nothing is under way. */
  suspend?(): Promise<void>
  /** Writes that wait for space: no suspension without a flush waits for them. */
  readonly writesWaiting?: number
  /** The status line without start, length and type. @param flush commits first */
  status?(flush: boolean): Later<string>
  /** @throws an error with the kernel's errno */
  message?(text: string): Promise<void>
  /** Gives up what is below. No request follows. */
  close(): Promise<void>
}

/** A table that is refused. */
export const refused = (detail: string, errno = 'EINVAL'): ThinfsError =>
  new ThinfsError('BAD_ARGUMENT', detail, { errno })

/**
 * Waits until all have ended.
 * @throws the first failure
 */
export async function allEnded(promises: readonly (Promise<void> | void)[]): Promise<void> {
  const ends = await Promise.allSettled(promises)
  for (const end of ends) if (end.status === 'rejected') throw end.reason
}
