/**
 * The process behind the device-mapper service: serves the bytes of devices through their tables,
 * on an inherited FUSE descriptor.
 *
 * One thread, as a pool's engine. Tables live in the service, which gives them to the next process
 * when this one dies; what thin devices have changed is in their pools' metadata and journals.
 */
import { availableParallelism } from 'node:os'
import type { MessageConnection } from 'vscode-jsonrpc/node'
import { ThinfsError } from '../base/index.js'
import {
  CLOSED,
  EVENT,
  FAILED,
  ipcConnection,
  mustSpeakOurs,
  READY,
  SERVE,
  SERVED,
  STARTED,
  STOP,
  serveTableEngine,
  TABLE_ENGINE_FD,
  type TableEngineStart,
  tell,
  toResponseError,
  toWire,
} from '../control/index.js'
import { TableFs } from '../fs/index.js'
import { DEV, type Session } from '../fuse/index.js'
import { type Logger, makeLogger, reopenLog } from '../log/index.js'
import { Tables } from '../tables/index.js'
import { PoolLog } from './pool-log.js'

/**
 * How long to look for a request before sleeping, and for which share of the time: pool.yaml's
 * defaults.
 */
const SPIN = 400
const SPIN_SHARE = 0.8

/** Serves until the file system is unmounted, then ends the process. */
export async function runTables(start: TableEngineStart): Promise<void> {
  const log = makeLogger({
    process: 'engine',
    level: start.logLevel,
    file: start.logFile,
    pretty: start.foreground,
  })
  // Unmounting is the service's to do; a signal to the group must not end what it is about to need.
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => {})
  process.on('SIGHUP', () => reopenLog(log))
  const service = ipcConnection(process)
  const engine = new TablesProcess(start, log, service)
  service.listen()
  tell(service.sendNotification(STARTED))
  try {
    mustSpeakOurs(start.protocol, 'the service', 'thinfs dm --stop, then thinfs dm')
  } catch (err) {
    log.error({ err }, 'cannot serve')
    await service.sendNotification(FAILED, toWire(err)).catch(() => {})
    process.exit(1)
  }
  engine.listen()
}

class TablesProcess {
  readonly #start: TableEngineStart
  readonly #log: Logger
  readonly #service: MessageConnection
  readonly #tables: Tables
  #session: Session | null = null

  constructor(start: TableEngineStart, log: Logger, service: MessageConnection) {
    this.#start = start
    this.#log = log
    this.#service = service
    this.#tables = new Tables({
      folder: start.folder,
      // Pools that open before the first request is answered were open in the engine before this
      // one.
      takesOver: () => start.negotiated !== null && this.#session === null,
      events: { event: minor => tell(service.sendNotification(EVENT, minor)) },
      poolEvents: minor =>
        new PoolLog(log.child({ pool: `dm-${minor}` }), id => `device ${id}`).events,
    })
  }

  listen(): void {
    serveTableEngine(this.#service, this.#tables)
    this.#service.onRequest(SERVE, () => {
      try {
        this.#serve()
        return null
      } catch (err) {
        tell(this.#service.sendNotification(FAILED, toWire(err)))
        throw toResponseError(err)
      }
    })
    this.#service.onNotification(STOP, () => {
      // The kernel resends unanswered requests to the next engine. The commit spares it the replay.
      this.#session?.close()
      void this.#tables.commit().then(() => process.exit(0))
    })
  }

  #serve(): void {
    const { negotiated } = this.#start
    const service = this.#service
    const log = this.#log
    const closed = (minor: number): void => tell(service.sendNotification(CLOSED, minor))
    const session = DEV.serve({
      fd: TABLE_ENGINE_FD.fuse,
      // With one CPU no process could send a request meanwhile.
      spin: availableParallelism() > 1 ? SPIN : 0,
      spinShare: SPIN_SHARE,
      fileSystem: new TableFs(this.#tables, closed, Math.floor(Date.now() / 1000)),
      ...(negotiated ? { negotiated } : {}),
      onInitialized(agreed) {
        tell(service.sendNotification(READY, { negotiated: agreed }))
      },
      onCaughtUp: () => {
        void this.#tables.commit().then(() => tell(service.sendNotification(SERVED)))
      },
      onUnmounted: () => void this.#end(),
      onFatal(err) {
        // A bug: what is in memory cannot be trusted, the journals and the last commits can.
        log.fatal({ err }, 'stopped')
        process.exit(1)
      },
      onError(operation, ino, err) {
        log.debug({ operation, ino, err }, 'request failed')
      },
    })
    this.#session = session
    if (negotiated === null) return
    session.resend()
    log.info('took over')
    tell(service.sendNotification(READY, { negotiated }))
  }

  async #end(): Promise<void> {
    try {
      await this.#tables.close()
      process.exit(0)
    } catch (err) {
      if (!(err instanceof ThinfsError)) throw err
      this.#log.error({ err }, 'a pool could not be closed in order')
      process.exit(1)
    }
  }
}
