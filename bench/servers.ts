/**
 * The servers that are compared: each shows a volume as a file in a FUSE mount, from files in a
 * folder of its own. All of them run in the foreground, in a process group that is ours to end.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import {
  closeSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { basename, join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { readMounts } from '../src/host/index.js'

const exec = promisify(execFile)
const pathInRepository = (path: string): string =>
  fileURLToPath(new URL(`../${path}`, import.meta.url))

/**
 * Microseconds that limit-spin looks before it sleeps: thinfs at most, and long enough to be a
 * limit.
 */
const SPIN_US = 400
const POLL_MS = 20
const START_MS = 10_000
const STOP_MS = 10_000

/** How a server is run, once its files are made. */
export interface Plan {
  command: string[]
  /** What it mounts. */
  mountPoint: string
  /** The volume, in the mount or the mount itself. */
  file: string
  /** Added to the environment. */
  env?: NodeJS.ProcessEnv
}

/** A kind of server, under the name that it has in the results. */
export interface Contender {
  name: string
  /** Makes its files in `folder`, which is there and empty. */
  prepare(folder: string): Promise<Plan>
}

/** Compiles a C program of limit/. */
export async function compile(source: string, program: string): Promise<void> {
  await exec('cc', ['-O2', '-o', program, pathInRepository(`bench/limit/${source}.c`)])
}

/** A C program of limit/ on a sparse file of `size` bytes. */
function limit(name: string, source: string, size: number, ...options: string[]): Contender {
  return {
    name,
    async prepare(folder) {
      const program = join(folder, source)
      await compile(source, program)
      const backing = sparseFile(join(folder, 'data'), size)
      const mountPoint = makeFolder(folder, 'mount')
      const command = [program, mountPoint, backing, ...options]
      return { command, mountPoint, file: join(mountPoint, 'volume') }
    },
  }
}

/** C on /dev/fuse that sleeps until a request comes. */
export const limitDev = (size: number): Contender => limit('limit-dev', 'limit-dev', size)
/** The same, which looks for a request before it sleeps. */
export const limitSpin = (size: number): Contender =>
  limit('limit-spin', 'limit-dev', size, String(SPIN_US))
/** C over io_uring, which looks for a request before it sleeps. */
export const limitUring = (size: number): Contender =>
  limit('limit-uring', 'limit-uring', size, String(SPIN_US))

/** fuse-native without thinfs, on a sparse file. */
export const limitFuseNative = (size: number): Contender => ({
  name: 'limit-fuse-native',
  async prepare(folder) {
    const program = pathInRepository('bench/limit/limit-fuse-native.mjs')
    const backing = sparseFile(join(folder, 'data'), size)
    const mountPoint = makeFolder(folder, 'mount')
    const command = [process.execPath, program, mountPoint, backing]
    return { command, mountPoint, file: join(mountPoint, 'volume') }
  },
})

/**
 * qemu-storage-daemon's export of a qcow2 of `size` bytes with 64 KiB clusters.
 * @param backing the image that it lies over, which is whole and not written to; null: none
 */
export function qemu(
  size: number,
  options: { preallocation?: 'metadata'; backing?: string } = {},
): Contender {
  return {
    name: 'qemu',
    async prepare(folder) {
      const image = join(folder, 'image.qcow2')
      await makeQcow2(image, size, options)
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
  }
}

/** Makes a qcow2. */
export async function makeQcow2(
  image: string,
  size: number,
  { preallocation, backing }: { preallocation?: 'metadata'; backing?: string } = {},
): Promise<void> {
  const options = preallocation ? ['-o', `preallocation=${preallocation}`] : []
  const over = backing ? ['-b', backing, '-F', 'qcow2'] : []
  await exec('qemu-img', ['create', '-q', '-f', 'qcow2', ...options, ...over, image, String(size)])
}

export interface ThinfsOptions {
  /** Default: `thinfs`. */
  name?: string
  /** Of a data block. */
  blockSize?: string
  /** More volumes beside it: bytes by name. */
  volumes?: Record<string, number>
  /** Bytes that the pool can hold. Default: twice the volume. */
  dataSize?: number
  /** Microseconds to look for requests, of pool.yaml. */
  spin?: number
  /** Of `thinfs mount`. */
  mount?: string[]
  /** Added to the environment of daemon and engine. */
  env?: NodeJS.ProcessEnv
}

/** thinfs with a volume of `size` bytes, which is called `volume`. */
export function thinfs(size: number, options: ThinfsOptions = {}): Contender {
  const { name = 'thinfs', blockSize, dataSize = 2 * size, spin, mount = [], env = {} } = options
  const volumes = Object.entries({ volume: size, ...options.volumes })
  return {
    name,
    async prepare(folder) {
      const pool = makeFolder(folder, 'pool')
      const blocks = blockSize ? ['--block-size', blockSize] : []
      const named = volumes.flatMap(([volume, bytes]) => ['--volume', `${volume}=${bytes}`])
      await runThinfs('init', pool, '--data-size', String(dataSize), ...blocks, ...named)
      if (spin !== undefined) {
        const config = join(pool, 'pool.yaml')
        writeFileSync(config, readFileSync(config, 'utf8').replace(/^spin: .*$/m, `spin: ${spin}`))
      }
      return { ...mountPlan(folder, mount), env }
    },
  }
}

/** How the pool in `folder` is mounted, which has a volume that is called `volume`. */
export function mountPlan(folder: string, options: readonly string[] = []): Plan {
  const mountPoint = makeFolder(folder, 'mount')
  const command = [...THINFS, 'mount', '--foreground', ...options, join(folder, 'pool'), mountPoint]
  return { command, mountPoint, file: join(mountPoint, 'volume') }
}

export const THINFS = [process.execPath, pathInRepository('bin/thinfs.js')]

/** Runs a command of thinfs. @returns what it printed */
export async function runThinfs(...args: string[]): Promise<string> {
  const { stdout } = await exec(THINFS[0]!, [THINFS[1]!, ...args])
  return stdout
}

export class Server {
  readonly name: string
  /** The volume that it serves. */
  readonly file: string
  /** What it was made in. */
  readonly folder: string
  readonly #process: ChildProcess
  readonly #mountPoint: string
  readonly #log: string

  /** Makes the files of a server in `folder`, which is made, and starts it. */
  static async start(contender: Contender, folder: string): Promise<Server> {
    mkdirSync(folder)
    const plan = await contender.prepare(folder)
    const server = new Server(contender.name, plan, folder)
    try {
      await server.#mounted()
    } catch (err) {
      await server.stop()
      throw err
    }
    return server
  }

  private constructor(name: string, plan: Plan, folder: string) {
    this.name = name
    this.file = plan.file
    this.folder = folder
    this.#mountPoint = plan.mountPoint
    this.#log = join(folder, 'log')
    const [program, ...args] = plan.command
    const output = openSync(this.#log, 'w')
    this.#process = spawn(program!, args, {
      stdio: ['ignore', output, output],
      detached: true,
      env: { ...process.env, ...plan.env },
    })
    closeSync(output)
    this.#process.on('error', err => writeFileSync(this.#log, String(err), { flag: 'a' }))
  }

  /** What it said, for whoever wonders why it failed. */
  get output(): string {
    return readFileSync(this.#log, 'utf8')
  }

  /** Its process: of thinfs the daemon, whose child serves. */
  get pid(): number {
    return this.#process.pid!
  }

  /**
   * Ends the server, then its mount. In this order: qemu-storage-daemon spins for ever once its
   * export is unmounted by someone else.
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

/**
 * Runs `use` with servers that are up, one after the other in `folder`, and stops them afterwards.
 */
export async function withServers<T>(
  contenders: readonly Contender[],
  folder: string,
  signal: AbortSignal,
  use: (servers: Server[]) => Promise<T>,
): Promise<T> {
  const servers: Server[] = []
  try {
    for (const contender of contenders) {
      signal.throwIfAborted()
      servers.push(await Server.start(contender, join(folder, contender.name)))
    }
    return await use(servers)
  } catch (err) {
    if (!signal.aborted) for (const { name, output } of servers) console.error(`${name}: ${output}`)
    throw err
  } finally {
    await Promise.all(servers.map(server => server.stop()))
  }
}

/**
 * Runs `use` with a server that is made for it in `folder`, and is gone with its files afterwards.
 */
export async function withFreshServer<T>(
  contender: Contender,
  folder: string,
  signal: AbortSignal,
  use: (server: Server) => Promise<T>,
): Promise<T> {
  try {
    return await withServers([contender], folder, signal, ([server]) => use(server!))
  } finally {
    rmSync(join(folder, contender.name), { recursive: true, force: true })
  }
}

/** Runs `use` while the kernel offers FUSE over io_uring, and with false where it never does. */
export async function withUring<T>(use: (offered: boolean) => Promise<T>): Promise<T> {
  const parameter = '/sys/module/fuse/parameters/enable_uring'
  let before: string
  try {
    before = readFileSync(parameter, 'latin1')
    writeFileSync(parameter, 'Y')
  } catch {
    return use(false)
  }
  try {
    return await use(true)
  } finally {
    writeFileSync(parameter, before)
  }
}

/**
 * Runs `use` with a loop device on `file`, past the page cache.
 * @throws when the kernel goes by way of the page cache all the same
 */
export async function withLoop<T>(file: string, use: (device: string) => Promise<T>): Promise<T> {
  const { stdout } = await exec('losetup', ['--find', '--show', '--direct-io=on', file])
  const device = stdout.trim()
  try {
    const direct = readFileSync(`/sys/block/${basename(device)}/loop/dio`, 'utf8')
    if (direct.trim() !== '1') throw new Error(`${device}: ${file} has no direct I/O`)
    return await use(device)
  } finally {
    await exec('losetup', ['--detach', device])
  }
}

/** What is measured without a server: a sparse file of `size` bytes on the host. */
export const plainFile = (folder: string, size: number): { name: string; file: string } => ({
  name: 'plain',
  file: sparseFile(join(folder, 'plain'), size),
})

/** Drops what the host caches of a file, once it is on the disk. */
export async function dropCache(file: string): Promise<void> {
  // GNU dd does that, with posix_fadvise, for all of a file of which it copies nothing.
  await exec('dd', [
    `of=${file}`,
    'oflag=nocache',
    'conv=notrunc,fdatasync',
    'count=0',
    'status=none',
  ])
}

/** Reads all of a file, so that the page cache of whoever has its data has it. */
export async function readAll(file: string): Promise<void> {
  await exec('dd', [`if=${file}`, 'of=/dev/null', 'bs=1M', 'iflag=direct', 'status=none'])
}

/** Makes a file of `size` bytes that takes no space. @returns its path */
export function sparseFile(path: string, size: number): string {
  writeFileSync(path, '')
  truncateSync(path, size)
  return path
}

/** Looks into the mount table: asking the file itself would wait for a server that hangs. */
function isMounted(mountPoint: string): boolean {
  return readMounts().some(mount => mount.mountPoint === mountPoint)
}

function makeFolder(...path: string[]): string {
  const folder = join(...path)
  mkdirSync(folder)
  return folder
}
