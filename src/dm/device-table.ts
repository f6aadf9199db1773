/**
 * The devices: names, uuids, minors, tables, and who holds whom. In memory only, as the kernel's.
 */
import type { Target } from '../tables/index.js'
import { type DeviceNumber, nameOfDevice } from './abi.js'
import { LOOP_MAJOR } from './loops.js'
import { devicesOf, type LineTarget } from './targets.js'

/** Our minors begin here: those below are the ones that `losetup -f` gives out. */
export const FIRST_MINOR = 1000

export interface Table {
  targets: readonly LineTarget[]
  readOnly: boolean
  /** The table as the engine was last given it. */
  sent: readonly Target[]
}

/** Sectors. */
export const sizeOfTable = (table: Table | null): number => {
  const last = table?.targets.at(-1)
  return last === undefined ? 0 : last.start + last.length
}

/** Devices that a table names, each once, in the order in which the kernel lists them. */
export function dependenciesOf(table: Table | null): DeviceNumber[] {
  const all = (table?.targets ?? []).flatMap(devicesOf)
  const first = new Map<string, DeviceNumber>()
  for (const device of all) {
    const name = nameOfDevice(device)
    if (!first.has(name)) first.set(name, device)
  }
  return [...first.values()].reverse()
}

export class Device {
  readonly number: DeviceNumber
  name: string
  uuid: string
  live: Table | null = null
  inactive: Table | null = null
  suspended = false
  eventNr = 0
  /** It goes with its last close. */
  deferredRemove = false
  /** Its loop device is there, and it can be found. */
  ready = false
  /** It is being removed, or was. */
  gone = false
  /** Names that it has had: those who opened it by one still have it open. */
  readonly names: Set<string>
  /** Its filesystem is frozen by us, or about to be. */
  freezing = false
  /** Undoes the freezing of its filesystem. */
  thaw: (() => Promise<void>) | null = null
  #last: Promise<unknown> = Promise.resolve()
  readonly #waiters = new Set<() => void>()

  constructor(number: DeviceNumber, name: string, uuid: string) {
    this.number = number
    this.name = name
    this.uuid = uuid
    this.names = new Set([name])
  }

  get minor(): number {
    return this.number.minor
  }

  /** One change at a time, in the order in which they were asked for. */
  exclusively<T>(act: () => Promise<T>): Promise<T> {
    const done = this.#last.then(act)
    this.#last = done.catch(() => {})
    return done
  }

  /** Something has happened that those who wait want to know. */
  event(): void {
    this.eventNr = (this.eventNr + 1) >>> 0
    for (const wake of this.#waiters) wake()
  }

  /** Resolves with the next event. Rejects with the reason of `signal` when that is aborted. */
  nextEvent(signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const end = (): void => {
        this.#waiters.delete(wake)
        signal.removeEventListener('abort', abort)
      }
      const wake = (): void => {
        end()
        resolve()
      }
      const abort = (): void => {
        end()
        reject(signal.reason)
      }
      if (signal.aborted) return abort()
      this.#waiters.add(wake)
      signal.addEventListener('abort', abort)
    })
  }
}

export class DeviceTable {
  readonly #devices = new Map<number, Device>()
  readonly #byName = new Map<string, Device>()
  readonly #byUuid = new Map<string, Device>()
  /** All minors below are taken. */
  #freeFrom: number
  /** How many tables name a device, by its number. */
  readonly #holders = new Map<string, number>()
  /** Of all our devices. */
  readonly major: number
  readonly #firstMinor: number

  constructor(major = LOOP_MAJOR, firstMinor = FIRST_MINOR) {
    this.major = major
    this.#freeFrom = firstMinor
    this.#firstMinor = firstMinor
  }

  get(minor: number): Device | undefined {
    return this.#devices.get(minor)
  }

  /** The device that a number names, if it is ours. */
  at({ major, minor }: DeviceNumber): Device | undefined {
    return major === this.major ? this.get(minor) : undefined
  }

  byName(name: string): Device | undefined {
    return this.#byName.get(name)
  }

  byUuid(uuid: string): Device | undefined {
    return this.#byUuid.get(uuid)
  }

  all(): Device[] {
    return [...this.#devices.values()]
  }

  add(device: Device): void {
    this.#devices.set(device.minor, device)
    this.#byName.set(device.name, device)
    if (device.uuid !== '') this.#byUuid.set(device.uuid, device)
  }

  rename(device: Device, name: string): void {
    this.#byName.delete(device.name)
    device.name = name
    device.names.add(name)
    this.#byName.set(name, device)
  }

  setUuid(device: Device, uuid: string): void {
    device.uuid = uuid
    this.#byUuid.set(uuid, device)
  }

  delete(device: Device): void {
    const { minor, name, uuid } = device
    if (this.#devices.get(minor) !== device) return
    this.#devices.delete(minor)
    this.#byName.delete(name)
    this.#byUuid.delete(uuid)
    if (minor >= this.#firstMinor) this.#freeFrom = Math.min(this.#freeFrom, minor)
  }

  /** The lowest minor of ours that nobody has, from `from` on. */
  freeMinor(from = this.#firstMinor): number {
    while (this.#devices.has(this.#freeFrom)) this.#freeFrom++
    let minor = Math.max(from, this.#freeFrom)
    while (this.#devices.has(minor)) minor++
    return minor
  }

  /** A table names devices from now on. */
  hold(table: Table): void {
    for (const device of dependenciesOf(table)) this.#count(device, 1)
  }

  /** A table is no more. @returns devices that no table names any more */
  release(table: Table): DeviceNumber[] {
    return dependenciesOf(table).filter(device => this.#count(device, -1) === 0)
  }

  /** How many tables name the device. */
  holdersOf(device: DeviceNumber): number {
    return this.#holders.get(nameOfDevice(device)) ?? 0
  }

  #count(device: DeviceNumber, by: 1 | -1): number {
    const name = nameOfDevice(device)
    const count = this.holdersOf(device) + by
    if (count === 0) this.#holders.delete(name)
    else this.#holders.set(name, count)
    return count
  }
}
