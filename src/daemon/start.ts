/** Starting a daemon, as this process or as one of its own; and being it until the pool is unmounted. */
import { spawn } from 'node:child_process'
import { closeSync } from 'node:fs'
import { basename, dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { errnoOf, ThinfsError } from '../base/index.js'
import type { PoolConfig } from '../config/index.js'
import {
  fromWire,
  type Logger,
  makeLogger,
  makeRuntimeFolder,
  openLog,
  type WireError,
} from '../engine/index.js'
import { native } from '../native.js'
import { HeldFolder } from '../storage/index.js'
import { Daemon, type DaemonOptions } from './daemon.js'

const DAEMON_PROGRAM = fileURLToPath(new URL('./main.js', import.meta.url))
const SIGNALS = ['SIGINT', 'SIGTERM'] as const

export interface StartOptions {
  mountPoint: string
  /** Each one of MOUNT_OPTIONS. */
  mountOptions: string[]
  /** Stay in this process, which then is the daemon, and log to stderr for people. */
  foreground: boolean
  /** Take metadata that may be an older copy as it is. */
  acceptMetadata?: boolean
  /** One of LOG_LEVELS. */
  logLevel: string
  /** Default: `thinfs.log` in the pool's folder, or stderr in the foreground. */
  logFile?: string
}

/** What the daemon's process is started with, as JSON in its first argument. */
export interface DaemonStart {
  configFile: string
  options: DaemonOptions
}

/** What the daemon's process says, once, to the one that started it: null when it is mounted. */
export type DaemonStarted = WireError | null

/**
 * Mounts a pool. Resolves when it is served; in the foreground, when it was unmounted.
 * @throws what `Daemon.start` throws; DAEMON_FAILED when its process ended without a reason
 */
export async function startDaemon(
  config: PoolConfig,
  options: StartOptions,
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
    const daemon = await runDaemon(config, settings)
    await daemon.ended()
    return { pid: process.pid }
  }
  return await spawnDaemon({ configFile: config.file, options: settings })
}

/** Is the daemon: mounts the pool and answers signals, until `ended`. */
export async function runDaemon(config: PoolConfig, options: DaemonOptions): Promise<Daemon> {
  const { logLevel: level, logFile: file, foreground, mountPoint } = options
  const log = makeLogger({
    process: 'daemon',
    level,
    file: heldFile(config, file),
    pretty: foreground,
  })
  becomeIoFlusher(log)
  const starting = Daemon.start(config, options, log)
  const onSignal = (signal: string): void => {
    log.info({ signal }, 'unmounting')
    starting.then(daemon => daemon.umount()).catch(err => log.warn({ err }, 'still mounted'))
  }
  for (const signal of SIGNALS) process.on(signal, onSignal)
  // logrotate(8) and init systems mean "open your files again", and terminals that are closed nothing.
  const onHangUp = (): void => {
    starting.then(daemon => daemon.reopenLog()).catch(() => {})
  }
  process.on('SIGHUP', onHangUp)
  starting
    .then(daemon => daemon.ended())
    .then(() => log.info({ mountPoint }, 'unmounted'))
    .catch(err => log.error({ err, mountPoint }, 'ended'))
    .finally(() => {
      for (const signal of SIGNALS) process.off(signal, onSignal)
      process.off('SIGHUP', onHangUp)
    })
  return await starting
}

/** The log in the pool's folder by way of a descriptor that is never closed: the folder may be moved. */
function heldFile({ folder }: PoolConfig, file: string | null): string | null {
  if (file === null || dirname(file) !== folder) return file
  return join(HeldFolder.open(folder).held, basename(file))
}

/**
 * Memory that the engine allocates must not wait for writes to its own volumes: a loop device over
 * them would deadlock when memory is short. This is a property of threads, which those that they start
 * and their programs inherit; an engine that asked for it itself would be too late for the threads of
 * Node that flush its files. Nor may who starts engines wait for one. Needs CAP_SYS_RESOURCE.
 */
function becomeIoFlusher(log: Logger): void {
  try {
    native.process_set_io_flusher()
  } catch (err) {
    log.debug({ errno: errnoOf(err) }, 'not marked as I/O flusher')
  }
}

async function spawnDaemon(start: DaemonStart): Promise<{ pid: number }> {
  const { logFile } = start.options
  const log = openLog(logFile!)
  // Its own session, and no folder held by its working directory: it outlives who started it.
  const child = spawn(process.execPath, [DAEMON_PROGRAM, JSON.stringify(start)], {
    stdio: ['ignore', log, log, 'ipc'],
    detached: true,
    cwd: '/',
  })
  closeSync(log)
  const started = await new Promise<DaemonStarted>((resolve, reject) => {
    child.once('message', message => resolve(message as DaemonStarted))
    child.once('error', reject)
    child.once('close', (code, signal) => {
      const how = signal === null ? `with status ${code}` : `by ${signal}`
      reject(
        new ThinfsError('DAEMON_FAILED', `it ended ${how} before it was ready; see ${logFile}`),
      )
    })
  })
  if (started !== null) throw fromWire(started)
  child.disconnect()
  child.unref()
  return { pid: child.pid! }
}
