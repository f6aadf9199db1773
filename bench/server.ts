/**
 * The servers that are compared: each shows VOLUME_SIZE bytes as a file in a FUSE mount, from files in
 * a folder of its own. All of them run in the foreground, in a process group that is ours to end.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { closeSync, mkdirSync, openSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { GIB } from '../src/base/index.js'

const exec = promisify(execFile)
const pathInRepository = (path: string): string =>
  fileURLToPath(new URL(`../${path}`, import.meta.url))

export const VOLUME_SIZE = GIB
/** What limit-spin looks for the next request before it sleeps: as long as thinfs at most. */
const SPIN_US = 50
const POLL_MS = 20
const START_MS = 10_000
const STOP_MS = 10_000

export type ServerName = 'limit-dev' | 'limit-spin' | 'qemu' | 'thinfs'

/** How a server is run, once its files are made. */
interface Plan {
  command: string[]
  /** What it mounts. */
  mountPoint: string
  /** The volume, in the mount or the mount itself. */
  file: string
}

async function limit(folder: string, ...options: string[]): Promise<Plan> {
  const program = join(folder, 'limit-dev')
  await exec('cc', ['-O2', '-o', program, pathInRepository('bench/limit/limit-dev.c')])
  const backing = join(folder, 'data')
  writeFileSync(backing, '')
  truncateSync(backing, VOLUME_SIZE)
  const mountPoint = makeFolder(folder, 'mount')
  const command = [program, mountPoint, backing, ...options]
  return { command, mountPoint, file: join(mountPoint, 'volume') }
}

const PREPARE: Record<ServerName, (folder: string) => Promise<Plan>> = {
  'limit-dev': folder => limit(folder),
  'limit-spin': folder => limit(folder, String(SPIN_US)),

  qemu: async folder => {
    const image = join(folder, 'image.qcow2')
    const options = ['-q', '-f', 'qcow2', '-o', 'preallocation=metadata']
    await exec('qemu-img', ['create', ...options, image, String(VOLUME_SIZE)])
    const mountPoint = join(folder, 'mount')
    writeFileSync(mountPoint, '')
    const command = [
      'qemu-storage-daemon',
      ...['--blockdev', `driver=file,node-name=file,filename=${image}`],
      ...['--blockdev', 'driver=qcow2,node-name=image,file=file'],
      '--export',
      `type=fuse,id=export,node-name=image,mountpoint=${mountPoint},growable=off,writable=on`,
    ]
    return { command, mountPoint, file: mountPoint }
  },

  thinfs: async folder => {
    const thinfs = [process.execPath, pathInRepository('bin/thinfs.js')]
    const pool = makeFolder(folder, 'pool')
    const init = ['init', pool, '--data-size', '2G', '--volume', `volume=${VOLUME_SIZE}`]
    await exec(thinfs[0]!, [thinfs[1]!, ...init])
    const mountPoint = makeFolder(folder, 'mount')
    const command = [...thinfs, 'mount', '--foreground', pool, mountPoint]
    return { command, mountPoint, file: join(mountPoint, 'volume') }
  },
}

export class Server {
  readonly name: ServerName
  /** The volume that it serves. */
  readonly file: string
  readonly #process: ChildProcess
  readonly #mountPoint: string
  readonly #log: string

  /** Makes the files of a server in `folder`, which is there and empty, and starts it. */
  static async start(name: ServerName, folder: string): Promise<Server> {
    const plan = await PREPARE[name](folder)
    const server = new Server(name, plan, join(folder, 'log'))
    try {
      await server.#mounted()
    } catch (err) {
      await server.stop()
      throw err
    }
    return server
  }

  private constructor(name: ServerName, plan: Plan, log: string) {
    this.name = name
    this.file = plan.file
    this.#mountPoint = plan.mountPoint
    this.#log = log
    const [program, ...args] = plan.command
    const output = openSync(log, 'w')
    this.#process = spawn(program!, args, { stdio: ['ignore', output, output], detached: true })
    closeSync(output)
    this.#process.on('error', err => writeFileSync(log, String(err), { flag: 'a' }))
  }

  /** What it said, for whoever wonders why it failed. */
  get output(): string {
    return readFileSync(this.#log, 'utf8')
  }

  /**
   * Ends the server, then its mount. In this order: qemu-storage-daemon spins for ever once its export
   * is unmounted by someone else.
   */
  async stop(): Promise<void> {
    this.#signal('SIGTERM')
    await this.#until(() => this.#hasEnded, STOP_MS)
    // The rest of the group, or all of it if it did not listen.
    this.#signal('SIGKILL')
    if (isMounted(this.#mountPoint)) await exec('umount', ['--lazy', this.#mountPoint])
  }

  get #hasEnded(): boolean {
    const { pid, exitCode, signalCode } = this.#process
    return pid === undefined || exitCode !== null || signalCode !== null
  }

  async #mounted(): Promise<void> {
    await this.#until(() => isMounted(this.#mountPoint) || this.#hasEnded, START_MS)
    if (this.#hasEnded || !isMounted(this.#mountPoint)) {
      throw new Error(`${this.name} does not mount: ${this.output}`)
    }
  }

  async #until(condition: () => boolean, limitMs: number): Promise<void> {
    for (let ms = 0; !condition() && ms < limitMs; ms += POLL_MS) await setTimeout(POLL_MS)
  }

  #signal(signal: NodeJS.Signals): void {
    const { pid } = this.#process
    if (pid === undefined) return
    try {
      process.kill(-pid, signal)
    } catch (err) {
      if ((err as NodeJS.ErrnoException).code !== 'ESRCH') throw err
    }
  }
}

/** Looks into the mount table: asking the file itself would wait for a server that hangs. */
function isMounted(mountPoint: string): boolean {
  const table = readFileSync('/proc/self/mountinfo', 'utf8')
  return table.split('\n').some(line => line.split(' ')[4] === mountPoint)
}

function makeFolder(...path: string[]): string {
  const folder = join(...path)
  mkdirSync(folder)
  return folder
}
