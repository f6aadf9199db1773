/** Being the daemon until the pool is unmounted. */
import { basename, dirname, join } from 'node:path'
import { EndedBySignal, errnoOf } from '../base/index.js'
import type { PoolConfig } from '../config/index.js'
import type { Opening } from '../control/index.js'
import { type Logger, makeLogger } from '../log/index.js'
import { native } from '../native.js'
import { HeldFolder } from '../storage/index.js'
import { Daemon, type DaemonOptions } from './daemon.js'
import { ServiceManager } from './service-manager.js'
import { SIGNALS } from './signals.js'

/**
 * Is the daemon: mounts the pool and answers signals, until `ended`.
 * @param onOpening called with how far it is, where opening the pool takes long
 * @throws what `Daemon.start` throws; CANCELLED when a signal came before the pool was served
 */
export async function runDaemon(
  config: PoolConfig,
  options: DaemonOptions,
  onOpening?: (progress: Opening) => void,
): Promise<Daemon> {
  const { logLevel: level, logFile: file, foreground, mountPoint } = options
  const log = makeLogger({
    process: 'daemon',
    level,
    file: heldFile(config, file),
    pretty: foreground,
  })
  becomeIoFlusher(log)
  const manager = new ServiceManager(log)
  const ending = new AbortController()
  const starting = Daemon.start(config, options, log, undefined, ending.signal, onOpening)
  const onSignal = (signal: NodeJS.Signals): void => {
    log.info({ signal }, 'unmounting')
    ending.abort(new EndedBySignal(signal, `mounting ${config.file}`))
    starting.then(
      daemon => daemon.umountInOrder().catch(err => log.warn({ err }, 'still mounted')),
      () => {},
    )
  }
  for (const signal of SIGNALS) process.on(signal, onSignal)
  // logrotate(8) and init systems mean "open your files again", and terminals that are closed
  // nothing.
  const onHangUp = (): void => {
    starting
      .then(daemon => {
        manager.reloading()
        daemon.reopenLog()
        manager.ready()
      })
      .catch(() => {})
  }
  process.on('SIGHUP', onHangUp)
  starting
    .then(daemon => {
      manager.ready(`${config.file} at ${mountPoint}`)
      return daemon.ended()
    })
    .finally(() => manager.stopping())
    .then(() => log.info({ mountPoint }, 'unmounted'))
    .catch(err =>
      log[ending.signal.reason === err ? 'info' : 'error']({ err, mountPoint }, 'ended'),
    )
    .finally(() => {
      for (const signal of SIGNALS) process.off(signal, onSignal)
      process.off('SIGHUP', onHangUp)
    })
  return await starting
}

/**
 * The log in the pool's folder by way of a descriptor that is never closed: the folder may be
 * moved.
 */
function heldFile({ folder }: PoolConfig, file: string | null): string | null {
  if (file === null || dirname(file) !== folder) return file
  return join(HeldFolder.open(folder).held, basename(file))
}

/**
 * Memory that the engine allocates must not wait for writes to its own volumes: a loop device over
 * them would deadlock when memory is short. New threads and programs inherit this property of a
 * thread; an engine that asked for it itself would be too late for Node's threads, which flush its
 * files. The daemon must not wait for an engine either, for it starts the next. Needs
 * CAP_SYS_RESOURCE.
 */
function becomeIoFlusher(log: Logger): void {
  try {
    native.process_set_io_flusher()
  } catch (err) {
    log.debug({ errno: errnoOf(err) }, 'not marked as I/O flusher')
  }
}
