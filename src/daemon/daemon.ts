/**
 * The process that mounts a pool and does not serve it.
 *
 * It holds the pool's lock, the FUSE connection and the control socket for as long as the pool is
 * mounted, and has an engine do the work. It never touches the mount itself: it would wait for an
 * engine that only it can start.
 */
import { closeSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import type { MessageConnection } from 'vscode-jsonrpc/node'
import { isLost, ThinfsError, unlessAborted } from '../base/index.js'
import type { PoolConfig } from '../config/index.js'
import {
  answerDone,
  ControlSocket,
  connectControlSocket,
  controlSocketPath,
  delegate,
  diesWithItsEngine,
  ENGINE_PROGRAM,
  EventLog,
  makeRuntimeFolder,
  type Opening,
  PING,
  type PoolEvent,
  PROTOCOL,
  RESTART,
  refuseToMove,
  type SpawnEngine,
  serveAdmin,
  serveEvents,
  spawnEngine,
  toWire,
  transportStatus,
  UMOUNT,
  UMOUNT_FORCE,
  wantedTransport,
} from '../control/index.js'
import { flagsAmong, type Negotiated, Refusal } from '../fuse/index.js'
import {
  canonicalMountPoint,
  clearAbove,
  connectionAborter,
  hasEnded,
  type Mount,
  mustNotBeHidden,
  mustNotCover,
  nameHolders,
  prepareMountPoint,
  thinfsMountAt,
  unmount,
  unmountLazily,
} from '../host/index.js'
import { type Logger, reopenLog } from '../log/index.js'
import { nameOfTenant, type Seen } from '../tenancy/index.js'
import {
  endTenant,
  FENCED_MS,
  type MountTenancy,
  newMountId,
  type PoolFiles,
  type PoolStatistics,
  type PoolStatus,
  type TakeOver,
  whoHasIt,
} from '../volumes/index.js'
import { removeDaemonFile, writeDaemonFile } from './daemon-file.js'
import { Deferred } from './deferred.js'
import { Hooks } from './hooks.js'
import { mountOptionsOf } from './mount-options.js'
import { lockPool, PoolHeld } from './pool-lock.js'
import { Supervisor } from './supervisor.js'
import { type HandedOver, takeOver } from './take-over.js'

/** Milliseconds between two tries to lock the pool. */
const LOCK_PERIOD = 100

export interface DaemonOptions {
  mountPoint: string
  /** As `mountOptionsOf` takes them. */
  mountOptions: readonly string[]
  foreground: boolean
  /** Take metadata that may be an older copy as it is. */
  acceptMetadata?: boolean
  /** Seconds to wait for a command that has the pool; default 0. */
  wait?: number
  /** Take the pool over from another host; default: leave it to that. */
  takeOver?: TakeOver
  logLevel: string
  /** Null: stderr. */
  logFile: string | null
}

export class Daemon {
  readonly #config: PoolConfig
  readonly #options: DaemonOptions
  readonly #log: Logger
  readonly #spawn: SpawnEngine
  readonly #hooks: Hooks
  readonly #events = new EventLog()
  #supervisor: Supervisor
  /** Path of pool.yaml when the pool was mounted: what the mount table has. */
  #source: string
  /** Resolves when the engine has committed and another daemon can have the pool. */
  readonly #givenBack = new Deferred<void>()
  /** How this mount has the pool to itself. */
  #tenancy: MountTenancy = { mountId: newMountId(), fenced: null }
  /** When the pool was mounted, by this daemon or one before: seconds since 1970. */
  #since = Math.floor(Date.now() / 1000)
  #files: PoolFiles | null = null
  /** The connection; null while there is none, or none that an engine could inherit. */
  #fuseFd: number | null = null
  #control: ControlSocket | null = null
  #served = false
  #failure: Error | null = null
  #refusal: Refusal | null = null
  #lastStatus: PoolStatus | null = null
  /** How far the engine is that opens the pool, where that takes long. */
  #opening: Opening | null = null
  /** Resolves when that is known for the first time. */
  readonly #openingTold = new Deferred<void>()
  readonly #onOpening: (progress: Opening) => void
  #unmounting: Promise<void> | null = null
  /** Its line in the mount table, which may be gone now. */
  #mountRecord: Mount | null = null

  /**
   * Mounts the pool, or takes it over from an engine that serves it there and whose daemon has
   * died; resolves when it is served, or when `failure` says why it cannot be.
   * @param signal ends the mounting with its reason, as long as nothing is served
   * @param onOpening called with how far it is, where opening the pool takes long
   * @throws BAD_ARGUMENT, NOT_A_POOL, POOL_IN_USE, MOUNT_FAILED, or why the engine could not start;
   *   nothing is left behind
   */
  static async start(
    config: PoolConfig,
    options: DaemonOptions,
    log: Logger,
    spawn: SpawnEngine = spawnEngine,
    signal?: AbortSignal,
    onOpening: (progress: Opening) => void = () => {},
  ): Promise<Daemon> {
    const mountOptions = mountOptionsOf(options.mountOptions)
    const mountPoint = canonicalMountPoint(options.mountPoint)
    const as = { ...options, mountOptions, mountPoint }
    const daemon = new Daemon(config, as, log, spawn, onOpening)
    try {
      await daemon.#mount(signal)
    } catch (err) {
      await daemon.#release()
      throw err
    }
    return daemon
  }

  private constructor(
    config: PoolConfig,
    options: DaemonOptions,
    log: Logger,
    spawn: SpawnEngine,
    onOpening: (progress: Opening) => void,
  ) {
    this.#onOpening = onOpening
    this.#config = config
    this.#options = options
    this.#log = log
    this.#spawn = spawn
    this.#source = config.file
    this.#hooks = new Hooks(log, () => ({
      THINFS_POOL: this.#source,
      THINFS_POOL_NAME: config.pool,
      THINFS_MOUNT_POINT: options.mountPoint,
    }))
    const { takeOver } = options
    if (takeOver) this.#tenancy.takeOver = takeOver
    this.#supervisor = this.#makeSupervisor(null, null)
  }

  #makeSupervisor(negotiated: Negotiated | null, counted: PoolStatistics | null): Supervisor {
    const start = {
      ...this.#options,
      acceptMetadata: this.#options.acceptMetadata ?? false,
      configFile: this.#source,
      config: { ...this.#config, volumes: {} },
    }
    return new Supervisor({
      negotiated,
      counted,
      spawnEngine: negotiated =>
        this.#spawn(
          { ...start, negotiated, mountedAt: this.#since, tenancy: this.#tenancy },
          { fuse: this.#fuseFd, ...this.#files!.descriptors },
        ),
      isMounted: () => this.#isMounted,
      after: (ms, then) => setTimeout(then, ms),
      onOpening: progress => {
        this.#opening = progress
        this.#openingTold.resolve()
        this.#onOpening(progress)
      },
      onHappened: happened => this.#told(happened),
      onRestarted: why => this.#happened('engine_restarted', why),
      onTrouble: why => this.#happened('mode', why, 'fail'),
      log: this.#log,
    })
  }

  /** Why nothing is served any more, or for the time being; null while the pool is. */
  get failure(): Error | null {
    return this.#failure ?? this.#supervisor.trouble
  }

  /**
   * Waits until the pool was unmounted, nothing is left behind, and the last request was answered.
   */
  async ended(): Promise<void> {
    try {
      await this.#givenBack.promise
    } finally {
      await this.#control?.closed
    }
  }

  /**
   * Unmounts; resolves when all is committed and the engine has ended.
   * @throws NOT_MOUNTED before it is mounted; MOUNT_BUSY naming who holds the mount, which stays,
   *   or who has the filesystem though it is unmounted here; DAEMON_FAILED when it was unmounted
   *   but the engine had failed before it could commit: the journal keeps what is missing;
   *   FILE_REMOVED when the mount alone keeps a file of the pool
   */
  async umount(): Promise<void> {
    this.#mustBeUnmountable()
    await this.#umountOnce()
  }

  /** @throws MOUNT_BUSY, FILE_REMOVED */
  #mustBeUnmountable(): void {
    if (this.#mountRecord !== null) mustNotBeHidden(this.#mountRecord)
    if (this.#isMounted) this.#files?.mustHaveNames()
  }

  /**
   * As `umount`, after everything that stands on the pool's volumes: filesystems on their loop
   * devices, then those devices. For when the system shuts down: who comes next is SIGKILL.
   * @throws what `umount` throws; VOLUME_BUSY naming what cannot be taken away
   */
  async umountInOrder(): Promise<void> {
    const mount = this.#mountRecord
    if (mount !== null && this.#isMounted) {
      mustNotBeHidden(mount)
      await clearAbove(mount)
    }
    await this.umount()
  }

  #umountOnce(): Promise<void> {
    this.#unmounting ??= this.#umount().finally(() => {
      this.#unmounting = null
    })
    return this.#unmounting
  }

  /**
   * As `umount`, also while somebody holds the mount: he gets errors from then on.
   * @throws NOT_MOUNTED; MOUNT_FAILED when that cannot be done, and nothing was; MOUNT_BUSY when
   *   another mount hides it; DAEMON_FAILED
   */
  async umountForcibly(): Promise<void> {
    const { mountPoint } = this.#options
    if (this.#mountRecord !== null) mustNotBeHidden(this.#mountRecord)
    try {
      return await this.#umountOnce()
    } catch (err) {
      if (!(err instanceof ThinfsError && err.code === 'MOUNT_BUSY')) throw err
    }
    if (this.#mountRecord === null) throw new ThinfsError('MOUNT_BUSY', 'the mount is not known')
    const abort = connectionAborter(this.#mountRecord)
    this.#log.warn({ mountPoint }, 'unmounting by force')
    if (this.#isMounted) await unmountLazily(mountPoint)
    abort()
    await this.#givenBack.promise
  }

  /**
   * Replaces the engine, or starts one after the last was given up; callers of the mount only wait.
   * @throws NOT_MOUNTED before it is mounted; NOT_SUPPORTED where requests end with their engine;
   *   DAEMON_FAILED when no engine stays
   */
  async restart(): Promise<void> {
    if (!this.#served) throw new ThinfsError('NOT_MOUNTED', 'the pool is being mounted')
    refuseToMove(this.#supervisor.negotiated)
    if (this.#failure === null) return this.#supervisor.restart()
    this.#refusal?.close()
    this.#failure = null
    const { negotiated, counted } = this.#supervisor
    this.#supervisor = this.#makeSupervisor(negotiated, counted)
    await this.#supervise()
  }

  /** Goes on in a new log file of the same name, and so does the engine. */
  reopenLog(): void {
    reopenLog(this.#log)
    const { enginePid } = this.#supervisor
    // After a failure its number may be somebody else's.
    if (this.#failure !== null || enginePid === 0) return
    try {
      process.kill(enginePid, 'SIGHUP')
    } catch {
      // The next engine opens the log anyway.
    }
  }

  async #umount(): Promise<void> {
    const { mountPoint } = this.#options
    if (!this.#served) throw new ThinfsError('NOT_MOUNTED', 'the pool is being mounted')
    if (this.#isMounted) await unmount(mountPoint)
    else if (this.#failure !== null) await this.#end()
    const mount = this.#mountRecord
    if (mount !== null && !(await hasEnded(mount, this.#givenBack.promise))) {
      const by = await nameHolders(mount)
      const detail = `${mountPoint} is unmounted here, but used by ${by}: it ends when they let go, or with thinfs umount --force`
      throw new ThinfsError('MOUNT_BUSY', detail)
    }
    await this.#givenBack.promise
  }

  async #mount(signal: AbortSignal | undefined): Promise<void> {
    const { file } = this.#config
    const { mountPoint, mountOptions } = this.#options
    this.#mustHaveTenancy()
    const handedOver = await this.#lock(signal)
    if (handedOver === null) {
      await prepareMountPoint(mountPoint)
      mustNotCover(mountPoint, this.#needed)
      signal?.throwIfAborted()
      const transport = wantedTransport(mountOptions, this.#config)
      this.#fuseFd = await transport.mount(mountPoint, {
        source: file,
        subtype: 'thinfs',
        allowOther: mountOptions.includes('allow_other'),
        readOnly: mountOptions.includes('ro'),
        flags: flagsAmong(mountOptions),
      })
    }
    this.#mountRecord = thinfsMountAt(mountPoint)
    const folder = this.#files!.folder.held
    makeRuntimeFolder(folder)
    writeDaemonFile(folder, { pid: process.pid, mountPoint, since: this.#since })
    this.#control = await ControlSocket.listen(controlSocketPath(folder), connection =>
      this.#serve(connection),
    )
    if (handedOver === null) await this.#superviseUnless(signal)
    else {
      // Callers wait on this mount already and need an answer: from here on a failure keeps it.
      this.#served = true
      await this.#supervise().catch(() => {})
    }
    this.#served = true
    if (this.failure !== null) return
    this.#log.info({ pool: file, mountPoint }, handedOver === null ? 'mounted' : 'took over')
    // Cached for `status` after the engine has failed.
    this.#status().catch(() => {})
  }

  /** @throws BAD_ARGUMENT when there is nothing to take over */
  #mustHaveTenancy(): void {
    const { file, tenancy, state } = this.#config
    const { takeOver, mountOptions } = this.#options
    if (takeOver === undefined) return
    if (tenancy === undefined && state === undefined) {
      const detail = `--take-over: ${file} has no tenancy, so that nothing tells which host has the pool`
      throw new ThinfsError('BAD_ARGUMENT', detail)
    }
    if (!mountOptions.includes('ro')) return
    throw new ThinfsError('BAD_ARGUMENT', '--take-over: with -o ro nothing is taken over')
  }

  /**
   * Sees to it that the host which has the pool writes no more.
   * @returns whether that has been done now, and not before
   * @throws as `endTenant`
   */
  async #fence(seen: Seen, how: TakeOver, signal: AbortSignal | undefined): Promise<boolean> {
    if (this.#tenancy.fenced === nameOfTenant(seen)) return false
    const from = { host: seen.tenant?.host.name, since: seen.tenant?.since, how }
    this.#log.warn(from, 'another host has the pool: it is to be fenced')
    this.#tenancy.fenced = await endTenant(this.#config, seen, how, signal)
    this.#log.warn(from, 'taking the pool over')
    return true
  }

  /** @throws POOL_IN_USE when another mount of the pool answers */
  async #mustBeAlone(): Promise<void> {
    const other = await connectControlSocket(controlSocketPath(this.#config.folder))
    if (other === null) return
    other.dispose()
    this.#files?.close()
    this.#files = null
    throw new ThinfsError('POOL_IN_USE', `${this.#config.file} is served by another mount`)
  }

  /** Paths that the daemon and its engines open, now or later. */
  get #needed(): string[] {
    const { file, folder, data, metadata } = this.#config
    const { logFile } = this.#options
    const programs = [process.execPath, ENGINE_PROGRAM]
    const files = [data, metadata].flatMap(({ path, remote }) => (remote ? [] : [path]))
    return [folder, file, ...files, ...programs, ...(logFile ? [logFile] : [])]
  }

  /** Locks the pool. @returns what an engine without a daemon handed over instead, or null */
  async #lock(signal: AbortSignal | undefined): Promise<HandedOver | null> {
    const { mountPoint, mountOptions, wait = 0, takeOver: how } = this.#options
    let deadline = performance.now() + 1000 * wait
    for (;;) {
      try {
        const readOnly = mountOptions.includes('ro')
        this.#files = lockPool(this.#config, readOnly, this.#tenancy.fenced)
        // Readers share the lock, but not the socket of a mount.
        if (readOnly) await this.#mustBeAlone()
        return null
      } catch (err) {
        const handedOver = await takeOver(this.#config, mountPoint, mountOptions)
        if (handedOver !== null) {
          this.#files = handedOver.files
          this.#fuseFd = handedOver.fuseFd
          this.#since = handedOver.start.mountedAt
          this.#source = handedOver.start.configFile
          this.#tenancy = handedOver.start.tenancy ?? this.#tenancy
          this.#supervisor = this.#makeSupervisor(handedOver.start.negotiated, handedOver.counted)
          return handedOver
        }
        const tenant = err instanceof PoolHeld ? err.tenant : null
        if (tenant !== null && how !== undefined && (await this.#fence(tenant, how, signal))) {
          deadline = performance.now() + FENCED_MS
          continue
        }
        const isFenced = tenant !== null && nameOfTenant(tenant) === this.#tenancy.fenced
        const isBrief = err instanceof PoolHeld && err.patienceMs === Number.POSITIVE_INFINITY
        if (!(isBrief || isFenced) || performance.now() >= deadline) throw err
      }
      await unlessAborted(sleep(LOCK_PERIOD), signal)
    }
  }

  /** As `supervise`, unless the signal comes first. @throws its reason */
  async #superviseUnless(signal: AbortSignal | undefined): Promise<void> {
    signal?.throwIfAborted()
    const kill = (): void => this.#supervisor.kill()
    signal?.addEventListener('abort', kill)
    try {
      await this.#supervise()
    } catch (err) {
      throw signal?.aborted ? signal.reason : err
    } finally {
      signal?.removeEventListener('abort', kill)
    }
  }

  /** Resolves when an engine serves. From then on its end is the mount's end, or its failure. */
  async #supervise(): Promise<void> {
    const supervisor = this.#supervisor
    const serving = supervisor.start()
    supervisor.ended.then(
      () => this.#end(),
      failure => {
        if (this.#served) this.#fail(failure)
      },
    )
    await serving
  }

  #serve(connection: MessageConnection): void {
    const status = (): Promise<PoolStatus> => {
      if (this.#served) return this.#status()
      // Whoever asks early waits for the engine, or until there is something to tell.
      const told = this.#openingTold.promise.then(() => this.#status())
      return Promise.race([this.#status(), told])
    }
    serveAdmin(connection, { ...delegate(() => this.#supervisor.admin), status })
    serveEvents(connection, this.#events)
    const { mountPoint } = this.#options
    connection.onRequest(PING, () => {
      const stays = errorOf(() => this.#mustBeUnmountable())
      const refusal = stays === null ? null : toWire(stays)
      return { pid: process.pid, mountPoint, protocol: PROTOCOL, stays: refusal }
    })
    connection.onRequest(UMOUNT, () => answerDone(() => this.umount()))
    connection.onRequest(UMOUNT_FORCE, () => answerDone(() => this.umountForcibly()))
    connection.onRequest(RESTART, () => answerDone(() => this.restart()))
  }

  /** The engine's, with what the daemon knows; while none serves the last one, with the reason. */
  async #status(): Promise<PoolStatus> {
    if (!this.#served && this.#opening !== null) {
      const { what, done, all } = this.#opening
      const detail = `the pool is being mounted: ${what}, ${Math.floor((100 * done) / all)}%`
      throw new ThinfsError('NOT_MOUNTED', detail)
    }
    if (this.failure === null || this.#lastStatus === null) {
      try {
        this.#lastStatus = await this.#supervisor.admin.status()
      } catch (err) {
        if (this.failure === null || this.#lastStatus === null) throw err
      }
    }
    const { failure } = this
    const by = isLost(failure) ? await whoHasIt(this.#config) : null
    const mount = {
      mountPoint: this.#options.mountPoint,
      source: this.#source,
      pid: process.pid,
      since: this.#since,
      enginePid: this.#supervisor.enginePid,
      ...transportStatus(this.#supervisor.negotiated),
      logFile: this.#options.logFile,
    }
    return failure === null
      ? { ...this.#lastStatus, mount }
      : { ...this.#lastStatus, mode: 'fail', reason: reasonOf(failure, by), mount }
  }

  get #isMounted(): boolean {
    return thinfsMountAt(this.#options.mountPoint)?.source === this.#source
  }

  /**
   * Lets callers of the mount have errors, not wait for ever. Stays, to say why, until unmounted;
   * but what a ring had can only be ended with the whole connection.
   */
  #fail(failure: Error): void {
    this.#failure = failure
    this.#happened('mode', failure.message, 'fail')
    if (diesWithItsEngine(this.#supervisor.negotiated)) {
      void this.#end()
      return
    }
    // A mount outlives its engine by the connection that is here.
    this.#refusal = new Refusal(this.#fuseFd!, () => void this.#end())
  }

  /** Tells of an event that no engine can tell of: without the pool's numbers. */
  #happened(event: string, detail: string, mode?: 'fail'): void {
    const told = { time: Date.now() / 1000, event, detail, ...(mode ? { mode } : {}) }
    this.#told({ event: told, command: this.#config.hooks ?? null })
  }

  /** Keeps an event, and runs the command for it. */
  #told({ event, command }: PoolEvent): void {
    this.#events.add(event)
    if (command !== null) this.#hooks.run({ event, command })
  }

  async #end(): Promise<void> {
    await this.#release()
    if (this.#failure === null) this.#givenBack.resolve()
    else this.#givenBack.reject(this.#failure)
  }

  /**
   * Gives back what `#mount` took; the lock last: until then the files in the folder are ours. A
   * mount that cannot be taken away is dead, and keeps nothing else: the next one clears it.
   */
  async #release(): Promise<void> {
    try {
      if (this.#fuseFd !== null) {
        this.#closeFuse()
        if (this.#isMounted) await unmountLazily(this.#options.mountPoint)
      }
    } catch (err) {
      this.#log.error({ err }, 'not cleaned up')
    }
    if (this.#files === null) return
    if (this.#served) {
      this.#events.add({ time: Date.now() / 1000, event: 'unmounted', detail: '' })
    }
    this.#events.end()
    this.#control?.close()
    removeDaemonFile(this.#files.folder.held)
    this.#files.close()
    this.#files = null
  }

  /** Without the last descriptor of it, the kernel ends the connection. */
  #closeFuse(): void {
    this.#refusal?.close()
    if (this.#fuseFd !== null) closeSync(this.#fuseFd)
    this.#fuseFd = null
  }
}

function errorOf(act: () => void): unknown {
  try {
    act()
    return null
  } catch (err) {
    return err
  }
}

/** @param by who has the pool now; null: nobody, or that is not known */
const reasonOf = ({ message }: Error, by: string | null): string =>
  by === null ? message : `${message}; now ${by}`
