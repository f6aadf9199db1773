/**
 * Removing devices: device-mapper refuses it while somebody has the device, or leaves it to the
 * last close. The loop device that stands before each decides who that is.
 *
 * Source: drivers/md/dm-ioctl.c, drivers/md/dm.c, drivers/block/loop.c.
 */
import { setTimeout } from 'node:timers/promises'
import { errnoOf, refused } from '../base/index.js'
import { type Device, type DeviceTable, dependenciesOf, type Table } from './device-table.js'
import type { Detached } from './loops.js'
import type { Machine } from './machine.js'

/**
 * How often a removal looks again whether udevd has closed the device, and the milliseconds
 * between.
 */
const PROBE_TRIES = 40
const PROBE_MS = 25

export interface RemovalsParts {
  table: DeviceTable
  machine: Machine
  /**
   * Runs a change of a device after those before it.
   * @throws ENXIO when the device went meanwhile
   */
  change<T>(device: Device, act: () => Promise<T>): Promise<T>
  /** Ends the freeze of a file system on the device, if there is one. */
  thaw(device: Device): Promise<void>
  /** The engine ends a device. */
  end(device: Device): Promise<void>
  /** A table is no more: resolves when the devices are removed that had waited for it. */
  dropped(table: Table): Promise<void>
  /** The device is gone. */
  gone(device: Device): void
}

export class Removals {
  readonly #parts: RemovalsParts

  constructor(parts: RemovalsParts) {
    this.#parts = parts
  }

  /**
   * @param deferred with its last close, when somebody has it
   * @returns whether it is gone
   * @throws EBUSY
   */
  remove(device: Device, deferred: boolean): Promise<boolean> {
    return this.#parts.change(device, async () => {
      if (deferred) device.deferredRemove = true
      if (await this.#try(device, deferred)) return true
      if (!deferred) throw refused('EBUSY', `${device.name} is in use`)
      return false
    })
  }

  /** Removes all devices that are not in use, those on top first. */
  async removeAll(deferred: boolean): Promise<void> {
    // A device below others can go once those have gone.
    for (let removed = true; removed; ) {
      const waiting = this.#parts.table.all().filter(({ deferredRemove }) => !deferredRemove)
      const gone = await Promise.all(
        waiting.map(device =>
          this.remove(device, deferred).catch(err => {
            if (['EBUSY', 'ENXIO'].includes(errnoOf(err))) return false
            throw err
          }),
        ),
      )
      removed = gone.includes(true)
    }
  }

  async #try(device: Device, deferred: boolean): Promise<boolean> {
    const { table, machine } = this.#parts
    if (table.holdersOf(device.number) > 0) return false
    if ((await this.#detach(device, deferred)) === 'in use') return false
    if (table.holdersOf(device.number) > 0) {
      await machine.loops.attach(device.minor)
      return false
    }
    await this.#finish(device)
    return true
  }

  /** Waits for udevd, which looks at what was on a device whenever somebody has written to it. */
  async #detach(device: Device, deferred: boolean): Promise<Detached> {
    for (let left = PROBE_TRIES; ; left--) {
      const found = await this.#tryDetach(device, deferred)
      if (found === 'gone' || deferred || left === 0) return found
      if (await this.#parts.machine.isHeld(device)) return found
      await setTimeout(PROBE_MS)
    }
  }

  async #tryDetach(device: Device, deferred: boolean): Promise<Detached> {
    const { loops } = this.#parts.machine
    if (deferred) return await loops.detach(device.minor, true)
    if (await this.#mayWait(device)) return 'in use'
    if (!this.#isShut(device)) return await loops.detach(device.minor, false)
    // A program that opens it now may have a request waiting before the mark is taken back.
    const found = await loops.detach(device.minor, true)
    device.loopGoes = found === 'in use'
    return found
  }

  /**
   * Takes the mark of a removal back where requests did not end, or makes the loop device again.
   */
  async keepLoops(): Promise<void> {
    const { table, machine } = this.#parts
    for (const device of table.all()) {
      if (!device.loopGoes || device.gone || this.#isShut(device)) continue
      device.loopGoes = false
      if (device.deferredRemove) continue
      await machine.loops.keep(device.minor).catch(() => {})
      if (!device.gone) await machine.loops.ensure(device.minor)
    }
  }

  /**
   * Whether somebody's requests may be waiting. The kernel takes back the mark of a removal only
   * when they have ended, which may need a resume that would wait for this removal; and until then
   * everybody who looks at loop devices waits.
   */
  async #mayWait(device: Device): Promise<boolean> {
    const { machine } = this.#parts
    if (machine.hasRequests(device)) return true
    return this.#isShut(device) && (await machine.isHeld(device))
  }

  /** Whether the device or one below it is suspended. */
  #isShut(device: Device): boolean {
    if (device.suspended) return true
    return dependenciesOf(device.live).some(below => {
      const lower = this.#parts.table.at(below)
      return lower !== undefined && this.#isShut(lower)
    })
  }

  async #finish(device: Device): Promise<void> {
    const { table, machine, thaw, end, gone, dropped } = this.#parts
    device.gone = true
    await thaw(device).catch(() => {})
    const tables = [device.live, device.inactive].filter(table => table !== null)
    device.live = null
    device.inactive = null
    await end(device)
    table.delete(device)
    machine.linkDown(device)
    device.event()
    gone(device)
    await Promise.all(tables.map(table => dropped(table)))
  }

  /** The last descriptor of the device's file was closed: its loop device is gone. */
  closed(minor: number): void {
    const device = this.#parts.table.get(minor)
    if (device?.deferredRemove) void this.removeLater(device)
    else if (device?.loopGoes) void this.#attachAgain(device)
  }

  /**
   * Removes a device that waits for that, if nobody has it. Never fails: whoever has it keeps it.
   */
  async removeLater(device: Device): Promise<void> {
    const done = this.#parts.change(device, async () => {
      if (device.deferredRemove) await this.#try(device, true)
    })
    await done.catch(() => {})
  }

  /** Never fails: the next resumption tries again. */
  async #attachAgain(device: Device): Promise<void> {
    const done = this.#parts.change(device, async () => {
      if (device.loopGoes && !device.deferredRemove) {
        await this.#parts.machine.loops.ensure(device.minor)
        device.loopGoes = false
      }
    })
    await done.catch(() => {})
  }

  /** Takes a deferred removal back. @throws EBUSY when it is going already */
  keep(device: Device): Promise<void> {
    const { table, machine, change } = this.#parts
    return change(device, async () => {
      if (!device.deferredRemove) return
      if (table.holdersOf(device.number) === 0) {
        // The kernel would wait for requests that may wait themselves: see #mayWait.
        if (this.#isShut(device) || machine.hasRequests(device)) device.loopGoes = true
        else await machine.loops.keep(device.minor)
      }
      device.deferredRemove = false
    })
  }
}
