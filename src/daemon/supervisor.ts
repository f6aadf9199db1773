/**
 * Keeps an engine alive.
 *
 * An engine that dies is replaced at once; callers of the mount and of `admin` wait meanwhile. After
 * five deaths in a row there is no other: each is one bug met again. An engine that dies of what its
 * predecessor died of does so while it replays the journal, in one of the requests that come again, or
 * in its first commit, a second later; one that has served for longer has got past all of them. One
 * whose requests end with it is not replaced.
 */
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import {
  createMessageConnection,
  IPCMessageReader,
  IPCMessageWriter,
  Message,
} from 'vscode-jsonrpc/node'
import { ThinfsError } from '../base/index.js'
import {
  adminClient,
  adminOf,
  callAdmin,
  diesWithItsEngine,
  FAILED,
  fromWire,
  type Logger,
  READY,
  STOP,
  type WireError,
} from '../engine/index.js'
import type { Negotiated } from '../fuse/index.js'
import type { PoolAdmin } from '../volumes/index.js'
import { Deferred } from './deferred.js'

const MAX_DEATHS = 5
/** A death after this much service is the first of a row. */
const SERVICE_MS = 3000

export interface SupervisorOptions {
  /** Starts an engine with an IPC channel. `negotiated` is null for a fresh connection. */
  spawnEngine(negotiated: Negotiated | null): ChildProcess
  /** What an engine before the first of these has negotiated; null for a fresh connection. */
  negotiated: Negotiated | null
  /** Whether the file system is still mounted: an engine that ends then has died. */
  isMounted(): boolean
  /** Milliseconds, from any beginning. */
  now(): number
  log: Logger
}

export class Supervisor {
  /** The pool, by way of the engine that serves or, while there is none, of the next. */
  readonly admin: PoolAdmin
  readonly #options: SupervisorOptions
  readonly #ended = new Deferred<void>()
  #engine = new Deferred<PoolAdmin>()
  #negotiated: Negotiated | null
  #enginePid = 0
  /** Has the engine that was started last end for the next. */
  #stop: () => Promise<void> = async () => {}
  /** When the engine that serves began to; null while there is none. */
  #servesSince: number | null = null
  #deaths = 0

  constructor(options: SupervisorOptions) {
    this.#options = options
    this.#negotiated = options.negotiated
    this.admin = adminOf(async (method, request, signal) =>
      callAdmin(await this.#engine.promise, method, request, signal),
    )
  }

  /**
   * Starts the first engine; resolves when it serves.
   * @throws the engine's own reason, or DAEMON_FAILED, when it ends before
   */
  async start(): Promise<void> {
    this.#launch()
    await this.#engine.promise
  }

  /** Replaces the engine; resolves when the next one serves. Callers of the mount only wait. */
  async restart(): Promise<void> {
    await this.#engine.promise
    await this.#stop()
    await this.#engine.promise
  }

  /** Resolves when an engine has committed and ended; rejects when one failed for good. */
  get ended(): Promise<void> {
    return this.#ended.promise
  }

  /** What the connection's INIT settled; null before. */
  get negotiated(): Negotiated | null {
    return this.#negotiated
  }

  /** Process id of the engine that was started last. */
  get enginePid(): number {
    return this.#enginePid
  }

  #launch(): void {
    const { log } = this.#options
    const child = this.#options.spawnEngine(this.#negotiated)
    this.#enginePid = child.pid ?? 0
    const connection = createMessageConnection(
      new IPCMessageReader(child),
      new IPCMessageWriter(child),
    )
    let stopping = false
    let reason: Error | null = null
    this.#stop = async () => {
      const closed = once(child, 'close')
      stopping = true
      await connection.sendNotification(STOP)
      await closed
    }
    // Read here as they come: the connection takes one message a turn of the loop, and a process
    // that fails at once has ended by then.
    child.on('message', (message: Message) => {
      if (!Message.isNotification(message)) return
      if (message.method === FAILED.method) reason = fromWire(message.params as WireError)
      if (message.method === READY.method) {
        this.#servesSince = this.#options.now()
        this.#negotiated = (message.params as { negotiated: Negotiated }).negotiated
        this.#engine.resolve(adminClient(connection))
        log.info({ engine: child.pid }, 'engine serves')
      }
    })
    child.on('error', err => {
      reason ??= err
    })
    child.once('close', (code, signal) => {
      connection.dispose()
      if (this.#servesSince !== null) this.#engine = new Deferred()
      const how = signal === null ? `with status ${code}` : `by ${signal}`
      const ended = new ThinfsError('DAEMON_FAILED', `the engine ended ${how}`)
      if (stopping) {
        this.#servesSince = null
        this.#launch()
      } else if (code === 0 && this.#negotiated !== null && !this.#options.isMounted()) this.#end()
      else this.#died(reason ?? ended)
    })
    connection.listen()
  }

  #end(): void {
    this.#engine.reject(new ThinfsError('NOT_MOUNTED', 'the pool was unmounted'))
    this.#ended.resolve()
  }

  #died(reason: Error): void {
    const { log, now } = this.#options
    const isFirst = this.#negotiated === null
    if (this.#servesSince !== null && now() - this.#servesSince >= SERVICE_MS) this.#deaths = 0
    this.#servesSince = null
    this.#deaths++
    if (!isFirst && !diesWithItsEngine(this.#negotiated) && this.#deaths < MAX_DEATHS) {
      log.warn({ err: reason, deaths: this.#deaths }, 'engine died, starting another')
      this.#launch()
      return
    }
    const failure = isFirst ? reason : this.#failure(reason)
    log.error({ err: failure }, 'engine failed')
    this.#engine.reject(failure)
    this.#ended.reject(failure)
  }

  #failure(reason: Error): ThinfsError {
    const detail = diesWithItsEngine(this.#negotiated)
      ? `${reason.message}; with transport uring no other can go on: the mount has ended, mount again`
      : `the engine died ${MAX_DEATHS} times without ${SERVICE_MS / 1000} s of service in between, the last time: ${reason.message}`
    return new ThinfsError('DAEMON_FAILED', detail, { cause: reason })
  }
}
