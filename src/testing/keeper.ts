/** The keeper of an ephemeral pool, as seen from the process that needs the pool: its owner. */
import { type ChildProcess, spawn } from 'node:child_process'
import { closeSync } from 'node:fs'
import { createRequire } from 'node:module'
import { fromWire, type WireError } from '../control/index.js'
import { lockAlso } from './abandoned.js'
import { clean } from './clean.js'
import { MARK } from './environment.js'
import { END, type KeeperSays, type KeeperStart } from './keeper-protocol.js'
import { Layout } from './layout.js'

const KEEPER_PROGRAM = createRequire(import.meta.url).resolve('#keeper')

export class Keeper {
  readonly #child: ChildProcess
  readonly #layout: Layout
  /** Resolves with the keeper's last word; null when it died before that. */
  readonly #ended: Promise<{ ended: WireError | null } | null>
  /** Says that somebody has the pool, should the keeper be killed. */
  #lock: number | null = null

  /**
   * Starts a keeper; resolves when the pool is mounted.
   * @throws what making or mounting a pool throws, and nothing is left
   */
  static async start(start: KeeperStart): Promise<Keeper> {
    const child = spawn(process.execPath, [KEEPER_PROGRAM, JSON.stringify(start)], {
      stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
      detached: true,
      cwd: '/',
      env: ownEnvironment(),
    })
    let made = (_: WireError | null): void => {}
    const making = new Promise<WireError | null>(resolve => {
      made = resolve
    })
    const keeper = new Keeper(child, new Layout(start.base), made)
    const failure = await Promise.race([making, keeper.#ended.then(() => DIED)])
    if (failure !== null) {
      await keeper.end().catch(() => {})
      throw fromWire(failure)
    }
    try {
      keeper.#lock = lockAlso(keeper.#layout)
    } catch (err) {
      await keeper.end().catch(() => {})
      throw err
    }
    // The keeper does not keep a process alive that has nothing else to wait for.
    child.unref()
    child.channel?.unref()
    return keeper
  }

  private constructor(
    child: ChildProcess,
    layout: Layout,
    onMade: (failure: WireError | null) => void,
  ) {
    this.#child = child
    this.#layout = layout
    this.#ended = new Promise(resolve => {
      let last: { ended: WireError | null } | null = null
      child.on('message', (message: KeeperSays) => {
        if ('made' in message) onMade(message.made)
        else last = message
      })
      child.on('error', () => resolve(null))
      child.on('close', () => resolve(last))
    })
  }

  /**
   * Takes the pool away, with all that is on it; resolves when nothing is left.
   * @throws MOUNT_BUSY naming what could not be taken away
   */
  async end(): Promise<void> {
    this.#child.ref()
    this.#child.channel?.ref()
    // The keeper may be gone already.
    if (this.#child.connected) this.#child.send(END, () => {})
    const last = await this.#ended
    try {
      // It was killed: what is left is ours to take away.
      if (last === null) await clean(this.#layout, process.pid)
      else if (last.ended !== null) throw fromWire(last.ended)
    } finally {
      if (this.#lock !== null) closeSync(this.#lock)
      this.#lock = null
    }
  }
}

const DIED: WireError = {
  code: 'DAEMON_FAILED',
  errno: 'EIO',
  message: 'the keeper of the pool ended before the pool was mounted',
}

/**
 * Leaves out what test runners have child processes load, and the mark of `thinfs run`'s processes.
 */
function ownEnvironment(): NodeJS.ProcessEnv {
  const { NODE_OPTIONS: _, NODE_V8_COVERAGE: __, [MARK]: ___, ...environment } = process.env
  return environment
}
