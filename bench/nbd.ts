/** NBD servers of others, each with one export: a file, on a unix socket. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { setTimeout } from 'node:timers/promises'

const POLL_MS = 20
const START_MS = 10_000

/** A kind of server: its command, which writes `ready` when it serves. */
export interface NbdKind {
  name: string
  command(socket: string, image: string, ready: string): string[]
}

export const NBD_KINDS: readonly NbdKind[] = [
  {
    name: 'nbdkit',
    command: (socket, image, ready) => [
      ...['nbdkit', '--foreground', '--exit-with-parent', '--unix', socket, '--pidfile', ready],
      ...['file', image],
    ],
  },
  {
    name: 'qemu-nbd',
    command: (socket, image, ready) => [
      ...['qemu-nbd', '--persistent', '--socket', socket, '--pid-file', ready],
      ...['--format=raw', '--discard=unmap', image],
    ],
  },
]

/** Runs `use` with the address of an export that has `image`. */
export async function withNbd<T>(
  kind: NbdKind,
  image: string,
  use: (address: string) => Promise<T>,
): Promise<T> {
  const [socket, ready] = [`${image}.socket`, `${image}.pid`]
  const [program, ...args] = kind.command(socket, image, ready)
  const server = spawn(program!, args, { stdio: ['ignore', 'ignore', 'inherit'] })
  try {
    await serves(server, kind, ready)
    return await use(`nbd+unix:///?socket=${socket}`)
  } finally {
    if (server.exitCode === null && server.signalCode === null) {
      const exit = once(server, 'exit')
      server.kill()
      await exit
    }
  }
}

async function serves(server: ChildProcess, { name }: NbdKind, ready: string): Promise<void> {
  for (let ms = 0; !existsSync(ready); ms += POLL_MS) {
    if (server.exitCode !== null || ms > START_MS) throw new Error(`${name} does not serve`)
    await setTimeout(POLL_MS)
  }
}
