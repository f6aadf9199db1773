import { ThinfsError } from '../base/index.js'
import { type Logger, RateLimit } from '../log/index.js'
import type { PoolEvents } from '../pool/index.js'

/**
 * Error lines of a pool in PERIOD_MS, whatever they are of: the cause of all is most likely one.
 */
const MOST_ERRORS = 10
const PERIOD_MS = 10_000

/** The events of a pool, and of requests to it, as lines of the log. */
export class PoolLog {
  readonly events: PoolEvents
  readonly #log: Logger
  readonly #errors: RateLimit

  /** @param nameOf what a thin device is called there */
  constructor(log: Logger, nameOf: (devId: number) => string) {
    this.#log = log
    this.#errors = new RateLimit(MOST_ERRORS, PERIOD_MS, suppressed =>
      log.error({ suppressed }, 'more errors were not logged'),
    )
    this.events = {
      mode(mode, reason) {
        log.warn({ mode, reason }, 'mode changed')
      },
      lowWater(free) {
        log.warn({ free }, 'free data blocks reached the low water mark')
      },
      lowWaterMetadata(free) {
        log.warn({ free }, 'free metadata blocks reached the low water mark')
      },
      limitReached(devId) {
        log.warn({ volume: nameOf(devId) }, 'a write was refused: the volume maps its limit')
      },
      extended(part, size) {
        log.info({ part, size }, 'the pool was extended')
      },
      warning(what) {
        log.warn(what)
      },
      lost(why) {
        log.error({ err: why }, 'the pool is lost: nothing is written or answered any more')
      },
      needsCheckCleared() {
        log.warn('needs_check was set: all metadata was checked, is sound, and the flag is cleared')
      },
      slowCommit(milliseconds) {
        log.warn({ milliseconds: Math.round(milliseconds) }, 'slow commit')
      },
      ioError: (operation, error, where) => {
        if (!this.#errors.allows(Date.now())) return
        const at = where ? { volume: nameOf(where.devId), block: where.block } : {}
        log.error({ operation, ...at, err: error }, 'I/O error')
      },
    }
  }

  /**
   * A request was answered with an error: its caller's business, unless it met damaged metadata.
   */
  requestFailed(operation: string, ino: number, err: unknown): void {
    const isDamage = err instanceof ThinfsError && err.code === 'METADATA_CORRUPT'
    const level = isDamage && this.#errors.allows(Date.now()) ? 'error' : 'debug'
    this.#log[level]({ operation, ino, err }, 'request failed')
  }
}
