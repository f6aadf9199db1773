/** The log of a process: opened, opened again, and not flooded. */
export { LOG_LEVELS, type Logger, makeLogger, reopenLog } from './log.js'
export { openLog } from './open-log.js'
export { RateLimit } from './rate-limit.js'
