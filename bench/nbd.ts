/** NBD servers of others, each with one export: a file, on a unix socket, here or far away. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import { compile } from './servers.js'

const POLL_MS = 20
const START_MS = 10_000

/** A kind of server: its command, which writes `ready` when it serves. */
export interface NbdKind {
  name: string
  /** Microseconds from the client to the server, and as many back; default: none. */
  distance?: number
  command(socket: string, image: string, ready: string): string[]
}

const NBDKIT: NbdKind = {
  name: 'nbdkit',
  command: (socket, image, ready) => [
    ...['nbdkit', '--foreground', '--exit-with-parent', '--unix', socket, '--pidfile', ready],
    ...['file', image],
  ],
}

const QEMU_NBD: NbdKind = {
  name: 'qemu-nbd',
  command: (socket, image, ready) => [
    ...['qemu-nbd', '--persistent', '--socket', socket, '--pid-file', ready],
    ...['--format=raw', '--discard=unmap', image],
  ],
}

export const NBD_KINDS: readonly NbdKind[] = [
  NBDKIT,
  QEMU_NBD,
  // The way between two machines of a data center: 0.2 ms there and back.
  { ...QEMU_NBD, name: 'qemu-nbd-200us', distance: 100 },
]

/** Runs `use` with the address of an export that has `image`. */
export async function withNbd<T>(
  kind: NbdKind,
  image: string,
  use: (address: string) => Promise<T>,
): Promise<T> {
  const [socket, ready] = [`${image}.socket`, `${image}.pid`]
  const [program, ...args] = kind.command(socket, image, ready)
  return whileRuns(program!, args, ready, () => {
    if (kind.distance === undefined) return use(addressOf(socket))
    return withDistance(socket, kind.distance, use)
  })
}

const addressOf = (socket: string): string => `nbd+unix:///?socket=${socket}`

/** Runs `use` with an address that is so many microseconds away from the server's socket. */
async function withDistance<T>(
  server: string,
  distance: number,
  use: (address: string) => Promise<T>,
): Promise<T> {
  const [program, socket] = [`${server}.distance`, `${server}.far`]
  await compile('distance', program)
  return whileRuns(program, [socket, server, String(distance)], socket, () =>
    use(addressOf(socket)),
  )
}

/** Runs `use` while a program runs, from when the file `ready` is there. */
async function whileRuns<T>(
  program: string,
  args: readonly string[],
  ready: string,
  use: () => Promise<T>,
): Promise<T> {
  const server = spawn(program, args, { stdio: ['ignore', 'ignore', 'inherit'] })
  try {
    await isThere(server, program, ready)
    return await use()
  } finally {
    if (server.exitCode === null && server.signalCode === null) {
      const exit = once(server, 'exit')
      server.kill()
      await exit
    }
  }
}

async function isThere(server: ChildProcess, program: string, ready: string): Promise<void> {
  for (let ms = 0; !existsSync(ready); ms += POLL_MS) {
    if (server.exitCode !== null || ms > START_MS) throw new Error(`${program} does not serve`)
    await setTimeout(POLL_MS)
  }
}
