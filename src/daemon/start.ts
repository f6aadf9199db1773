/** Starting a daemon, as this process or as one of its own. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join, resolve } from 'node:path'
import { EndedBySignal, inTime, ThinfsError } from '../base/index.js'
import type { PoolConfig } from '../config/index.js'
import { fromWire, makeRuntimeFolder, type Opening, type WireError } from '../control/index.js'
import { unmountDead } from '../host/index.js'
import { openLog } from '../log/index.js'
import type { TakeOver } from '../volumes/index.js'
import type { DaemonOptions } from './daemon.js'
import { serversOf } from './pool-lock.js'
import { SIGNALS } from './signals.js'

const DAEMON_PROGRAM = createRequire(import.meta.url).resolve('#daemon')

export interface StartOptions {
  mountPoint: string
  /** As `mountOptionsOf` takes them. */
  mountOptions: string[]
  /** Stay in this process, which then is the daemon, and log to stderr for people. */
  foreground: boolean
  /** Take metadata that may be an older copy as it is. */
  acceptMetadata?: boolean
  /** Seconds to wait for a command that has the pool; default 0. */
  wait?: number
  /** Take the pool over from another host. */
  takeOver?: TakeOver
  /** One of LOG_LEVELS. */
  logLevel: string
  /** Default: `thinfs.log` in the pool's folder, or stderr in the foreground. */
  logFile?: string
}

/** Called with how far a pool is that takes long to be opened. */
export type OnOpening = (progress: Opening) => void

/** The parameters of the daemon's process, as JSON in its first argument. */
export interface DaemonStart {
  configFile: string
  options: DaemonOptions
}

/**
 * A message of the daemon's process to its starter: how far it is, any number of times, and once
 * that the pool is mounted (null), or why it is not.
 */
export type DaemonMessage = { opening: Opening } | { started: WireError | null }

/**
 * Mounts a pool. Resolves when it is served; in the foreground, when it was unmounted.
 * @throws what `Daemon.start` throws; DAEMON_FAILED when its process ended without a reason;
 *   CANCELLED when a signal came before: nothing is mounted
 */
export async function startDaemon(
  config: PoolConfig,
  options: StartOptions,
  onOpening: OnOpening = () => {},
): Promise<{ pid: number }> {
  const { foreground } = options
  const logFile =
    options.logFile ?? (foreground ? null : join(makeRuntimeFolder(config.folder), 'thinfs.log'))
  const settings: DaemonOptions = {
    ...options,
    mountPoint: resolve(options.mountPoint),
    logFile: logFile === null ? null : resolve(logFile),
  }
  if (foreground) {
    const { runDaemon } = await import('./run.js')
    const daemon = await runDaemon(config, settings)
    await daemon.ended()
    return { pid: process.pid }
  }
  return await spawnDaemon({ configFile: config.file, options: settings }, onOpening)
}

/** Milliseconds that a daemon which could not mount may take to end. */
const ENDING_MS = 2000

/**
 * Takes away the mount that a daemon may have left when it could not serve: it was short of
 * something, of descriptors for instance. If that fails, the next `thinfs mount` does it.
 */
async function clearMount(child: ChildProcess, file: string): Promise<void> {
  const hasEnded = child.pid === undefined || child.exitCode !== null || child.signalCode !== null
  if (!hasEnded) await inTime(ENDING_MS, once(child, 'close'), [])
  if (serversOf(file).length === 0) await unmountDead(file).catch(() => {})
}

async function spawnDaemon(start: DaemonStart, onOpening: OnOpening): Promise<{ pid: number }> {
  const { logFile } = start.options
  const log = openLog(logFile!)
  // It outlives this process: its own session, and no folder held by its working directory.
  const child = spawn(process.execPath, [DAEMON_PROGRAM, JSON.stringify(start)], {
    stdio: ['ignore', log, log, 'ipc'],
    detached: true,
    cwd: '/',
  })
  closeSync(log)
  let ended: NodeJS.Signals | null = null
  const onSignal = (signal: NodeJS.Signals): void => {
    ended = signal
    // It takes away what it has made. If it is ready by now, it unmounts.
    child.kill('SIGTERM')
  }
  // The second one ends this process at once.
  for (const signal of SIGNALS) process.once(signal, onSignal)
  try {
    const started = await new Promise<WireError | null>((resolve, reject) => {
      child.on('message', (message: DaemonMessage) => {
        if ('opening' in message) onOpening(message.opening)
        else resolve(message.started)
      })
      child.once('error', reject)
      child.once('close', (code, signal) => {
        const how = signal === null ? `with status ${code}` : `by ${signal}`
        reject(
          new ThinfsError('DAEMON_FAILED', `it ended ${how} before it was ready; see ${logFile}`),
        )
      })
    })
    if (started !== null) throw fromWire(started)
  } catch (err) {
    if (ended === null) {
      await clearMount(child, start.configFile)
      throw err
    }
  } finally {
    for (const signal of SIGNALS) process.off(signal, onSignal)
  }
  if (ended !== null) {
    if (child.exitCode === null && child.signalCode === null) await once(child, 'close')
    throw new EndedBySignal(ended, `mounting ${start.configFile}`)
  }
  child.disconnect()
  child.unref()
  return { pid: child.pid! }
}
