/**
 * The unix socket in the pool's folder by which commands reach the process that answers them: the
 * daemon, or the engine of one that has died.
 *
 * A process that may open the socket manages the pool. Its mode is 0600; and because a mode can be
 * changed and a folder be shared, either end hangs up on a peer that is neither root nor the same
 * user.
 */
import { once } from 'node:events'
import { closeSync, realpathSync, rmSync } from 'node:fs'
import { connect, createServer, type Server, type Socket } from 'node:net'
import { dirname, join } from 'node:path'
import { createMessageConnection, type MessageConnection } from 'vscode-jsonrpc/node'
import { errnoOf, MIB, ThinfsError } from '../base/index.js'
import { native } from '../native.js'
import { LineReader, LineWriter } from './lines.js'
import { toResponseError } from './rpc.js'
import { runtimeFolder } from './runtime-folder.js'
import { openFolderOf, shortPath } from './short-path.js'

/** Bytes of a request line. The longest real one, a removal of many volumes, stays far below. */
const MAX_REQUEST = MIB
/** One more than this replaces the connection that has been idle for longest. */
const MAX_CONNECTIONS = 64
/** Requests of one connection that are in flight before it is read again. */
const MAX_UNANSWERED = 16

/** The advice for a file system without sockets, by the errno with which it refuses them. */
const NO_SOCKETS =
  '; where the file system has no sockets, as FAT, keep pool.yaml on another one: data and metadata may ' +
  'stay, by their paths in it'
const HAS_NONE: Readonly<Record<string, string>> = {
  EPERM: NO_SOCKETS,
  EIO: NO_SOCKETS,
  ENOSYS: NO_SOCKETS,
  EOPNOTSUPP: NO_SOCKETS,
}

/** The socket on which the daemon of the pool in `folder` listens. */
export const controlSocketPath = (folder: string): string =>
  join(runtimeFolder(folder), 'control.sock')

interface Peer {
  socket: Socket
  reader: LineReader
  writer: LineWriter
}

/** The folder of a path, which may be by way of a descriptor, for people. */
function placeOf(path: string): string {
  try {
    return realpathSync(dirname(path))
  } catch {
    return dirname(path)
  }
}

export class ControlSocket {
  /** Resolves when, after `close`, the last connection has ended. */
  readonly closed: Promise<void>
  readonly #server: Server
  readonly #folder: number
  /** Those that asked last come last. */
  readonly #peers = new Set<Peer>()
  #closing = false

  private constructor(server: Server, folder: number) {
    this.closed = new Promise(resolve => server.once('close', resolve))
    this.#server = server
    this.#folder = folder
  }

  /**
   * Listens at `path`; whatever is there is replaced, so the caller holds the pool's lock.
   * @param serve puts the handlers on a new connection
   * @throws DAEMON_FAILED when the socket cannot be made
   */
  static async listen(
    path: string,
    serve: (connection: MessageConnection) => void,
  ): Promise<ControlSocket> {
    const folder = openFolderOf(path)
    try {
      rmSync(path, { force: true })
      const server = createServer(socket => control.#accept(socket, serve))
      const control = new ControlSocket(server, folder)
      // bind(2), which takes the mode from the mask, happens within listen().
      const mask = process.umask(0o177)
      try {
        server.listen(shortPath(folder, path))
      } finally {
        process.umask(mask)
      }
      await once(server, 'listening')
      return control
    } catch (err) {
      closeSync(folder)
      const errno = errnoOf(err)
      const detail = `${placeOf(path)}: the control socket cannot be made there (${errno})${HAS_NONE[errno] ?? ''}`
      throw new ThinfsError('DAEMON_FAILED', detail, { cause: err, errno })
    }
  }

  #accept(socket: Socket, serve: (connection: MessageConnection) => void): void {
    if (!isOwnPeer(socket)) {
      socket.destroy()
      return
    }
    const peer: Peer = {
      socket,
      reader: new LineReader(socket, MAX_REQUEST),
      writer: new LineWriter(socket),
    }
    const isOneTooMany = !this.#makeRoom()
    this.#peers.add(peer)
    // Back-pressure: stop reading from a client with 16 unanswered requests or a full send buffer.
    const hold = (): void => {
      const waits = peer.reader.unanswered.size >= MAX_UNANSWERED || socket.writableNeedDrain
      if (waits || this.#closing) socket.pause()
      else socket.resume()
    }
    peer.reader.onRequest = () => {
      this.#peers.delete(peer)
      this.#peers.add(peer)
      hold()
    }
    peer.writer.onAnswer = id => {
      peer.reader.unanswered.delete(id)
      if (isOneTooMany) socket.destroySoon()
      else hold()
    }
    socket.on('drain', hold)
    const connection = createMessageConnection(peer.reader, peer.writer)
    if (isOneTooMany) connection.onRequest(refuseAll)
    else serve(connection)
    connection.onError(() => socket.destroy())
    socket.on('close', () => {
      this.#peers.delete(peer)
      connection.dispose()
    })
    connection.listen()
  }

  /**
   * Ends the connection that has been idle for longest.
   * @returns false when all wait for answers
   */
  #makeRoom(): boolean {
    if (this.#peers.size < MAX_CONNECTIONS) return true
    for (const peer of this.#peers) {
      if (peer.reader.unanswered.size > 0) continue
      this.#peers.delete(peer)
      peer.socket.destroy()
      return true
    }
    return false
  }

  /** Removes the socket and takes no more requests. Connections end when all is answered. */
  close(): void {
    this.#closing = true
    // The server removes the socket by the name it was made with: hence the folder is still open.
    this.#server.close()
    closeSync(this.#folder)
    for (const { socket, reader, writer } of this.#peers) {
      socket.pause()
      const endWhenAnswered = (): void => {
        if (reader.unanswered.size === 0) socket.destroySoon()
      }
      writer.onAnswer = id => {
        reader.unanswered.delete(id)
        endWhenAnswered()
      }
      endWhenAnswered()
    }
  }
}

const refuseAll = (): never => {
  const detail = `too many connections: ${MAX_CONNECTIONS} others wait for answers; try again`
  throw toResponseError(new ThinfsError('DAEMON_FAILED', detail, { errno: 'EBUSY' }))
}

/**
 * Connects to a daemon. Requests that it does not answer before it ends are rejected.
 * @returns null when nobody listens at `path`
 * @throws NOT_TRUSTED when another user listens; DAEMON_FAILED when the socket cannot be reached
 *   for another reason
 */
export async function connectControlSocket(path: string): Promise<MessageConnection | null> {
  let folder = -1
  try {
    folder = openFolderOf(path)
    const socket = connect(shortPath(folder, path))
    await once(socket, 'connect')
    if (!isOwnPeer(socket)) {
      socket.destroy()
      throw new ThinfsError('NOT_TRUSTED', `${path}: the socket of another user`)
    }
    const reader = new LineReader(socket, Number.POSITIVE_INFINITY)
    let handled = 0
    // The connection handles what was read later, one message a turn of the loop: an answer that
    // came just before the end still counts.
    const disposeWhenDone = (): void => {
      if (socket.closed && handled === reader.messages) connection.dispose()
    }
    const connection = createMessageConnection(reader, new LineWriter(socket), undefined, {
      messageStrategy: {
        handleMessage(message, next) {
          next(message)
          handled++
          disposeWhenDone()
        },
      },
    })
    socket.on('close', disposeWhenDone)
    connection.onDispose(() => socket.destroy())
    connection.listen()
    return connection
  } catch (err) {
    if (err instanceof ThinfsError) throw err
    const errno = errnoOf(err)
    if (['ENOENT', 'ENOTDIR', 'ECONNREFUSED'].includes(errno)) return null
    const detail = `${path}: ${(err as Error).message}`
    throw new ThinfsError('DAEMON_FAILED', detail, { cause: err, errno })
  } finally {
    if (folder >= 0) closeSync(folder)
  }
}

/** Whether the other end belongs to root or to the user whose process this is. */
function isOwnPeer(socket: Socket): boolean {
  // Node keeps the descriptor to itself; its handle has had it as `fd` since version 0.6. A peer
  // that has gone already leaves none, and -1 is nobody's.
  const { _handle: handle } = socket as Socket & { _handle: { fd: number } | null }
  try {
    const uid = native.socket_peer_uid(handle?.fd ?? -1)
    return uid === 0 || uid === process.geteuid!()
  } catch {
    return false
  }
}
