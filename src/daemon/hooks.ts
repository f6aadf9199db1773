/**
 * The command of `hooks` in pool.yaml, which is run for each event of the pool.
 *
 * The daemon runs it, which serves nothing: a command that hangs keeps nobody waiting. One runs at
 * a time, in the order of the events. timeout(1) ends it, even when the daemon has ended before.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import type { Socket } from 'node:net'
import type { Told } from '../control/index.js'
import type { Logger } from '../log/index.js'

/** Seconds that a command may take until SIGTERM, and more until SIGKILL. */
const TIMEOUT = 60
const KILL_AFTER = 5
/** Events that wait for their turn. The oldest of more are dropped: what is so now counts. */
const WAITING_MAX = 16
/** Bytes of what a command says on stderr that the log has when it fails. */
const STDERR_MAX = 1024

/** A command that is to be run for an event. */
export interface Hook {
  command: string
  event: Told
}

export class Hooks {
  readonly #log: Logger
  readonly #common: () => Record<string, string>
  readonly #timeout: number
  readonly #waiting: Hook[] = []
  #running = false

  /**
   * @param common variables of every command
   * @param timeout seconds that one may take
   */
  constructor(log: Logger, common: () => Record<string, string>, timeout = TIMEOUT) {
    this.#log = log
    this.#common = common
    this.#timeout = timeout
  }

  /** Runs the command of an event when those before it have ended. */
  run(hook: Hook): void {
    this.#waiting.push(hook)
    if (this.#waiting.length > WAITING_MAX) {
      const { event } = this.#waiting.shift()!.event
      this.#log.warn({ event }, 'hook not run: too many events wait for the one before')
    }
    this.#next()
  }

  #next(): void {
    const hook = this.#running ? undefined : this.#waiting.shift()
    if (hook === undefined) return
    this.#running = true
    void this.#run(hook).then(failure => {
      const of = { event: hook.event.event, command: hook.command }
      if (failure === null) this.#log.debug(of, 'hook run')
      else this.#log.warn({ ...of, ...failure }, 'hook failed')
      this.#running = false
      this.#next()
    })
  }

  /** @returns how it failed; null when it did not */
  #run({ command, event }: Hook): Promise<Record<string, unknown> | null> {
    return new Promise(resolve => {
      const limit = [`--kill-after=${KILL_AFTER}`, String(this.#timeout)]
      let child: ChildProcess
      try {
        child = spawn('timeout', [...limit, 'sh', '-c', command], {
          stdio: ['ignore', 'ignore', 'pipe'],
          // A session of its own: a terminal's signals are for the daemon, which unmounts.
          detached: true,
          cwd: '/',
          env: { ...process.env, ...this.#common(), ...variablesOf(event) },
        })
      } catch (err) {
        resolve({ err })
        return
      }
      child.once('error', err => resolve({ err }))
      let said = ''
      // A process that could not be made may have no streams.
      const stderr = child.stderr as Socket | null | undefined
      stderr?.on('data', (chunk: Buffer) => {
        if (said.length < STDERR_MAX) said += chunk.toString().slice(0, STDERR_MAX)
      })
      // Not `close`, which a program that the command has left behind could put off.
      child.once('exit', (status, signal) => {
        setImmediate(() => {
          stderr?.destroy()
          resolve(status === 0 ? null : { status, signal, stderr: said.trim() })
        })
      })
      // The daemon ends with the mount, whatever still runs.
      child.unref()
      stderr?.unref()
    })
  }
}

/** An event as variables of its command: `dataUsed` is THINFS_DATA_USED. */
const variablesOf = ({ time: _, ...event }: Told): Record<string, string> =>
  Object.fromEntries(
    Object.entries(event).map(([key, value]) => [
      `THINFS_${key.replace(/[A-Z]/g, '_$&').toUpperCase()}`,
      String(value),
    ]),
  )
