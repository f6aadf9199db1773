/**
 * Hosts that have a client of a Ceph cluster: rbd-client.ts in a process, here or in a namespace.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import type { Test } from 'tap'

const PROGRAM = join(import.meta.dirname, 'rbd-client.ts')

export interface HostError {
  code: string
  errno: string
  message: string
}

interface Answer {
  id?: number
  result: never
  error?: HostError
  lost?: { code: string; message: string }
}

export class RbdHost {
  readonly #child: ChildProcess
  readonly #asked = new Map<
    number,
    { resolve(result: never): void; reject(err: HostError): void }
  >()
  #nextId = 0
  /** Settles with what its tenancy was lost for. */
  readonly lost: Promise<{ code: string; message: string }>

  /** @param netns where it runs; null: where the test does */
  static async start(t: Test, netns: string | null = null): Promise<RbdHost> {
    const node = [process.execPath, '--import=tsx', PROGRAM]
    const [program, ...args] = netns === null ? node : ['nsenter', `--net=${netns}`, ...node]
    const child = spawn(program!, args, { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
    const host = new RbdHost(child)
    t.teardown(() => host.kill())
    await once(child, 'message')
    return host
  }

  private constructor(child: ChildProcess) {
    this.#child = child
    this.lost = new Promise(resolve => {
      child.on('message', message => {
        const { id, result, error, lost } = message as Answer
        if (lost !== undefined) resolve(lost)
        if (id === undefined) return
        const asked = this.#asked.get(id)
        this.#asked.delete(id)
        if (error === undefined) asked?.resolve(result)
        else asked?.reject(Object.assign(new Error(error.message), error))
      })
    })
    child.on('exit', () => {
      for (const { reject } of this.#asked.values()) {
        reject(Object.assign(new Error('the host has died'), { code: 'DIED', errno: '' }))
      }
    })
  }

  /** Does what a command of rbd-client.ts does. */
  ask<T>(name: string, ...args: unknown[]): Promise<T> {
    const id = this.#nextId++
    return new Promise((resolve, reject) => {
      this.#asked.set(id, { resolve: resolve as (result: never) => void, reject })
      this.#child.send({ id, name, args })
    })
  }

  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal)
  }

  /** How it ended. */
  async ended(): Promise<number | string | null> {
    const { exitCode, signalCode } = this.#child
    if (exitCode !== null || signalCode !== null) return exitCode ?? signalCode
    const [status, signal] = await once(this.#child, 'exit')
    return status ?? signal
  }

  async kill(): Promise<void> {
    const { exitCode, signalCode } = this.#child
    if (exitCode !== null || signalCode !== null) return
    const ended = once(this.#child, 'exit')
    this.#child.kill('SIGKILL')
    await ended
  }
}
