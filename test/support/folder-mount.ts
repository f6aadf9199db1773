import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import type { Test } from 'tap'
import type { Negotiated, Transport } from '../../src/fuse/index.js'
import type { ServerRequest } from './folder-server.js'
import { attempt } from './mounted-pool.js'

const SERVER = join(import.meta.dirname, 'folder-server.ts')

/** A folder of the host, mounted, and served through a transport by another process. */
export class FolderMount {
  /** The folder that is served, and where. */
  readonly folder: string
  readonly path: string
  readonly #transport: Transport
  #fd: number | null
  #server: ChildProcess | null = null
  negotiated: Negotiated | null = null
  /** What its fallocate(2) says that it clears, and does not. */
  readonly #lies: string
  /** Whether each server is as on a kernel that sends no request again. */
  readonly #isOld: boolean

  private constructor(
    base: string,
    transport: Transport,
    fd: number | null,
    { lies = '', isOld = false }: { lies?: string; isOld?: boolean },
  ) {
    this.folder = join(base, 'folder')
    this.path = join(base, 'mount')
    this.#transport = transport
    this.#fd = fd
    this.#lies = lies
    this.#isOld = isOld
  }

  static async make(
    t: Test,
    transport: Transport,
    options: { readOnly?: boolean; lies?: 'zero' | 'objects'; isOld?: boolean } = {},
  ): Promise<FolderMount> {
    const base = mkdtempSync('/dev/shm/thinfs-mount-')
    mkdirSync(join(base, 'folder'))
    mkdirSync(join(base, 'mount'))
    const fd = await transport.mount(join(base, 'mount'), {
      source: 'thinfs,a\\b',
      subtype: 'thinfs',
      allowOther: false,
      readOnly: options.readOnly ?? false,
    })
    const mount = new FolderMount(base, transport, fd, options)
    t.teardown(async () => {
      if ((await attempt('umount', mount.path)).status !== 0) {
        await attempt('umount', '--lazy', mount.path)
      }
      mount.letGo()
      await mount.kill()
      rmSync(base, { recursive: true })
    })
    await mount.serve()
    return mount
  }

  /** Starts a server, which takes over when there was one. */
  async serve(): Promise<void> {
    const server = fork(
      SERVER,
      [this.#transport.name, this.folder, JSON.stringify(this.negotiated)],
      {
        stdio: ['ignore', 'inherit', 'inherit', this.#fd ?? 'ignore', 'ipc'],
        env: {
          ...process.env,
          THINFS_TEST_LIES: this.#lies,
          THINFS_TEST_OLD: this.#isOld ? '1' : '',
        },
      },
    )
    this.#server = server
    this.negotiated = (await this.#answer()) as Negotiated
  }

  /** Asks the server. @returns the calls that it has recorded */
  async ask(request: ServerRequest): Promise<unknown[][]> {
    this.#server!.send(request)
    return (await this.#answer()) as unknown[][]
  }

  /** Ends the server as an engine is ended for the next one. */
  async stop(): Promise<void> {
    const ended = once(this.#server!, 'exit')
    this.#server!.send({ do: 'stop' } satisfies ServerRequest)
    await ended
  }

  async kill(): Promise<void> {
    const server = this.#server
    if (server === null || server.exitCode !== null || server.signalCode !== null) return
    const ended = once(server, 'exit')
    server.kill('SIGKILL')
    await ended
  }

  /** Gives up the connection, as whoever holds a mount does when nobody can serve it any more. */
  letGo(): void {
    if (this.#fd !== null) closeSync(this.#fd)
    this.#fd = null
  }

  /** Unmounts. @returns the exit status of the server, and what it said */
  async unmount(): Promise<{ status: number; said: unknown }> {
    const server = this.#server!
    const said = this.#answer()
    const ended = once(server, 'exit')
    await attempt('umount', this.path)
    return { said: await said, status: (await ended)[0] }
  }

  #answer(): Promise<unknown> {
    const server = this.#server!
    return new Promise((resolve, reject) => {
      const onExit = (code: number): void => reject(new Error(`the server ended with ${code}`))
      server.once('exit', onExit)
      server.once('message', message => {
        server.off('exit', onExit)
        resolve(message)
      })
    })
  }
}
