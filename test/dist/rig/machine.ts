/**
 * Machines on one network, as far as thinfs can tell: each has namespaces of its own for network,
 * processes, mounts and names, a boot id, a machine id and a /run that no other has. The kernel and
 * /tmp are the same for all.
 *
 * A machine ends with its first process, and that with the process that started it: whatever way a
 * test ends, nothing of it is left.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import { LET_GO } from '../../support/mount-namespace.js'
import { attempt, attemptWithin, type Outcome, run, runWithin } from '../../support/mounted-pool.js'

/**
 * Seconds that a program may take on one of several machines, which share the processors of one.
 */
const PATIENCE = 300

/** `sh -c` with the machine's folder and its name: makes the machine, says so, and stays. */
const INIT = `${LET_GO}
set -eu
let_go "$1"
mount -t tmpfs run /run
echo "$2" > /proc/sys/kernel/hostname
mount --bind "$1/boot_id" /proc/sys/kernel/random/boot_id
mount --bind "$1/machine-id" /etc/machine-id
ip link set lo up
exec python3 -c '
import signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Whatever ends here leaves no zombie.
print(flush=True)
sys.stdin.read()  # Until the test lets go of the other end, or dies.
'`

const UNSHARE = [
  ...['--mount', '--propagation', 'private', '--uts', '--ipc', '--net', '--pid', '--mount-proc'],
  ...['--fork', '--kill-child'],
]

/** A folder for the files of a rig. Short: sockets in it have paths of 107 bytes. */
function rigFolder(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'dist-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

export class Network {
  readonly folder: string
  readonly #switch: Namespaces
  #nrMachines = 0

  private constructor(folder: string, theSwitch: Namespaces) {
    this.folder = folder
    this.#switch = theSwitch
  }

  /** A network that lasts as long as the test, and its machines with it. */
  static async make(t: Test): Promise<Network> {
    const folder = rigFolder(t)
    const theSwitch = await Namespaces.make(join(folder, 'switch'), 'switch')
    t.teardown(() => theSwitch.end())
    const network = new Network(folder, theSwitch)
    await network.#ip('link', 'add', 'br0', 'type', 'bridge')
    await network.#ip('link', 'set', 'br0', 'up')
    return network
  }

  /** Starts a machine. It ends with the test. */
  async machine(t: Test, name: string): Promise<Machine> {
    const number = ++this.#nrMachines
    const folder = join(this.folder, name)
    const machine = new Machine(name, folder, `10.77.0.${number}`, namespaces =>
      this.#connect(number, namespaces),
    )
    t.teardown(() => machine.powerOff())
    await machine.boot()
    return machine
  }

  /** Takes the machine's cable out: whatever it sends, or is sent, is lost. */
  cut({ address }: Machine): Promise<void> {
    return this.#set(address, 'down')
  }

  heal({ address }: Machine): Promise<void> {
    return this.#set(address, 'up')
  }

  async #set(address: string, state: 'up' | 'down'): Promise<void> {
    await this.#ip('link', 'set', `port${address.split('.').at(-1)}`, state)
  }

  async #connect(number: number, { pid }: Namespaces): Promise<void> {
    const port = `port${number}`
    // A cable that was of a machine which has just lost its power may not be gone yet.
    await attempt('nsenter', `--net=/proc/${this.#switch.pid}/ns/net`, 'ip', 'link', 'del', port)
    const peer = ['type', 'veth', 'peer', 'name', 'eth0', 'netns', String(pid)]
    await this.#ip('link', 'add', port, ...peer)
    await this.#ip('link', 'set', port, 'master', 'br0', 'up')
    const inside = (...args: string[]) => run('nsenter', `--net=/proc/${pid}/ns/net`, 'ip', ...args)
    await inside('addr', 'add', `10.77.0.${number}/24`, 'dev', 'eth0')
    await inside('link', 'set', 'eth0', 'up')
  }

  /** ip(8) on the switch. */
  async #ip(...args: string[]): Promise<void> {
    await run('nsenter', `--net=/proc/${this.#switch.pid}/ns/net`, 'ip', ...args)
  }
}

/** A machine that runs programs, whatever it is. */
export abstract class Host {
  readonly name: string
  readonly #timeout: number

  /** @param timeout seconds that a program may take */
  constructor(name: string, timeout = PATIENCE) {
    this.name = name
    this.#timeout = timeout
  }

  /** Ends all of its processes at once. What only its memory had is lost. */
  abstract powerOff(): Promise<void>

  abstract reboot(): Promise<void>

  /** The arguments that make a command one of this machine. */
  protected abstract enter(command: string[]): [program: string, ...args: string[]]

  run(...command: string[]): Promise<string> {
    return runWithin(this.#timeout, ...this.enter(command))
  }

  attempt(...command: string[]): Promise<Outcome> {
    const [program, ...args] = this.enter(command)
    return attemptWithin(this.#timeout, program, args)
  }

  /** A script whose every command has to succeed; its arguments are `$1`, `$2`, … */
  sh(script: string, ...args: string[]): Promise<string> {
    return this.run('bash', '-euo', 'pipefail', '-c', script, 'bash', ...args)
  }

  /** Starts a program there, whose output is its caller's to read. */
  spawn(...command: string[]): ChildProcess {
    const [program, ...args] = this.enter(command)
    return spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] })
  }

  /** The pid that processes of the machine have for themselves is good only there. */
  kill(signal: 'KILL' | 'STOP' | 'CONT', ...pids: number[]): Promise<string> {
    return this.run('kill', `-${signal}`, ...pids.map(String))
  }
}

export class Machine extends Host {
  readonly address: string
  /** A folder that everybody sees, and that stays when the power goes. */
  readonly folder: string
  readonly #connect: (namespaces: Namespaces) => Promise<void>
  #namespaces: Namespaces | null = null

  constructor(
    name: string,
    folder: string,
    address: string,
    connect: (namespaces: Namespaces) => Promise<void>,
  ) {
    super(name)
    this.folder = folder
    this.address = address
    this.#connect = connect
  }

  /** The file of its network namespace. */
  get netns(): string {
    return `/proc/${this.#namespaces!.pid}/ns/net`
  }

  /** Starts it, with a new boot id. */
  async boot(): Promise<void> {
    this.#namespaces = await Namespaces.make(this.folder, this.name)
    await this.#connect(this.#namespaces)
  }

  override async powerOff(): Promise<void> {
    await this.#namespaces?.end()
    this.#namespaces = null
  }

  override async reboot(): Promise<void> {
    await this.powerOff()
    await this.boot()
  }

  protected override enter(command: string[]): [program: string, ...args: string[]] {
    const { pid } = this.#namespaces!
    const spaces = ['--mount', '--uts', '--ipc', '--net', '--pid']
    return ['nsenter', '--target', String(pid), ...spaces, ...command]
  }
}

/** The namespaces of a machine, as long as their first process lives. */
class Namespaces {
  /** Of that process, to those outside. */
  readonly pid: number
  readonly #unshare: ChildProcess

  private constructor(unshare: ChildProcess) {
    this.#unshare = unshare
    const { pid } = unshare
    this.pid = Number(readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8'))
  }

  static async make(folder: string, name: string): Promise<Namespaces> {
    mkdirSync(folder, { recursive: true })
    writeFileSync(join(folder, 'boot_id'), `${randomUUID()}\n`)
    const machineId = join(folder, 'machine-id')
    try {
      writeFileSync(machineId, `${randomUUID().replaceAll('-', '')}\n`, { flag: 'wx' })
    } catch {
      // It keeps the one of its first boot.
    }
    const unshare = spawn('unshare', [...UNSHARE, 'sh', '-c', INIT, 'sh', folder, name], {
      stdio: ['pipe', 'pipe', 'inherit'],
    })
    // A program that has not been found has no other way to say so.
    const failed = once(unshare, 'close').then(([code]) => {
      throw new Error(`the machine ${name} did not start: status ${code}`)
    })
    failed.catch(() => {})
    await Promise.race([once(unshare.stdout!, 'data'), failed])
    return new Namespaces(unshare)
  }

  /** Resolves when all processes of the machine are gone: its first one ends after them. */
  async end(): Promise<void> {
    if (this.#unshare.exitCode !== null || this.#unshare.signalCode !== null) return
    const ended = once(this.#unshare, 'exit')
    this.#unshare.stdin!.end()
    await ended
  }
}
