/**
 * The engine: serves a mounted pool on an inherited FUSE descriptor.
 *
 * One thread, one libuv loop: requests, control messages, timers and the completion of flushes take
 * turns. It keeps nothing that the next engine could not pick up: mappings are in the metadata and
 * the journal, inode numbers follow from device ids.
 */
import { readlinkSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { basename, dirname, join } from 'node:path'
import {
  createMessageConnection,
  IPCMessageReader,
  IPCMessageWriter,
  type MessageConnection,
} from 'vscode-jsonrpc/node'
import { heldPath, ThinfsError } from '../base/index.js'
import { loadConfig, type PoolConfig } from '../config/index.js'
import { inodeOf, VolumeFs } from '../fs/index.js'
import { FuseSession, type Transport } from '../fuse/index.js'
import type { PoolEvents } from '../pool/index.js'
import { openPool, PoolFiles, type Volumes } from '../volumes/index.js'
import type { ControlSocket } from './control-socket.js'
import { type Logger, makeLogger, reopenLog } from './log.js'
import { listenAsOrphan } from './orphan.js'
import { ENGINE_FD, type EngineStart, FAILED, READY, SERVED, STARTED, STOP } from './protocol.js'
import { RateLimit } from './rate-limit.js'
import { serveAdmin, toWire } from './rpc.js'

/** Serves until the file system is unmounted, then ends the process. */
export async function runEngine(start: EngineStart): Promise<void> {
  const log = openEngineLog(start)
  // Unmounting is the daemon's to do; a signal to the group must not end what it is about to need.
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => {})
  process.on('SIGHUP', () => reopenLog(log))
  const daemon = createMessageConnection(
    new IPCMessageReader(process),
    new IPCMessageWriter(process),
  )
  daemon.listen()
  tell(daemon.sendNotification(STARTED))
  try {
    await serve(start, log, daemon)
  } catch (err) {
    log.error({ err }, 'cannot serve the pool')
    await daemon.sendNotification(FAILED, toWire(err)).catch(() => {})
    process.exit(1)
  }
}

/** A daemon that is gone needs no word, and its engine goes on. */
function tell(said: Promise<void>): void {
  said.catch(() => {})
}

async function serve(start: EngineStart, log: Logger, daemon: MessageConnection): Promise<void> {
  const config = configOf(start, log)
  const readOnly = start.mountOptions.includes('ro')
  const files = PoolFiles.inherit(config, ENGINE_FD, readOnly)
  let volumes: Volumes | null = null
  let session: FuseSession | null = null
  const nameOf = (devId: number): string => volumes?.byDevId(devId)?.name ?? `device ${devId}`
  const open = await openPool(config, {
    readOnly,
    files,
    acceptMetadata: start.acceptMetadata,
    onWarning: message => log.warn({ pool: config.pool }, message),
    // Who takes over finds what there was, and removed volumes stay removed.
    takesOver: start.negotiated !== null,
    makeVolumes: start.negotiated === null,
    events: logEvents(log.child({ pool: config.pool }), nameOf),
    onChange(what, volume, devId) {
      log.info({ pool: config.pool, volume, devId }, `volume ${what}`)
    },
    onResized: async (devId, size) => session?.invalidate(inodeOf(devId), size),
  })
  volumes = open.volumes
  let { negotiated } = start
  const ready = (): void => tell(daemon.sendNotification(READY, { negotiated: negotiated! }))
  /** @param err a commit that fails has ended, too; but what only a bug can throw ends the process */
  const served = (err?: unknown): void => {
    if (err !== undefined && !(err instanceof ThinfsError)) throw err
    tell(daemon.sendNotification(SERVED))
  }
  let onUnmounted = (): void => {}
  const unmounted = new Promise<void>(resolve => {
    onUnmounted = resolve
  })
  const owner = { uid: process.getuid!(), gid: process.getgid!() }
  session = new FuseSession({
    fd: ENGINE_FD.fuse,
    // With one CPU nobody could send a request meanwhile.
    spin: availableParallelism() > 1 ? config.spin : 0,
    transport: wantedTransport(start.mountOptions, config),
    fileSystem: new VolumeFs(volumes, owner, start.mountedAt),
    ...(start.negotiated ? { negotiated: start.negotiated } : {}),
    onInitialized(settled) {
      log.debug({ pool: config.pool, protocol: settled }, 'connection initialised')
      const { whyDev: reason } = settled
      if (reason)
        log.warn({ pool: config.pool, reason }, 'transport uring cannot be had: dev serves')
      negotiated = settled
      ready()
    },
    onCaughtUp: () => void open.volumes.commit().then(served, served),
    onUnmounted,
    onFatal(err) {
      // A bug: what is in memory cannot be trusted, the journal and the last commit can.
      log.fatal({ pool: config.pool, err }, 'stopped')
      process.exit(1)
    },
    onError(operation, ino, err) {
      log.debug({ pool: config.pool, operation, ino, err }, 'request failed')
    },
  })
  let control: Promise<ControlSocket | null> = Promise.resolve(null)
  const close = async (): Promise<void> => {
    try {
      await open.close()
    } finally {
      const socket = await control
      // Whoever waits for the end may mount again at once.
      socket?.close()
      if (socket) files.close()
    }
  }
  const closed = unmounted.then(close)
  closed.then(
    async () => {
      const { writable, mode, reason } = open.volumes.pool
      if (!writable && !readOnly) {
        log.error({ pool: config.pool, mode, reason }, 'unmounted, as of the last good commit')
      } else {
        // The daemon's line to write, where there is one.
        const level = process.connected ? 'debug' : 'info'
        log[level]({ pool: config.pool }, 'unmounted, all is committed')
      }
      await (await control)?.closed
      process.exit(0)
    },
    async err => {
      log.error({ pool: config.pool, err }, 'the last commit failed')
      await (await control)?.closed
      process.exit(1)
    },
  )
  const stop = (): void => {
    // What is not answered yet comes again to the next engine. The commit spares it the replay.
    session?.close()
    void open.volumes
      .commit()
      .catch(() => {})
      .then(() => process.exit(0))
  }
  daemon.onNotification(STOP, stop)
  const goOnAlone = (): void => {
    log.warn({ pool: config.pool }, 'the daemon is gone; serving goes on without it')
    void open.volumes.commit().catch(() => {})
    const folder = files.folder.held
    const orphan = { start: { ...start, negotiated }, folder, pool: open.volumes, closed, stop }
    control = listenAsOrphan(orphan).catch(err => {
      log.error({ pool: config.pool, err }, 'no commands can be answered')
      return null
    })
  }
  // It may have gone while the pool was being opened, which can take long.
  if (process.connected) process.on('disconnect', goOnAlone)
  else goOnAlone()
  serveAdmin(daemon, open.volumes)
  if (start.negotiated) {
    session.resend()
    log.info({ pool: config.pool }, 'took over')
    ready()
  }
}

/**
 * The log, in the pool's folder wherever that is now. The pool is served without one: what is written to
 * stderr goes where the daemon's goes.
 */
function openEngineLog(start: EngineStart): Logger {
  const { logLevel: level, foreground: pretty, logFile, configFile } = start
  const isInFolder = logFile !== null && dirname(logFile) === dirname(configFile)
  const file = isInFolder ? join(heldPath(ENGINE_FD.folder), basename(logFile)) : logFile
  try {
    return makeLogger({ process: 'engine', level, file, pretty })
  } catch (err) {
    const log = makeLogger({ process: 'engine', level, file: null, pretty })
    log.warn({ err }, 'the log is stderr')
    return log
  }
}

/**
 * What pool.yaml says now. To who takes over, one that cannot be followed is no reason to end a mount:
 * what it said when the pool was mounted counts; and which pool it is does not change while it is mounted.
 * @throws BAD_CONFIG, NOT_TRUSTED for the first engine
 */
function configOf(start: EngineStart, log: Logger): PoolConfig {
  const { configFile, config: before } = start
  try {
    const folder = readlinkSync(heldPath(ENGINE_FD.folder))
    const config = loadConfig(join(folder, basename(configFile)))
    if (start.negotiated === null) return config
    const { pool, dataBlockSize } = before
    if (config.pool !== pool || config.dataBlockSize !== dataBlockSize) {
      log.warn(
        { pool },
        'pool.yaml has another name or block size now: that counts when it is mounted',
      )
    }
    return { ...config, pool, dataBlockSize }
  } catch (err) {
    if (start.negotiated === null) throw err
    log.warn({ pool: before.pool, err }, 'pool.yaml as it was when it was mounted counts')
    return before
  }
}

/** What `mount -o` says wins, and of that what it says last. */
function wantedTransport(mountOptions: readonly string[], config: PoolConfig): Transport {
  const options = mountOptions.filter(option => option.startsWith('transport='))
  return (options.at(-1)?.slice('transport='.length) as Transport | undefined) ?? config.transport
}

function logEvents(log: Logger, nameOf: (devId: number) => string): PoolEvents {
  const limit = new RateLimit(10, 10_000, suppressed =>
    log.error({ suppressed }, 'more I/O errors were not logged'),
  )
  return {
    mode(mode, reason) {
      log.warn({ mode, reason }, 'mode changed')
    },
    lowWater(free) {
      log.warn({ free }, 'free data blocks reached the low water mark')
    },
    warning(what) {
      log.warn(what)
    },
    needsCheckCleared() {
      log.warn('needs_check was set: all metadata was checked, is sound, and the flag is cleared')
    },
    slowCommit(milliseconds) {
      log.warn({ milliseconds: Math.round(milliseconds) }, 'slow commit')
    },
    ioError(operation, error, where) {
      if (!limit.allows(Date.now())) return
      const at = where ? { volume: nameOf(where.devId), block: where.block } : {}
      log.error({ operation, ...at, err: error }, 'I/O error')
    },
  }
}
