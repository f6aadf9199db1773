/** The log of a pool: one line for each mount, unmount, respawn and failure. */
import { closeSync } from 'node:fs'
import { createRequire } from 'node:module'
import { isatty } from 'node:tty'
import { type Logger, pino } from 'pino'
import { errnoOf, ThinfsError } from '../base/index.js'
import { openLog } from './open-log.js'

export type { Logger }

export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const

/**
 * Writes JSON lines to `file`, or to stderr when that is null; `pretty` lines there are for
 * people. Each line is on its way to the kernel when the call returns: a killed process loses none.
 * @param process which of the two processes of a mount writes
 * @throws BAD_ARGUMENT for an unknown level
 */
export function makeLogger(options: {
  process: 'daemon' | 'engine'
  level: string
  file: string | null
  pretty: boolean
}): Logger {
  if (!(LOG_LEVELS as readonly string[]).includes(options.level)) {
    const detail = `log level ${options.level} is not one of ${LOG_LEVELS.join(', ')}`
    throw new ThinfsError('BAD_ARGUMENT', detail)
  }
  const stream = destination(options.file)
  // A full disk below the log must not stop the pool.
  stream.on('error', () => {})
  const settings = {
    level: options.level,
    name: options.process,
    errorKey: 'err',
    serializers: {
      err: ['trace', 'debug'].includes(options.level) ? pino.stdSerializers.err : brief,
    },
  }
  if (!options.pretty || options.file !== null) return pino(settings, stream)
  // Loaded for a foreground mount alone: it would cost every command 60 ms.
  const require = createRequire(import.meta.url)
  const { prettyFactory } = require('pino-pretty') as typeof import('pino-pretty')
  const line = prettyFactory({
    colorize: isatty(2),
    ignore: 'hostname',
    translateTime: 'SYS:HH:MM:ss.l',
    singleLine: true,
  })
  return pino(settings, { write: text => void stream.write(line(JSON.parse(text))) })
}

/** @param file null for stderr */
function destination(file: string | null) {
  if (file === null) return pino.destination({ fd: 2, sync: true })
  // The stream can open again only what it opened itself; openLog says more when that fails.
  closeSync(openLog(file))
  return pino.destination({ dest: file, append: true, mode: 0o600, sync: true })
}

/** Goes on in a new file of the same name, after logrotate(8) has renamed the old one. */
export function reopenLog(log: Logger): void {
  const stream = (log as unknown as Record<symbol, { file?: string | null; reopen?(): void }>)[
    pino.symbols.streamSym
  ]
  if (!stream?.file) return
  try {
    stream.reopen?.()
  } catch (err) {
    log.warn({ err }, 'the log cannot be opened again: the old file goes on')
  }
}

/** An error as an operator needs it; stack traces are for debugging. */
function brief(err: unknown): unknown {
  if (!(err instanceof Error)) return err
  const code = err instanceof ThinfsError ? err.code : undefined
  return { code, errno: errnoOf(err), message: err.message }
}
