/**
 * The engine as the service sees it: one that does not die. When its process does, another one is
 * started and told all that the other knew, and what was asked meanwhile is asked again.
 */
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { setTimeout } from 'node:timers/promises'
import { errnoOf, ThinfsError } from '../base/index.js'
import { FAILED, fromWire, ipcConnection, READY, tableEngineClient } from '../control/index.js'
import type { Negotiated } from '../fuse/index.js'
import type { Logger } from '../log/index.js'
import type { TableEngine, TableEvents, Target } from '../tables/index.js'

/** After so many deaths in a row, without an engine that serves in between, no other is started. */
const MAX_DEATHS = 5
const RESPAWN_MS = 200

export interface EngineLinkOptions {
  /** Starts a process. @param negotiated by one before; null for a connection that is new */
  spawn(negotiated: Negotiated | null): ChildProcess
  /** Tells a new engine about all devices, before it serves. */
  replay(engine: TableEngine): Promise<void>
  /** No engine stays: nobody serves any more. */
  onFailed(err: unknown): void
  /** An engine serves. */
  onServes(pid: number, negotiated: Negotiated): void
  events: TableEvents
  log: Logger
}

interface Running {
  client: ReturnType<typeof tableEngineClient>
  /** Whether the process has ended. */
  gone: boolean
  /** Ends a process that cannot be talked to any more. */
  end(): Promise<void>
}

export class EngineLink implements TableEngine {
  readonly #options: EngineLinkOptions
  #negotiated: Negotiated | null = null
  #running: Promise<Running> | null = null
  #child: ChildProcess | null = null
  #deaths = 0
  /** Whether the first one has served: a start that fails is the caller's. */
  #served = false
  #stopped = false
  #failed = false

  constructor(options: EngineLinkOptions) {
    this.#options = options
  }

  /**
   * Starts the first engine; resolves when it serves. One that does not is followed by no other.
   * @param negotiated by an engine of an earlier service; null for a connection that is new
   */
  async start(negotiated: Negotiated | null): Promise<void> {
    this.#negotiated = negotiated
    this.#running = this.#launch()
    await this.#running
  }

  /** 0 when there is none. */
  get pid(): number {
    return this.#child?.pid ?? 0
  }

  /** No engine stays, and no other is started. */
  get failed(): boolean {
    return this.#failed
  }

  /** No other engine is started any more. Resolves when this one has ended. */
  async ended(): Promise<void> {
    this.#stopped = true
    const child = this.#child
    if (child?.pid === undefined || child.exitCode !== null || child.signalCode !== null) return
    await once(child, 'exit')
  }

  /** Ends the engine for another one. */
  kill(): void {
    this.#child?.kill('SIGKILL')
  }

  create(minor: number): Promise<void> {
    return this.#ask(engine => engine.create(minor))
  }
  /** Of a device without an engine nothing is left to remove. */
  async remove(minor: number): Promise<void> {
    if (!this.#failed) await this.#ask(engine => engine.remove(minor))
  }
  load(minor: number, table: Target[], readOnly: boolean): Promise<void> {
    return this.#ask(engine => engine.load(minor, table, readOnly))
  }
  clear(minor: number): Promise<void> {
    return this.#ask(engine => engine.clear(minor))
  }
  suspend(minor: number, flush: boolean): Promise<void> {
    return this.#ask(engine => engine.suspend(minor, flush))
  }
  resume(minor: number): Promise<{ size: number }> {
    return this.#ask(engine => engine.resume(minor))
  }
  message(minor: number, sector: number, words: string[]): Promise<string | null> {
    return this.#ask(async (engine, isAgain) => {
      try {
        return await engine.message(minor, sector, words)
      } catch (err) {
        // It was carried out before the engine died, and could not be answered.
        if (isAgain && isDoneAlready(words, errnoOf(err))) return null
        throw err
      }
    })
  }
  status(minor: number, flush: boolean): Promise<string[]> {
    return this.#ask(engine => engine.status(minor, flush))
  }

  async #ask<T>(act: (engine: TableEngine, isAgain: boolean) => Promise<T>): Promise<T> {
    for (let isAgain = false; ; ) {
      const launch = this.#running
      if (launch === null) throw new ThinfsError('DAEMON_FAILED', 'the engine was not started')
      const running = await launch.catch(err => {
        // An engine that died before it served is followed by another one as well.
        if (this.#running === launch) throw err
        return null
      })
      if (running === null) continue
      try {
        return await act(running.client, isAgain)
      } catch (err) {
        // A broken channel is seen before the death that broke it.
        if (err instanceof ThinfsError && err.code === 'DAEMON_FAILED') await running.end()
        if (!running.gone) throw err
        isAgain = true
      }
    }
  }

  async #launch(): Promise<Running> {
    const { spawn, events, log, replay } = this.#options
    const child = spawn(this.#negotiated)
    this.#child = child
    const connection = ipcConnection(child)
    const ended = new Promise<void>(resolve => {
      const onEnd = (how: string): void => {
        if (running.gone) return
        running.gone = true
        connection.dispose()
        if (this.#served && !this.#stopped) this.#follow(child.pid, how)
        fail(new ThinfsError('DAEMON_FAILED', `the engine has ended ${how}`))
        resolve()
      }
      child.once('exit', (status, signal) => {
        onEnd(signal === null ? `with status ${status}` : `by ${signal}`)
      })
      // No process was made, or no signal reaches it.
      child.once('error', err => onEnd(`: ${err.message}`))
    })
    let fail: (err: unknown) => void
    const failed = new Promise<never>((_, reject) => {
      fail = reject
    })
    failed.catch(() => {})
    const running: Running = {
      client: tableEngineClient(connection, events),
      gone: false,
      end() {
        child.kill('SIGKILL')
        return ended
      },
    }
    const ready = new Promise<void>(resolve => {
      connection.onNotification(READY, ({ negotiated }) => {
        this.#negotiated = negotiated
        this.#deaths = 0
        resolve()
      })
    })
    connection.onNotification(FAILED, wire => fail(fromWire(wire)))
    connection.onError(() => {})
    connection.listen()
    try {
      await Promise.race([replay(running.client), failed])
      await Promise.race([running.client.serve(), failed])
      await Promise.race([ready, failed])
    } catch (err) {
      // One that does not serve is in the way of the next.
      await running.end()
      throw err
    }
    this.#served = true
    this.#options.onServes(child.pid!, this.#negotiated!)
    log.info({ engine: child.pid }, 'an engine serves')
    return running
  }

  /** Starts another engine in the place of one that has ended. */
  #follow(engine: number | undefined, how: string): void {
    this.#options.log.warn({ engine, how }, 'the engine has ended')
    this.#running = this.#relaunch()
    this.#running.catch(err => {
      // The next one has been started already when this one has died on the way.
      if (this.#deaths <= MAX_DEATHS || this.#failed) return
      this.#failed = true
      this.#options.onFailed(err)
    })
  }

  async #relaunch(): Promise<Running> {
    if (++this.#deaths > MAX_DEATHS) {
      throw new ThinfsError('DAEMON_FAILED', `${MAX_DEATHS} engines have died one after the other`)
    }
    if (this.#deaths > 1) await setTimeout(RESPAWN_MS * this.#deaths)
    if (this.#stopped) throw new ThinfsError('DAEMON_FAILED', 'the service is being stopped')
    return await this.#launch()
  }
}

/** Whether the error of a message that is sent again says that it was carried out. */
export function isDoneAlready([word]: string[], errno: string): boolean {
  const [name, wanted] = [word?.toLowerCase(), errno]
  if (name === 'create_thin' || name === 'create_snap') return wanted === 'EEXIST'
  if (name === 'delete') return wanted === 'ENODATA'
  if (name === 'set_transaction_id') return wanted === 'EINVAL'
  if (name === 'reserve_metadata_snap') return wanted === 'EBUSY'
  return name === 'release_metadata_snap' && wanted === 'EINVAL'
}
