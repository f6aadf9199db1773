/**
 * Operations on devices: device-mapper's rules of creating, loading, suspending and resuming, on
 * top of an engine that has the bytes and a machine that has loop devices. See removals.ts for
 * removing.
 *
 * Changes of one device happen one after the other, those of different devices side by side: a
 * suspend that waits for a full pool must not hold up the message that makes room in it. Source:
 * drivers/md/dm-ioctl.c, drivers/md/dm.c; what they answer was asked of Linux 6.1.
 */
import { isDeepStrictEqual } from 'node:util'
import { errnoOf, refused, ThinfsError } from '../base/index.js'
import type { TableEngine, Target } from '../tables/index.js'
import { type DeviceNumber, DM_FLAG } from './abi.js'
import { Device, DeviceTable, dependenciesOf, sizeOfTable, type Table } from './device-table.js'
import { LowerDevices } from './lower-devices.js'
import type { Machine } from './machine.js'
import { Removals } from './removals.js'
import {
  keepPool,
  mustBeAlone,
  mustContinue,
  mustFit,
  mustMix,
  mustNotHoldItself,
  mustReplace,
} from './table-rules.js'
import { type Line, type LineTarget, parseTarget, plainStatusOf, resolveTarget } from './targets.js'

/** How much of a suspend is asked for: DM_FLAG.SKIP_LOCKFS and NOFLUSH. */
type Flags = number

export class Devices {
  readonly table: DeviceTable
  readonly #engine: TableEngine
  readonly #machine: Machine
  readonly #lower: LowerDevices
  /** How devices go. */
  readonly removals: Removals
  /** Called when a device is there, has changed, or is gone, before the caller gets its answer. */
  onChange: (device: Device) => void = () => {}
  /** Called when a new engine cannot serve a table that the one before has served. */
  onUnserved: (device: Device, err: unknown) => void = () => {}

  constructor(engine: TableEngine, machine: Machine, table = new DeviceTable()) {
    this.table = table
    this.#engine = engine
    this.#machine = machine
    this.#lower = new LowerDevices(table, machine)
    this.removals = new Removals({
      ...{ table, machine },
      change: (device, act) => this.#change(device, act),
      thaw: device => this.#thaw(device),
      end: device => engine.remove(device.minor),
      dropped: table => this.#dropped(table),
      gone: device => this.onChange(device),
    })
  }

  /**
   * @param minor the one to have; null for any
   * @throws EBUSY when name, uuid or minor are taken
   */
  async create(name: string, uuid: string, minor: number | null): Promise<Device> {
    mustBeName(name)
    const isTaken =
      this.table.byName(name) !== undefined ||
      (uuid !== '' && this.table.byUuid(uuid) !== undefined) ||
      (minor !== null && this.table.get(minor) !== undefined)
    if (isTaken) throw refused('EBUSY', `${name}: name, uuid or number is in use`)
    for (let nr = minor ?? this.table.freeMinor(); ; nr = this.table.freeMinor(nr + 1)) {
      const device = new Device({ major: this.table.major, minor: nr }, name, uuid)
      this.table.add(device)
      try {
        await device.exclusively(() => this.#bring(device))
        this.onChange(device)
        return device
      } catch (err) {
        this.table.delete(device)
        // A loop device of this number is somebody else's.
        if (minor === null && errnoOf(err) === 'EBUSY') continue
        throw err
      }
    }
  }

  async #bring(device: Device): Promise<void> {
    await this.#engine.create(device.minor)
    try {
      await this.#machine.loops.attach(device.minor)
    } catch (err) {
      await this.#engine.remove(device.minor).catch(() => {})
      throw err
    }
    device.ready = true
  }

  /** Takes what the lines say for the table that `resume` brings. @param pid of who says it */
  load(device: Device, lines: Iterable<Line>, readOnly: boolean, pid: number): Promise<void> {
    return this.#change(device, async () => {
      const targets: LineTarget[] = []
      for (const line of lines) {
        const end = sizeOfTable({ targets, readOnly, sent: [] })
        mustContinue(line, end)
        const target = await parseTarget(line, word => this.#machine.lookUp(word, pid))
        mustMix(target, targets, readOnly)
        targets.push(target)
      }
      mustReplace(targets, device.live)
      mustBeAlone(device, targets, this.table)
      keepPool(targets, device)
      // The kernel looks at sizes here for the first table of a device alone.
      if (device.live === null) await mustFit(targets, readOnly, this.#lower)
      mustNotHoldItself(device, targets, this.table)
      const table: Table = { targets, readOnly, sent: [] }
      await this.#hold(table)
      try {
        table.sent = await this.#resolve(targets)
        await this.#engine.load(device.minor, [...table.sent], readOnly)
      } catch (err) {
        this.#drop(table)
        throw err
      }
      const before = device.inactive
      device.inactive = table
      if (before !== null) this.#drop(before)
    })
  }

  clear(device: Device): Promise<void> {
    return this.#change(device, async () => {
      const { inactive } = device
      if (inactive === null) return
      await this.#engine.clear(device.minor)
      device.inactive = null
      this.#drop(inactive)
    })
  }

  suspend(device: Device, flags: Flags): Promise<void> {
    return this.#change(device, async () => {
      if (!device.suspended) await this.#suspend(device, flags)
    })
  }

  async #suspend(device: Device, flags: Flags): Promise<void> {
    if ((flags & DM_FLAG.SKIP_LOCKFS) === 0 && device.live !== null) {
      // If this service is killed now, the next one has to know that the device may be frozen.
      device.freezing = true
      this.onChange(device)
      device.thaw = await this.#machine.freeze(device)
      device.freezing = device.thaw !== null
      if (device.thaw === null) await this.#machine.loops.sync(device.minor)
    }
    try {
      await this.#engine.suspend(device.minor, (flags & DM_FLAG.NOFLUSH) === 0)
    } catch (err) {
      await this.#thaw(device)
      throw err
    }
    device.suspended = true
  }

  /**
   * Puts the table that was loaded in its place, and lets requests go on. When the table does not
   * fit what is below it, it is dropped, and the device stays suspended; a pool keeps it.
   */
  resume(device: Device, flags: Flags, udevFlags: number): Promise<void> {
    return this.#change(device, async () => {
      if (device.inactive !== null) {
        if (!device.suspended) await this.#suspend(device, flags)
        await this.#swap(device, device.inactive)
      } else if (device.suspended) {
        if (device.live === null) throw refused('EINVAL', `${device.name}: no table to resume`)
        await this.#refresh(device, device.live)
        await this.#engine.resume(device.minor)
        device.suspended = false
      }
      await this.removals.keepLoops()
      await this.#thaw(device)
      this.#machine.linkUp(device, udevFlags)
    })
  }

  async #swap(device: Device, next: Table): Promise<void> {
    const before = device.live
    let isInPlace = false
    try {
      await mustFit(next.targets, next.readOnly, this.#lower)
      await this.#refresh(device, next)
      // The kernel asks a pool whether its table fits when that is in place.
      isInPlace = next.targets[0]?.type === 'thin-pool'
      await this.#engine.resume(device.minor)
    } catch (err) {
      device.inactive = null
      if (isInPlace) {
        device.live = next
        if (before !== null) this.#drop(before)
      } else {
        await this.#engine.clear(device.minor).catch(() => {})
        this.#drop(next)
      }
      throw err
    }
    device.live = next
    device.inactive = null
    device.suspended = false
    await this.#machine.loops.update(device.minor, next.readOnly)
    if (before !== null) this.#drop(before)
  }

  /** Gives a pool to the engine again when the devices below it are elsewhere by now. */
  async #refresh(device: Device, table: Table): Promise<void> {
    if (table.targets[0]?.type !== 'thin-pool') return
    const sent = await this.#resolve(table.targets)
    if (isDeepStrictEqual(sent, table.sent)) return
    table.sent = sent
    await this.#engine.load(device.minor, [...sent], table.readOnly)
  }

  async #thaw(device: Device): Promise<void> {
    const { thaw } = device
    device.thaw = null
    await thaw?.()
    device.freezing = false
  }

  rename(device: Device, name: string, udevFlags: number): void {
    mustBeName(name)
    if (this.table.byName(name) !== undefined) throw refused('EBUSY', `${name}: the name is in use`)
    this.#machine.linkDown(device)
    this.table.rename(device, name)
    this.#machine.linkUp(device, udevFlags)
    device.event()
    this.onChange(device)
  }

  setUuid(device: Device, uuid: string): void {
    if (device.uuid !== '') throw refused('EINVAL', `${device.name} has a uuid`)
    if (this.table.byUuid(uuid) !== undefined) throw refused('EBUSY', `${uuid} is in use`)
    this.table.setUuid(device, uuid)
    device.event()
    this.onChange(device)
  }

  /** @returns the target's answer, if it gives one */
  async message(device: Device, sector: number, words: string[]): Promise<string | null> {
    const target = device.live?.targets.find(
      ({ start, length }) => sector >= start && sector < start + length,
    )
    if (target === undefined) throw refused('EINVAL', 'Target message sector outside device.')
    if (target.type !== 'thin-pool')
      throw refused('EINVAL', 'Target type does not support messages')
    return await this.#engine.message(device.minor, sector, words)
  }

  /** Status of each target of a table, as the kernel prints it. */
  async statusLines(device: Device, table: Table, flush: boolean): Promise<string[]> {
    const plain = table.targets.map(plainStatusOf)
    // The engine knows the status of tables that serve, and of no others.
    const asked = plain.includes(null) && table === device.live
    const lines = asked ? await this.#engine.status(device.minor, flush) : []
    return plain.map((line, i) => line ?? lines[i] ?? '')
  }

  /** @param isNeeded whether who asks wants to know: to look for openers takes time */
  async openCount(device: Device, isNeeded = true): Promise<number> {
    const holders = this.table.holdersOf(device.number)
    return isNeeded ? holders + (await this.#machine.openCount(device)) : holders
  }

  /**
   * Tells an engine that follows one that has died all that the other knew.
   * @param engine that one itself, of which nothing else is asked as yet
   */
  async replay(engine: TableEngine): Promise<void> {
    const done = new Set<Device>()
    const bring = async (device: Device): Promise<void> => {
      if (done.has(device)) return
      done.add(device)
      for (const table of [device.live, device.inactive]) {
        for (const below of dependenciesOf(table)) {
          const lower = this.table.at(below)
          if (lower !== undefined) await bring(lower)
        }
      }
      const { minor, live, inactive } = device
      await engine.create(minor)
      if (live !== null) {
        await this.#loadAgain(engine, device, live, () => engine.resume(minor))
      }
      if (inactive !== null) await this.#loadAgain(engine, device, inactive)
    }
    const all = this.table.all().filter(device => device.ready)
    for (const device of all) await bring(device)
    for (const { suspended, minor } of all) if (suspended) await engine.suspend(minor, false)
  }

  /**
   * Gives a new engine a table. One that it cannot serve, because a disk below is gone or a pool is
   * damaged, must not keep all other devices from being served: its requests are errors, until
   * another table is loaded.
   */
  async #loadAgain(
    engine: TableEngine,
    device: Device,
    { sent, readOnly, targets }: Table,
    then: () => Promise<unknown> = async () => {},
  ): Promise<void> {
    const { minor } = device
    try {
      await engine.load(minor, [...sent], readOnly)
      await then()
    } catch (err) {
      // The engine has died.
      if (err instanceof ThinfsError && err.code === 'DAEMON_FAILED') throw err
      this.onUnserved(device, err)
      const length = sizeOfTable({ targets, readOnly, sent })
      await engine.load(minor, [{ type: 'error', start: 0, length }], readOnly)
      await then()
    }
  }

  /** Puts a device of an earlier service in its place, before the engine is told. */
  async restore(device: Device): Promise<void> {
    this.table.add(device)
    for (const table of [device.live, device.inactive]) if (table !== null) await this.#hold(table)
  }

  /** Goes on where the earlier service has stopped, when the engine serves. */
  async restored(device: Device): Promise<void> {
    if (device.freezing) {
      device.thaw = async () => await this.#machine.thaw(device)
      if (!device.suspended) await this.#thaw(device)
    }
    if (device.deferredRemove) await this.removals.removeLater(device)
    if (!device.gone) await this.#machine.loops.ensure(device.minor)
  }

  /** @throws ENXIO when it went before its turn came */
  #change<T>(device: Device, act: () => Promise<T>): Promise<T> {
    return device.exclusively(async () => {
      if (device.gone) throw refused('ENXIO', `${device.name} is gone`)
      try {
        return await act()
      } finally {
        this.onChange(device)
      }
    })
  }

  async #hold(table: Table): Promise<void> {
    const claimed: DeviceNumber[] = []
    try {
      for (const device of dependenciesOf(table)) {
        if (this.table.at(device) !== undefined) continue
        await this.#machine.claim(device)
        claimed.push(device)
      }
    } catch (err) {
      for (const device of claimed) this.#machine.unclaim(device)
      throw err
    }
    this.table.hold(table)
  }

  /** A table is no more. */
  #drop(table: Table): void {
    void this.#dropped(table)
  }

  /** As `#drop`; resolves when the devices are removed that had waited for it. */
  async #dropped(table: Table): Promise<void> {
    const free = this.table.release(table)
    for (const device of dependenciesOf(table)) {
      if (this.table.at(device) === undefined) this.#machine.unclaim(device)
    }
    await Promise.all(
      free.map(async number => {
        const device = this.table.at(number)
        if (device?.deferredRemove) await this.removals.removeLater(device)
      }),
    )
  }

  #resolve(targets: readonly LineTarget[]): Promise<Target[]> {
    return Promise.all(targets.map(target => resolveTarget(target, this.#lower)))
  }
}

function mustBeName(name: string): void {
  if (name.includes('/')) throw refused('EINVAL', `${name}: a name cannot contain '/'`)
  if (['control', '.', '..', ''].includes(name)) throw refused('EINVAL', `"${name}": no name`)
}
