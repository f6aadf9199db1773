/**
 * Tells the service manager that started a foreground mount how it is: systemd, for a unit of
 * Type=notify. Source: sd_notify(3).
 */
import type { Logger } from '../log/index.js'
import { native } from '../native.js'

export class ServiceManager {
  readonly #socket: string | undefined
  readonly #log: Logger

  /** Takes the manager's socket out of the environment: no process that this one starts has it. */
  constructor(log: Logger) {
    this.#log = log
    this.#socket = process.env.NOTIFY_SOCKET
    delete process.env.NOTIFY_SOCKET
  }

  /** @param status for people, in one line */
  ready(status?: string): void {
    this.#tell('READY=1', ...(status === undefined ? [] : [`STATUS=${status}`]))
  }

  /** Until the next `ready`. */
  reloading(): void {
    const now = process.hrtime.bigint() / 1000n
    this.#tell('RELOADING=1', `MONOTONIC_USEC=${now}`)
  }

  /** This process ends of itself now. Before that is certain the manager must not hear of it. */
  stopping(): void {
    this.#tell('STOPPING=1')
  }

  #tell(...lines: string[]): void {
    if (!this.#socket) return
    try {
      native.socket_send_text(this.#socket, lines.join('\n'))
    } catch (err) {
      this.#log.warn({ err, socket: this.#socket }, 'the service manager was not told')
    }
  }
}
