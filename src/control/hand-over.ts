/**
 * How a daemon gets the descriptors of an engine whose own daemon has died.
 *
 * They cross a datagram socket in the pool's folder, which the daemon binds before it asks for
 * them: by the time of the answer they are in its queue.
 */
import { closeSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { native } from '../native.js'
import { ENGINE_FD, moreEngineFds } from './protocol.js'
import { runtimeFolder } from './runtime-folder.js'
import { openFolderOf, shortPath } from './short-path.js'

const socketPath = (folder: string): string => join(runtimeFolder(folder), 'hand-over.sock')

/**
 * Sends the descriptors of this engine to the daemon that asked for them.
 * @param nrMore how many it has of `PoolDescriptors.more`
 */
export function sendDescriptors(folder: string, nrMore: number): void {
  withShortPath(folder, path => {
    native.socket_send_descriptor(path, ENGINE_FD.fuse)
    native.socket_send_descriptor(path, ENGINE_FD.metadata)
    native.socket_send_descriptor(path, ENGINE_FD.data)
    native.socket_send_descriptor(path, ENGINE_FD.folder)
    for (const fd of moreEngineFds(nrMore)) native.socket_send_descriptor(path, fd)
  })
}

/** The socket that receives descriptors: open it before asking an engine for them. */
export class DescriptorInbox {
  readonly #folder: string
  readonly #socket: number

  /** Replaces what is left of one before. */
  constructor(folder: string) {
    this.#folder = folder
    rmSync(socketPath(folder), { force: true })
    this.#socket = withShortPath(folder, path => native.socket_bind(path))
  }

  /** The descriptors that `sendDescriptors` sent; the caller closes them. */
  receive(nrMore: number): { [K in keyof typeof ENGINE_FD]: number } & { more: number[] } {
    const fds: number[] = []
    try {
      while (fds.length < Object.values(ENGINE_FD).length + nrMore) {
        fds.push(native.socket_receive_descriptor(this.#socket))
      }
    } catch (err) {
      for (const fd of fds) closeSync(fd)
      throw err
    }
    const [fuse, metadata, data, folder, ...more] = fds as [number, number, number, number]
    return { fuse, metadata, data, folder, more }
  }

  close(): void {
    closeSync(this.#socket)
    rmSync(socketPath(this.#folder), { force: true })
  }
}

function withShortPath<T>(folder: string, use: (path: string) => T): T {
  const path = socketPath(folder)
  const fd = openFolderOf(path)
  try {
    return use(shortPath(fd, path))
  } finally {
    closeSync(fd)
  }
}
