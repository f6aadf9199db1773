/**
 * The messages between the device-mapper service and the process that serves its devices' bytes.
 *
 * All of it is JSON-RPC 2.0 over the child's IPC channel. The methods have the names of
 * `TableEngine` and take its arguments by position. STARTED, READY, SERVED, FAILED and STOP mean
 * what they do between a pool's daemon and its engine (protocol.ts).
 */
import {
  type MessageConnection,
  NotificationType,
  ParameterStructures,
  RequestType0,
} from 'vscode-jsonrpc/node'
import type { Negotiated } from '../fuse/index.js'
import type { TableEngine, TableEvents } from '../tables/index.js'
import type { WireError } from './protocol.js'
import { fromResponseError, stopOnBug, toResponseError } from './rpc.js'

/** File descriptors that the process inherits. */
export const TABLE_ENGINE_FD = {
  /** The connection of the private mount, non-blocking. The service keeps it open too. */
  fuse: 3,
  /**
   * The connection of /dev/mapper, which it only holds: the service that follows a killed one takes
   * it.
   */
  mapper: 5,
} as const

/** Its parameters, as JSON in its first argument. */
export interface TableEngineStart {
  /** PROTOCOL of the service that has started it; `spawnTableEngine` sees to it. */
  protocol?: number
  /** The outcome of INIT with an earlier engine; null for a fresh connection. */
  negotiated: Negotiated | null
  /** Journals of pools are in `pools/` below it. Absolute. */
  folder: string
  /** One of pino's levels. */
  logLevel: string
  /** Null: stderr. */
  logFile: string | null
  foreground: boolean
}

/**
 * Sent to the engine, which reads requests from now on. The service gives an engine that follows a
 * dead one all devices and tables first, so that it answers no request without its table.
 */
export const SERVE = new RequestType0<null, WireError>('serve')
/** From the engine: `TableEvents.event`. */
export const EVENT = new NotificationType<number>('event')
/** From the engine: `TableEvents.closed`. */
export const CLOSED = new NotificationType<number>('closed')

const METHODS: Record<keyof TableEngine, null> = {
  create: null,
  remove: null,
  load: null,
  clear: null,
  suspend: null,
  resume: null,
  message: null,
  status: null,
}
const methods = Object.keys(METHODS) as (keyof TableEngine)[]

type Call = (...args: unknown[]) => Promise<unknown>

/**
 * Answers the methods of `TableEngine`. A bug (AssertionError) is answered, then stops the process.
 */
export function serveTableEngine(connection: MessageConnection, engine: TableEngine): void {
  for (const method of methods) {
    const call = engine[method].bind(engine) as Call
    connection.onRequest(method, async (...args: unknown[]) => {
      try {
        // The last argument is a cancellation token.
        return (await call(...args.slice(0, -1))) ?? null
      } catch (err) {
        stopOnBug(err)
        throw toResponseError(err)
      }
    })
  }
}

/** The engine at the other end of `connection`. Rejects with that end's error and its errno. */
export function tableEngineClient(
  connection: MessageConnection,
  events: TableEvents,
): TableEngine & { serve(): Promise<void> } {
  connection.onNotification(EVENT, minor => events.event(minor))
  connection.onNotification(CLOSED, minor => events.closed(minor))
  const ask = async (method: string, args: unknown[]): Promise<unknown> => {
    try {
      return await connection.sendRequest(method, ParameterStructures.byPosition, ...args)
    } catch (err) {
      throw fromResponseError(err)
    }
  }
  const entries = methods.map((method): [string, Call] => [method, (...args) => ask(method, args)])
  const engine = Object.fromEntries(entries) as unknown as TableEngine
  return {
    ...engine,
    async serve() {
      await ask(SERVE.method, [])
    },
  }
}
