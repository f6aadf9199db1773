/**
 * A pool that is mounted by the command line and used as people do: by programs, in processes other
 * than the one that serves.
 *
 * Every program runs in a process group of its own, which is killed when it takes too long.
 * Teardown takes everything away, whatever state a failed test has left it in.
 */
import { execFile } from 'node:child_process'
import {
  accessSync,
  chmodSync,
  constants,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import type { Test } from 'tap'
import { connectDaemon } from '../../src/control/index.js'
import type { PoolStatus } from '../../src/volumes/index.js'
import { thinDump } from './thin-tools.js'

const PROGRAM = resolve(import.meta.dirname, '../../bin/thinfs.js')
/** Seconds that a program may take. A deadlock is the only thing that takes them. */
const TIMEOUT = 100

export interface Outcome {
  status: number
  stdout: string
  stderr: string
}

/** Runs a program; its exit status, 124 when it took too long, is part of the outcome. */
export const attempt = (program: string, ...args: string[]): Promise<Outcome> =>
  attemptWithin(TIMEOUT, program, args)

/** As `attempt`, with another number of seconds that the program may take. */
export function attemptWithin(seconds: number, program: string, args: string[]): Promise<Outcome> {
  return new Promise((resolve, reject) => {
    const command = ['--kill-after=5', String(seconds), program, ...args]
    const env = { ...process.env, LC_ALL: 'C.UTF-8', NO_COLOR: '1', THINFS_DEBUG: '' }
    // A program that waits in the kernel for a dead mount survives SIGKILL.
    const unkillable = setTimeout(
      () => reject(new Error(`${program} ${args.join(' ')}: SIGKILL does not end it`)),
      (seconds + 15) * 1000,
    )
    const child = execFile('timeout', command, { env, maxBuffer: 1 << 28 }, (err, ...output) => {
      clearTimeout(unkillable)
      const status = err ? err.code : 0
      if (typeof status === 'number') resolve({ status, stdout: output[0], stderr: output[1] })
      else reject(err)
    })
    child.stdin?.end()
  })
}

/** What a program prints that has to succeed. */
export const run = (program: string, ...args: string[]): Promise<string> =>
  runWithin(TIMEOUT, program, ...args)

/** As `run`, with another number of seconds that the program may take. */
export async function runWithin(
  seconds: number,
  program: string,
  ...args: string[]
): Promise<string> {
  const { status, stdout, stderr } = await attemptWithin(seconds, program, args)
  if (status === 0) return stdout.trimEnd()
  throw new Error(`${program} ${args.join(' ')}: status ${status}: ${stderr || stdout}`)
}

/** What a bash script prints, whose every command has to succeed. */
export const sh = (cwd: string, script: string): Promise<string> =>
  run('env', '-C', cwd, 'bash', '-euo', 'pipefail', '-c', script)

/** What a script, that has to fail, says on stderr. */
export async function failure(cwd: string, script: string): Promise<string> {
  const { status, stderr } = await attempt('env', '-C', cwd, 'bash', '-euc', script)
  if (status === 0) throw new Error(`${script}: did not fail`)
  return status === 124 ? `took more than ${TIMEOUT} s` : stderr.trim()
}

export const python = (cwd: string, program: string): Promise<string> =>
  run('env', '-C', cwd, 'python3', '-c', program)

/** The command line of thinfs; it has to succeed. */
export const thinfs = (...args: string[]): Promise<string> =>
  run(process.execPath, PROGRAM, ...args)
export const attemptThinfs = (...args: string[]): Promise<Outcome> =>
  attempt(process.execPath, PROGRAM, ...args)

/** Milliseconds between two looks. */
const LOOK_PERIOD = 10

/** Milliseconds after which a test gives up waiting. */
const UNTIL_MS = 300_000

/**
 * Until it is so. What is waited for is another process's doing, and certain.
 * @throws what was waited for, when it is not so after UNTIL_MS
 */
export async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = Date.now() + UNTIL_MS
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`not so after ${UNTIL_MS} ms: ${condition}`)
    await delay(LOOK_PERIOD)
  }
}

/** What a test that needs the devices says when it is skipped; where CI is set it fails instead. */
export function needs(...devices: ('/dev/fuse' | '/dev/loop-control')[]): { skip: string | false } {
  if (process.env.CI) return { skip: false }
  const missing = devices.filter(device => !isUsable(device))
  if (missing.length > 0) return { skip: `cannot open ${missing.join(' and ')}` }
  const isRoot = process.getuid?.() === 0
  return { skip: isRoot ? false : 'mounts, loop devices and other users need root' }
}

function isUsable(device: string): boolean {
  try {
    accessSync(device, constants.R_OK | constants.W_OK)
    return true
  } catch {
    return false
  }
}

/** Byte ranges [begin, end) of a file that are not holes, as the kernel says. */
export async function dataRanges(path: string): Promise<[begin: number, end: number][]> {
  const program = `
import errno, json, os
file = os.open(${JSON.stringify(path)}, os.O_RDONLY)
ranges, end = [], 0
try:
    while True:
        begin = os.lseek(file, end, os.SEEK_DATA)
        end = os.lseek(file, begin, os.SEEK_HOLE)
        ranges.append((begin, end))
except OSError as err:
    if err.errno != errno.ENXIO: raise
print(json.dumps(ranges))`
  return JSON.parse(await run('python3', '-c', program))
}

/**
 * What `thinfs status` says of the pool in `folder`; from its daemon where it is mounted, without
 * starting a program.
 */
export async function statusOf(folder: string): Promise<PoolStatus> {
  const daemon = await connectDaemon({ file: join(folder, 'pool.yaml'), folder })
  if (daemon === null) return JSON.parse(await thinfs('status', folder, '--json'))
  try {
    return await daemon.status()
  } finally {
    daemon.close()
  }
}

export class MountedPool {
  /** All that a test makes goes here: the pool's folder, the mount, and `plain`. */
  readonly base: string
  readonly folder: string
  readonly path: string
  /** An ordinary folder of the host, for files that get the same as those in the mount. */
  readonly plain: string

  private constructor(base: string) {
    this.base = base
    this.folder = join(base, 'pool')
    this.path = join(base, 'mount')
    this.plain = join(base, 'plain')
  }

  /**
   * Makes a pool and mounts it.
   * @param yaml its pool.yaml but for the name
   * @param prepare puts data and metadata in the folder; default: `thinfs init`
   */
  static async make(
    t: Test,
    yaml: string,
    prepare = (file: string): Promise<unknown> => thinfs('init', file),
  ): Promise<MountedPool> {
    const pool = await MountedPool.prepare(t, yaml, prepare)
    await pool.mount()
    return pool
  }

  /** As `make`, not mounted yet. */
  static async prepare(
    t: Test,
    yaml: string,
    prepare: (file: string) => Promise<unknown>,
  ): Promise<MountedPool> {
    const base = realpathSync(mkdtempSync(join(tmpdir(), 'thinfs-mount-')))
    // Not for other users, mkdtemp says; here they shall be stopped by the mount itself.
    chmodSync(base, 0o755)
    const pool = new MountedPool(base)
    for (const folder of [pool.folder, pool.path, pool.plain]) mkdirSync(folder)
    t.teardown(() => pool.#remove(t.passing()))
    const file = join(pool.folder, 'pool.yaml')
    writeFileSync(file, `pool: test\n${yaml}\n`)
    await prepare(file)
    return pool
  }

  get data(): string {
    return join(this.folder, 'data')
  }

  get metadata(): string {
    return join(this.folder, 'metadata')
  }

  /** Names and sizes of the volumes. */
  get table(): string {
    return join(this.folder, 'volumes.json')
  }

  async mount(...options: string[]): Promise<void> {
    await thinfs('mount', this.folder, this.path, ...options)
  }

  async umount(): Promise<void> {
    await thinfs('umount', this.folder)
  }

  /** Unmounts and mounts again: what is there now came from the files. */
  async remount(): Promise<void> {
    await this.umount()
    await this.mount()
  }

  get isMounted(): boolean {
    return mountsWithin(this.path).includes(this.path)
  }

  /** Runs a script in the mount; see `sh`. */
  sh(script: string): Promise<string> {
    return sh(this.path, script)
  }

  /** What a script in the mount, that has to fail, says on stderr. */
  failure(script: string): Promise<string> {
    return failure(this.path, script)
  }

  /** Runs a script in the mount and in the plain folder; both have to print the same. */
  async both(t: Test, script: string): Promise<void> {
    const [found, wanted] = await Promise.all([this.sh(script), sh(this.plain, script)])
    t.equal(found, wanted, script)
  }

  /** A loop device on a volume, with direct I/O. */
  attach(name: string): Promise<string> {
    return thinfs('attach', this.folder, name)
  }

  async detach(name: string): Promise<void> {
    await thinfs('detach', this.folder, name)
  }

  /** Makes an ext4 on a volume, through a loop device, and mounts it in a new folder. */
  async mountExt4(name: string, folder = 'fs'): Promise<{ device: string; at: string }> {
    const at = join(this.base, folder)
    mkdirSync(at)
    const device = await this.attach(name)
    await run('mkfs.ext4', '-q', device)
    await run('mount', device, at)
    return { device, at }
  }

  status(): Promise<PoolStatus> {
    return statusOf(this.folder)
  }

  async enginePid(): Promise<number> {
    return (await this.status()).mount!.enginePid
  }

  /** Kills the engine with SIGKILL and waits until another serves. */
  async killEngine(): Promise<void> {
    const pid = await this.enginePid()
    process.kill(pid, 'SIGKILL')
    await until(async () => (await this.enginePid()) !== pid)
  }

  log(): LogLine[] {
    return logLines(join(this.folder, 'thinfs.log'))
  }

  /**
   * Unmounts, and has others judge what is left: thin_check the metadata, thin_dump with SEEK_DATA
   * that every free data block is a hole, thinfs itself all the rest.
   */
  async close(t: Test): Promise<void> {
    if (this.isMounted) await this.umount()
    const [{ status, stderr }, check, stray] = await Promise.all([
      attempt('thin_check', this.metadata),
      attemptThinfs('check', this.folder),
      this.strayData(),
    ])
    t.equal(status, 0, `thin_check: ${stderr}`)
    t.match(check, { status: 0, stderr: '' }, 'thinfs check')
    t.same(stray, [], 'every free data block is a hole')
  }

  /** Data blocks of the unmounted pool that are no hole though nothing maps them. */
  async strayData(
    { metadata, data }: { metadata: string; data: string } = this,
  ): Promise<number[]> {
    const { dataBlockSize, devices } = thinDump(metadata)
    const mapped = new Set<number>()
    for (const { mappings } of devices.values()) {
      for (const { dataBlock } of mappings.values()) mapped.add(dataBlock)
    }
    const blockSize = dataBlockSize * 512
    const stray: number[] = []
    for (const [begin, end] of await dataRanges(data)) {
      for (let block = Math.floor(begin / blockSize); block * blockSize < end; block++) {
        if (!mapped.has(block)) stray.push(block)
      }
    }
    return stray
  }

  /**
   * Ends everything that was started here, by its id, and removes the files.
   * @param orderly wait for what is unmounted to end; otherwise it may hang, and is killed first
   */
  async #remove(orderly: boolean): Promise<void> {
    if (!orderly) await this.#kill()
    for (const place of mountsWithin(this.base).reverse()) {
      if (place !== this.path) await attempt('umount', '--lazy', place)
    }
    await detachWithin(this.base)
    while (this.isMounted) {
      const { status } = await attempt('umount', this.path)
      if (status !== 0) await attempt('umount', '--lazy', this.path)
    }
    const deadline = Date.now() + 1000 * TIMEOUT
    await until(() => this.processes().length === 0 || Date.now() > deadline)
    await this.#kill()
    rmSync(this.base, { recursive: true })
  }

  /** Kills daemon and engine, and takes the dead mount away. */
  async kill(): Promise<void> {
    await this.#kill()
    await run('umount', '--lazy', this.path)
  }

  async #kill(): Promise<void> {
    await until(() => this.processes().filter(pid => sendTo(pid, 'SIGKILL')).length === 0)
  }

  /** The daemon and the engine of this pool: its path is in their arguments. */
  processes(): number[] {
    const file = join(this.folder, 'pool.yaml')
    return readdirSync('/proc')
      .filter(name => /^\d+$/.test(name) && readIfThere(`/proc/${name}/cmdline`).includes(file))
      .map(Number)
  }
}

/** @returns whether there is such a process */
function sendTo(pid: number, signal: NodeJS.Signals): boolean {
  try {
    return process.kill(pid, signal)
  } catch {
    return false
  }
}

export function mountsWithin(folder: string): string[] {
  return readFileSync('/proc/self/mounts', 'utf8')
    .split('\n')
    .map(line => line.split(' ')[1] ?? '')
    .filter(place => place === folder || place.startsWith(`${folder}/`))
}

/** Loop devices on files of a folder. */
export function loopsWithin(folder: string): string[] {
  return readdirSync('/sys/block')
    .filter(name => readIfThere(`/sys/block/${name}/loop/backing_file`).startsWith(`${folder}/`))
    .map(name => `/dev/${name}`)
}

/**
 * Detaches the loop devices on files below a folder. Never by number: that may be another test's by
 * now.
 */
export async function detachWithin(folder: string): Promise<void> {
  for (const device of loopsWithin(folder)) await attempt('losetup', '--detach', device)
}

export interface LogLine {
  name: string
  level: number
  msg: string
  [field: string]: unknown
}

/** The lines of a pool's log; SIGKILL may cut a line short, and a reader may see half of one. */
export function logLines(path: string): LogLine[] {
  return readIfThere(path)
    .split('\n')
    .flatMap(line => {
      try {
        return [JSON.parse(line)]
      } catch {
        return []
      }
    })
}

/** A file's text; empty when it is not there, or a process's that has ended. */
export const readIfThere = (path: string): string => {
  try {
    return existsSync(path) ? readFileSync(path, 'utf8') : ''
  } catch {
    return '' // It ended meanwhile.
  }
}
