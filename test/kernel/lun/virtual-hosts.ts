/**
 * Machines with a kernel of their own, each in QEMU: one has the disks of a pool, and two reach
 * them by iSCSI, by a cable each.
 *
 * Their root is the machine's that runs the test; what they write there is in their memory.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import type { Test } from 'tap'
import type { Cables } from '../../dist/rig/failover.js'
import { Host } from '../../dist/rig/machine.js'
import { runWithin, until } from '../../support/mounted-pool.js'

const ROOT = resolve(import.meta.dirname, '../../..')
/** Seconds that a program may take there, each of whose instructions is emulated. */
const TIMEOUT = 600
/** Seconds that a machine may be there: longer than any test. */
const LIFE = 3600
/**
 * The machines that are hosts, and the network card of the storage that the cable of each ends in.
 */
const PORTS = { a: 'eth1', b: 'eth2' } as const
type Name = keyof typeof PORTS

const remote = join(import.meta.dirname, 'remote.py')
/** The loopback address at which this process reaches its machines. No other process has it. */
const HERE = `127.${64 + (process.pid >> 16)}.${(process.pid >> 8) & 255}.${process.pid & 255}`

export class VirtualHost extends Host {
  readonly #folder: string
  readonly #port: number
  readonly #options: readonly string[]
  readonly #plugIn: () => Promise<void>
  #vm: ChildProcess | null = null

  /**
   * @param folder of its files
   * @param port by which it is told what to do
   * @param options QEMU's, for what it has beside that
   * @param plugIn makes the storage reachable, before it starts
   */
  constructor(
    name: string,
    {
      folder,
      port,
      options,
      plugIn,
    }: { folder: string; port: number; options: readonly string[]; plugIn(): Promise<void> },
  ) {
    super(name, TIMEOUT)
    this.#folder = folder
    this.#port = port
    this.#options = options
    this.#plugIn = plugIn
  }

  protected override enter(command: string[]): [program: string, ...args: string[]] {
    return ['python3', remote, HERE, String(this.#port), ...command]
  }

  /** Starts it. It is a host of the storage when this resolves. */
  async boot(): Promise<void> {
    const forward = `hostfwd=tcp:${HERE}:${this.#port}-10.0.2.15:7`
    const args = [
      ...[this.#folder, join(this.#folder, 'disk'), join(import.meta.dirname, 'init')],
      ...['-netdev', `user,id=control,restrict=on,${forward}`],
      ...['-device', 'virtio-net-pci,netdev=control'],
      ...['-pidfile', join(this.#folder, 'pid')],
      ...this.#options,
    ]
    await this.#plugIn()
    const vm = spawn(join(ROOT, 'test/boot/vm'), args, {
      stdio: 'ignore',
      env: { ...process.env, VM_TIMEOUT: String(LIFE) },
    })
    this.#vm = vm
    await until(async () => {
      if (vm.exitCode === null) return (await this.attempt('true')).status === 0
      const said = ['qemu', 'console'].map(file => readFileSync(join(this.#folder, file), 'utf8'))
      throw new Error(`the machine ${this.name} ended: ${said.join('').slice(-20_000)}`)
    })
  }

  override async powerOff(): Promise<void> {
    const vm = this.#vm
    this.#vm = null
    if (vm === null || vm.exitCode !== null) return
    const ended = once(vm, 'exit')
    process.kill(Number(readFileSync(join(this.#folder, 'pid'), 'latin1')), 'SIGKILL')
    await ended
  }

  override async reboot(): Promise<void> {
    await this.powerOff()
    await this.boot()
  }
}

export class Lun implements Cables<VirtualHost> {
  /** A folder that all machines see. */
  readonly shared: string
  readonly #folder: string
  #storage!: VirtualHost
  #nrMachines = 0

  private constructor(folder: string, shared: string) {
    this.#folder = folder
    this.shared = shared
  }

  /** Starts the machine that has the disks. It ends with the test. */
  static async make(t: Test): Promise<Lun> {
    // Short: sockets in it have paths of 107 bytes.
    const folder = mkdtempSync(join(tmpdir(), 'lun-'))
    t.teardown(() => rmSync(folder, { recursive: true, force: true }))
    // The folders of all tests, in one.
    const shared = resolve(t.testdir(), '..')
    const lun = new Lun(folder, shared)
    lun.#storage = await lun.#start(t, 'storage', ['a', 'b'])
    return lun
  }

  /** @param name a or b */
  machine(t: Test, name: string): Promise<VirtualHost> {
    return this.#start(t, name, [name as Name])
  }

  cut({ name }: VirtualHost): Promise<void> {
    return this.#plug(name as Name, 'down')
  }

  heal({ name }: VirtualHost): Promise<void> {
    return this.#plug(name as Name, 'up')
  }

  async #plug(host: Name, state: 'up' | 'down'): Promise<void> {
    await this.#storage.run('ip', 'link', 'set', PORTS[host], state)
  }

  /** @param cables the hosts that they are of */
  async #start(t: Test, name: string, cables: readonly Name[]): Promise<VirtualHost> {
    const folder = join(this.#folder, name)
    mkdirSync(folder)
    writeFileSync(join(folder, 'role'), `${name}\n`)
    writeFileSync(join(folder, 'rw'), `${this.shared}\n`)
    cpSync(remote, join(folder, 'remote.py'))
    await runWithin(60, 'truncate', '-s', '256M', join(folder, 'disk'))
    const isStorage = name === 'storage'
    const options = cables.flatMap(host => {
      const ends = [join(this.#folder, `${host}.storage`), join(this.#folder, `${host}.host`)]
      const [local, far] = isStorage ? ends : ends.reverse()
      const link = `dgram,id=${host},local.type=unix,local.path=${local},remote.type=unix,remote.path=${far}`
      const mac = `52:54:00:00:0${host}:0${isStorage ? 1 : 2}`
      return ['-netdev', link, '-device', `virtio-net-pci,netdev=${host},mac=${mac}`]
    })
    const share = `local,path=${this.shared},mount_tag=rw,security_model=none`
    const machine = new VirtualHost(name, {
      folder,
      port: 7001 + this.#nrMachines++,
      options: [...options, '-virtfs', share],
      plugIn: async () => {
        if (!isStorage) await this.#plug(name as Name, 'up')
      },
    })
    t.teardown(() => machine.powerOff())
    await machine.boot()
    return machine
  }
}
