/** A machine that serves disks by NBD over TCP, to one client at a time each. */
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, openSync, rmSync, truncateSync } from 'node:fs'
import { join, resolve } from 'node:path'
import type { Machine } from './machine.js'

const PROGRAM = resolve(import.meta.dirname, 'nbd-servers.py')
const FIRST_PORT = 10809

export class NbdServers {
  readonly machine: Machine
  readonly #kind: 'nbdkit' | 'qemu-nbd'
  readonly #disks: Readonly<Record<string, number>>
  #program: ChildProcess | null = null

  /** @param disks names, and sizes in bytes */
  constructor(
    machine: Machine,
    kind: 'nbdkit' | 'qemu-nbd',
    disks: Readonly<Record<string, number>>,
  ) {
    this.machine = machine
    this.#kind = kind
    this.#disks = disks
  }

  /** Serves disks that are empty. */
  async start(): Promise<void> {
    await this.stop()
    for (const [name, size] of Object.entries(this.#disks)) {
      const path = this.fileOf(name)
      rmSync(path, { force: true })
      closeSync(openSync(path, 'wx'))
      truncateSync(path, size)
    }
    const { folder } = this.machine
    const args = [PROGRAM, this.#kind, folder, ...Object.keys(this.#disks)]
    this.#program = this.machine.spawn('python3', ...args)
    const { stdout, stderr } = this.#program
    let said = ''
    stderr!.on('data', text => {
      said += text
    })
    const ended = once(this.#program, 'close').then(() => {
      throw new Error(`the NBD servers: ${said}`)
    })
    ended.catch(() => {})
    await Promise.race([once(stdout!, 'data'), ended])
  }

  /** The servers end with the machine as well. */
  async stop(): Promise<void> {
    if (this.#program === null) return
    await this.machine.reboot()
    this.#program = null
  }

  /** What a disk holds, to everybody. */
  fileOf(disk: string): string {
    return join(this.machine.folder, disk)
  }

  addressOf(disk: string): string {
    const port = FIRST_PORT + Object.keys(this.#disks).indexOf(disk)
    return `nbd://${this.machine.address}:${port}/`
  }

  /** What a host runs to be the only one that writes. */
  get fence(): string[] {
    return ['python3', resolve(import.meta.dirname, 'fence.py'), this.machine.address]
  }
}
