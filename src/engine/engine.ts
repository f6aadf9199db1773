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
import type { MessageConnection } from 'vscode-jsonrpc/node'
import { heldPath, inTime, isLost, ThinfsError } from '../base/index.js'
import { loadConfig, type PoolConfig } from '../config/index.js'
import {
  COUNT_ON,
  COUNTED,
  type ControlSocket,
  ENGINE_FD,
  type EngineStart,
  EventLog,
  EXIT_LOST,
  FAILED,
  HAPPENED,
  ipcConnection,
  joinAdmins,
  moreEngineFds,
  mustSpeakOurs,
  OPENING,
  READY,
  SERVED,
  STARTED,
  STOP,
  serveAdmin,
  type Told,
  tell,
  toWire,
  wantedTransport,
} from '../control/index.js'
import { inodeOf, VolumeFs } from '../fs/index.js'
import type { Negotiated, Session } from '../fuse/index.js'
import { Lab } from '../lab/index.js'
import { type Logger, makeLogger, reopenLog } from '../log/index.js'
import type { PoolEvents } from '../pool/index.js'
import {
  asMounted,
  isElsewhere,
  type MountedAdmin,
  nrMoreDescriptors,
  type OpenPool,
  openPool,
  PoolFiles,
  type Volumes,
} from '../volumes/index.js'
import { Happenings } from './happenings.js'
import { listenAsOrphan } from './orphan.js'
import { PoolLog } from './pool-log.js'

/** Milliseconds between two lines of the log about what takes long, and between two messages. */
const LOG_PERIOD = 3000
const TELL_PERIOD = 500
const NOT_RESENT =
  'an engine has died: what it had read and not answered has failed for its callers, since this kernel ' +
  '(before Linux 6.9) sends it to no other'
const REPLACED =
  'thinfs was replaced under it; put the one before back and thinfs restart, or unmount and mount'

/** Serves until the file system is unmounted, then ends the process. */
export async function runEngine(start: EngineStart): Promise<void> {
  const log = openEngineLog(start)
  // The daemon unmounts; a signal to the process group must not end what unmounting needs.
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => {})
  process.on('SIGHUP', () => reopenLog(log))
  const daemon = ipcConnection(process)
  daemon.listen()
  tell(daemon.sendNotification(STARTED))
  try {
    mustSpeakOurs(start.protocol, `the daemon of ${start.mountPoint}`, REPLACED)
    await new Engine(start, log, daemon).serve()
  } catch (err) {
    log.error({ err }, 'cannot serve the pool')
    await daemon.sendNotification(FAILED, toWire(err)).catch(() => {})
    process.exit(isLost(err) ? EXIT_LOST : 1)
  }
}

/** Milliseconds that the kernel gets to forget what it keeps of the volumes' content. */
const FORGETTING_MS = 1000

class Engine {
  readonly #start: EngineStart
  readonly #log: Logger
  readonly #daemon: MessageConnection
  readonly #config: PoolConfig
  readonly #readOnly: boolean
  readonly #files: PoolFiles
  /** The outcome of INIT, with this engine or an earlier one. */
  #negotiated: Negotiated | null
  readonly #poolLog: PoolLog
  readonly #happenings: Happenings
  /** Events since there has been no daemon that keeps them. */
  readonly #ownEvents = new EventLog()
  #volumes: Volumes | null = null
  /** Whether an event has told of damaged metadata. */
  #damageTold = false
  /** The pool, for commands. */
  #admin: MountedAdmin | null = null
  #session: Session | null = null
  /** Answers commands once there is no daemon; null when it could not be made. */
  #control: Promise<ControlSocket | null> = Promise.resolve(null)
  /** Resolves when the file system was unmounted and the pool is closed. */
  #closed: Promise<void> = Promise.resolve()

  /** @param daemon its connection; the daemon may be gone already */
  constructor(start: EngineStart, log: Logger, daemon: MessageConnection) {
    this.#start = start
    this.#daemon = daemon
    this.#config = configOf(start, log)
    this.#log = log.child({ pool: this.#config.pool })
    const nameOf = (devId: number): string =>
      this.#volumes?.byDevId(devId)?.name ?? `device ${devId}`
    this.#poolLog = new PoolLog(this.#log, nameOf)
    this.#happenings = new Happenings(event => this.#happened(event), nameOf)
    this.#readOnly = start.mountOptions.includes('ro')
    const fds = { ...ENGINE_FD, more: moreEngineFds(nrMoreDescriptors(this.#config)) }
    this.#files = PoolFiles.inherit(this.#config, fds, this.#readOnly)
    this.#negotiated = start.negotiated
  }

  /** Opens the pool, then serves. Resolves when it does. */
  async serve(): Promise<void> {
    const open = await this.#open()
    this.#volumes = open.volumes
    this.#happenings.opened(open.volumes.pool)
    if (open.tenancy) {
      const { strength, tenant } = open.tenancy
      this.#log.info({ strength, generation: tenant.generation }, "the pool is this host's")
    }
    this.#admin = joinAdmins(open.volumes, await this.#openLab(open.volumes))
    const unmounted = new Promise<void>(resolve => {
      this.#session = this.#connect(open.volumes, resolve)
    })
    this.#closed = unmounted.then(() => this.#close(open))
    this.#closed.then(
      () => this.#exit(open.volumes.pool),
      err => this.#exitFailed(err),
    )
    this.#daemon.onNotification(STOP, () => this.#stop())
    // The daemon may have gone while the pool was being opened, which can take long.
    if (process.connected) process.on('disconnect', () => this.#goOnAlone())
    else this.#goOnAlone()
    this.#daemon.onNotification(COUNT_ON, before => open.volumes.resumeStatistics(before))
    serveAdmin(this.#daemon, this.#admin)
    if (this.#start.negotiated) {
      if (!this.#session!.resend()) {
        open.volumes.warn(NOT_RESENT)
        this.#log.warn(NOT_RESENT)
      }
      this.#log.info('took over')
      this.#ready()
    }
  }

  #open(): Promise<OpenPool> {
    const { negotiated, acceptMetadata, mountPoint, tenancy } = this.#start
    return openPool(this.#config, {
      mountPoint,
      readOnly: this.#readOnly,
      files: this.#files,
      acceptMetadata,
      onWarning: message => this.#log.warn(message),
      onLoad: this.#progressOf('reading the metadata'),
      onCheck: this.#progressOf('checking the metadata'),
      // An engine that takes over finds the volumes there were; removed ones stay removed.
      takesOver: negotiated !== null,
      ...(tenancy && { tenancy }),
      makeVolumes: negotiated === null,
      events: this.#events,
      onChange: (what, volume, devId) => this.#log.info({ volume, devId }, `volume ${what}`),
      onResized: async (devId, size) => this.#session?.invalidate(inodeOf(devId), size),
    })
  }

  /** Tells of work that takes long before the pool is open. */
  #progressOf(what: string): (done: number, all: number) => void {
    let nextLine = 0
    let nextTold = 0
    return (done, all) => {
      const now = performance.now()
      if (nextLine === 0) nextLine = now + LOG_PERIOD
      if (now >= nextTold) {
        nextTold = now + TELL_PERIOD
        tell(this.#daemon.sendNotification(OPENING, { what, done, all }))
      }
      if (now < nextLine) return
      nextLine = now + LOG_PERIOD
      this.#log.info({ done, all }, what)
    }
  }

  get #events(): PoolEvents {
    const events = this.#happenings.besides(this.#poolLog.events)
    return {
      ...events,
      lost: why => {
        events.lost(why)
        void this.#lost(why)
      },
    }
  }

  /**
   * Somebody else may have the pool, which answers every request with an error by now. The kernel's
   * cache of it may be old. The process ends, so that nothing that it has begun is carried out
   * later; the daemon goes on refusing. Without a daemon nobody would.
   */
  async #lost(why: ThinfsError): Promise<void> {
    const volumes = [...(this.#volumes?.all() ?? [])]
    const forgotten = volumes.map(({ devId }) => this.#session?.invalidate(inodeOf(devId), 0))
    await inTime(FORGETTING_MS, Promise.allSettled(forgotten), [])
    if (!process.connected) return
    await this.#daemon.sendNotification(FAILED, toWire(why)).catch(() => {})
    process.exit(EXIT_LOST)
  }

  /** Tells the daemon, which runs the command of `hooks`: without a daemon nobody does. */
  #happened(event: Told): void {
    if (!process.connected) {
      this.#ownEvents.add(event)
      return
    }
    const { hooks: command = null } = this.#config
    tell(this.#daemon.sendNotification(HAPPENED, { event, command }))
  }

  /** Once: `thinfs status` goes on saying so. */
  #tellOfDamage(): void {
    const { metadata } = this.#volumes!.pool
    if (this.#damageTold || metadata.damage === null) return
    this.#damageTold = true
    this.#events.warning(`${this.#files.metadata.path}: damaged: ${metadata.damage}`)
  }

  #openLab(volumes: Volumes): Promise<Lab> {
    return Lab.open({
      volumes,
      folder: this.#files.folder,
      takesOver: this.#start.negotiated !== null,
      readOnly: this.#readOnly,
      onWarning: message => this.#log.warn(message),
      onChange: (what, volume) => this.#log.info({ volume }, what),
      invalidate: async devId => this.#session?.invalidate(inodeOf(devId), 0),
    })
  }

  #connect(volumes: Volumes, onUnmounted: () => void): Session {
    const { mountOptions, mountedAt, negotiated } = this.#start
    const owner = { uid: process.getuid!(), gid: process.getgid!() }
    const transport = wantedTransport(mountOptions, this.#config)
    return transport.serve({
      fd: ENGINE_FD.fuse,
      // With one CPU no process could send a request while this thread polls for one.
      spin: availableParallelism() > 1 ? this.#config.spin : 0,
      spinShare: this.#config.spinShare / 100,
      fileSystem: new VolumeFs(volumes, owner, mountedAt),
      ...(negotiated ? { negotiated } : {}),
      onInitialized: agreed => {
        this.#log.debug({ protocol: agreed }, 'connection initialised')
        const { whyDev: reason } = agreed
        if (reason) {
          const { name } = transport
          this.#log.warn({ reason }, `transport ${name} cannot be had: dev serves`)
        }
        this.#negotiated = agreed
        this.#ready()
      },
      onCaughtUp: () =>
        void volumes.commit().then(
          () => this.#served(),
          err => this.#served(err),
        ),
      onUnmounted,
      onFatal: err => {
        // A bug: what is in memory cannot be trusted, the journal and the last commit can.
        this.#log.fatal({ err }, 'stopped')
        process.exit(1)
      },
      onError: (operation, ino, err) => {
        this.#poolLog.requestFailed(operation, ino, err)
        this.#tellOfDamage()
      },
    })
  }

  #ready(): void {
    tell(this.#daemon.sendNotification(READY, { negotiated: this.#negotiated! }))
  }

  /**
   * @param err a commit that fails has ended, too; but what only a bug can throw ends the process
   */
  #served(err?: unknown): void {
    if (err !== undefined && !(err instanceof ThinfsError)) throw err
    tell(this.#daemon.sendNotification(SERVED))
  }

  async #close(open: OpenPool): Promise<void> {
    try {
      await open.close()
      if (open.tenancy) this.#log.info('the pool was given back')
    } finally {
      this.#ownEvents.add({ time: Date.now() / 1000, event: 'unmounted', detail: '' })
      this.#ownEvents.end()
      const socket = await this.#control
      // A client that waits for the end may mount again at once.
      socket?.close()
      if (socket) this.#files.close()
      await this.#files.disconnect()
    }
  }

  async #exit({ writable, mode, reason }: Volumes['pool']): Promise<void> {
    if (!writable && !this.#readOnly) {
      this.#log.error({ mode, reason }, 'unmounted, as of the last good commit')
    } else {
      // The daemon writes this line where there is one.
      this.#log[process.connected ? 'debug' : 'info']('unmounted, all is committed')
    }
    await (await this.#control)?.closed
    process.exit(0)
  }

  async #exitFailed(err: unknown): Promise<void> {
    this.#log.error({ err }, 'the pool could not be closed')
    await this.#daemon.sendNotification(FAILED, toWire(err)).catch(() => {})
    await (await this.#control)?.closed
    process.exit(isLost(err) ? EXIT_LOST : 1)
  }

  /**
   * Ends the process for another engine. Requests that are not answered yet come again to that one.
   */
  #stop(): void {
    this.#session?.close()
    // A commit spares the next engine the replay.
    void this.#commit()
      .then(() => this.#tellCounters())
      .catch(() => {})
      .finally(() => process.exit(0))
  }

  /** For the next engine, which goes on counting from there. */
  async #tellCounters(): Promise<void> {
    const volumes = this.#volumes
    if (volumes === null || !process.connected) return
    await this.#daemon.sendNotification(COUNTED, await volumes.statistics())
  }

  #goOnAlone(): void {
    this.#log.warn('the daemon is gone; serving goes on without it')
    void this.#commit()
    this.#control = listenAsOrphan({
      start: { ...this.#start, negotiated: this.#negotiated },
      folder: this.#files.folder.held,
      pool: this.#admin!,
      events: this.#ownEvents,
      closed: this.#closed,
      stop: () => this.#stop(),
    }).catch(err => {
      this.#log.error({ err }, 'no commands can be answered')
      return null
    })
  }

  /** Commits what it can. */
  async #commit(): Promise<void> {
    await this.#volumes?.commit().catch(() => {})
  }
}

/**
 * The log, in the pool's folder wherever that is now. The pool is served without one: what is
 * written to stderr goes where the daemon's goes.
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
 * The configuration as pool.yaml says it now. An engine that takes over goes on with what the file
 * said when the pool was mounted if it cannot be read now. The pool's name and block size stay as
 * mounted.
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
    if (isElsewhere(config, before)) {
      log.warn({ pool }, 'pool.yaml has the pool elsewhere now: that counts when it is mounted')
    }
    // The mount is the pool's tenant, or is not, from its beginning on.
    const { tenancy: _, ...now } = asMounted(config, before)
    const { tenancy } = before
    return { ...now, ...(tenancy && { tenancy }), pool, dataBlockSize }
  } catch (err) {
    if (start.negotiated === null) throw err
    log.warn({ pool: before.pool, err }, 'pool.yaml as it was when it was mounted counts')
    return before
  }
}
