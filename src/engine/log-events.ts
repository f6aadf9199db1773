import { type Logger, RateLimit } from '../log/index.js'
import type { PoolEvents } from '../pool/index.js'

/** Writes what a pool tells to the log. @param nameOf what a thin device is called there */
export function logEvents(log: Logger, nameOf: (devId: number) => string): PoolEvents {
  const limit = new RateLimit(10, 10_000, suppressed =>
    log.error({ suppressed }, 'more I/O errors were not logged'),
  )
  return {
    mode(mode, reason) {
      log.warn({ mode, reason }, 'mode changed')
    },
    lowWater(free) {
      log.warn({ free }, 'free data blocks reached the low water mark')
    },
    warning(what) {
      log.warn(what)
    },
    needsCheckCleared() {
      log.warn('needs_check was set: all metadata was checked, is sound, and the flag is cleared')
    },
    slowCommit(milliseconds) {
      log.warn({ milliseconds: Math.round(milliseconds) }, 'slow commit')
    },
    ioError(operation, error, where) {
      if (!limit.allows(Date.now())) return
      const at = where ? { volume: nameOf(where.devId), block: where.block } : {}
      log.error({ operation, ...at, err: error }, 'I/O error')
    },
  }
}
