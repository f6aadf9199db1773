/**
 * Keeps an engine alive.
 *
 * An engine that dies is replaced; callers of the mount wait meanwhile. It has got past what its
 * predecessor died of once it says SERVED: it has opened the pool, handled every request that came
 * again, and finished a commit. Deaths before that are deaths without progress. More and more time
 * passes between them, and after one more than there are delays no other engine follows: each met
 * the same bug again.
 *
 * Three kinds of death tell nothing of a bug, so that the supervisor goes on trying for as long as
 * the pool is mounted: the host is short of something, somebody or the kernel sent SIGKILL, or the
 * program ended before its first line, which is a matter of limits and of the installation.
 *
 * An engine that its mount cannot outlive is not replaced, nor one that found that somebody else
 * may have the pool.
 */
import type { ChildProcess } from 'node:child_process'
import { errnoOf, ThinfsError } from '../base/index.js'
import {
  adminOf,
  callAdmin,
  diesWithItsEngine,
  type Opening,
  type PoolEvent,
  transportStatus,
} from '../control/index.js'
import type { Negotiated } from '../fuse/index.js'
import type { Logger } from '../log/index.js'
import type { MountedAdmin, PoolStatistics } from '../volumes/index.js'
import { Deferred } from './deferred.js'
import { EngineProcess } from './engine-process.js'

/** Milliseconds before the next engine, after the first, second, ... death without progress. */
const DELAYS_MS = [0, 100, 500, 2000, 5000] as const
/** Errors of a host that is short of something, which may be there again a moment later. */
const SHORTAGES = new Set(['ENOSPC', 'EDQUOT', 'ENOMEM', 'EAGAIN', 'EMFILE', 'ENFILE'])
/** Errors of a host that somebody has to mend: the next engine meets them again. */
const FORBIDDEN = new Set(['EPERM', 'EACCES', 'EROFS'])
/** Requests that may be carried out twice: another engine can be asked again. */
const REPEATABLE = new Set<keyof MountedAdmin>([
  'list',
  'status',
  'statistics',
  'blockMap',
  'check',
  'recordings',
  'extend',
  'shrink',
  'set',
])

export interface SupervisorOptions {
  /** Starts an engine with an IPC channel. `negotiated` is null for a fresh connection. */
  spawnEngine(negotiated: Negotiated | null): ChildProcess
  /** The outcome of INIT with an engine before the first of these; null for a fresh connection. */
  negotiated: Negotiated | null
  /** The counters of an engine before the first of these; null when there was none. */
  counted: PoolStatistics | null
  /** Whether the file system is still mounted: an engine that ends then has died. */
  isMounted(): boolean
  /** Calls `then` once, `ms` milliseconds from now. */
  after(ms: number, then: () => void): void
  /** An engine is opening the pool, and that takes long. */
  onOpening(progress: Opening): void
  /** Something has happened to the pool. */
  onHappened(event: PoolEvent): void
  /** Another engine serves. @param why the one before has ended */
  onRestarted(why: string): void
  /** No engine has served for some seconds. @param why of `trouble` */
  onTrouble(why: string): void
  log: Logger
}

export class Supervisor {
  /** The pool, by way of the engine that serves or, while there is none, of the next. */
  readonly admin: MountedAdmin
  readonly #options: SupervisorOptions
  readonly #ended = new Deferred<void>()
  #engine = new Deferred<MountedAdmin>()
  #negotiated: Negotiated | null
  /** The engine that was started last, until it ends. */
  #process: EngineProcess | null = null
  /** The last that is known of the counters; null when nobody has asked. */
  #counted: PoolStatistics | null
  /** Engines that have served before this one, those of an earlier daemon included. */
  #nrServed: number
  /** Deaths without progress in between. */
  #deaths = 0
  #trouble: ThinfsError | null = null
  /** Why the engine before has ended; null before the first has. */
  #whyEnded: string | null = null
  /** Starts the next engine, while that waits for its time. */
  #next: (() => void) | null = null

  constructor(options: SupervisorOptions) {
    this.#options = options
    this.#negotiated = options.negotiated
    this.#counted = options.counted
    const isTakenOver = options.negotiated !== null
    this.#nrServed = isTakenOver ? (options.counted?.engineRestarts ?? 0) + 1 : 0
    this.admin = adminOf(async (method, request, signal) => {
      for (;;) {
        const engine = this.#engine
        const admin = await engine.promise
        signal?.throwIfAborted()
        try {
          const answer = await callAdmin(admin, method, request, signal)
          if (method === 'statistics') this.#counted = answer as PoolStatistics
          return answer
        } catch (err) {
          if (engine === this.#engine || !REPEATABLE.has(method)) throw err
          // The engine died before it answered.
        }
      }
    })
  }

  /**
   * Starts the first engine; resolves when it serves.
   * @throws the engine's own reason, or DAEMON_FAILED, when it ends before; `trouble`
   */
  async start(): Promise<void> {
    this.#launch()
    await this.#engine.promise
  }

  /**
   * Replaces the engine; resolves when the next one serves. Callers of the mount only wait.
   * @throws `trouble` when the next one dies as well
   */
  async restart(): Promise<void> {
    if (this.#next !== null) {
      // The person who asks has most likely mended the cause.
      this.#trouble = null
      this.#engine = new Deferred()
      this.#next()
      return void (await this.#engine.promise)
    }
    await this.#engine.promise
    // An engine that died first is replaced as well.
    await this.#process?.stop().catch(() => {})
    await this.#engine.promise
  }

  /** Kills the first engine while it does not serve yet: `start` fails then. */
  kill(): void {
    if (this.#negotiated === null) this.#process?.kill()
  }

  /** Resolves when an engine has committed and ended; rejects when one failed for good. */
  get ended(): Promise<void> {
    return this.#ended.promise
  }

  /**
   * Why there has been no engine for some seconds, while the supervisor goes on trying and `admin`
   * rejects with it; null otherwise.
   */
  get trouble(): ThinfsError | null {
    return this.#trouble
  }

  /** The outcome of the connection's INIT; null before. */
  get negotiated(): Negotiated | null {
    return this.#negotiated
  }

  /** The last that is known of the counters; null when nobody has asked. */
  get counted(): PoolStatistics | null {
    return this.#counted
  }

  /** Process id of the engine; 0 while there is none. */
  get enginePid(): number {
    return this.#process?.pid ?? 0
  }

  #launch(): void {
    const { log, spawnEngine, isMounted } = this.#options
    let child: ChildProcess
    try {
      child = spawnEngine(this.#negotiated)
    } catch (err) {
      this.#process = null
      this.#died(err as Error, true)
      return
    }
    const engine = new EngineProcess(child, {
      serves: (negotiated, admin) => {
        if (this.#nrServed > 0) {
          engine.countOn({ before: this.#counted, engineRestarts: this.#nrServed })
        }
        this.#nrServed++
        this.#serves(negotiated, admin)
        if (this.#whyEnded !== null) this.#options.onRestarted(this.#whyEnded)
        log.info({ engine: engine.pid }, 'engine serves')
      },
      served: () => {
        this.#deaths = 0
      },
      opening: progress => this.#options.onOpening(progress),
      happened: event => this.#options.onHappened(event),
      counted: statistics => {
        this.#counted = statistics
      },
      ended: ({ reason, inOrder, stopped, served, isOutside, isLost }) => {
        this.#process = null
        this.#whyEnded = stopped ? 'it was asked to' : reason.message
        if (served) this.#engine = new Deferred()
        if (isLost) this.#failed(reason)
        else if (stopped) this.#launch()
        else if (inOrder && this.#negotiated !== null && !isMounted()) this.#end()
        else this.#died(reason, isOutside)
      },
    })
    this.#process = engine
  }

  #serves(negotiated: Negotiated, admin: MountedAdmin): void {
    this.#negotiated = negotiated
    if (this.#trouble !== null) this.#engine = new Deferred()
    this.#trouble = null
    this.#engine.resolve(admin)
  }

  #end(): void {
    this.#engine.reject(new ThinfsError('NOT_MOUNTED', 'the pool was unmounted'))
    this.#ended.resolve()
  }

  /** @param isOutside whether what ended the engine says nothing about the engine */
  #died(reason: Error, isOutside: boolean): void {
    const { log, isMounted, after } = this.#options
    this.#deaths++
    // Without a mount no caller waits for another engine.
    const hasCallers = isMounted()
    const goesOn = (isOutside || SHORTAGES.has(errnoOf(reason))) && hasCallers
    const isInVain = FORBIDDEN.has(errnoOf(reason)) && !hasCallers
    const isFinal =
      this.#negotiated === null ||
      diesWithItsEngine(this.#negotiated) ||
      (this.#deaths > DELAYS_MS.length && !goesOn)
    if (isFinal || isInVain) {
      const isTold = this.#negotiated === null || isInVain
      this.#failed(isTold ? reason : this.#failure(reason))
      return
    }
    const delayMs = DELAYS_MS[Math.min(this.#deaths, DELAYS_MS.length) - 1]!
    log.warn({ err: reason, deaths: this.#deaths, delayMs }, 'engine died, starting another')
    if (this.#deaths >= DELAYS_MS.length) {
      const detail = `no engine serves, callers wait, and another is tried every ${delayMs / 1000} s: ${this.#inARow(reason)}`
      this.#trouble = new ThinfsError('DAEMON_FAILED', detail, {
        cause: reason,
        errno: errnoOf(reason),
      })
      this.#fail(this.#trouble)
      if (this.#deaths === DELAYS_MS.length) this.#options.onTrouble(detail)
    }
    const next = (): void => {
      if (this.#next !== next) return
      this.#next = null
      this.#launch()
    }
    this.#next = next
    if (delayMs === 0) next()
    else after(delayMs, next)
  }

  /** No other engine follows. */
  #failed(failure: Error): void {
    this.#options.log.error({ err: failure }, 'engine failed')
    this.#fail(failure)
    this.#ended.reject(failure)
  }

  /** Makes `admin` reject with the error until an engine serves. */
  #fail(failure: Error): void {
    this.#engine.reject(failure)
    // It may have been rejected before, with less to say.
    this.#engine = new Deferred()
    this.#engine.reject(failure)
  }

  #failure(reason: Error): ThinfsError {
    const detail = diesWithItsEngine(this.#negotiated)
      ? `${reason.message}; with transport ${transportStatus(this.#negotiated).transport} no other can go on: the mount has ended, mount again`
      : this.#inARow(reason)
    return new ThinfsError('DAEMON_FAILED', detail, { cause: reason })
  }

  #inARow(reason: Error): string {
    return `the engine died ${this.#deaths} times without progress in between, the last time: ${reason.message}`
  }
}
