import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { Message } from 'vscode-jsonrpc/node'
import { ThinfsError } from '../base/index.js'
import {
  adminClient,
  COUNT_ON,
  COUNTED,
  EXIT_LOST,
  FAILED,
  fromWire,
  HAPPENED,
  ipcConnection,
  OPENING,
  type Opening,
  type PoolEvent,
  READY,
  SERVED,
  STARTED,
  STOP,
  tell,
  type WireError,
} from '../control/index.js'
import type { Negotiated } from '../fuse/index.js'
import type { MountedAdmin, PoolStatistics, StatisticsBefore } from '../volumes/index.js'

/** How an engine ended. */
export interface EngineEnd {
  /** Why: in its own words where it had time for some. */
  reason: Error
  /** With status 0. */
  inOrder: boolean
  /** `stop` asked for it. */
  stopped: boolean
  /** It had served the mount. */
  served: boolean
  /** The cause of its end says nothing about the engine. */
  isOutside: boolean
  /** Somebody else may have the pool. */
  isLost: boolean
}

export interface EngineEvents {
  /** It is opening the pool, and that takes long. */
  opening(progress: Opening): void
  /** It serves the mount, and answers commands. */
  serves(negotiated: Negotiated, admin: MountedAdmin): void
  /** It has got past whatever its predecessor died of. */
  served(): void
  /** Something has happened to the pool. */
  happened(event: PoolEvent): void
  /** Its counters, as it ends for another engine. */
  counted(statistics: PoolStatistics): void
  /** Called once, and last. */
  ended(end: EngineEnd): void
}

/** One engine's process, from its start to its end. */
export class EngineProcess {
  /** 0 when it could not be started. */
  readonly pid: number
  readonly #events: EngineEvents
  #hasStarted = false
  #serves = false
  #stopping = false
  #reason: Error | null = null
  #stop = async (): Promise<void> => {}
  #countOn = (_before: StatisticsBefore): void => {}
  readonly #child: ChildProcess

  constructor(child: ChildProcess, events: EngineEvents) {
    this.pid = child.pid ?? 0
    this.#child = child
    this.#events = events
    if (this.pid === 0) {
      // Nothing but 'error' is certain to come, and a channel may be missing.
      child.once('error', err =>
        this.#ended(err, { inOrder: false, isOutside: true, isLost: false }),
      )
    } else this.#watch(child)
  }

  /** Ends it for the next one. Resolves when it has ended. */
  stop(): Promise<void> {
    return this.#stop()
  }

  /** Makes it go on with the counters of the engine before; once, when it serves. */
  countOn(before: StatisticsBefore): void {
    this.#countOn(before)
  }

  /** Ends it at once: what it leaves is what any death leaves. */
  kill(): void {
    this.#child.kill('SIGKILL')
  }

  #watch(child: ChildProcess): void {
    const connection = ipcConnection(child)
    const closed = once(child, 'close').catch(() => {})
    this.#stop = async () => {
      this.#stopping = true
      await connection.sendNotification(STOP)
      await closed
    }
    this.#countOn = before => tell(connection.sendNotification(COUNT_ON, before))
    // Read here as they come: the connection takes one message a turn of the loop, and a process
    // that fails at once has ended by then.
    child.on('message', (message: Message) => {
      if (!Message.isNotification(message)) return
      switch (message.method) {
        case STARTED.method:
          this.#hasStarted = true
          break
        case FAILED.method:
          this.#reason = fromWire(message.params as WireError)
          break
        case OPENING.method:
          this.#events.opening(message.params as Opening)
          break
        case READY.method: {
          this.#serves = true
          const { negotiated } = message.params as { negotiated: Negotiated }
          this.#events.serves(negotiated, adminClient(connection))
          break
        }
        case SERVED.method:
          this.#events.served()
          break
        case HAPPENED.method:
          this.#events.happened(message.params as PoolEvent)
          break
        case COUNTED.method:
          this.#events.counted(message.params as PoolStatistics)
      }
    })
    child.on('error', err => {
      this.#reason ??= err
    })
    child.once('close', (code, signal) => {
      connection.dispose()
      const how = signal === null ? `with status ${code}` : `by ${signal}`
      const when = this.#hasStarted ? '' : ' before its program had begun'
      const ended = new ThinfsError('DAEMON_FAILED', `the engine ended ${how}${when}`)
      this.#ended(this.#reason ?? ended, {
        inOrder: code === 0,
        isLost: code === EXIT_LOST,
        isOutside: signal === 'SIGKILL' || !this.#hasStarted,
      })
    })
    connection.listen()
  }

  #ended(reason: Error, how: Pick<EngineEnd, 'inOrder' | 'isOutside' | 'isLost'>): void {
    this.#events.ended({ reason, ...how, stopped: this.#stopping, served: this.#serves })
  }
}
