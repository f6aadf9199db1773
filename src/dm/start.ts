/** Starting the service as a process of its own, and being it. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, mkdirSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname } from 'node:path'
import type { MessageConnection } from 'vscode-jsonrpc/node'
import { ThinfsError } from '../base/index.js'
import {
  connectControlSocket,
  DM_STATUS,
  DM_STOP,
  type DmStatus,
  fromResponseError,
  fromWire,
  mustSpeakOurs,
  type WireError,
} from '../control/index.js'
import { makeLogger, openLog, reopenLog } from '../log/index.js'
import {
  CONTROL_SOCKET,
  DmService,
  type DmServiceOptions,
  mustBeAble,
  notRunning,
} from './service.js'

const PROGRAM = createRequire(import.meta.url).resolve('#dm')
const DEFAULT_LOG = '/var/log/thinfs-dm.log'
/** Calls that wait for a freeze or a loop device hold a thread each. */
const THREADS = '32'

export interface StartOptions {
  foreground: boolean
  logLevel: string
  /** Default: a file in /var/log, or stderr in the foreground. */
  logFile?: string
}

/** The one message of the process to its starter: null when it is ready. */
type Started = WireError | null

/**
 * Starts the service; resolves when it is ready, in the foreground when it was stopped.
 * @throws what `DmService.start` throws
 */
export async function startDm(options: StartOptions): Promise<{ pid: number }> {
  // Before the log is opened, which may have the same cause and says less.
  await mustBeAble()
  const { foreground, logLevel } = options
  const logFile = options.logFile ?? (foreground ? null : DEFAULT_LOG)
  if (logFile !== null) mkdirSync(dirname(logFile), { recursive: true })
  const settings: DmServiceOptions = { foreground, logLevel, logFile }
  const log = logFile === null ? 2 : openLog(logFile)
  const child = spawn(process.execPath, [PROGRAM, JSON.stringify(settings)], {
    stdio: ['ignore', log, log, 'ipc'],
    detached: true,
    cwd: '/',
    env: { UV_THREADPOOL_SIZE: THREADS, ...process.env },
  })
  if (log !== 2) closeSync(log)
  const started = await new Promise<Started>((resolve, reject) => {
    child.once('message', message => resolve(message as Started))
    child.once('error', reject)
    child.once('close', (code, signal) => {
      const how = signal === null ? `with status ${code}` : `by ${signal}`
      reject(new ThinfsError('DAEMON_FAILED', `it ended ${how} before it was ready`))
    })
  })
  if (started !== null) throw fromWire(started)
  child.disconnect()
  if (foreground) {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) {
      process.on(signal, () => child.kill(signal))
    }
    await once(child, 'close')
  } else {
    child.unref()
  }
  return { pid: child.pid! }
}

/**
 * Is the service, until it is stopped.
 * @param ready called once, with why it could not start or null
 */
export async function runDm(
  options: DmServiceOptions,
  ready: (failure: unknown) => void,
): Promise<void> {
  const { logLevel: level, logFile: file, foreground } = options
  const log = makeLogger({ process: 'daemon', level, file, pretty: foreground })
  let service: DmService
  try {
    service = await DmService.start(options, log)
  } catch (err) {
    ready(err)
    return
  }
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.on(signal, () => {
      service.stop().catch(err => log.warn({ err, signal }, 'not stopped'))
    })
  }
  process.on('SIGHUP', () => reopenLog(log))
  ready(null)
  await service.ended
  log.info('stopped')
}

/** @throws NOT_MOUNTED when it does not run, VERSION_MISMATCH when it is of another thinfs */
export async function dmStatus(): Promise<DmStatus> {
  const { protocol, ...status } = await ask(service => service.sendRequest(DM_STATUS))
  mustSpeakOurs(protocol, 'the service', 'thinfs dm --stop, then thinfs dm')
  return status
}

/** Resolves when all is taken down. @throws NOT_MOUNTED, MOUNT_BUSY */
export async function stopDm(): Promise<void> {
  await ask(service => service.sendRequest(DM_STOP))
}

async function ask<T>(request: (service: MessageConnection) => Promise<T>): Promise<T> {
  const service = await connectControlSocket(CONTROL_SOCKET)
  if (service === null) throw notRunning()
  try {
    return await request(service)
  } catch (err) {
    throw fromResponseError(err)
  } finally {
    service.dispose()
  }
}
