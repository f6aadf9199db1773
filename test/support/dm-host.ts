/**
 * The device-mapper service on a machine of its own, as far as that goes: a mount namespace with
 * its own
 * /run, so that /dev/mapper and /proc/devices of other tests stay as they are. Programs run in it.
 *
 * Teardown unmounts what is mounted from devices, stops the service, and detaches loop devices,
 * whatever state a failed test has left.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, mkdtempSync, realpathSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import type { Test } from 'tap'
import type { DmStatus } from '../../src/control/index.js'
import { LET_GO } from './mount-namespace.js'
import { attempt, detachWithin, type Outcome } from './mounted-pool.js'

const PROGRAM = resolve(import.meta.dirname, '../../bin/thinfs.js')
/** LVM's archives are not for tests, and its monitor is a process that stays. */
const NAMESPACE = `${LET_GO}
let_go /none
mount --make-rprivate /
let_go /none
mount -t tmpfs thinfs-test /run
for folder in /etc/lvm/archive /etc/lvm/backup; do
  [ ! -d $folder ] || mount -t tmpfs thinfs-test $folder
done
let_go /none
echo
# Until the test ends, however that comes.
exec cat
`

export class DmHost {
  readonly folder: string
  readonly log: string
  readonly #holder: ChildProcess

  private constructor(folder: string, holder: ChildProcess) {
    this.folder = folder
    this.log = join(folder, 'log')
    this.#holder = holder
  }

  /** Makes the namespace and starts the service in it. */
  static async start(t: Test): Promise<DmHost> {
    // A folder that one service makes and removes would take the mounts of others with it.
    if (!existsSync('/dev/mapper')) mkdirSync('/dev/mapper')
    const folder = realpathSync(mkdtempSync(join(tmpdir(), 'thinfs-dm-')))
    // Loop devices are the machine's: two services would race for the same numbers.
    const alone = ['--no-fork', join(tmpdir(), 'thinfs-test-dm.lock')]
    const unshare = ['unshare', '-m', '--propagation', 'slave', 'sh', '-c', NAMESPACE]
    const holder = spawn('flock', [...alone, ...unshare], { stdio: ['pipe', 'pipe', 'inherit'] })
    await once(holder.stdout!, 'data')
    const host = new DmHost(folder, holder)
    t.teardown(() => host.#end())
    await host.startService()
    return host
  }

  async startService(): Promise<void> {
    await this.run(process.execPath, PROGRAM, 'dm', '--log-file', this.log)
  }

  async stopService(): Promise<void> {
    await this.run(process.execPath, PROGRAM, 'dm', '--stop')
  }

  async status(): Promise<DmStatus> {
    const { stdout } = await this.attempt(process.execPath, PROGRAM, 'dm', '--status', '--json')
    return JSON.parse(stdout)
  }

  attempt(program: string, ...args: string[]): Promise<Outcome> {
    const pid = String(this.#holder.pid)
    // The folder as it is there: its mounts are.
    const there = ['sh', '-c', 'cd "$0" && exec "$@"', this.folder, program, ...args]
    return attempt('nsenter', '-t', pid, '-m', '--', ...there)
  }

  /** Starts a program, which the caller ends. */
  spawn(program: string, ...args: string[]): ChildProcess {
    const there = ['-t', String(this.#holder.pid), '-m', '--', program, ...args]
    return spawn('nsenter', there, { stdio: 'ignore' })
  }

  /** What a program prints that has to succeed. */
  async run(program: string, ...args: string[]): Promise<string> {
    const { status, stdout, stderr } = await this.attempt(program, ...args)
    if (status === 0) return stdout
    throw new Error(`${program} ${args.join(' ')}: status ${status}: ${stdout}${stderr}`)
  }

  /** A line as people type it. */
  sh(line: string): Promise<string> {
    return this.run('sh', '-ec', line)
  }

  /** What the line says that has to fail. */
  async fails(line: string): Promise<string> {
    const { status, stdout, stderr } = await this.attempt('sh', '-ec', line)
    if (status === 0) throw new Error(`${line}: did not fail: ${stdout}`)
    return stdout + stderr
  }

  /** What `thinfs dm` says that has to fail. */
  dmFails(...options: string[]): Promise<string> {
    return this.fails([process.execPath, PROGRAM, 'dm', ...options].join(' '))
  }

  /** A loop device on a new sparse file of the folder. */
  async loop(name: string, size: string): Promise<string> {
    await this.run('truncate', '-s', size, name)
    const path = (await this.run('losetup', '--find', '--show', name)).trim()
    return path
  }

  async #end(): Promise<void> {
    // LVM's monitor outlives the commands that start it.
    await this.attempt('sh', '-c', '[ ! -f /run/dmeventd.pid ] || kill $(cat /run/dmeventd.pid)')
    await this.attempt('sh', '-c', `umount -l ${this.folder}/*/ 2>/dev/null`)
    const dm = `${process.execPath} ${PROGRAM} dm`
    // What a failed test has left suspended would be waited for.
    const { status } = await this.attempt('sh', '-c', `timeout 20 ${dm} --stop`)
    if (status !== 0) await this.#kill()
    await detachWithin(this.folder)
    this.#holder.kill()
    rmSync(this.folder, { recursive: true, force: true })
  }

  /** Ends service and engine as a last resort, and what they have left. */
  async #kill(): Promise<void> {
    const status = await this.status().catch(() => null)
    for (const pid of status === null ? [] : [status.pid, status.enginePid]) {
      try {
        process.kill(pid, 'SIGKILL')
      } catch {
        // It has ended.
      }
    }
    for (const { loop } of status?.devices ?? []) await attempt('losetup', '-d', loop)
    await this.attempt('umount', '-l', '/dev/mapper', '/proc/devices', '/run/thinfs-dm/dev')
  }
}
