import { openSync } from 'node:fs'
import { errnoOf, ThinfsError } from '../base/index.js'

/**
 * Opens a log to append to, for its owner alone when it is new.
 * @throws IO_ERROR
 */
export function openLog(path: string): number {
  try {
    return openSync(path, 'a', 0o600)
  } catch (err) {
    const detail = `the log ${path} cannot be opened: ${(err as Error).message}`
    throw new ThinfsError('IO_ERROR', detail, { cause: err, errno: errnoOf(err) })
  }
}
