/**
 * The messages between daemon, engine and commands.
 *
 * All of it is JSON-RPC 2.0. Between daemon and engine it crosses the child's IPC channel; between
 * a command and the daemon, the control socket. The pool's methods have the names of
 * `MountedAdmin`, take one object by name, and are passed through by the daemon, which adds
 * `umount`, `restart` and `ping`. `$/cancelRequest` with the id of a request, and the end of the
 * connection, cancel it. When the daemon has died, its engine answers on the control socket, and
 * `hand over` as well.
 *
 * The processes may be of different versions of thinfs: an engine is started again after an
 * upgrade, a daemon takes over from an older engine. So a message may get another field, without
 * which its reader does; a message that changes its meaning, or goes, raises PROTOCOL (version.ts),
 * and processes that do not speak the same say so. `ping`, `umount` and `umount by force` are
 * understood by all versions: a mount can be ended by whichever thinfs is there.
 */
import { NotificationType, NotificationType0, RequestType, RequestType0 } from 'vscode-jsonrpc/node'
import type { ErrorCode } from '../base/index.js'
import type { PoolConfig } from '../config/index.js'
import type { Negotiated } from '../fuse/index.js'
import type {
  MountedAdmin,
  MountTenancy,
  PoolStatistics,
  StatisticsBefore,
} from '../volumes/index.js'

/** File descriptors that an engine inherits. */
export const ENGINE_FD = {
  /** The FUSE connection, non-blocking. The daemon keeps it open too: it outlives the engine. */
  fuse: 3,
  /** The pool's files, locked: all reads and writes go through these. */
  metadata: 4,
  data: 5,
  /** The pool's folder: what is replaced in it stays in it, wherever it is moved to. */
  folder: 6,
} as const

/** The first of the descriptors that only some pools have: `PoolDescriptors.more`. */
const FIRST_MORE_FD = 7
/** Descriptors of an engine beside ENGINE_FD, in their order. */
export const moreEngineFds = (count: number): number[] =>
  Array.from({ length: count }, (_, i) => FIRST_MORE_FD + i)

/**
 * The parameters of an engine, as JSON in its first argument.
 *
 * The engine leaves SIGINT and SIGTERM to the daemon, which unmounts, and opens its log again on
 * SIGHUP, which the daemon passes on. It ends with status 0 after the file system was unmounted and
 * all is committed; anything else is a death, and the daemon starts the next. When the daemon dies,
 * the engine goes on serving until it is unmounted or another daemon takes over.
 */
export interface EngineStart {
  /** PROTOCOL of the daemon that has started it; `spawnEngine` sees to it. */
  protocol?: number
  /** Absolute path of pool.yaml when it was mounted, as the mount table has it. */
  configFile: string
  /** The content of that pool.yaml, without the volumes. */
  config: PoolConfig
  mountPoint: string
  /** The options of `mount -o`. */
  mountOptions: readonly string[]
  /** The outcome of INIT with an earlier engine; null for a fresh connection. */
  negotiated: Negotiated | null
  /** One of pino's levels. */
  logLevel: string
  /** Null: stderr. */
  logFile: string | null
  foreground: boolean
  /** Take metadata that may be an older copy as it is; the first engine is asked alone. */
  acceptMetadata: boolean
  /** Seconds since 1970. */
  mountedAt: number
  /** How the mount has the pool to itself, where pool.yaml has tenancy. */
  tenancy?: MountTenancy
}

/**
 * The exit status of an engine that found that somebody else may have the pool. No other follows:
 * it would find the same.
 */
export const EXIT_LOST = 3

/** An error of base/errors.ts on the wire. `code` is null for what is not in its table. */
export interface WireError {
  message: string
  code: ErrorCode | null
  errno: string
}

/** Engine to daemon, its first message: the program has begun. */
export const STARTED = new NotificationType0('started')
/**
 * Engine to daemon, once after READY: all requests that waited when it began were handled, and a
 * commit after them has ended. The engine has survived whatever killed its predecessor.
 */
export const SERVED = new NotificationType0('served')
/** Engine to daemon: the mount is served. Sent once, after INIT or after taking over. */
export const READY = new NotificationType<{ negotiated: Negotiated }>('ready')
/** Work that takes long before a pool is served. */
export interface Opening {
  /** The work, for people: `reading the metadata`. */
  what: string
  done: number
  /** In the unit of `done`. */
  all: number
}
/** Engine to daemon, now and then while it opens the pool. */
export const OPENING = new NotificationType<Opening>('opening')
/** Something that has happened to a mounted pool: docs/MONITORING.md. */
export interface Happening {
  /** Ascending, also from one process to the next. */
  id: number
  /** Seconds since 1970. */
  time: number
  event: string
  /** The reason of a mode, the sentence of a warning; empty where there is nothing to add. */
  detail: string
  mode?: string
  /** The volume that it is about; absent where it is about the pool. */
  volume?: string
  /** Bytes, as they were then; absent where no engine could tell. */
  dataUsed?: number
  dataSize?: number
  metadataUsed?: number
  metadataSize?: number
  writesWaiting?: number
}
/** An event as a process tells of it: whoever keeps it gives it an id. */
export type Told = Omit<Happening, 'id'>
/** An event, and the command of pool.yaml's `hooks` that is to be run for it; null: none. */
export interface PoolEvent {
  event: Told
  command: string | null
}
/** Engine to daemon, for each event. */
export const HAPPENED = new NotificationType<PoolEvent>('happened')

export interface EventsAnswer {
  events: Happening[]
  /** The id to ask from the next time. */
  last: number
  /** The pool was unmounted: no more come. */
  ended: boolean
}
/**
 * Command to daemon: the events that it keeps after that of an id, or, without one, none: those
 * from now on begin at `last`.
 * @param waits whether the answer waits until there is one
 */
export const EVENTS = new RequestType<{ after?: number; waits?: boolean }, EventsAnswer, WireError>(
  'events',
)
/** Engine to daemon, when it ends for another engine: its counters. */
export const COUNTED = new NotificationType<PoolStatistics>('counted')
/**
 * Daemon to engine, directly after READY and before any request: the counters of the engine before.
 */
export const COUNT_ON = new NotificationType<StatisticsBefore>('count on')
/** Engine to daemon: why it ends. The process exits with status 1 after it. */
export const FAILED = new NotificationType<WireError>('failed')
/**
 * Sent to an engine: ends it with status 0 for another to take over, which may also take over
 * requests that are under way. The connection closes.
 */
export const STOP = new NotificationType0('stop')
/**
 * Sent to an engine without a daemon, which sends the descriptors of ENGINE_FD to the socket of
 * hand-over.ts and answers with its start options. It goes on serving until STOP.
 */
export const HAND_OVER = new RequestType0<EngineStart, WireError>('hand over')

/** Command to daemon: another engine, of the program as it is now; answered when that serves. */
export const RESTART = new RequestType0<null, WireError>('restart')
/** Command to daemon: unmounts; answered when all is committed and the engine is gone. */
export const UMOUNT = new RequestType0<null, WireError>('umount')
/** Command to daemon: unmounts although processes use the mount: they get errors from then on. */
export const UMOUNT_FORCE = new RequestType0<null, WireError>('umount by force')
export interface Pong {
  /** The daemon's; null from an engine that has none. */
  pid: number | null
  mountPoint: string
  /** PROTOCOL of the process that answers. */
  protocol?: number
  /**
   * Why an unmount without force is refused, as far as the daemon alone can tell; null: it is not.
   */
  stays?: WireError | null
}
/** Command to daemon: answered at once. */
export const PING = new RequestType0<Pong, WireError>('ping')

/** Type of a field of a request; `?` may be absent. */
export type FieldType =
  | 'string'
  | 'string?'
  | 'number'
  | 'number?'
  | 'boolean?'
  | 'strings'
  | 'strings?'
  | 'numbers?'
type Request<M extends keyof MountedAdmin> =
  Parameters<MountedAdmin[M]> extends [infer R, ...unknown[]] ? R : object

/** Every method of `MountedAdmin` with the fields of its request. */
export const ADMIN_REQUESTS: {
  readonly [M in keyof MountedAdmin]: { readonly [F in keyof Required<Request<M>>]: FieldType }
} = {
  create: {
    name: 'string',
    size: 'number?',
    devId: 'number?',
    externalOrigin: 'string?',
    limit: 'number?',
    reserve: 'number?',
    onFull: 'string?',
    queueTimeout: 'number?',
  },
  snapshot: { origin: 'string', name: 'string', devId: 'number?' },
  snapshotAll: { origins: 'strings', suffix: 'string' },
  rollback: { name: 'string', snapshot: 'string', keep: 'string?' },
  remove: { names: 'strings' },
  prune: {
    name: 'string',
    except: 'strings',
    dryRun: 'boolean?',
    ...{ last: 'number?', hourly: 'number?', daily: 'number?' },
    ...{ weekly: 'number?', monthly: 'number?', yearly: 'number?' },
  },
  rename: { from: 'string', to: 'string' },
  resize: { name: 'string', size: 'number', shrink: 'boolean?' },
  mappedPast: { name: 'string', size: 'number' },
  setVolume: {
    ...{ name: 'string', limit: 'number?', reserve: 'number?' },
    ...{ onFull: 'string?', queueTimeout: 'number?' },
  },
  set: { onFull: 'string?', queueTimeout: 'number?', minFreeSpace: 'number?' },
  extend: { data: 'number?', metadata: 'number?' },
  shrink: { data: 'number', dryRun: 'boolean?' },
  list: { exclusive: 'boolean?', names: 'strings?' },
  exclusive: { names: 'strings' },
  status: {},
  statistics: {},
  blockMap: { cells: 'number' },
  message: { message: 'string' },
  check: { deep: 'boolean?' },
  hold: { names: 'strings', identify: 'string?' },
  beginVolume: {
    ...{ name: 'string', size: 'number', base: 'string?' },
    ...{ content: 'string?', resume: 'number?' },
  },
  keepVolume: {
    ...{ devId: 'number', name: 'string', content: 'string' },
    ...{ base: 'string?', offset: 'number' },
  },
  partials: {},
  dropPartial: { name: 'string' },
  nameVolume: { devId: 'number', name: 'string', content: 'string?' },
  inject: {
    name: 'string',
    clear: 'boolean?',
    readErrors: 'numbers?',
    writeErrors: 'numbers?',
    ignoreFlushes: 'boolean?',
    latencyMs: 'number?',
  },
  record: { name: 'string' },
  mark: { name: 'string', mark: 'string' },
  stopRecording: { name: 'string' },
  removeRecording: { name: 'string' },
  recordings: {},
}
