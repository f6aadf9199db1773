/**
 * The ioctls of device-mapper as bytes: from a caller's buffer to what `Devices` does, and back.
 *
 * Source: drivers/md/dm-ioctl.c for the order of checks and for what each command answers.
 */
import { constants } from 'node:os'
import { errnoOf, refused, ThinfsError, viewOf } from '../base/index.js'
import {
  commandOf,
  DM_FLAG,
  DM_IOCTL,
  DM_IOCTL_DATA,
  DM_NAME_SIZE,
  DM_TARGET_MSG,
  DM_UUID_SIZE,
  DM_VERSION,
  type DmCommand,
  decodeDevice,
  encodeDevice,
} from './abi.js'
import { type Device, dependenciesOf, type Table } from './device-table.js'
import type { Devices } from './devices.js'
import { isDoneAlready } from './engine-link.js'
import {
  type Call,
  depsOf,
  encode,
  fill,
  fillLines,
  linesOf,
  namesOf,
  set,
  stringIn,
  textAt,
  versionsOf,
} from './ioctl-records.js'
import { LOOP_MAJOR } from './loops.js'
import type { Machine } from './machine.js'
import { paramsOf, splitWords, TARGET_VERSIONS } from './targets.js'

/** Bytes of the largest buffer that is read: a table of some 100,000 lines. */
export const MAX_BUFFER = 16 * 1024 * 1024
const ERRNOS: Readonly<Record<string, number>> = constants.errno

/** The process that calls. */
export interface Caller {
  pid: number
  /** Aborted when it has got a signal. */
  signal: AbortSignal
  /** A service that was killed may have carried the call out. */
  isResent?: boolean
  /** Reads `length` bytes of its buffer behind DM_IOCTL. @throws EFAULT when they are not there */
  readBehind(length: number): Promise<Buffer>
}

/**
 * A device is asked for that there is not: whoever makes it asks before, so that it is no mistake.
 */
export class NoDevice extends ThinfsError {
  constructor(detail: string) {
    super('BAD_ARGUMENT', detail, { errno: 'ENXIO' })
  }
}

/** Commands that take more than a header. */
const WITH_PAYLOAD: ReadonlySet<DmCommand> = new Set([
  'DEV_RENAME',
  'TABLE_LOAD',
  'TARGET_MSG',
] as const)

/** The answer to a call. */
export interface Answer {
  /** 0, or the positive number of the error. */
  errno: number
  /** The caller's DM_IOCTL, as it is now. */
  header: Buffer
  /** The bytes behind it; null for none. */
  payload: Buffer | null
}

/** Loop devices that are not ours: LVM takes them for devices of device-mapper. */
export type ForeignLoop = Pick<Machine, 'lower'>

export class Ioctls {
  readonly #devices: Devices
  readonly #machine: ForeignLoop

  constructor(devices: Devices, machine: ForeignLoop) {
    this.#devices = devices
    this.#machine = machine
  }

  /**
   * Answers a call.
   * @param nr the low byte of the command
   * @param input the caller's DM_IOCTL
   * @param onError told what was refused, and why
   */
  async call(
    nr: number,
    input: Buffer,
    caller: Caller,
    onError: (command: string, err: unknown) => void = () => {},
  ): Promise<Answer> {
    const header = Buffer.from(input.subarray(0, DM_IOCTL.size))
    const view = viewOf(header)
    const given = DM_IOCTL.read(view, 0)
    // The version goes back whatever comes of the call.
    DM_IOCTL.write(view, 0, { major: DM_VERSION[0], minor: DM_VERSION[1], patch: DM_VERSION[2] })
    const command = commandOf(nr)
    if (command === 'VERSION' && isSpoken(given)) return { errno: 0, header, payload: null }
    try {
      if (!isSpoken(given)) {
        const { major, minor } = given
        throw refused('EINVAL', `version ${major}.${minor}, not ${DM_VERSION.join('.')} or before`)
      }
      if (command === null || command === 'VERSION') throw refused('ENOTTY', 'no such command')
      if (given.dataSize < DM_IOCTL_DATA) throw refused('EINVAL', `${given.dataSize} bytes`)
      if (given.dataSize > MAX_BUFFER) throw refused('ENOMEM', `${given.dataSize} bytes`)
      const more = WITH_PAYLOAD.has(command) ? given.dataSize - DM_IOCTL.size : 0
      const rest = more > 0 ? await caller.readBehind(more) : Buffer.alloc(0)
      const call = this.#callOf(given, Buffer.concat([input, rest]), caller)
      mustName(command, call)
      await this.#run(command, call)
      return { errno: 0, header: encode(header, call), payload: call.payload }
    } catch (err) {
      if (caller.isResent && command !== null && isDone(command, errnoOf(err))) {
        return { errno: 0, header, payload: null }
      }
      onError(command ?? `command ${nr}`, err)
      const errno = ERRNOS[errnoOf(err)] ?? constants.errno.EIO
      return { errno, header, payload: null }
    }
  }

  #callOf(
    given: ReturnType<typeof DM_IOCTL.read>,
    buffer: Buffer,
    { pid, signal, isResent }: Caller,
  ): Call {
    const { dataSize, dataStart } = given
    const { BUFFER_FULL, UEVENT_GENERATED, SECURE_DATA, DATA_OUT } = DM_FLAG
    return {
      ...{ pid, signal, isResent: isResent ?? false },
      flags: given.flags & ~(BUFFER_FULL | UEVENT_GENERATED | SECURE_DATA | DATA_OUT),
      eventNr: given.eventNr,
      targetCount: given.targetCount,
      openCount: given.openCount,
      dev: given.dev,
      name: textAt(buffer, DM_IOCTL.at.name, DM_NAME_SIZE - 1),
      uuid: textAt(buffer, DM_IOCTL.at.uuid, DM_UUID_SIZE - 1),
      dataStart,
      data: dataStart < DM_IOCTL_DATA ? Buffer.alloc(0) : buffer.subarray(dataStart, dataSize),
      room: Math.max(0, dataSize - DM_IOCTL.size),
      payload: null,
      answerSize: DM_IOCTL_DATA,
    }
  }

  async #run(command: Exclude<DmCommand, 'VERSION'>, call: Call): Promise<void> {
    const devices = this.#devices
    switch (command) {
      case 'REMOVE_ALL':
        await devices.removals.removeAll((call.flags & DM_FLAG.DEFERRED_REMOVE) !== 0)
        call.answerSize = call.room + DM_IOCTL.size
        return
      case 'LIST_DEVICES':
        return this.#list(call)
      case 'LIST_VERSIONS':
        return fill(call, versionsOf(TARGET_VERSIONS))
      case 'GET_TARGET_VERSION': {
        const found = TARGET_VERSIONS.filter(([name]) => name === call.name)
        if (found.length === 0) throw refused('EINVAL', `${call.name}: no such target`)
        return fill(call, versionsOf(found))
      }
      case 'DEV_CREATE': {
        const isAsked = (call.flags & DM_FLAG.PERSISTENT_DEV) !== 0
        const minor = isAsked ? decodeDevice(call.dev).minor : null
        const earlier = call.isResent ? devices.table.byName(call.name) : undefined
        const device =
          earlier?.ready && earlier.uuid === call.uuid
            ? earlier
            : await devices.create(call.name, call.uuid, minor)
        call.flags &= ~DM_FLAG.INACTIVE_PRESENT
        return await this.#describe(call, device)
      }
      case 'DEV_REMOVE': {
        const device = this.#find(call)
        const isGone = await devices.removals.remove(
          device,
          (call.flags & DM_FLAG.DEFERRED_REMOVE) !== 0,
        )
        if (isGone) call.flags &= ~DM_FLAG.DEFERRED_REMOVE
        return
      }
      case 'DEV_RENAME':
        return await this.#rename(call)
      case 'DEV_SUSPEND': {
        const device = this.#find(call)
        const udevFlags = call.eventNr >>> 16
        if ((call.flags & DM_FLAG.SUSPEND) !== 0) await devices.suspend(device, call.flags)
        else {
          await devices.resume(device, call.flags, udevFlags)
          call.flags &= ~DM_FLAG.INACTIVE_PRESENT
        }
        return await this.#describe(call, device)
      }
      case 'DEV_STATUS':
        return await this.#describe(call, this.#find(call), true)
      case 'DEV_WAIT': {
        const device = this.#find(call)
        while (device.eventNr === call.eventNr) await interruptible(device, call.signal)
        await this.#describe(call, device)
        return await this.#statusOf(call, device)
      }
      case 'TABLE_LOAD': {
        const device = this.#find(call)
        const readOnly = (call.flags & DM_FLAG.READONLY) !== 0
        await devices.load(device, linesOf(call), readOnly, call.pid)
        call.flags |= DM_FLAG.INACTIVE_PRESENT
        return await this.#describe(call, device)
      }
      case 'TABLE_CLEAR': {
        const device = this.#find(call)
        await devices.clear(device)
        call.flags &= ~DM_FLAG.INACTIVE_PRESENT
        return await this.#describe(call, device)
      }
      case 'TABLE_DEPS':
        return await this.#dependencies(call)
      case 'TABLE_STATUS': {
        if (await this.#isForeignLoop(call)) return await this.#foreignStatus(call)
        const device = this.#find(call)
        await this.#describe(call, device, true)
        return await this.#statusOf(call, device)
      }
      case 'TARGET_MSG':
        return await this.#message(call)
      case 'DEV_SET_GEOMETRY':
        // Nobody asks a loop device for heads and cylinders.
        return await this.#describe(call, this.#find(call))
      case 'DEV_ARM_POLL':
        return
    }
  }

  /** The device that a call is about: by uuid, by name or by number, not by two of them. */
  #find(call: Call): Device {
    const { table } = this.#devices
    const ways = [call.uuid !== '', call.name !== '', call.dev !== 0].filter(Boolean).length
    const device =
      ways !== 1
        ? undefined
        : call.uuid !== ''
          ? table.byUuid(call.uuid)
          : call.name !== ''
            ? table.byName(call.name)
            : table.at(decodeDevice(call.dev))
    if (device === undefined || !device.ready || device.gone) {
      throw new NoDevice(`no device ${call.uuid || call.name || call.dev}`)
    }
    call.name = device.name
    call.uuid = device.uuid
    set(call, DM_FLAG.INACTIVE_PRESENT, device.inactive !== null)
    return device
  }

  /**
   * Fills in the fields about a device that the answer to every command on it has.
   * @param counts those who have it open too, which only who asks for its status wants to know
   */
  async #describe(call: Call, device: Device, counts = false): Promise<void> {
    const isCounted = counts && (call.flags & DM_FLAG.SKIP_BDGET) === 0
    call.openCount = await this.#devices.openCount(device, isCounted)
    const queriesInactive = (call.flags & DM_FLAG.QUERY_INACTIVE_TABLE) !== 0
    const shown = queriesInactive ? device.inactive : device.live
    set(call, DM_FLAG.SUSPEND, device.suspended)
    set(call, DM_FLAG.INTERNAL_SUSPEND, false)
    set(call, DM_FLAG.DEFERRED_REMOVE, device.deferredRemove)
    set(call, DM_FLAG.ACTIVE_PRESENT, device.live !== null)
    set(call, DM_FLAG.READONLY, shown?.readOnly ?? false)
    call.dev = encodeDevice(device.number)
    call.eventNr = device.eventNr
    call.targetCount = shown?.targets.length ?? 0
  }

  #shownTable(call: Call, device: Device): Table | null {
    return (call.flags & DM_FLAG.QUERY_INACTIVE_TABLE) !== 0 ? device.inactive : device.live
  }

  async #statusOf(call: Call, device: Device): Promise<void> {
    const table = this.#shownTable(call, device)
    if (table === null) return
    const isTable = (call.flags & DM_FLAG.STATUS_TABLE) !== 0
    const flush = (call.flags & DM_FLAG.NOFLUSH) === 0
    const lines = isTable
      ? table.targets.map(paramsOf)
      : await this.#devices.statusLines(device, table, flush)
    call.targetCount = table.targets.length
    fillLines(
      call,
      table.targets.map((target, i) => ({ ...target, params: lines[i]! })),
    )
  }

  async #dependencies(call: Call): Promise<void> {
    if (await this.#isForeignLoop(call)) {
      call.name = `loop${decodeDevice(call.dev).minor}`
      return fill(call, depsOf([]))
    }
    const device = this.#find(call)
    await this.#describe(call, device)
    const table = this.#shownTable(call, device)
    if (table !== null) fill(call, depsOf(dependenciesOf(table)))
  }

  /**
   * Whether the call asks, by its number alone, for a loop device that is somebody else's. Our
   * major number is that of all loop devices, so LVM asks before it takes one for a physical
   * volume, and would make what is not there.
   */
  async #isForeignLoop(call: Call): Promise<boolean> {
    const { major, minor } = decodeDevice(call.dev)
    if (call.name !== '' || call.uuid !== '' || major !== LOOP_MAJOR) return false
    if (this.#devices.table.get(minor) !== undefined) return false
    try {
      return (await this.#machine.lower({ major, minor })).size > 0
    } catch {
      return false
    }
  }

  async #foreignStatus(call: Call): Promise<void> {
    const number = decodeDevice(call.dev)
    const { size } = await this.#machine.lower(number)
    const { SUSPEND, READONLY, INACTIVE_PRESENT, ACTIVE_PRESENT } = DM_FLAG
    call.flags = (call.flags & ~(SUSPEND | READONLY | INACTIVE_PRESENT)) | ACTIVE_PRESENT
    call.name = `loop${number.minor}`
    call.targetCount = 1
    call.openCount = 1
    call.eventNr = 0
    fillLines(call, [{ start: 0, length: size, type: 'linear', params: '' }])
  }

  #list(call: Call): void {
    const devices = this.#devices.table
      .all()
      .filter(({ name, uuid, ready, gone }) => {
        const isWanted = name.startsWith(call.name) && uuid.startsWith(call.uuid)
        return isWanted && ready && !gone
      })
      .sort((a, b) => (a.name < b.name ? -1 : 1))
    // A number of 0, which says that there is none, has to fit all the same.
    if (devices.length === 0 && call.room < 8) call.flags |= DM_FLAG.BUFFER_FULL
    else fill(call, namesOf(devices, (call.flags & DM_FLAG.UUID) !== 0))
  }

  async #rename(call: Call): Promise<void> {
    const name = stringIn(call.data)
    const setsUuid = (call.flags & DM_FLAG.UUID) !== 0
    const most = (setsUuid ? DM_UUID_SIZE : DM_NAME_SIZE) - 1
    if (name === null || Buffer.byteLength(name) > most) {
      throw refused('EINVAL', 'Invalid new mapped device name or uuid string supplied.')
    }
    const udevFlags = call.eventNr >>> 16
    const device = this.#find(call)
    if (setsUuid) this.#devices.setUuid(device, name)
    else this.#devices.rename(device, name, udevFlags)
    await this.#describe(call, device)
    // The kernel does not look for another table here.
    call.flags &= ~DM_FLAG.INACTIVE_PRESENT
  }

  async #message(call: Call): Promise<void> {
    const device = this.#find(call)
    const { size } = DM_TARGET_MSG
    const text = call.data.length > size ? stringIn(call.data.subarray(size)) : null
    if (text === null) throw refused('EINVAL', 'Invalid target message parameters.')
    const { sector } = DM_TARGET_MSG.read(viewOf(call.data), 0)
    const words = splitWords(text)
    if (words.length === 0) throw refused('EINVAL', 'Empty message received.')
    let answer: string | null = null
    if (words[0]!.startsWith('@')) {
      if (words.length !== 1 || words[0]!.toLowerCase() !== '@cancel_deferred_remove') {
        throw refused('EINVAL', `Unsupported message sent to DM core: ${words[0]}`)
      }
      await this.#devices.removals.keep(device)
    } else {
      answer = await this.#devices.message(device, sector, words).catch(err => {
        if (call.isResent && isDoneAlready(words, errnoOf(err))) return null
        throw err
      })
    }
    await this.#describe(call, device)
    if (answer === null) return
    call.flags |= DM_FLAG.DATA_OUT
    fill(call, Buffer.from(`${answer}\0`))
  }
}

/** Whether the error of a call that comes again says that it was carried out. */
const isDone = (command: DmCommand, errno: string): boolean =>
  (command === 'DEV_REMOVE' || command === 'DEV_RENAME') && errno === 'ENXIO'

/** Whether a caller speaks our version, or one before. */
const isSpoken = ({ major, minor }: { major: number; minor: number }): boolean =>
  major === DM_VERSION[0] && minor <= DM_VERSION[1]

async function interruptible(device: Device, signal: AbortSignal): Promise<void> {
  try {
    await device.nextEvent(signal)
  } catch (cause) {
    throw Object.assign(new Error('interrupted', { cause }), { code: 'EINTR' })
  }
}

function mustName(command: DmCommand, { name, uuid }: Call): void {
  const needsNone: readonly DmCommand[] = ['REMOVE_ALL', 'LIST_DEVICES', 'LIST_VERSIONS']
  if (needsNone.includes(command)) return
  if (command === 'DEV_CREATE') {
    if (name === '') throw refused('EINVAL', 'name not supplied when creating device')
  } else if (name !== '' && uuid !== '') {
    throw refused('EINVAL', `only supply one of name or uuid, cmd(${command})`)
  }
}
