/**
 * `thinfs dm` in a mount namespace of its own: /dev/mapper and /proc/devices of this machine stay.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { MIB } from '../src/base/index.js'
import type { DmStatus } from '../src/control/index.js'
import { compile, sparseFile, THINFS } from './servers.js'

const exec = promisify(execFile)
const NAMESPACE = 'mount --make-rprivate / && mount -t tmpfs thinfs-bench /run && echo && exec cat'

export class DmService {
  /** LVM's settings, and what was made in it. */
  readonly folder: string
  readonly #holder: ChildProcess
  readonly #client: string
  readonly #loops: string[] = []

  /** @param folder is there, and empty */
  static async start(folder: string): Promise<DmService> {
    const client = join(folder, 'dm-client')
    await compile('dm-client', client)
    const holder = spawn('unshare', ['-m', '--propagation', 'slave', 'sh', '-c', NAMESPACE], {
      stdio: ['pipe', 'pipe', 'inherit'],
    })
    await once(holder.stdout!, 'data')
    const service = new DmService(folder, holder, client)
    try {
      await service.run(...THINFS, 'dm', '--log-file', join(folder, 'log'))
      return service
    } catch (err) {
      holder.kill()
      throw err
    }
  }

  private constructor(folder: string, holder: ChildProcess, client: string) {
    this.folder = folder
    this.#holder = holder
    this.#client = client
  }

  /** The output of a program that runs there. */
  async run(...command: string[]): Promise<string> {
    const env = { ...process.env, LVM_SYSTEM_DIR: this.folder, LVM_SUPPRESS_FD_WARNINGS: '1' }
    const args = ['-t', String(this.#holder.pid), '-m', '--', ...command]
    const { stdout } = await exec('nsenter', args, { env, maxBuffer: 16 * MIB })
    return stdout
  }

  /** A loop device on a new sparse file. */
  async loop(name: string, size: number): Promise<string> {
    const file = sparseFile(join(this.folder, name), size)
    const { stdout } = await exec('losetup', ['--find', '--show', file])
    this.#loops.push(stdout.trim())
    return stdout.trim()
  }

  /** A volume group, whose disks alone LVM looks at from now on. */
  async group(name: string, ...disks: string[]): Promise<void> {
    const accepted = disks.map(disk => `"a|^${disk}$|"`).join(', ')
    const settings = [
      `devices { filter = [ ${accepted}, "r|.*|" ] }`,
      'activation { monitoring = 0 }',
      'backup { backup = 0 archive = 0 }',
    ]
    writeFileSync(join(this.folder, 'lvm.conf'), settings.join('\n'))
    await this.run('vgcreate', name, ...disks)
  }

  /** Figures of dm-client by their names. */
  async client(...args: string[]): Promise<Record<string, number>> {
    const lines = (await this.run(this.#client, ...args)).trim().split('\n')
    return Object.fromEntries(
      lines.map(line => {
        const [name, figure] = line.split(' ') as [string, string]
        return [name, Number(figure)]
      }),
    )
  }

  async status(): Promise<DmStatus> {
    return JSON.parse(await this.run(...THINFS, 'dm', '--status', '--json'))
  }

  /** Bytes of memory that its two processes have. */
  async memory(): Promise<number> {
    const { pid: service, enginePid } = await this.status()
    const resident = [service, enginePid].map(pid => {
      const text = readFileSync(`/proc/${pid}/status`, 'latin1')
      return Number(/^VmRSS:\s+(\d+)/m.exec(text)![1]) * 1024
    })
    return resident.reduce((sum, bytes) => sum + bytes, 0)
  }

  async stop(): Promise<void> {
    try {
      await this.run(...THINFS, 'dm', '--stop')
    } finally {
      for (const loop of this.#loops) await exec('losetup', ['--detach', loop])
      this.#holder.kill()
    }
  }
}
