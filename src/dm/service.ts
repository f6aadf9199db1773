/**
 * The process that is device-mapper to the programs of this machine: it serves /dev/mapper, has the
 * table of devices and their loop devices, and an engine that serves their bytes.
 *
 * It never reads or writes a device itself, and looks at no path of its own but from another
 * thread: it would wait for itself.
 */
import { execFile } from 'node:child_process'
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmdirSync,
  rmSync,
} from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import { promisify } from 'node:util'
import type { MessageConnection } from 'vscode-jsonrpc/node'
import { errnoOf, ThinfsError } from '../base/index.js'
import {
  answer,
  answerDone,
  ControlSocket,
  DM_STATUS,
  DM_STOP,
  type DmStatus,
  PROTOCOL,
  spawnTableEngine,
  TABLE_ENGINE_FD,
} from '../control/index.js'
import { DEV, type Negotiated, Refusal, type Session } from '../fuse/index.js'
import { isInUserNamespace, list, read, readMounts, unmountLazily } from '../host/index.js'
import type { Logger } from '../log/index.js'
import { native } from '../native.js'
import type { TableEvents } from '../tables/index.js'
import { whyNotTold } from './client-memory.js'
import { ControlFolder } from './control-folder.js'
import { Devices } from './devices.js'
import { EngineLink } from './engine-link.js'
import { Ioctls, NoDevice } from './ioctls.js'
import { KernelMachine } from './kernel-machine.js'
import { LOOP_MAJOR } from './loops.js'
import { ProcDevices, uncoverProcDevices } from './proc-devices.js'
import { type SavedService, SavedState } from './saved-state.js'
import { statusOf } from './status.js'

/** The folder of the service's state, and of the private mount of the engine's files. */
export const RUN_FOLDER = '/run/thinfs-dm'
export const CONTROL_SOCKET = `${RUN_FOLDER}/control.sock`
const FILES = `${RUN_FOLDER}/dev`
const LOCK = `${RUN_FOLDER}/lock`
const STATE = `${RUN_FOLDER}/state`
const MAPPER = '/dev/mapper'
/** The types of its mounts are `fuse.` and these. */
const MAPPER_TYPE = 'thinfs-mapper'
const FILES_TYPE = 'thinfs-tables'

export interface DmServiceOptions {
  logLevel: string
  /** Null: stderr. */
  logFile: string | null
  foreground: boolean
}

export class DmService {
  readonly #options: DmServiceOptions
  readonly #log: Logger
  readonly #link: EngineLink
  readonly #devices: Devices
  #since = Math.floor(Date.now() / 1000)
  #saved: SavedState | null = null
  #engine: { enginePid: number; files: Negotiated } | null = null
  #mapper: Negotiated | null = null
  #lock = -1
  #filesFd = -1
  #mapperFd = -1
  #madeMapper = false
  #session: Session | null = null
  #refusal: Refusal | null = null
  #procDevices: ProcDevices | null = null
  #control: ControlSocket | null = null
  #stopping: Promise<void> | null = null
  #end: () => void = () => {}
  readonly #ended = new Promise<void>(resolve => {
    this.#end = resolve
  })

  /**
   * Resolves when programs can use it.
   * @throws NOT_SUPPORTED where it cannot be, MOUNT_BUSY where it is already, MOUNT_FAILED; nothing
   *   is left behind
   */
  static async start(options: DmServiceOptions, log: Logger): Promise<DmService> {
    await mustBeAble()
    const service = new DmService(options, log)
    try {
      await service.#start()
      return service
    } catch (err) {
      await service.#release().catch(cause => log.error({ err: cause }, 'not cleaned up'))
      throw err
    }
  }

  private constructor(options: DmServiceOptions, log: Logger) {
    this.#options = options
    this.#log = log
    const events: TableEvents = {
      event: minor => this.#devices.table.get(minor)?.event(),
      closed: minor => this.#devices.removals.closed(minor),
    }
    this.#link = new EngineLink({
      spawn: negotiated =>
        spawnTableEngine(
          { ...this.#options, negotiated, folder: RUN_FOLDER },
          { fuse: this.#filesFd, mapper: this.#mapperFd },
        ),
      onFailed: err => {
        log.error({ err }, 'no engine stays: requests are answered with EIO')
        this.#refusal = new Refusal(this.#filesFd, () => {})
      },
      onServes: (enginePid, files) => {
        this.#engine = { enginePid, files }
        this.#save()
      },
      replay: engine => this.#devices.replay(engine),
      ...{ events, log },
    })
    const machine = new KernelMachine(
      FILES,
      ({ major, minor }) => major === LOOP_MAJOR && this.#devices.table.get(minor) !== undefined,
      () => [process.pid, this.#link.pid],
    )
    this.#devices = new Devices(this.#link, machine)
    this.#devices.onUnserved = ({ name }, err) =>
      log.error({ device: name, err }, 'its table cannot be served: EIO until it is loaded again')
    this.#machine = machine
  }
  readonly #machine: KernelMachine

  /** Resolves when it was stopped, and nothing is left of it. */
  get ended(): Promise<void> {
    return this.#ended
  }

  status(): Promise<DmStatus> {
    const pids = { pid: process.pid, enginePid: this.#link.pid }
    return statusOf(this.#devices, { ...pids, protocol: PROTOCOL })
  }

  /**
   * Removes all devices, those on top first, and ends.
   * @throws MOUNT_BUSY naming devices that are in use: nothing was done
   */
  stop(): Promise<void> {
    this.#stopping ??= this.#stop().finally(() => {
      this.#stopping = null
    })
    return this.#stopping
  }

  async #stop(): Promise<void> {
    const busy: string[] = []
    for (const device of this.#devices.table.all()) {
      if ((await this.#machine.openCount(device)) > 0) busy.push(device.name)
    }
    if (busy.length > 0) {
      throw new ThinfsError(
        'MOUNT_BUSY',
        `in use: ${busy.join(', ')}; unmount and close them first`,
      )
    }
    for (const device of this.#devices.table.all()) {
      if (!device.suspended || device.live === null || this.#link.failed) continue
      await this.#devices.resume(device, 0, 0)
    }
    await this.#devices.removals.removeAll(false)
    const left = this.#devices.table.all().map(({ name }) => name)
    if (left.length > 0) throw new ThinfsError('MOUNT_BUSY', `in use: ${left.join(', ')}`)
    this.#log.info('stopping')
    await this.#release()
    this.#end()
  }

  async #start(): Promise<void> {
    mkdirSync(RUN_FOLDER, { recursive: true, mode: 0o700 })
    this.#takeLock()
    this.#saved = new SavedState(STATE)
    const earlier = await this.#takeOver()
    if (earlier === null) await this.#mount()
    this.#devices.onChange = device => this.#saved?.saveDevice(device)
    const restored = earlier === null ? [] : this.#saved.devices()
    for (const device of restored) await this.#devices.restore(device)
    await this.#link.start(earlier?.files ?? null)
    if (earlier !== null) await detachStray(minor => this.#devices.table.get(minor) !== undefined)
    await Promise.all(restored.map(device => this.#devices.restored(device)))
    this.#procDevices = new ProcDevices(`${RUN_FOLDER}/devices`)
    this.#serveMapper(earlier?.mapper ?? null)
    this.#control = await ControlSocket.listen(CONTROL_SOCKET, connection =>
      this.#serve(connection),
    )
    this.#log.info({ folder: MAPPER }, earlier === null ? 'ready' : 'took over')
  }

  async #mount(): Promise<void> {
    await clearUp(this.#log)
    for (const device of this.#saved?.devices() ?? []) this.#machine.linkDown(device)
    mkdirSync(FILES, { recursive: true, mode: 0o700 })
    // The folder that a service has made goes with the next one that ends, if it was killed itself.
    this.#madeMapper = this.#saved?.service()?.madeMapper ?? false
    rmSync(STATE, { recursive: true })
    this.#saved = new SavedState(STATE)
    if (!existsSync(MAPPER)) {
      mkdirSync(MAPPER, 0o755)
      this.#madeMapper = true
    }
    const mountOptions = { source: 'thinfs-dm', allowOther: false, readOnly: false }
    this.#filesFd = await DEV.mount(FILES, { ...mountOptions, subtype: FILES_TYPE })
    this.#mapperFd = await DEV.mount(MAPPER, {
      ...mountOptions,
      subtype: MAPPER_TYPE,
      allowOther: true,
      devices: true,
    })
  }

  /**
   * Takes both connections from the engine of a service that was killed, and ends that engine: the
   * next one goes on as after any engine's death. Null when there is none.
   */
  async #takeOver(): Promise<SavedService | null> {
    const earlier = this.#saved?.service() ?? null
    if (earlier === null || !isEngine(earlier.enginePid)) return null
    if (![FILES, MAPPER].every(path => mountsAt(path).length > 0)) return null
    this.#log.warn({ engine: earlier.enginePid }, 'an earlier service was killed: taking over')
    this.#filesFd = native.process_descriptor(earlier.enginePid, TABLE_ENGINE_FD.fuse)
    this.#mapperFd = native.process_descriptor(earlier.enginePid, TABLE_ENGINE_FD.mapper)
    this.#madeMapper = earlier.madeMapper
    this.#since = earlier.since
    this.#mapper = earlier.mapper
    process.kill(earlier.enginePid, 'SIGKILL')
    while (isEngine(earlier.enginePid)) await setTimeout(10)
    await uncoverProcDevices()
    return earlier
  }

  #save(): void {
    const { enginePid, files, mapper } = { ...this.#engine, mapper: this.#mapper }
    if (enginePid === undefined || files === undefined || mapper === null) return
    const service = { enginePid, files, mapper, since: this.#since, madeMapper: this.#madeMapper }
    this.#saved?.saveService(service)
  }

  /** @throws MOUNT_BUSY when another one has it */
  #takeLock(): void {
    this.#lock = openSync(LOCK, 'w', 0o600)
    if (native.file_lock(this.#lock, true)) return
    closeSync(this.#lock)
    this.#lock = -1
    throw new ThinfsError('MOUNT_BUSY', 'thinfs dm is running already: thinfs dm --status')
  }

  #serveMapper(negotiated: Negotiated | null): void {
    const ioctls = new Ioctls(this.#devices, this.#machine)
    this.#session = DEV.serve({
      fd: this.#mapperFd,
      fileSystem: new ControlFolder({
        table: this.#devices.table,
        ioctls,
        since: this.#since,
        onOpen: () => this.#procDevices?.refresh(),
        onRefused: (command, err) => {
          // Nobody is told by these that something is wrong.
          const isUsual = err instanceof NoDevice || errnoOf(err) === 'EINTR'
          const level = isUsual ? 'debug' : 'info'
          this.#log[level]({ command, err }, 'refused')
        },
      }),
      ...(negotiated && { negotiated }),
      onInitialized: agreed => {
        this.#mapper = agreed
        this.#save()
      },
      onUnmounted: () => this.#log.warn(`${MAPPER} was unmounted by somebody`),
      onFatal: err => {
        this.#log.fatal({ err }, 'stopped')
        process.exit(1)
      },
      onError: (operation, ino, err) => this.#log.debug({ operation, ino, err }, 'request failed'),
    })
    if (negotiated !== null) this.#session.resend()
  }

  #serve(connection: MessageConnection): void {
    connection.onRequest(DM_STATUS, () => answer(() => this.status()))
    connection.onRequest(DM_STOP, () => answerDone(() => this.stop()))
  }

  /** Gives back what `#start` took, in reverse. */
  async #release(): Promise<void> {
    this.#control?.close()
    this.#session?.close()
    if (this.#mapperFd >= 0) {
      await unmountAt(MAPPER, MAPPER_TYPE)
      closeSync(this.#mapperFd)
    }
    if (this.#madeMapper) rmdirSync(MAPPER)
    await this.#procDevices?.close()
    const engineEnded = this.#link.ended()
    this.#refusal?.close()
    if (this.#filesFd >= 0) {
      await unmountAt(FILES, FILES_TYPE)
      closeSync(this.#filesFd)
    }
    await engineEnded
    if (this.#lock >= 0) {
      rmSync(RUN_FOLDER, { recursive: true, force: true })
      closeSync(this.#lock)
    }
  }
}

/** Why nobody answers on the control socket, what there is, and what can be done. */
export function notRunning(): ThinfsError {
  const saved = existsSync(STATE) ? new SavedState(STATE) : null
  const service = saved?.service() ?? null
  const isLeft = [FILES, MAPPER].some(path => mountsAt(path).length > 0)
  if (saved === null || service === null || !isLeft) {
    return new ThinfsError('NOT_MOUNTED', 'thinfs dm does not run')
  }
  const names = saved.devices().map(({ name }) => name)
  const devices = `${names.length} devices${names.length > 0 ? ` (${names.join(', ')})` : ''}`
  const detail = isEngine(service.enginePid)
    ? `its service was killed; engine ${service.enginePid} goes on serving ${devices}, and programs that ask wait: start thinfs dm again, it takes over`
    : `service and engine were killed; ${devices} and mounts are left, with I/O errors: unmount what is on them and start thinfs dm again, it clears up`
  return new ThinfsError('NOT_MOUNTED', detail)
}

/** @throws NOT_SUPPORTED saying why it cannot be here */
export async function mustBeAble(): Promise<void> {
  const why = await whyNot()
  if (why !== null) throw new ThinfsError('NOT_SUPPORTED', why)
}

async function whyNot(): Promise<string | null> {
  if (process.getuid?.() !== 0) return 'thinfs dm needs root'
  if (isInUserNamespace()) {
    return 'thinfs dm needs the initial user namespace: device nodes work in no other'
  }
  const isThere =
    readFileSync('/proc/misc', 'utf8').includes(' device-mapper') || (await hasDeviceMapper())
  if (isThere) return 'this kernel has device-mapper: use that'
  if (!existsSync('/dev/loop-control')) return 'there is no /dev/loop-control: modprobe loop'
  return whyNotTold()
}

/** Whether the kernel has a driver behind the control node, or loads one for it. */
async function hasDeviceMapper(): Promise<boolean> {
  const node = `/dev/.thinfs-dm-${process.pid}`
  try {
    await promisify(execFile)('mknod', ['-m', '600', node, 'c', '10', '236'])
    closeSync(openSync(node, 'r'))
    return true
  } catch {
    return false
  } finally {
    rmSync(node, { force: true })
  }
}

/** Whether the process is an engine of ours: its number may be somebody else's by now. */
const isEngine = (pid: number): boolean => {
  const [, ...words] = read(`/proc/${pid}/cmdline`).split('\0')
  return words.some(word => word.endsWith('/engine/tables-main.js')) && !isZombie(pid)
}
const isZombie = (pid: number): boolean => /^State:\tZ/m.test(read(`/proc/${pid}/status`))

/**
 * Takes away what a service that was killed, and its engine, have left; the caller has the lock.
 */
async function clearUp(log: Logger): Promise<void> {
  await uncoverProcDevices()
  const isMounted = [MAPPER, FILES].some(path => mountsAt(path).length > 0)
  if (!isMounted) return
  log.warn('an earlier service was killed: clearing up')
  await unmountAt(MAPPER, MAPPER_TYPE)
  await detachStray(() => false)
  await unmountAt(FILES, FILES_TYPE)
}

/** Detaches loop devices on the engine's files that no device has. */
async function detachStray(isKnown: (minor: number) => boolean): Promise<void> {
  for (const name of list('/sys/block')) {
    const file = read(`/sys/block/${name}/loop/backing_file`)
    if (!file.startsWith(`${FILES}/`) || isKnown(Number(name.slice('loop'.length)))) continue
    await promisify(execFile)('losetup', ['-d', `/dev/${name}`]).catch(() => {})
  }
}

const mountsAt = (path: string): string[] =>
  readMounts()
    .filter(({ mountPoint }) => mountPoint === path)
    .map(({ type }) => type)

/** Takes away mounts of ours on a folder. */
async function unmountAt(path: string, type: string): Promise<void> {
  while (mountsAt(path).at(-1) === `fuse.${type}`) await unmountLazily(path)
}
