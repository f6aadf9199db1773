/** `MountedAdmin` over a JSON-RPC connection, with errors that keep their code and errno. */
import type { ChildProcess } from 'node:child_process'
import {
  type CancellationToken,
  CancellationTokenSource,
  createMessageConnection,
  ErrorCodes,
  IPCMessageReader,
  IPCMessageWriter,
  type MessageConnection,
  ResponseError,
} from 'vscode-jsonrpc/node'
import {
  AssertionError,
  cancelled,
  ERRORS,
  type ErrorCode,
  errnoOf,
  ThinfsError,
} from '../base/index.js'
import type { LabAdmin, MountedAdmin, PoolAdmin } from '../volumes/index.js'
import type { EventLog } from './event-log.js'
import { ADMIN_REQUESTS, EVENTS, type FieldType, type WireError } from './protocol.js'

/** JSON-RPC leaves the codes from here upwards, to -32000, to applications; ours are in `data`. */
const APPLICATION_ERROR = -32000

/** @param err anything that was thrown */
export function toWire(err: unknown): WireError {
  const message = err instanceof Error ? err.message : String(err)
  return { message, code: err instanceof ThinfsError ? err.code : null, errno: errnoOf(err) }
}

/**
 * The error that `toWire` was given; a plain Error with its errno when its code is not in our
 * table.
 */
export function fromWire({ message, code, errno }: WireError): Error {
  return code !== null && Object.hasOwn(ERRORS, code)
    ? new ThinfsError(code, message, { errno })
    : Object.assign(new Error(message), { code: errno })
}

/** The error for a request handler to throw, from which the other side restores code and errno. */
export function toResponseError(err: unknown): ResponseError<WireError> {
  const wire = toWire(err)
  return new ResponseError(APPLICATION_ERROR, wire.message, wire)
}

/** Answers a request with the value of `act`, or with its error as `toResponseError` makes it. */
export async function answer<T>(act: () => T | Promise<T>): Promise<T> {
  try {
    return await act()
  } catch (err) {
    throw toResponseError(err)
  }
}

/** As `answer`, for an act without a value: JSON has no undefined. */
export async function answerDone(act: () => unknown): Promise<null> {
  await answer(act)
  return null
}

/** Stops the process for an error that only a bug can throw, once its request was answered. */
export function stopOnBug(err: unknown): void {
  if (!(err instanceof AssertionError)) return
  setImmediate(() => {
    throw err
  })
}

/** Sends a notification to a process whose death is no reason for this one to stop. */
export function tell(sent: Promise<void>): void {
  sent.catch(() => {})
}

/** The IPC channel between a process and its child, from either end; not listened to yet. */
export const ipcConnection = (peer: ChildProcess | NodeJS.Process): MessageConnection =>
  createMessageConnection(new IPCMessageReader(peer), new IPCMessageWriter(peer))

/** The error behind a failed request: the peer's own, or DAEMON_FAILED when it did not answer. */
export function fromResponseError(err: unknown): Error {
  if (!(err instanceof ResponseError)) {
    return new ThinfsError('DAEMON_FAILED', 'the connection is closed', { cause: err })
  }
  if (err.code === ErrorCodes.PendingResponseRejected) {
    const detail =
      'it ended before it answered: whether the request was carried out is not known, look with thinfs list'
    return new ThinfsError('DAEMON_FAILED', detail, { cause: err })
  }
  if (err.code === ErrorCodes.MethodNotFound) {
    const detail = `the pool is served by an older thinfs, which cannot do this: ${err.message}; thinfs umount, then thinfs mount`
    return new ThinfsError('VERSION_MISMATCH', detail, { cause: err })
  }
  const data: Partial<WireError> | undefined = err.data
  const code = (data?.code ?? null) as ErrorCode | null
  return fromWire({ message: err.message, code, errno: data?.errno ?? 'EIO' })
}

/** Answers requests for events, until the connection ends. */
export function serveEvents(connection: MessageConnection, log: EventLog): void {
  const ended = new AbortController()
  connection.onDispose(() => ended.abort())
  connection.onRequest(EVENTS, request =>
    answer(() => {
      const { after, waits } = (request ?? {}) as { after?: unknown; waits?: unknown }
      if (after !== undefined && !Number.isSafeInteger(after)) {
        throw new ThinfsError('BAD_ARGUMENT', 'events: after must be a whole number or absent')
      }
      return log.after(after as number | undefined, waits === true, ended.signal)
    }),
  )
}

/** A method of any `MountedAdmin`; those without fields are given undefined for `request`. */
type AdminCall = (request: object | undefined, signal?: AbortSignal) => Promise<unknown>

/**
 * Answers the methods of `MountedAdmin` on `connection`. A request of the wrong shape is
 * BAD_ARGUMENT and does not reach `admin`. The signal of one that is cancelled, or whose connection
 * ends, is aborted with CANCELLED. A bug (AssertionError) is answered, then stops the process.
 */
export function serveAdmin(connection: MessageConnection, admin: MountedAdmin): void {
  const underWay = new Set<AbortController>()
  connection.onDispose(() => {
    for (const controller of underWay) abort(controller)
  })
  for (const method of adminMethods) {
    const handle = admin[method].bind(admin) as AdminCall
    // A request without parameters comes as its token alone.
    connection.onRequest(method, async (...args: unknown[]) => {
      const token = args.at(-1) as CancellationToken
      const controller = new AbortController()
      underWay.add(controller)
      const cancelling = token.onCancellationRequested(() => abort(controller))
      // A token that was cancelled before it came here raises no event.
      if (token.isCancellationRequested) abort(controller)
      try {
        const request = checkedRequest(method, args.length > 1 ? args[0] : undefined)
        return (await handle(request, controller.signal)) ?? null
      } catch (err) {
        stopOnBug(err)
        throw toResponseError(err)
      } finally {
        cancelling.dispose()
        underWay.delete(controller)
      }
    })
  }
}

function abort(controller: AbortController): void {
  controller.abort(cancelled())
}

/**
 * The pool at the other end of `connection`. Rejects with that end's ThinfsError; an aborted signal
 * cancels the request there.
 */
export function adminClient(connection: MessageConnection): MountedAdmin {
  return adminOf(async (method, request, signal) => {
    signal?.throwIfAborted()
    const source = new CancellationTokenSource()
    const cancel = (): void => source.cancel()
    signal?.addEventListener('abort', cancel, { once: true })
    try {
      const params = request === undefined ? [] : [request]
      return (await connection.sendRequest(method, ...params, source.token)) ?? undefined
    } catch (err) {
      throw fromResponseError(err)
    } finally {
      signal?.removeEventListener('abort', cancel)
    }
  })
}

/** A `MountedAdmin` whose every method is `call`. */
export function adminOf(
  call: (
    method: keyof MountedAdmin,
    request: object | undefined,
    signal: AbortSignal | undefined,
  ) => Promise<unknown>,
): MountedAdmin {
  const entries = adminMethods.map((method): [string, AdminCall] => [
    method,
    (request, signal) => call(method, request, signal),
  ])
  return Object.fromEntries(entries) as unknown as MountedAdmin
}

/** A `MountedAdmin` whose every method is that of whoever `admin` gives at the time. */
export function delegate(admin: () => MountedAdmin): MountedAdmin {
  return adminOf((method, request, signal) => callAdmin(admin(), method, request, signal))
}

/** A pool with its lab: the methods of both. */
export const joinAdmins = (pool: PoolAdmin, lab: LabAdmin): MountedAdmin =>
  adminOf((method, request, signal) =>
    callAdmin((method in lab ? lab : pool) as MountedAdmin, method, request, signal),
  )

/** Calls a method by its name. */
export function callAdmin(
  admin: MountedAdmin,
  method: keyof MountedAdmin,
  request: object | undefined,
  signal: AbortSignal | undefined,
): Promise<unknown> {
  return (admin[method] as AdminCall).call(admin, request, signal)
}

const adminMethods = Object.keys(ADMIN_REQUESTS) as (keyof MountedAdmin)[]

/**
 * The request in `params`; undefined for a method without fields, whose handler is given a
 * cancellation token in their place.
 * @throws BAD_ARGUMENT naming the field that is not what `method` takes
 */
function checkedRequest(method: keyof MountedAdmin, params: unknown): object | undefined {
  const fields = Object.entries<FieldType>(ADMIN_REQUESTS[method])
  if (fields.length === 0) return undefined
  const given = (params ?? {}) as Record<string, unknown>
  // Other fields are dropped: they may be nested deeper than the next process can write.
  const request: Record<string, unknown> = {}
  for (const [field, type] of fields) {
    const value = Object.hasOwn(given, field) ? given[field] : undefined
    if (!hasType(value, type)) {
      throw new ThinfsError('BAD_ARGUMENT', `${method}: ${field} must be ${FIELD_WORDS[type]}`)
    }
    if (value !== undefined) request[field] = value
  }
  return request
}

const FIELD_WORDS: Record<FieldType, string> = {
  string: 'a string',
  'string?': 'a string or absent',
  number: 'a whole number',
  'number?': 'a whole number or absent',
  'boolean?': 'true, false or absent',
  strings: 'a list of strings',
  'strings?': 'a list of strings or absent',
  'numbers?': 'a list of whole numbers or absent',
}

function hasType(value: unknown, type: FieldType): boolean {
  switch (type) {
    case 'string':
      return typeof value === 'string'
    case 'string?':
      return value === undefined || typeof value === 'string'
    case 'strings?':
      return value === undefined || hasType(value, 'strings')
    case 'strings':
      return Array.isArray(value) && value.every(item => typeof item === 'string')
    case 'boolean?':
      return value === undefined || typeof value === 'boolean'
    case 'numbers?':
      return (
        value === undefined ||
        (Array.isArray(value) && value.every(item => Number.isSafeInteger(item)))
      )
    case 'number?':
      return value === undefined || Number.isSafeInteger(value)
    default:
      return Number.isSafeInteger(value)
  }
}
