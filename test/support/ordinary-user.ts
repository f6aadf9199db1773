/**
 * An ordinary user of the machine: its own id, no other groups, no capabilities, in a mount
 * namespace where everybody may open /dev/fuse, as on most distributions. The machine's /dev/fuse
 * stays as it is.
 *
 * Teardown ends all processes of that id, which nobody else has, and those that root has started on
 * files of the test. The mounts end with the namespace.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, mkdtempSync, readdirSync, realpathSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import type { Test } from 'tap'
import { LET_GO } from './mount-namespace.js'
import { attempt, detachWithin, type Outcome, readIfThere, until } from './mounted-pool.js'

const PROGRAM = resolve(import.meta.dirname, '../../bin/thinfs.js')
/** Above the ids of a system's own users. */
const FIRST_UID = 200_000

/**
 * For sh, with a folder, the user's id, and the paths of thinfs and node: makes the folder a file
 * system in memory, so that no test waits for a disk, and replaces /dev/fuse, /etc/passwd and
 * /etc/fuse.conf.
 */
const NAMESPACE = `set -e
${LET_GO}
mount --make-rslave /
let_go /none
mount --make-rprivate /
let_go /none
mount -t tmpfs -o mode=755 thinfs-test "$1"
cd "$1"
mkdir own tmp home home/tmp
chown -R "$2:$2" home
cd own
mknod -m 666 fuse c 10 229
mount --bind fuse /dev/fuse
cp /etc/passwd .
echo "thinfs-test:x:$2:$2::$1/home:/bin/sh" >> passwd
mount --bind passwd /etc/passwd
cp /etc/fuse.conf . 2>/dev/null || : > fuse.conf
[ ! -e /etc/fuse.conf ] || mount --bind fuse.conf /etc/fuse.conf
ln -s "$3" thinfs
ln -s "$4" node
cd /
echo
# Until the test ends, however that comes.
exec cat
`

export class OrdinaryUser {
  readonly uid: number
  /** The user's folder, where programs run. */
  readonly home: string
  /** A folder of root's: what the namespace has instead of the machine's files. */
  readonly own: string
  /** All that the test makes is in there. */
  readonly base: string
  readonly #holder: ChildProcess

  private constructor(uid: number, base: string, holder: ChildProcess) {
    this.uid = uid
    this.home = join(base, 'home')
    this.own = join(base, 'own')
    this.base = base
    this.#holder = holder
  }

  static async make(t: Test): Promise<OrdinaryUser> {
    const uid = FIRST_UID + process.pid
    const base = realpathSync(mkdtempSync(join(tmpdir(), 'thinfs-user-')))
    chmodSync(base, 0o755)
    const given = [base, String(uid), PROGRAM, process.execPath]
    const command = ['-m', '--propagation', 'unchanged', 'sh', '-c', NAMESPACE, 'sh', ...given]
    const holder = spawn('unshare', command, { stdio: ['pipe', 'pipe', 'inherit'] })
    const user = new OrdinaryUser(uid, base, holder)
    t.teardown(() => user.#end())
    const failed = once(holder, 'close').then(() => {
      throw new Error('the namespace could not be made')
    })
    await Promise.race([once(holder.stdout!, 'data'), failed])
    return user
  }

  /** Runs a bash script as the user, in the user's folder. `thinfs` and `node` are on the PATH. */
  attempt(script: string, ...args: string[]): Promise<Outcome> {
    const { uid, home } = this
    const as = [`--reuid=${uid}`, `--regid=${uid}`, '--clear-groups', '--inh-caps=-all']
    const environment = [
      `PATH=${this.#path}`,
      `HOME=${home}`,
      `TMPDIR=${home}/tmp`,
      'USER=thinfs-test',
      'LC_ALL=C.UTF-8',
    ]
    const shell = ['bash', '--norc', '-euo', 'pipefail', '-c', `cd ~; ${script}`, 'bash', ...args]
    return this.#enter('setpriv', ...as, 'env', '-i', ...environment, ...shell)
  }

  /** As `attempt`, of a script that has to succeed. @returns what it prints */
  async sh(script: string, ...args: string[]): Promise<string> {
    return printed(script, await this.attempt(script, ...args))
  }

  /** As `sh`, run by the machine's root in the same namespace, in `base`. */
  async root(script: string): Promise<string> {
    const there = ['env', '-C', this.base, `PATH=${this.#path}`, `TMPDIR=${this.base}/tmp`]
    return printed(script, await this.#enter(...there, 'sh', '-euc', script))
  }

  get #path(): string {
    return `${this.own}:${dirname(process.execPath)}:/usr/sbin:/usr/bin:/sbin:/bin`
  }

  #enter(...command: string[]): Promise<Outcome> {
    return attempt('nsenter', '-t', String(this.#holder.pid), '-m', '--', ...command)
  }

  #processes(): number[] {
    const isHis = new RegExp(`^Uid:\\s+${this.uid}\\s`, 'm')
    return readdirSync('/proc')
      .filter(name => /^\d+$/.test(name) && Number(name) !== this.#holder.pid)
      .filter(
        name =>
          isHis.test(readIfThere(`/proc/${name}/status`)) ||
          readIfThere(`/proc/${name}/cmdline`).includes(`${this.base}/`),
      )
      .map(Number)
  }

  async #end(): Promise<void> {
    await until(() => {
      const left = this.#processes()
      for (const pid of left) {
        try {
          process.kill(pid, 'SIGKILL')
        } catch {
          // It has ended.
        }
      }
      return left.length === 0
    })
    await detachWithin(this.base)
    if (this.#holder.exitCode === null) {
      const ended = once(this.#holder, 'close')
      this.#holder.stdin!.end()
      await ended
    }
    rmSync(this.base, { recursive: true, force: true })
  }
}

function printed(script: string, { status, stdout, stderr }: Outcome): string {
  if (status === 0) return stdout.trimEnd()
  throw new Error(`${script}: status ${status}: ${stdout}${stderr}`)
}
