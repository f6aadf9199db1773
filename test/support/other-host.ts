/**
 * Another host: a mount namespace with a name, a boot id and a /run of its own. It reaches the
 * files of this one, as two hosts reach a file server; nothing that one mounts is seen by the
 * other.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import type { Test } from 'tap'
import { LET_GO } from './mount-namespace.js'
import { attempt, type Outcome } from './mounted-pool.js'

const PROGRAM = resolve(import.meta.dirname, '../../bin/thinfs.js')

/** `sh -c` with a folder, a name, and a file with a boot id: prints a line when it is a host. */
const BECOME = `${LET_GO}
mount --make-rprivate /
let_go /none
hostname "$1"
mount -t tmpfs thinfs-test /run
mount --bind "$2" /proc/sys/kernel/random/boot_id
echo
exec sleep 1000
`

export class OtherHost {
  readonly name: string
  readonly #child: ChildProcess

  private constructor(name: string, child: ChildProcess) {
    this.name = name
    this.#child = child
  }

  /** @param folder where a file of it is kept */
  static async start(t: Test, folder: string, name: string): Promise<OtherHost> {
    const bootId = join(folder, `boot-id-${name}`)
    writeFileSync(bootId, `${randomUUID()}\n`)
    const command = ['-m', '-u', '--propagation', 'slave', 'sh', '-c', BECOME, 'sh', name, bootId]
    const child = spawn('unshare', command, { stdio: ['ignore', 'pipe', 'inherit'] })
    t.teardown(() => child.kill('SIGKILL'))
    await once(child.stdout!, 'data')
    return new OtherHost(name, child)
  }

  /** Runs a program on it. */
  attempt(program: string, ...args: string[]): Promise<Outcome> {
    const into = ['-t', String(this.#child.pid), '-m', '-u']
    return attempt('nsenter', ...into, program, ...args)
  }

  /** What a program prints that has to succeed. */
  async run(program: string, ...args: string[]): Promise<string> {
    const { status, stdout, stderr } = await this.attempt(program, ...args)
    if (status === 0) return stdout.trimEnd()
    throw new Error(`${this.name}: ${program} ${args.join(' ')}: status ${status}: ${stderr}`)
  }

  /** The command line of thinfs, on it. */
  attemptThinfs(...args: string[]): Promise<Outcome> {
    return this.attempt(process.execPath, PROGRAM, ...args)
  }

  thinfs(...args: string[]): Promise<string> {
    return this.run(process.execPath, PROGRAM, ...args)
  }

  sh(script: string): Promise<string> {
    return this.run('bash', '-euo', 'pipefail', '-c', script)
  }
}
