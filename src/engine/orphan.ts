/**
 * An engine whose daemon has died: it answers commands in the daemon's place, and hands the pool
 * over to the next daemon. If it ended, nobody would start another engine.
 */
import type { MessageConnection } from 'vscode-jsonrpc/node'
import { ThinfsError } from '../base/index.js'
import {
  answer,
  answerDone,
  ControlSocket,
  controlSocketPath,
  delegate,
  type EngineStart,
  type EventLog,
  HAND_OVER,
  PING,
  PROTOCOL,
  RESTART,
  refuseToMove,
  STOP,
  sendDescriptors,
  serveAdmin,
  serveEvents,
  transportStatus,
  UMOUNT,
  UMOUNT_FORCE,
} from '../control/index.js'
import { type MountedAdmin, nrMoreDescriptors, type PoolStatus } from '../volumes/index.js'

export interface OrphanOptions {
  /** The parameters for another engine in this one's place. */
  start: EngineStart
  /** The pool's, as it is held. */
  folder: string
  pool: MountedAdmin
  events: EventLog
  /** Resolves when the file system was unmounted and the pool is closed. */
  closed: Promise<void>
  /** Ends this process for another engine. */
  stop(): void
}

/**
 * Listens on the control socket.
 * @throws DAEMON_FAILED when that cannot be made
 */
export function listenAsOrphan(options: OrphanOptions): Promise<ControlSocket> {
  const { start, folder, pool, events, closed, stop } = options
  const { mountPoint, mountedAt: since } = start
  const status = async (): Promise<PoolStatus> => ({
    ...(await pool.status()),
    mount: {
      mountPoint,
      source: start.configFile,
      pid: null,
      since,
      enginePid: process.pid,
      ...transportStatus(start.negotiated),
      logFile: start.logFile,
    },
  })
  return ControlSocket.listen(controlSocketPath(folder), (connection: MessageConnection) => {
    serveAdmin(connection, { ...delegate(() => pool), status })
    serveEvents(connection, events)
    connection.onRequest(PING, () => ({ pid: null, mountPoint, protocol: PROTOCOL }))
    // The client unmounts: this process would wait for itself.
    for (const request of [UMOUNT, UMOUNT_FORCE]) {
      connection.onRequest(request, () => answerDone(() => closed))
    }
    connection.onRequest(HAND_OVER, () =>
      answer(() => {
        refuseToMove(start.negotiated)
        sendDescriptors(folder, nrMoreDescriptors(start.config))
        return start
      }),
    )
    connection.onNotification(STOP, stop)
    connection.onRequest(RESTART, () =>
      answer(() => {
        refuseToMove(start.negotiated)
        const detail = `the daemon has died: thinfs mount with ${mountPoint} starts another`
        throw new ThinfsError('NOT_SUPPORTED', detail)
      }),
    )
  })
}
